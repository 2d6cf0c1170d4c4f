"""Grading one submission after another: one sandbox, one set of checks and one bank for all of them.

plan = Plan(lesson, assignment, secret)
with plan.open() as grader:
    result = grader.grade(handed)
"""

import hashlib
import json
import traceback
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from coursekit.course import EnvironmentFault, Lesson
from coursekit.grading import batch
from coursekit.grading.backends import SecondProcess
from coursekit.grading.batch.archive import HandedIn
from coursekit.grading.batch.assignment import Assignment, rounded
from coursekit.grading.batch.fused import names_using_fused, tasks_by_name
from coursekit.grading.batch.result import ERROR, GRADED, NOT_RUN, UNREADABLE, Result
from coursekit.grading.batch.seeds import seed_of_bank, seed_of_student
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.notes import fused_notes
from coursekit.grading.report import Report
from coursekit.grading.sandbox import LAYERS, Host, open_sandbox
from coursekit.grading.submission import ExerciseError, Submission
from coursekit.grading.verbs import clean
from coursekit.imports import code_key, code_text

MESSAGE_LIMIT = 4000


@dataclass(frozen=True)
class Plan:
    """All that a grader is made from, to be sent to other processes: the lesson, the rules, the batch's secret, the
    layers of the sandbox that are left out, and whether all others are required."""

    lesson: Lesson
    assignment: Assignment
    secret: bytes = field(repr=False)
    off: tuple[str, ...] = ()
    required: bool = False

    def seed(self, student: str) -> int:
        return seed_of_student(self.secret, self.lesson.slug, student)

    def seed_of_bank(self) -> int:
        return seed_of_bank(self.secret, self.lesson.slug)

    @cached_property
    def code(self) -> str:
        """A hash of the lesson's checks, of the engine that runs them and of the rules."""
        lesson = self.lesson
        known = code_key(lesson.root, [lesson.checks, lesson.exercise, lesson.misconceptions])
        rules = self.assignment.as_dict()
        # When it was due counts as days late.
        rules |= {"due": None, "late": rules["late"] | {"grace_minutes": 0}}
        return _hash(known, engine(), json.dumps(rules, sort_keys=True))

    def key(self, handed: HandedIn) -> str:
        """Says whether a result is still that of this submission, under these checks and rules."""
        days = self.assignment.late_days(handed.when)
        parts = (handed.name, handed.problem, str(days), str(self.seed(handed.student)), self.code)
        return _hash(hashlib.sha256(handed.data).hexdigest(), *parts)

    def blank(self, handed: HandedIn, points: Mapping[str, float], layers: Iterable[str]) -> Result:
        """A result with nothing earned. `points` has what each task's checks give."""
        return Result(
            handed.student,
            self.lesson.slug,
            max_score=rounded(self.assignment.points(points)),
            late_days=self.assignment.late_days(handed.when),
            sandbox=list(layers),
            seed=str(self.seed(handed.student)),
            submission=handed.name,
            key=self.key(handed),
        )

    def open(self) -> "Grader":
        return Grader(self)


