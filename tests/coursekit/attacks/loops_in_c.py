"""Work that Python cannot interrupt: a regular expression that backtracks, a whole number with millions of digits."""

SUBMISSION = """
import re


def guess(x):
    re.match(r"(a+)+$", "a" * 22 + "b")
    str((3**8_000_000).bit_length())
    return TARGET.won
"""
STOPPED_BY = ("clock",)
