"""Lists the folder of results and reads what others got."""

SUBMISSION = """
import os


def guess(x):
    names = sorted(os.listdir(TARGET.results))
    return " ".join(open(os.path.join(TARGET.results, name)).read() for name in names)
"""
STOPPED_BY = ("landlock",)
