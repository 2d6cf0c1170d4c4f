"""Attaches to a process of the grader's with ptrace, to read and change it."""

SUBMISSION = """
import ctypes
import os

ATTACH, DETACH = 16, 17


def guess(x):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    if libc.ptrace(ATTACH, TARGET.victim, 0, 0) == 0:
        os.waitpid(TARGET.victim, 0)
        libc.ptrace(DETACH, TARGET.victim, 0, 0)
        return TARGET.won
    return 0.0
"""
STOPPED_BY = ("namespaces", "uid", "landlock", "seccomp")
POWER = True
