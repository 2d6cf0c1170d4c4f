"""Stops itself: it neither works nor ends, and a limit on processor time never comes."""

SUBMISSION = """
import os
import signal
import time


def guess(x):
    began = time.monotonic()
    os.kill(os.getpid(), signal.SIGSTOP)
    # The ground wakes it, where nobody else ends it.
    return TARGET.won if time.monotonic() - began > TARGET.too_long / 2 else 0.0
"""
STOPPED_BY = ("clock", "namespaces", "seccomp")
