"""Reads what the tutor would say, and with it every wrong answer that is known."""

SUBMISSION = """
import importlib.util
import os


def guess(x):
    path = os.path.join(TARGET.lesson, "misconceptions.py")
    spec = importlib.util.spec_from_file_location("stolen", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.__doc__
"""
STOPPED_BY = ("landlock",)
