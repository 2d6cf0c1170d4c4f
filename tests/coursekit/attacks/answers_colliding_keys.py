"""A dict whose keys all have the hash 0: to fill it takes the reader's time, not the writer's.
Seen: the denial of service by hash collision, 2011, in most languages."""

SUBMISSION = """
import json
import os
import struct


def guess(x):
    pairs = [[number * (2**61 - 1), 0] for number in range(20_000)]
    header = json.dumps({"dict": [["value", {"dict": pairs}], ["printed", {"tuple": ["", 0]}]]}).encode()
    for number in range(3, 256):
        try:
            os.write(number, struct.pack("<IQ", len(header), 0) + header)
        except OSError:
            pass
    os._exit(0)
"""
TOLD = "dict's keys must lie within"
