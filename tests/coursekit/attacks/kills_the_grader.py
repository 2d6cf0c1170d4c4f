"""Kills and stops processes of the grader's."""

SUBMISSION = """
import os
import signal


def guess(x):
    try:
        os.kill(TARGET.victim, signal.SIGSTOP)
    except OSError:
        pass
    os.kill(TARGET.victim, signal.SIGKILL)
    return TARGET.won
"""
STOPPED_BY = ("namespaces", "uid", "landlock", "seccomp")
LANDLOCK = 6
