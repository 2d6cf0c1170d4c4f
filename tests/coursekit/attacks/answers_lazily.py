"""A generator and a function as an answer: whoever runs them runs the student's code where the grader is."""

SUBMISSION = """
import os


def later():
    open(os.path.join(TARGET.results, "late"), "w").write("written by the grader")
    yield 0.0


class Later:
    def __iter__(self):
        return later()

    def __array__(self, *args, **kwargs):
        list(later())

    def __repr__(self):
        list(later())
        return "later"


def guess(x):
    return {"generator": later(), "object": Later(), "function": later}
"""
