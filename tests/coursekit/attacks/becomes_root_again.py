"""Changes its user back, and asks for the capabilities that it had."""

SUBMISSION = """
import os


def guess(x):
    # Root can become another user and come back; nobody else can.
    os.setresuid(1, 1, 0)
    os.setresuid(0, 0, 0)
    return TARGET.won
"""
STOPPED_BY = ("uid", "seccomp")
POWER = True
