"""Names that are no functions, a module that answers every name, a class that is called."""

SUBMISSION = """
import sys
import types


class Module(types.ModuleType):
    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self


sys.modules[__name__].__class__ = Module


class guess:
    def __new__(cls, x):
        return cls

    def __class_getitem__(cls, index):
        return 0.0


double = 5
"""
POINTS = 0
