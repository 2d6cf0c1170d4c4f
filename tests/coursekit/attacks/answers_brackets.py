"""A message of a million opening brackets: a reader that recurses falls."""

SUBMISSION = """
import os
import struct


def guess(x):
    header = b"[" * 1_000_000
    for number in range(3, 256):
        try:
            os.write(number, struct.pack("<IQ", len(header), 0) + header)
        except OSError:
            pass
    os._exit(0)
"""
TOLD = "the answer cannot be read"
