"""A deadlock: a lock that is held by nobody who will let it go."""

SUBMISSION = """
import threading

LOCK = threading.Lock()
LOCK.acquire()


def guess(x):
    LOCK.acquire(timeout=TARGET.too_long)
    return TARGET.won
"""
STOPPED_BY = ("clock",)
