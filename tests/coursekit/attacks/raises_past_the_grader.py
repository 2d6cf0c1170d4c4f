"""Exceptions that are none of `Exception`: KeyboardInterrupt, GeneratorExit, one that pytest skips for."""

SUBMISSION = '''
import sys


class Skipped(BaseException):
    """Its name is that of pytest's own."""


Skipped.__module__ = "_pytest.outcomes"
CALLS = []


def guess(x):
    raise Skipped("skipped: nothing to see here")


def double(x):
    CALLS.append(x)
    raise (KeyboardInterrupt if x.ndim == 1 else GeneratorExit)("passed")
'''
POINTS = 0
