"""Imports the course's own solution: by name, by importlib, through the path and through fresh finders."""

SUBMISSION = """
import importlib
import importlib.machinery
import pkgutil
import sys


def found():
    for name in ("annotated_attention", "annotated_attention.alibi", "coursekit.grading.checking", "lessons"):
        for load in (__import__, importlib.import_module, pkgutil.resolve_name, pkgutil.find_loader):
            try:
                if load(name) is not None:
                    return name
            except (ImportError, AttributeError):
                pass
    return None


def guess(x):
    name = found()
    if name is None:
        sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.PathFinder]
        importlib.invalidate_caches()
        name = found()
    return TARGET.won if name else 0.0
"""
