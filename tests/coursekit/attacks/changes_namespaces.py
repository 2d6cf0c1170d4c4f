"""Makes namespaces of its own, in which it would be root again, mounts, and enters those of process 1."""

SUBMISSION = """
import ctypes
import os

NEWUSER, NEWNS, NEWNET = 0x10000000, 0x00020000, 0x40000000


def guess(x):
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (NEWUSER | NEWNS, NEWNET):
        if libc.unshare(flags) == 0:
            return TARGET.won
    if libc.mount(b"none", TARGET.open.encode(), b"tmpfs", 0, None) == 0:
        libc.umount2(TARGET.open.encode(), 2)
        return TARGET.won
    if libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0) == 0:
        return TARGET.won
    return 0.0
"""
STOPPED_BY = ("seccomp",)
POWER = True
