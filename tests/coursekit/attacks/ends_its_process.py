"""Ends with success (`os._exit(0)`) before it was found wrong. Seen: exit code 0 taken for a pass."""

SUBMISSION = """
import os


def guess(x):
    os._exit(0)
"""
TOLD = "ended by itself"
