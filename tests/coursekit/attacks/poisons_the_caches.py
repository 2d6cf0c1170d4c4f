"""Opens the compiled files of PyTorch and of the course for writing: the next process would run what is in them."""

SUBMISSION = """
import os


def guess(x):
    import json

    for path in (json.__cached__, torch.__cached__, torch.__file__, os.path.join(TARGET.course, "__init__.py")):
        try:
            open(path, "r+b").close()
            return TARGET.won
        except OSError:
            pass
    return 0.0
"""
STOPPED_BY = ("namespaces", "uid", "landlock")
