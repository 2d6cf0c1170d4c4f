"""The same by `process_vm_readv`, which needs no file but an address."""

SUBMISSION = """
import ctypes
import re


class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def guess(x):
    libc, found = ctypes.CDLL(None, use_errno=True), []
    pattern = re.compile(TARGET.prefix.encode() + rb"[0-9a-f]{16}")
    for line in open(f"/proc/{TARGET.victim}/maps"):
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if " rw" in line and end - start < 16 << 20:
            buffer = ctypes.create_string_buffer(end - start)
            here = Piece(ctypes.cast(buffer, ctypes.c_void_p), end - start)
            there = Piece(start, end - start)
            libc.process_vm_readv(TARGET.victim, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
            found += pattern.findall(buffer.raw)
    return b" ".join(found).decode()
"""
STOPPED_BY = ("namespaces", "uid", "landlock", "seccomp")
POWER = True
