"""Whether a lesson's checks deserve trust: they pass what is right and catch what is wrong."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.diagnosis import variant_submission
from coursekit.grading.report import NOT_DONE, PASSED, Report
from coursekit.grading.stub import leaked_lines, make_stub
from coursekit.grading.submission import ExerciseError, Submission, read_submission

REWRITES_WANTED = 2


def validate(lesson: Lesson, rewrites: Sequence[Path] = (), seeds: Iterable[int] = (0,)) -> list[str]:
    """Every problem, one sentence each; an empty list is a sound exercise.

    The solution, and each differently written correct solution in `rewrites` (two are wanted), scores all on
    every seed; the stub scores nothing and fails with "not done yet" only; every misconception loses points
    and is named. Raises `ExerciseError` if the checks themselves cannot be run.
    """
    checks, seeds = Checks(lesson), list(seeds)
    problems = untouched(checks)
    if len(rewrites) < REWRITES_WANTED:
        problems.append(
            f"{len(rewrites)} other solutions, {REWRITES_WANTED} wanted: checks may be too narrow"
        )
    for path in (lesson.exercise, *rewrites):
        problems += steady(checks, read_submission(path), seeds)
    bank = Bank(lesson)
    for known, _ in bank.variants:
        report = checks.run(variant_submission(lesson, known), bank=bank)
        named = [mistake.name for mistake in report.mistakes]
        if report.passed:
            problems.append(f"{known.name} passes every check")
        elif known.name not in named:
            problems.append(f"{known.name} is not named; named: {', '.join(named) or 'none'}")
    bank.close()
    return problems


def validate_all(
    lessons: Sequence[Lesson], rewrites: dict[str, list[Path]], seeds: int, jobs: int | None = None
) -> Iterator[tuple[Lesson, list[str]]]:
    """The problems of each lesson as they become known, a process for each core."""
    # Spawned, not forked: PyTorch may have started threads here.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        asked = {
            pool.submit(validate, lesson, rewrites[lesson.slug], range(seeds)): lesson for lesson in lessons
        }
        for done in as_completed(asked):
            yield asked[done], done.result()


def steady(checks: Checks, submission: Submission, seeds: Sequence[int]) -> list[str]:
    """What is wrong with a solution that should have all points on every seed: the first seed that fails."""
    failing: dict[int, list[str]] = {}
    for seed in seeds:
        if problems := right(checks.run(submission, seed=seed), f"{submission.name} (seed {seed})"):
            failing[seed] = problems
    if not failing:
        return []
    first = next(iter(failing.values()))
    return first if len(failing) == 1 else [*first, f"{submission.name} fails on {len(failing)} seeds in all"]


def right(report: Report, what: str) -> list[str]:
    """What is wrong with a report that should have all points."""
    failed = [check for check in report.checks if check.outcome != PASSED]
    if report.problem:
        return [f"{what}: {report.problem}"]
    return [f"{what} fails {check.name}: {check.message}" for check in failed]


def untouched(checks: Checks) -> list[str]:
    """What is wrong with the stub."""
    exercise = checks.lesson.exercise
    text = exercise.read_text("utf-8")
    try:
        stub = make_stub(text, str(exercise))
    except ExerciseError as error:
        return [str(error)]
    told = [f"the stub still holds `{line}`" for line in leaked_lines(text)]
    report = checks.run(Submission(stub, "the stub", "<the stub>"))
    if report.problem:
        return [*told, f"the stub: {report.problem}"]
    passing = [f"the stub passes {check.name}" for check in report.checks if check.earned]
    return (
        told
        + passing
        + [
            f"the stub fails {check.name} with: {check.message}"
            for check in report.checks
            if check.outcome not in (PASSED, NOT_DONE)
        ]
    )
