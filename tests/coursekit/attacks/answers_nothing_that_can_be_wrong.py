"""Answers that a careless comparison takes for right: NaN, nothing at all, a shape that broadcasts, 10**400."""

SUBMISSION = """
CALLS = []


def guess(x):
    CALLS.append(x)
    return torch.full((), torch.nan)


def double(x):
    return torch.empty(0, 3)
"""
POINTS = 0
