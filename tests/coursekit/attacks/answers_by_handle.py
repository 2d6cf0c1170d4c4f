"""Answers a question for an object with something else, and asks for attributes of the machinery."""

SUBMISSION = """
import json
import os
import struct


def guess(x):
    kinds = ({"reference": 10**30}, {"leaf": ["int64", [1], [0]]}, {"tensor": ["float64", [1], [0]]})
    for number in range(3, 256):
        for kind in kinds:
            header = json.dumps({"dict": [["value", kind], ["printed", {"tuple": ["", 10**4000]}]]}).encode()
            try:
                os.write(number, struct.pack("<IQ", len(header), 8) + header + bytes(8))
            except OSError:
                pass
    return 0.0
"""
TOLD = "malformed message"
