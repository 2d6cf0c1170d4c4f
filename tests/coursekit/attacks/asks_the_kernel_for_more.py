"""Asks for doors that open others: io_uring, which goes around filters of calls, and files without a name."""

SUBMISSION = """
import ctypes
import os

IO_URING_SETUP = 425


def guess(x):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(IO_URING_SETUP, 4, ctypes.create_string_buffer(200)) >= 0:
        return TARGET.won
    os.memfd_create("program")
    return TARGET.won
"""
STOPPED_BY = ("seccomp",)
