"""Takes open files out of another process: `pidfd_getfd`, and `/proc/PID/fd`."""

SUBMISSION = """
import ctypes
import os

PIDFD_OPEN, PIDFD_GETFD = 434, 438


def guess(x):
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(PIDFD_OPEN, TARGET.victim, 0)
    if handle >= 0 and libc.syscall(PIDFD_GETFD, handle, 1, 0) >= 0:
        return TARGET.won
    if os.listdir(f"/proc/{TARGET.victim}/fd"):
        return TARGET.won
    return 0.0
"""
STOPPED_BY = ("namespaces", "uid", "landlock")
POWER = True
