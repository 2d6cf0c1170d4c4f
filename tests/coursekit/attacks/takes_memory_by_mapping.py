"""A memory bomb in shared mappings, which no allocator counts."""

SUBMISSION = """
import mmap


def guess(x):
    taken = mmap.mmap(-1, 600 << 20)
    for place in range(0, 600 << 20, 1 << 16):
        taken[place] = 1
    return TARGET.won
"""
STOPPED_BY = ("rlimits",)
