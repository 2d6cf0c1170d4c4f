"""Subclasses of float, int and str that are equal to whatever they are compared with."""

SUBMISSION = """
class Equal(float):
    def __eq__(self, other):
        return True

    __le__ = __lt__ = __ge__ = __gt__ = __eq__

    def __sub__(self, other):
        return 0.0

    __rsub__ = __sub__

    def __float__(self):
        return Equal(0.0)

    def __hash__(self):
        return 0


class Text(str):
    __eq__ = lambda self, other: True
    __hash__ = str.__hash__
    __str__ = lambda self: self


CALLS = []


def guess(x):
    CALLS.append(x)
    return Equal(1.0) if len(CALLS) % 2 else Text("anything")
"""
