"""Recursion through C without a limit, until the stack ends."""

SUBMISSION = """
import sys


class Deep:
    def __repr__(self):
        return repr(self)


def guess(x):
    sys.setrecursionlimit(1 << 30)
    return repr(Deep())
"""
