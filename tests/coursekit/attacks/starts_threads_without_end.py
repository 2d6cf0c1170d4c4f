"""A thread bomb (here: 300 threads that wait)."""

SUBMISSION = """
import threading
import time

STOP = threading.Event()


def guess(x):
    threading.stack_size(65536)
    threads = [threading.Thread(target=STOP.wait, args=(1.5,), daemon=True) for _ in range(300)]
    for each in threads:
        each.start()
    return TARGET.won if threading.active_count() > 300 else 0.0
"""
STOPPED_BY = ("rlimits+uid",)
