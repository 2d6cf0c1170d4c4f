"""An ndarray subclass whose operators and conversions (`__array_ufunc__`, `__array__`) agree with everything."""

SUBMISSION = """
import numpy as np


class Agreeable(np.ndarray):
    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return np.True_

    def __array__(self, dtype=None, copy=None):
        return np.zeros(())

    def __eq__(self, other):
        return True

    __lt__ = __le__ = __eq__


def guess(x):
    return np.zeros(()).view(Agreeable)
"""
