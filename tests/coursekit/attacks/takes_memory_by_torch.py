"""A memory bomb in a tensor, and a tensor that claims more than there is."""

SUBMISSION = """
def guess(x):
    taken = torch.empty(600 << 20, dtype=torch.uint8)
    return TARGET.won if len(taken) else 0.0
"""
STOPPED_BY = ("rlimits",)
