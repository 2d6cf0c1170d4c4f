"""Kills the process that it was forked from, which serves all the other submissions."""

SUBMISSION = """
import os
import signal


def guess(x):
    parent = os.getppid()
    # The grader itself is spared, and so is whoever asks for a number that means "all".
    if parent in (0, 1, TARGET.grader):
        return 0.0
    os.kill(parent, signal.SIGKILL)
    return TARGET.won
"""
STOPPED_BY = ("namespaces", "uid", "landlock", "seccomp")
LANDLOCK = 6
