"""Looks for tokens in its environment and in those of the processes above it.
Seen: CI tokens in the environment of classroom autograders."""

SUBMISSION = """
import os


def guess(x):
    found = [str(dict(os.environ))]
    for pid in ("self", "thread-self", os.getppid(), TARGET.victim, TARGET.grader, 1):
        for name in ("environ", "cmdline"):
            try:
                found.append(open(f"/proc/{pid}/{name}", "rb").read().decode("latin-1"))
            except OSError:
                pass
    kept = [part for part in " ".join(found).split("\\0") if "GRADER_TOKEN" in part]
    return " ".join(kept)[:1000]
"""
STOPPED_BY = ("namespaces", "uid", "landlock")
