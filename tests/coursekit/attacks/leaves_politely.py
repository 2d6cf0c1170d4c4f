"""`sys.exit(0)`, exit handlers, `__del__` and signal handlers that would run after the checks."""

SUBMISSION = """
import atexit
import os
import signal
import sys


def late(*args):
    open(os.path.join(TARGET.results, "late"), "w").write("written at the end")


class Last:
    __del__ = late


LAST = Last()
atexit.register(late)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXCPU):
    signal.signal(number, late)


def guess(x):
    sys.exit(0)
"""
TOLD = "ends the program"
