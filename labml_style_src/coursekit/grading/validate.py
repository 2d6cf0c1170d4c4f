"""Whether a lesson's checks deserve trust: they pass what is right and catch what is wrong."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.checking import Bank
from coursekit.grading.diagnosis import variant_submission
from coursekit.grading.exercise import run
from coursekit.grading.report import NOT_DONE, PASSED, Report
from coursekit.grading.stub import make_stub
from coursekit.grading.submission import ExerciseError, Submission, read_submission


def validate(lesson: Lesson, rewrites: Sequence[Path] = (), seeds: Iterable[int] = (0,)) -> list[str]:
    """Every problem, one sentence each; an empty list is a sound exercise.

    The solution, and each differently written correct solution in `rewrites`, scores all on every seed; the
    stub scores nothing and fails with "not done yet" only; every misconception loses points and is named.
    """
    problems = untouched(lesson)
    for seed in seeds:
        for path in (lesson.exercise, *rewrites):
            report = run(lesson, read_submission(path), seed=seed)
            problems += right(report, f"{path.name} (seed {seed})")
    bank = Bank(lesson)
    for known, _ in bank.variants:
        report = run(lesson, variant_submission(lesson, known), bank=bank)
        named = [mistake.name for mistake in report.mistakes]
        if report.passed:
            problems.append(f"{known.name} passes every check")
        elif known.name not in named:
            problems.append(f"{known.name} is not named; named: {', '.join(named) or 'none'}")
    bank.close()
    return problems


def right(report: Report, what: str) -> list[str]:
    """What is wrong with a report that should have all points."""
    failed = [check for check in report.checks if check.outcome != PASSED]
    if report.problem:
        return [f"{what}: {report.problem}"]
    return [f"{what} fails {check.name}: {check.message}" for check in failed]


def untouched(lesson: Lesson) -> list[str]:
    """What is wrong with the stub."""
    try:
        text = make_stub(lesson.exercise.read_text("utf-8"), str(lesson.exercise))
    except ExerciseError as error:
        return [str(error)]
    report = run(lesson, Submission(text, "the stub", "<the stub>"))
    if report.problem:
        return [f"the stub: {report.problem}"]
    passing = [f"the stub passes {check.name}" for check in report.checks if check.earned]
    return passing + [
        f"the stub fails {check.name} with: {check.message}"
        for check in report.checks
        if check.outcome not in (PASSED, NOT_DONE)
    ]
