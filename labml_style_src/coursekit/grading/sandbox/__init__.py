"""Where a submission runs when it is graded: a process of its own behind every wall that the machine has.

    sandbox = open_sandbox()            the best this machine has; `sandbox.layers` names what is active
    backend = SecondProcess(submission, host=sandbox)

`host.py` is the grader's side, `zygote.py` the process that has PyTorch loaded and forks a child a submission,
`layers.py` the walls in the order in which the child puts them up, each in a file of its own.
"""

# The walls, outermost first. Every result records which of them stood.
LAYERS = ("clock", "namespaces", "rlimits", "uid", "landlock", "seccomp")
