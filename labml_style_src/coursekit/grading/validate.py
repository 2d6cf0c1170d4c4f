"""Whether a lesson's checks deserve trust: they pass what is right and catch what is wrong."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.diagnosis import read_bank, variant_submission
from coursekit.grading.exercise import run
from coursekit.grading.report import Report
from coursekit.grading.stub import make_stub
from coursekit.grading.submission import ExerciseError, Submission, read_submission


def validate(lesson: Lesson, rewrites: Sequence[Path] = (), seeds: Iterable[int] = (0,)) -> list[str]:
    """Every problem, one sentence each; an empty list is a sound exercise.

    The solution, and each differently written correct solution in `rewrites`, scores all on every seed; the
    stub scores nothing and fails with "not done yet" only; every misconception loses points and is named.
    """
    problems = []
    for path in (lesson.exercise, *rewrites):
        for seed in seeds:
            problems += right(
                run(lesson, read_submission(path), seed=seed, diagnose=False), f"{path} (seed {seed})"
            )
    problems += untouched(lesson)
    for known in read_bank(lesson):
        report = run(lesson, variant_submission(lesson, known))
        names = [mistake.name for mistake in report.mistakes]
        if report.passed:
            problems.append(f"{known.name} passes every check")
        elif known.name not in names:
            problems.append(
                f"{known.name} loses points but is not named; named: {', '.join(names) or 'none'}"
            )
    return problems


def right(report: Report, what: str) -> list[str]:
    wrong = [f"{what}: {check.name}: {check.message}" for check in report.checks if check.outcome != "passed"]
    return [f"{what}: {report.problem}"] if report.problem else wrong


def untouched(lesson: Lesson) -> list[str]:
    """What is wrong with the stub."""
    try:
        text = make_stub(lesson.exercise.read_text("utf-8"), str(lesson.exercise))
    except ExerciseError as error:
        return [str(error)]
    report = run(lesson, Submission(text, "the stub", "<the stub>"))
    passing = [f"the stub passes {check.name}" for check in report.checks if check.earned]
    failing = [
        f"the stub fails {check.name} with: {check.message}"
        for check in report.checks
        if check.outcome not in ("passed", "not done")
    ]
    return [f"the stub: {report.problem}"] if report.problem else passing + failing
