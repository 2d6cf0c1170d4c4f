"""Puts the course's folder on the path, or executes its files one by one."""

SUBMISSION = """
import importlib.util
import os
import sys


def guess(x):
    sys.meta_path[:] = [each for each in sys.meta_path if "PathFinder" in repr(each)]
    sys.path.insert(0, os.path.dirname(TARGET.course))
    try:
        import annotated_attention

        return TARGET.won
    except ImportError:
        pass
    path = os.path.join(TARGET.course, "__init__.py")
    spec = importlib.util.spec_from_file_location("stolen", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return TARGET.won
"""
STOPPED_BY = ("landlock",)
