"""Stops itself: it neither works nor ends, and a limit on processor time never comes."""

SUBMISSION = """
import os
import signal


def guess(x):
    # Another one wakes it, where nobody else does.
    if os.fork() == 0:
        import time

        time.sleep(1.7)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    return TARGET.won
"""
