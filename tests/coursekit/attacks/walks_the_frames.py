"""Climbs the stack and looks into every local variable for the expected value.
Seen: works wherever the check and the student's code share a process."""

SUBMISSION = """
import sys


def guess(x):
    frame = sys._getframe()
    while frame is not None:
        for name, value in {**frame.f_globals, **frame.f_locals}.items():
            if name in ("secret", "expected") or (torch.is_tensor(value) and value.shape == (1,)):
                return value[0]
        frame = frame.f_back
    return 0.0
"""
