"""A deadlock: a lock that is held by nobody who will let it go."""

SUBMISSION = """
import threading

LOCK = threading.Lock()
LOCK.acquire()


def guess(x):
    LOCK.acquire(timeout=1.1)
    return TARGET.won
"""
STOPPED_BY = ("clock",)
