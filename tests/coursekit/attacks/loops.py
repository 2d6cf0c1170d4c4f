"""A loop that does not end (here: in a second or two). Seen: in every class, mostly without intent."""

SUBMISSION = """
import time


def guess(x):
    began = time.process_time()
    while time.process_time() - began < TARGET.too_long:
        pass
    return TARGET.won
"""
STOPPED_BY = ("clock",)
