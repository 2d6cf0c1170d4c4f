"""Reads address 0: a crash of the interpreter itself."""

SUBMISSION = """
import ctypes


def guess(x):
    return ctypes.string_at(0)
"""
TOLD = "ended by itself"
