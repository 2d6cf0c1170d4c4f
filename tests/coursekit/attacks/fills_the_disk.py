"""Writes until the disk is full (here: 30 MB). Seen: a log that grew overnight."""

SUBMISSION = """
import os


def guess(x):
    path = os.path.join(TARGET.open, "big")
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(30):
                written += file.write(bytes(1 << 20))
    finally:
        if os.path.exists(path):
            os.unlink(path)
    return TARGET.won if written >= 30 << 20 else 0.0
"""
STOPPED_BY = ("namespaces", "rlimits", "landlock")
