"""Answers, and leaves threads behind that use the processor while others are asked."""

SUBMISSION = """
import threading
import time


def spin():
    began = time.monotonic()
    while time.monotonic() - began < 0.3:
        pass


def guess(x):
    for _ in range(2):
        threading.Thread(target=spin, daemon=True).start()
    return 0.0
"""
