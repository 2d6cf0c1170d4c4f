"""Plants `torch.py`, `conftest.py`, `sitecustomize.py` and a `.pth` beside the lesson and where it stands.
Seen: a module in the folder of the submission was imported by the grader."""

SUBMISSION = """
import os

NAMES = ("torch.py", "numpy.py", "coursekit.py", "conftest.py", "sitecustomize.py", "evil.pth", "pytest.ini")


def guess(x):
    for folder in (".", TARGET.lesson, os.path.dirname(TARGET.lesson), TARGET.open):
        for name in NAMES:
            try:
                open(os.path.join(folder, name), "w").write("raise SystemExit(0)")
            except OSError:
                pass
    os.environ["PYTHONPATH"] = TARGET.open
    return 0.0
"""
STOPPED_BY = ("namespaces", "landlock")
