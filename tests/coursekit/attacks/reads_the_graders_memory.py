"""Reads another process's memory through `/proc/PID/mem`, where expected values would be."""

from tests.coursekit.attacks.ground.memory import SEARCH

SUBMISSION = f"""{SEARCH}

def guess(x):
    return secrets_of(TARGET.victim)
"""
STOPPED_BY = ("namespaces", "uid", "landlock")
POWER = True
