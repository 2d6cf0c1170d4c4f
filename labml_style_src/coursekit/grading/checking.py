"""One run of a lesson's checks: the submission behind its backend, each check's fixtures, its verdict.

`plugin.py` hands pytest's events here; this module is imported only when a lesson's check was collected.
"""

import contextlib
import inspect
import io
from pathlib import Path
from typing import Any

import pytest

from coursekit.course import Lesson
from coursekit.grading.backends import Backend, InProcess, SecondProcess
from coursekit.grading.bank import Misconception, read_bank
from coursekit.grading.diagnosis import BROKEN, UNDIAGNOSED, UNDONE, Failure, Variant, failure_of
from coursekit.grading.draw import Draw, seed_of
from coursekit.grading.expect import Expect
from coursekit.grading.feedback import printed
from coursekit.grading.notes import fused_notes
from coursekit.grading.plugin import task_of
from coursekit.grading.session import seed_everything
from coursekit.grading.submission import Submission, read_submission
from coursekit.grading.verbs import Student

FIXTURES = ("student", "expect", "draw")


class Bank:
    """A lesson's wrong variants, opened when the first is needed, and how each fails each check. What a check
    draws depends on its name and the seed only, so one bank serves many submissions."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self._variants: list[tuple[Misconception, Variant]] | None = None
        self._failures: dict[tuple[str, int, str], Failure | None] = {}

    @property
    def variants(self) -> list[tuple[Misconception, Variant]]:
        if self._variants is None:
            self._variants = [(each, Variant(self.lesson, each)) for each in read_bank(self.lesson)]
        return self._variants

    def like(self, check: "Check", failure: Failure) -> list[Misconception]:
        """The misconceptions whose variant fails this check just so."""
        found = []
        for known, variant in self.variants:
            key = (check.item.nodeid, check.seed, known.name)
            if key not in self._failures:
                self._failures[key] = check.rerun(variant)
            if failure.equals(self._failures[key]):
                found.append(known)
        return found

    def close(self) -> None:
        for _, variant in self._variants or []:
            variant.close()


class Bench:
    """A lesson's submission, opened once for all its checks, and the bank to name mistakes from, if any."""

    def __init__(self, lesson: Lesson, submission: Submission, boundary: bool, bank: Bank | None) -> None:
        self.lesson = lesson
        self.backend: Backend = SecondProcess(submission) if boundary else InProcess(submission)
        self.bank = bank
        self.fused = fused_notes(submission)

    @property
    def notes(self) -> list[str]:
        """What to say of the submission as a whole, once a check has asked it something."""
        return [*self.backend.stops, *self.fused]

    def close(self) -> None:
        """End the submission; the bank may go on to serve others."""
        self.backend.close()


class Check:
    """One check of the run: its fixtures, and how it failed."""

    def __init__(self, item: pytest.Function, bench: Bench, seed: int) -> None:
        self.item = item
        self.bench = bench
        self.seed = seed_of(seed, item.nodeid.rpartition(f"{item.path.name}::")[2])
        self.student = Student(bench.backend)
        self.expect = Expect(self.student)
        self.draw = Draw(self.seed)
        self.failure: Failure | None = None
        self.printed = ""

    def begin(self) -> None:
        # Another fixture may have drawn already; a rerun draws what the check will draw from here.
        self.next_draw = self.draw.fork()
        # The checks' own random numbers (the weights of a layer, say) are the same in a rerun too.
        seed_everything(self.seed)
        self.student.begin(self.seed)

    def failed(self, error: BaseException) -> None:
        self.failure = failure_of(error, self.student, self.expect.count)

    def end(self) -> None:
        self.printed = printed(*self.bench.backend.printed())

    def mistakes(self) -> list[Misconception]:
        """The misconceptions whose variant fails this check just as the student's code does."""
        if self.failure is None or self.failure.kind in UNDIAGNOSED or self.bench.bank is None:
            return []
        return self.bench.bank.like(self, self.failure)

    def rerun(self, variant: Variant) -> Failure | None:
        """How a variant fails this check, on the same inputs; None if it passes."""
        student = Student(variant)
        expect, draw = Expect(student), self.next_draw.fork()
        fresh = dict(zip(FIXTURES, (student, expect, draw), strict=True))
        known = self.item.funcargs | fresh
        arguments = {name: known[name] for name in inspect.signature(self.item.obj).parameters}
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                seed_everything(self.seed)
                student.begin(self.seed)
                self.item.obj(**arguments)
        except (Exception, pytest.fail.Exception) as error:
            return failure_of(error, student, expect.count)
        return None

    def record(self, outcome: str) -> dict[str, Any]:
        """The verdict as plain data: it travels with pytest's report, between processes too."""
        task = task_of(self.item)
        points = self.item.get_closest_marker("points")
        mistakes = self.mistakes() if outcome == "failed" else []
        failure = self.failure or Failure("", 0, None, "the check stopped before it began")
        return {
            "lesson": self.bench.lesson.slug,
            "key": task["key"],
            "title": task["title"],
            "hints": task["hints"],
            "check": self.item.originalname,
            "case": self.item.name.removeprefix(self.item.originalname)[1:-1],
            "points": points.args[0] if points else 1,
            "outcome": "not done" if failure.kind == UNDONE else outcome,
            "broken": failure.kind == BROKEN,
            "notes": self.bench.notes,
            "asked": self.student.names,
            "error": [failure.error.identity, failure.error.function] if failure.error else None,
            "message": failure.message if outcome == "failed" else "",
            "mistakes": [[each.name, each.sentence] for each in mistakes],
            "printed": self.printed,
        }


def open_bench(lesson: Lesson, path: Path | None, boundary: bool) -> Bench:
    return Bench(lesson, read_submission(path or lesson.exercise), boundary, Bank(lesson))
