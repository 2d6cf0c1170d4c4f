"""Making a lesson's public checks, and proving that they judge as the lesson's own do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.attempt import Attempt, Case, quiet
from coursekit.grading.backends import Backend, InProcess
from coursekit.grading.cases import CheckCase
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.failure import UNDIAGNOSED, Failure
from coursekit.grading.public.data import KnownFailure, PublicCase, PublicChecks, known_failure
from coursekit.grading.public.probes import probes
from coursekit.grading.public.record import NotPublic, record
from coursekit.grading.submission import read_submission

# The seed of `attn check`. The inputs of a grade come from another, which nobody but the grader has.
PUBLIC_SEED = 0


@dataclass(frozen=True)
class Published:
    """The public checks of a lesson, and why the others are none, by check."""

    checks: PublicChecks
    left_out: dict[str, str]


def publish(
    lesson: Lesson, rewrites: Iterable[Path] = (), weights: Mapping[str, float] | None = None
) -> Published:
    """Record the checks of a lesson at the public seed; `weights` are the points of tasks, where an assignment
    has its own. A check is public if each of its cases can be recorded,
    and if what was recorded judges the solution, each of the `rewrites` (other solutions), each misconception
    and a series of wrong answers just as the check itself does.

    Raises `ExerciseError` if the checks cannot be run.
    """
    cases, bank = Checks(lesson).cases, Bank(lesson)
    solution = InProcess(read_submission(lesson.exercise), keep_printed=True)
    others = {path.name: InProcess(read_submission(path), keep_printed=True) for path in rewrites}
    wrong = {known.name: variant for known, variant in bank.variants}
    public: dict[str, list[PublicCase]] = {}
    failures: dict[str, list[KnownFailure]] = {}
    left_out: dict[str, str] = {}
    with quiet():
        for case in cases:
            check = check_of(case)
            try:
                recorded = proven(case, solution, others | wrong)
            except NotPublic as error:
                left_out.setdefault(check, str(error))
                continue
            public.setdefault(check, []).append(recorded)
            tried = enumerate(failure_with(case, variant) for variant in wrong.values())
            failures[case.key] = [
                known_failure(number, failure)
                for number, failure in tried
                if failure is not None and failure.kind not in UNDIAGNOSED
            ]
    kept = [case for check, cases in public.items() if check not in left_out for case in cases]
    for backend in (solution, *others.values(), bank):
        backend.close()
    points = points_of(cases)
    worth = {key: (weights or {}).get(key, most) for key, most in points.items()}
    kept = [
        replace(case, points=case.points * worth[case.task["key"]] / points[case.task["key"]])
        for case in kept
    ]
    checks = PublicChecks(
        lesson.slug,
        list({case.task["key"]: case.task for case in cases}.values()),
        worth,
        kept,
        [known for known, _ in bank.variants],
        {case.key: failures[case.key] for case in kept if failures[case.key]},
    )
    return Published(checks, left_out)


def points_of(cases: Iterable[Case]) -> dict[str, float]:
    """The points of each task: a check counts once, however many cases it has."""
    checks = {check_of(case): case for case in cases}
    points: dict[str, float] = {}
    for case in checks.values():
        points[case.task["key"]] = points.get(case.task["key"], 0) + case.points
    return points


def check_of(case: Case) -> str:
    return f"{case.task['key']}.{case.name}"


def proven(case: CheckCase, solution: Backend, others: Mapping[str, Backend]) -> PublicCase:
    """The case as data. Raises `NotPublic` if it cannot be recorded, or judges anybody else than itself."""
    steps = record(case, solution, PUBLIC_SEED)
    known = PublicCase(case.key, case.task, case.name, case.case, case.points, steps)
    why = ""
    for recorded in (known, replace(known, lenient=True)):
        why = disagreement(case, recorded, solution, others)
        if not why:
            return recorded
    raise NotPublic(why)


def disagreement(case: Case, recorded: Case, solution: Backend, others: Mapping[str, Backend]) -> str:
    """For whom the recorded case says something else than the case itself; empty if for nobody."""
    for name, backend in (("the solution", solution), *others.items()):
        ours, theirs = failure_with(recorded, backend), failure_with(case, backend)
        if ours is None or theirs is None:
            if ours is not theirs:
                return f"recorded, it judges {name} otherwise"
        elif ours.message != theirs.message or not ours.equals(theirs):
            return f"recorded, it tells {name} something else"
    for probe in probes(solution):
        ours, theirs = failure_with(recorded, probe), failure_with(case, probe)
        if (ours is None) != (theirs is None):
            return f"recorded, it judges answers changed by {probe.change.__name__} otherwise"
    return ""


def failure_with(case: Case, backend: Backend) -> Failure | None:
    attempt = Attempt(case, backend, PUBLIC_SEED)
    attempt.run()
    return attempt.failure
