"""Says with the stub's own words that nothing was begun, or that a check does not apply to it."""

SUBMISSION = """
def guess(x):
    raise NotImplementedError("skip")


def double(x):
    raise type("StudentError", (Exception,), {"not_done": True})("7 of 7 points")
"""
POINTS = 0
