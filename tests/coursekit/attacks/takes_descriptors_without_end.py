"""Opens files until the system has none left (here: 500)."""

SUBMISSION = """
import os


def guess(x):
    taken = [os.dup(0) for _ in range(500)]
    return TARGET.won if len(taken) == 500 else 0.0
"""
STOPPED_BY = ("rlimits",)
