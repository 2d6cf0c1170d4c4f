"""Reads a file that only the grader's user may read: the batch's secret, a key."""

SUBMISSION = """
def guess(x):
    return open(TARGET.private).read()
"""
STOPPED_BY = ("uid", "landlock")
