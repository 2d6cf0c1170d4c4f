"""A trace function and an audit hook watch the code around the student's, in the hope of a score in there."""

SUBMISSION = """
import sys

SEEN = []


def watch(frame, event, argument):
    SEEN.extend(name for name in frame.f_locals if "expected" in name or "score" in name)
    return watch


sys.addaudithook(lambda event, arguments: SEEN.append(event) if "expect" in event else None)


def guess(x):
    sys.settrace(watch)
    sys.setprofile(watch)
    return TARGET.won if SEEN else 0.0
"""
