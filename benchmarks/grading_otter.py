"""The checks of a lesson as tests of otter-grader, so that both grade the same submissions by the same checks.

Otter runs a test in the kernel in which the student's code ran before, and hands it that code's names. There
our `student` fixture is made around these names; what a check demands and draws stays as it is. Otter has no
way to say which mistake a failure is, so it is spared that work, and no boundary, so it is spared that too.
"""

import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from coursekit.course import SOURCE_ROOT, Lesson, find_course
from coursekit.grading.attempt import Attempt
from coursekit.grading.backends import InProcess
from coursekit.grading.cases import CheckCase, collect
from coursekit.grading.submission import Submission

TESTS = """OK_FORMAT = False
name = {slug!r}

import sys

sys.path[:0] = [{root!r}, {source!r}]

from benchmarks.grading_otter import cases
from otter.test_files import test_case

globals().update(
    (f"case_{{number}}", test_case(name=title, points=points)(body))
    for number, (title, points, body) in enumerate(cases({slug!r}, {root!r}))
)
"""


def write_autograder(lesson: Lesson, path: Path) -> None:
    """The zip that `otter run -a` wants."""
    root, source = str(lesson.root), str(lesson.root / SOURCE_ROOT)
    tests = TESTS.format(slug=lesson.slug, root=root, source=source)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("otter_config.json", json.dumps({"pdf": False, "show_stdout": False}))
        archive.writestr(f"tests/{lesson.slug}.py", tests)


# Otter executes a test file twice.
@cache
def cases(slug: str, root: str) -> list[tuple[str, float, Callable[[dict[str, Any]], None]]]:
    """Name, points and body of each case of the lesson's checks; a check's cases share its points."""
    found = collect(find_course(Path(root)).lesson(slug))
    checks = [(case.task["key"], case.name) for case in found]
    shared = [case.points / checks.count(check) for case, check in zip(found, checks, strict=True)]
    return [(case.key, points, body(case)) for case, points in zip(found, shared, strict=True)]


def body(case: CheckCase) -> Callable[[dict[str, Any]], None]:
    def run(env: dict[str, Any]) -> None:
        backend = InProcess(Submission("", "submission.py", "<submission.py>"))
        vars(backend.session.module).update(env)
        attempt = Attempt(case, backend, seed=0)
        attempt.begin()
        case.run(student=attempt.student, expect=attempt.expect, draw=attempt.draw)

    return run
