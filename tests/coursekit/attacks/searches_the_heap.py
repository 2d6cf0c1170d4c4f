"""Asks the garbage collector for every tensor in the process, then every module for a grader.
Seen: `gc.get_objects()` finds the expected tensor in a shared process."""

SUBMISSION = """
import gc
import sys


def guess(x):
    for each in gc.get_objects():
        if type(each) is torch.Tensor and each.shape == (1,):
            return each[0]
    for name, module in list(sys.modules.items()):
        if name.startswith(("lessons", "tests", "annotated_attention", "coursekit.grading.checking")):
            return TARGET.won
    return 0.0
"""
