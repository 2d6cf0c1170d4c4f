"""Half a message, then silence: whoever waits for the rest waits for ever."""

SUBMISSION = """
import os
import struct
import time


def guess(x):
    for number in range(3, 256):
        try:
            os.write(number, struct.pack("<IQ", 100, 0) + b'{"dict": [["value", ')
        except OSError:
            pass
    time.sleep(TARGET.too_long)
    os._exit(0)
"""
# It is killed, or ends by itself: nothing to win for it, but the time of the others.
TOLD = "longer than"
STOPPED_BY = ("clock",)


def succeeded(scene):
    """Whether it was waited for until it ended by itself."""
    return "ended by itself" in scene.told
