"""Makes the grader's folders its own: chmod, chown, rename, links and removal."""

SUBMISSION = """
import os


def guess(x):
    path = os.path.join(TARGET.results, "ada.json")
    ways = (
        lambda: os.chmod(path, 0o666),
        lambda: os.rename(path, path + ".old"),
        lambda: os.link(path, os.path.join(TARGET.open, "link")),
        lambda: os.symlink(path, os.path.join(TARGET.open, "symlink")),
        lambda: os.truncate(path, 0),
        lambda: os.unlink(path),
        lambda: os.mkfifo(os.path.join(TARGET.open, "fifo")),
    )
    for way in ways:
        try:
            way()
        except OSError:
            pass
    return 0.0
"""
STOPPED_BY = ("namespaces", "seccomp")
