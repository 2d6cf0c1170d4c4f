"""Leaves a file where every user may write, and makes room for itself in shared memory."""

SUBMISSION = """
import os


def guess(x):
    paths = (os.path.join(TARGET.open, "left"), "/dev/shm/" + TARGET.won, "/tmp/" + TARGET.won)
    for path in paths:
        try:
            open(path, "w").write("here I was")
        except OSError:
            pass
    return 0.0
"""
STOPPED_BY = ("namespaces", "landlock")


def succeeded(scene):
    """Whether a file was left; it is taken away."""
    from pathlib import Path

    left = [path for folder in ("/dev/shm", "/tmp") if (path := Path(folder) / scene.targets.won).exists()]
    for path in left:
        path.unlink()
    return bool(left)
