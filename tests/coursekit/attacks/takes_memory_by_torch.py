"""A memory bomb in a tensor, and a tensor that claims more than there is."""

SUBMISSION = """
def guess(x):
    torch.ones(600 << 20, dtype=torch.uint8)
    return TARGET.won
"""
