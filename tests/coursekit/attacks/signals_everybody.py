"""`kill(-1)`: a signal to every process that it may reach. The signal is 0, which only asks whether it could."""

SUBMISSION = """
import os


def guess(x):
    os.kill(-1, 0)
    os.kill(TARGET.victim, 0)
    return TARGET.won
"""
STOPPED_BY = ("namespaces", "uid", "landlock", "seccomp")
LANDLOCK = 6
