"""A memory bomb in Python's own memory (here: 600 MB more than there should be)."""

SUBMISSION = """
def guess(x):
    taken = [bytes(1 << 20) for _ in range(600)]
    return TARGET.won if len(taken) == 600 else 0.0
"""
STOPPED_BY = ("rlimits",)
