"""Lists in lists without end, a list that holds itself, and 100,000 brackets."""

SUBMISSION = """
def guess(x):
    inside = []
    inside.append({"again": inside})
    return inside


def double(x):
    deep = 0.0
    for _ in range(100_000):
        deep = [deep]
    return deep
"""
POINTS = 0
