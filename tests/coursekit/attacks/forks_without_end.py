"""A fork bomb (here: 80 children that sleep a second). Seen: `os.fork` in a loop, by accident and on purpose."""

SUBMISSION = """
import os
import time


def guess(x):
    for _ in range(80):
        if os.fork() == 0:
            time.sleep(1.5)
            os._exit(0)
    return TARGET.won
"""
STOPPED_BY = ("seccomp",)
