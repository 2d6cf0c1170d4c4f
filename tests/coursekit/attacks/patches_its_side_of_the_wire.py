"""Replaces the modules that carry its answers (`wire`, `session`, `json`, `struct`) and its own test tools.
Seen: patched `pytest` and `assert` in graders that run in the student's process."""

SUBMISSION = """
import builtins
import json
import struct
import sys

PASSED = {"value": 0.0, "outcome": "passed", "points": 100, "score": 100, "printed": ("", 0)}


def guess(x):
    for name, module in list(sys.modules.items()):
        if name.startswith("coursekit.grading"):
            for attribute in ("plain", "_plain_leaf", "describe_error"):
                if hasattr(module, attribute):
                    setattr(module, attribute, lambda *args: {"outcome": "passed", "points": 100})
            if hasattr(module, "encode"):
                encode = module.encode
                module.encode = lambda message: encode({**message, **PASSED})
    json.loads = lambda *args, **kwargs: {"dict": []}
    builtins.isinstance = lambda *args: True
    return 0.0
"""
