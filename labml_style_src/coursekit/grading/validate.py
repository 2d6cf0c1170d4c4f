"""Whether a lesson's checks deserve trust: they pass what is right and catch what is wrong."""

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.diagnosis import variant_submission
from coursekit.grading.report import NOT_DONE, PASSED, Report
from coursekit.grading.stub import leaked_lines, make_stub
from coursekit.grading.submission import ExerciseError, Submission, read_submission
from coursekit.processes import workers

REWRITES_WANTED = 2


def validate(lesson: Lesson, rewrites: Sequence[Path] = (), seeds: Iterable[int] = (0,)) -> list[str]:
    """Every problem, one sentence each; an empty list is a sound exercise.

    The solution, and each differently written correct solution in `rewrites` (two are wanted), scores all on
    every seed; the stub scores nothing and fails with "not done yet" only; every misconception loses points
    and is named. Raises `ExerciseError` if the checks themselves cannot be run.
    """
    return [problem for part in parts(lesson, rewrites, list(seeds)) for problem in part()]


def validate_all(
    lessons: Sequence[Lesson], rewrites: dict[str, list[Path]], seeds: int, jobs: int | None = None
) -> Generator[tuple[Lesson, list[str]]]:
    """The problems of each lesson, in the lessons' order, a process for each core. The processes share a lesson's
    parts, or one would still be busy with the longest lesson when the others have done all the rest."""
    with workers(jobs) as pool:
        asked = [
            [pool.submit(part) for part in parts(lesson, rewrites[lesson.slug], range(seeds))]
            for lesson in lessons
        ]
        for lesson, answers in zip(lessons, asked, strict=True):
            yield lesson, [problem for answer in answers for problem in answer.result()]


def parts(lesson: Lesson, rewrites: Sequence[Path], seeds: Sequence[int]) -> list[Callable[[], list[str]]]:
    """What is to be looked at, each by itself: the stub, every solution, the misconceptions."""
    solutions = [partial(always_right, lesson, path, seeds) for path in (lesson.exercise, *rewrites)]
    return [partial(the_rest, lesson, len(rewrites)), *solutions, partial(undetected, lesson)]


def the_rest(lesson: Lesson, rewrites: int) -> list[str]:
    """What is wrong with the stub, and whether there are too few solutions."""
    few = f"{rewrites} other solutions, {REWRITES_WANTED} wanted: checks may be too narrow"
    return untouched(Checks(lesson)) + ([few] if rewrites < REWRITES_WANTED else [])


def always_right(lesson: Lesson, path: Path, seeds: Sequence[int]) -> list[str]:
    """What is wrong with a solution, which lies at this path."""
    return steady(Checks(lesson), read_submission(path), seeds)


def undetected(lesson: Lesson) -> list[str]:
    """The misconceptions that lose no points, or are not named."""
    checks, bank = Checks(lesson), Bank(lesson)
    problems = []
    for known, _ in bank.variants:
        report = checks.run(variant_submission(lesson, known), bank=bank)
        named = [mistake.name for mistake in report.mistakes]
        if report.passed:
            problems.append(f"{known.name} passes every check")
        elif known.name not in named:
            problems.append(f"{known.name} is not named; named: {', '.join(named) or 'none'}")
    bank.close()
    return problems


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
