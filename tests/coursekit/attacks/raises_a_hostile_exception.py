"""An exception whose text, class and traceback lie, fail, or do not end."""

SUBMISSION = """
class Liar(type):
    @property
    def __name__(cls):
        return "\\x1b[2J" * 1000

    def mro(cls):
        return super().mro()


class Hostile(Exception, metaclass=Liar):
    def __str__(self):
        raise self

    __repr__ = __str__

    @property
    def __traceback__(self):
        return self

    @property
    def __class__(self):
        return NotImplementedError


def guess(x):
    raise Hostile("a" * 10_000_000)


def double(x):
    class Long(Exception):
        def __str__(self):
            return "\\x1b[2J" * 10_000_000

    Long.__qualname__ = Long.__name__ = "\\x1b[2J" * 1000
    raise Long
"""
POINTS = 0