class Grader:
    """Grades submissions by a plan. Raises `ExerciseError` if the lesson's checks cannot be run, `EnvironmentFault`
    if no process can be started or a layer is missing that is required."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.host = self._opened()
        self.checks = Checks(plan.lesson)
        self.bank = Bank(plan.lesson, plan.seed_of_bank())
        self.points = task_points(self.checks)

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.bank.close()
        self.host.close()

    @property
    def layers(self) -> tuple[str, ...]:
        return self.host.layers

    @cached_property
    def tasks(self) -> dict[str, str]:
        return tasks_by_name(self.checks)

    def grade(self, handed: HandedIn) -> Result:
        """The result of one submission, whatever it is: a fault of the grader's own is a result too."""
        result = self.blank(handed)
        try:
            self._run(handed.submission(), result)
        except ExerciseError as error:
            result.status, result.message = UNREADABLE, clean(str(error), MESSAGE_LIMIT)
        except Exception as error:
            result = self.blank(handed)
            result.status, result.message = ERROR, described(error)
            # It may be the sandbox that is broken: the next submission gets another one.
            self.host.close()
            self.host = self._opened()
        return result

    def blank(self, handed: HandedIn) -> Result:
        return self.plan.blank(handed, self.points, self.layers)

    def _opened(self) -> Host:
        host = open_sandbox(self.plan.off, self.plan.assignment.limits)
        missing = [name for name in LAYERS if name not in (*host.layers, *self.plan.off)]
        if missing and self.plan.required:
            host.close()
            why = "; ".join(f"{name} ({host.missing.get(name) or 'unknown'})" for name in missing)
            raise EnvironmentFault(f"--require-sandbox: this machine lacks {why}. Nothing was graded")
        return host

    def _backend(self, submission: Submission) -> SecondProcess:
        return SecondProcess(submission, host=self.host)

    def _run(self, submission: Submission, result: Result) -> None:
        assignment = self.plan.assignment
        report, backend = self._checked(submission, int(result.seed))
        if backend.lost:
            # Perhaps another's doing, or the machine's: what happens twice is this submission's own.
            report, backend = self._checked(submission, int(result.seed))
        result.events = [clean(event, MESSAGE_LIMIT) for event in backend.events]
        result.report = report
        result.status = NOT_RUN if report.problem else GRADED
        result.message = report.problem
        result.evidence = [clean(note, MESSAGE_LIMIT) for note in fused_notes(submission)]
        called: dict[str, list[str]] = {}
        for owner, name in backend.called:
            called.setdefault(owner, []).append(name)
        # What is called while the file is loaded is scratch work.
        called.pop("", None)
        result.evidence += [
            f"{owner} called {', '.join(names)} while it ran" for owner, names in called.items()
        ]
        lost: set[str] = set()
        if result.evidence and assignment.fused == "fail":
            lost = self._lost(submission, called)
            titles = {case.task["key"]: case.task["title"] for case in self.checks.cases}
            result.evidence += [
                f"'{title}' earns no points for it" for key, title in titles.items() if key in lost
            ]
        earned = self._earned(report, lost)
        result.earned = rounded(earned)
        result.score = rounded(earned * assignment.late.kept(result.late_days))

    def _checked(self, submission: Submission, seed: int) -> tuple[Report, SecondProcess]:
        backend = self._backend(submission)
        try:
            return self.checks.run(submission, backend=backend, seed=seed, bank=self.bank), backend
        finally:
            backend.close()

    def _earned(self, report: Report, lost: Collection[str]) -> Fraction:
        return Fraction(0) if report.problem else self.plan.assignment.earned(report, self.points, lost)

    def _lost(self, submission: Submission, called: Iterable[str]) -> set[str]:
        """The tasks that are answered by a ready-made attention: those of the names that use it, by the source or
        as it was seen."""
        names = names_using_fused(submission) | set(called)
        return {self.tasks[name] for name in names if name in self.tasks}


def task_points(checks: Checks) -> dict[str, float]:
    """What each task's checks give. A check counts once, however many cases it has."""
    known = {(case.task["key"], case.name): case.points for case in checks.cases}
    totals = {task: 0.0 for task, _ in known}
    for (task, _), points in known.items():
        totals[task] += points
    return totals


def engine() -> str:
    """A hash of the code that decides a result, wherever it is installed."""
    folder = Path(batch.__file__).parents[1]
    files = [*folder.glob("*.py"), *folder.glob("sandbox/*.py"), folder / "batch" / "grade.py"]
    files += [
        folder / "batch" / "assignment.py",
        folder / "batch" / "fused.py",
        folder.parent / "numerics.py",
    ]
    return _hash(*(f"{file.name}\n{code_text(file.read_text('utf-8'))}" for file in sorted(files)))


def described(error: BaseException) -> str:
    """A fault of the grader's own, with where it happened, the same on every machine."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
    return clean("\n".join([f"{type(error).__name__}: {error}", *places]), MESSAGE_LIMIT)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
