"""Leaves a segment of System V shared memory, which outlives every process."""

SUBMISSION = """
import ctypes


def guess(x):
    ctypes.CDLL(None, use_errno=True).shmget(0x600D, 4096, 0o1666)
    return 0.0
"""
STOPPED_BY = ("namespaces", "seccomp")


def succeeded(scene):
    """Whether the segment is there; it is taken away."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0x600D, 4096, 0o666)
    if segment >= 0:
        libc.shmctl(segment, 0, None)
    return segment >= 0
