"""Every lesson's exercise: its checks pass what is right, catch what is wrong, and name it.

Two correct solutions of another hand lie in `alternatives/SLUG_*.py`.
"""

import ast
import functools
import pickle
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from coursekit.course import Lesson, find_course
from coursekit.grading.backends import SecondProcess
from coursekit.grading.bank import Misconception, read_bank
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.diagnosis import variant_submission
from coursekit.grading.sandbox import Host, open_sandbox
from coursekit.grading.submission import read_submission
from coursekit.grading.validate import right, untouched

COURSE = find_course(Path(__file__))
SEEDS = (0, 1, 2)
# A student needs no more than this; the reference would give the answer away.
MAY_IMPORT = {"torch", "numpy", "einops", "math"}

every_lesson = pytest.mark.parametrize(
    "lesson", [pytest.param(each, id=each.slug) for each in COURSE.lessons]
)


@functools.cache
def checks_of(lesson: Lesson) -> Checks:
    return Checks(lesson)


@pytest.fixture(scope="session")
def host() -> Generator[Host]:
    """Starts processes as when a class is graded. PyTorch is imported once."""
    with open_sandbox() as host:
        yield host


@every_lesson
def test_solution_scores_all(lesson: Lesson) -> None:
    for seed in SEEDS:
        report = checks_of(lesson).run(read_submission(lesson.exercise), seed=seed)
        assert right(report, f"seed {seed}") == []
        assert report.earned == report.points


@every_lesson
def test_other_solutions_score_all(lesson: Lesson) -> None:
    paths = COURSE.rewrites(lesson)
    assert len(paths) >= 2, f"tests/lessons/alternatives/{lesson.slug}_*.py: two are wanted"
    for path in paths:
        for seed in SEEDS:
            report = checks_of(lesson).run(read_submission(path), seed=seed)
            assert right(report, f"{path.name}, seed {seed}") == []


@every_lesson
def test_stub_scores_nothing(lesson: Lesson) -> None:
    assert untouched(checks_of(lesson)) == []


@every_lesson
def test_tasks_and_hints(lesson: Lesson) -> None:
    report = checks_of(lesson).run(read_submission(lesson.exercise))
    assert len(report.tasks) >= 4
    assert len({task.title for task in report.tasks}) == len(report.tasks)
    for task in report.tasks:
        assert 2 <= len(task.hints) <= 3, f"'{task.title}' has {len(task.hints)} hints"


@every_lesson
def test_every_misconception_loses_points_and_is_named(lesson: Lesson) -> None:
    bank = Bank(lesson)
    known = read_bank(lesson)
    assert len(known) >= 8
    problems = [problem for each in known if (problem := undetected(lesson, each, bank))]
    bank.close()
    assert problems == []


def undetected(lesson: Lesson, mistake: Misconception, bank: Bank) -> str | None:
    report = checks_of(lesson).run(variant_submission(lesson, mistake), bank=bank)
    if report.earned == report.points:
        return f"{mistake.name} loses no point"
    named = [each.name for each in report.mistakes]
    return None if mistake.name in named else f"{mistake.name} is not named; named: {named}"


@every_lesson
def test_checks_need_no_pickle(lesson: Lesson, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second process, and this one unable to pickle, checks and diagnosis say the same as without."""
    bank = Bank(lesson)
    solution, wrong = read_submission(lesson.exercise), variant_submission(lesson, read_bank(lesson)[0])
    here = checks_of(lesson).run(wrong, bank=bank)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    with closing(SecondProcess(wrong, host=host)) as backend:
        across = checks_of(lesson).run(wrong, backend=backend, bank=bank)
    with closing(SecondProcess(solution, host=host)) as backend:
        assert right(checks_of(lesson).run(solution, backend=backend), "the solution") == []
    bank.close()
    assert [check.message for check in across.checks] == [check.message for check in here.checks]
    assert across.mistakes == here.mistakes != []


@every_lesson
def test_exercise_does_not_import_the_answer(lesson: Lesson) -> None:
    for path in (lesson.exercise, *COURSE.rewrites(lesson)):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
        assert {name.partition(".")[0] for name in names} <= MAY_IMPORT, path.name
