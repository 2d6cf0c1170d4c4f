"""A loop that does not end (here: in a second or two). Seen: in every class, mostly without intent."""

SUBMISSION = """
import time


def guess(x):
    began = time.process_time()
    while time.process_time() - began < 0.5:
        pass
    return TARGET.won
"""
STOPPED_BY = ("clock",)
