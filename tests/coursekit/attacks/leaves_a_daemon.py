"""Forks twice and leaves its session: nobody's child, it goes on when the grade is written."""

SUBMISSION = """
import os
import time


def guess(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(6)
        os._exit(0)
    return 0.0
"""
STOPPED_BY = ("namespaces", "seccomp")
