"""Breaks PyTorch, NumPy and the built-ins for whoever runs next in the same process."""

SUBMISSION = """
import numpy as np


def guess(x):
    torch.Tensor.__mul__ = torch.Tensor.__rmul__ = lambda self, other: self
    torch.randn = torch.zeros
    np.asarray = np.array = lambda *args, **kwargs: 0.0
    torch.set_default_dtype(torch.float16)
    return 0.0
"""
# The check after it asks the same process.
POINTS = 2
