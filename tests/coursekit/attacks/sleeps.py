"""Sleeps, with the clocks of its own process patched: waiting uses no processor time."""

SUBMISSION = """
import threading
import time

wait = time.sleep
time.sleep = lambda seconds: None
time.monotonic = time.perf_counter = time.time = time.process_time = lambda: 0.0


def guess(x):
    wait(TARGET.too_long)
    return TARGET.won
"""
STOPPED_BY = ("clock",)
