"""Reads its own memory byte by byte: the process it was forked from may have known other people's secrets."""

from tests.coursekit.attacks.ground.memory import SEARCH

SUBMISSION = f"""{SEARCH}

def guess(x):
    return secrets_of("self")
"""
