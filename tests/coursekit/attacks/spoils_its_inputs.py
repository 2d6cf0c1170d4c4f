"""Zeroes its input in place, so that an expected value computed afterwards is zero too.
Seen: works where the reference is evaluated lazily on the same tensor."""

SUBMISSION = """
def double(x):
    x.data.zero_()
    x.untyped_storage().resize_(0)
    return torch.zeros(x.shape)


def guess(x):
    x.resize_(1_000_000)
    return 0.0
"""
POINTS = 0
