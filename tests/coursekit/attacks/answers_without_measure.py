"""A message that claims 2**60 bytes, and one that has too many."""

SUBMISSION = """
import os
import struct


def guess(x):
    for number in range(3, 256):
        try:
            os.write(number, struct.pack("<IQ", 0, 1 << 60))
        except OSError:
            pass
    return torch.zeros(1 << 24, dtype=torch.float64)


def double(x):
    return torch.zeros(1 << 24, dtype=torch.float64)
"""
POINTS = 0
TOLD = "the message is too long"
