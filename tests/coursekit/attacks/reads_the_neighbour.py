"""Reads the memory of a submission that is graded at the same time, by the same user."""

from tests.coursekit.attacks.ground.memory import SEARCH

SUBMISSION = f"""{SEARCH}

def guess(x):
    return secrets_of(TARGET.neighbour)
"""
STOPPED_BY = ("namespaces", "uid", "landlock")
POWER = True
