"""100,000 warnings, each of them new, with their own way of being shown."""

SUBMISSION = """
import warnings


def guess(x):
    warnings.simplefilter("always")
    warnings.showwarning = lambda *args: print(args)
    for number in range(3000):
        warnings.warn(f"{number} \\x1b[2J" + "w" * 100)
    return 0.0
"""
