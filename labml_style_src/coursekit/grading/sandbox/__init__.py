"""Where a submission runs when it is graded: a process of its own behind every wall that the machine has.

    sandbox = open_sandbox()            the best this machine has; `sandbox.layers` names what is active
    backend = SecondProcess(submission, host=sandbox)

`host.py` is the grader's side (on Linux with `zygote_host.py`), `process.py` one submission's process seen from
there and `clock.py` its time; `zygote.py` is the process that has PyTorch loaded and forks a child a submission,
`layers.py` the walls in the order in which the child puts them up, each in a file of its own. In the child
`blocked.py` keeps the course from being imported, `trail.py` and `watch.py` note what it tries and calls.
"""

from coursekit.grading.sandbox.host import FreshHost, Host, SandboxError, open_sandbox
from coursekit.grading.sandbox.limits import LAYERS, Limits

__all__ = ["LAYERS", "FreshHost", "Host", "Limits", "SandboxError", "open_sandbox"]
