"""Ends, but leaves a child that keeps the pipe of the answers open: who waits for its end waits for ever."""

SUBMISSION = """
import os
import time


def guess(x):
    if os.fork() == 0:
        time.sleep(6)
        os._exit(0)
    os._exit(0)
"""
