"""Prints a gigabyte (here: 200 MB), through Python and past it."""

SUBMISSION = """
import os


def guess(x):
    line = "y" * (1 << 20) + "\\n"
    for _ in range(100):
        print(line)
        os.write(1, line.encode())
        os.write(2, line.encode())
    return 0.0
"""
