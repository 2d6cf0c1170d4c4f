"""Kills the submission that is graded at the same time, by the same user."""

SUBMISSION = """
import os
import signal


def guess(x):
    os.kill(TARGET.neighbour, signal.SIGKILL)
    return TARGET.won
"""
STOPPED_BY = ("namespaces", "landlock", "seccomp")
LANDLOCK = 6
