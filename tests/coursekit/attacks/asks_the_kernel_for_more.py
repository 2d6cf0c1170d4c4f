"""Asks for doors that open others: io_uring, which goes around filters of calls, BPF, user fault handling."""

SUBMISSION = """
import ctypes

IO_URING_SETUP, BPF, USERFAULTFD, MEMFD_CREATE = 425, 321, 323, 319


def guess(x):
    libc = ctypes.CDLL(None, use_errno=True)
    found = (
        libc.syscall(IO_URING_SETUP, 4, ctypes.create_string_buffer(200)),
        libc.syscall(USERFAULTFD, 0),
        libc.syscall(MEMFD_CREATE, b"program", 0),
    )
    return TARGET.won if max(found) >= 0 else 0.0
"""
