"""A dict whose keys all have the hash 0: to fill it takes the reader's time, not the writer's.
Seen: the denial of service by hash collision, 2011, in most languages."""

SUBMISSION = """
import sys


def guess(x):
    return {number * sys.hash_info.modulus: 0 for number in range(1500)}
"""


def succeeded(scene):
    """Whether the grader took the dict in."""
    return "dict" in scene.told
