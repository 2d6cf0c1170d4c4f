"""A lesson's checks on a submission: each case is tried, and what came of it is noted.

`Checks` runs them all and gives a report; `plugin.py` does the same case by case when a person runs pytest.
"""

import contextlib
import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from coursekit.course import Lesson
from coursekit.grading.backends import Backend, InProcess
from coursekit.grading.bank import Misconception, read_bank
from coursekit.grading.cases import CheckCase, collect
from coursekit.grading.diagnosis import Variant
from coursekit.grading.draw import Draw, seed_of
from coursekit.grading.expect import Expect
from coursekit.grading.failure import BROKEN, UNDIAGNOSED, UNDONE, Failure, failure_of
from coursekit.grading.feedback import printed
from coursekit.grading.notes import fused_notes
from coursekit.grading.report import FAILED, NOT_DONE, PASSED, SKIPPED, Report, build
from coursekit.grading.session import seed_everything
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import Student


class Attempt:
    """One case of a check on one backend: its fixtures, and how it failed if it did."""

    def __init__(self, case: CheckCase, backend: Backend, seed: int) -> None:
        self.case = case
        self.backend = backend
        self.seed = seed
        self.student = Student(backend)
        self.expect = Expect(self.student)
        self.draw = Draw(seed_of(seed, case.key))
        self.failure: Failure | None = None

    def begin(self) -> None:
        # The checks' own random numbers (the weights of a layer, say) are the same in every attempt.
        seed_everything(seed_of(self.seed, self.case.key))
        # The student's code learns its seed: it must not be the one that inputs are drawn from.
        self.student.begin(seed_of(self.seed, f"student of {self.case.key}"))

    def failed(self, error: BaseException) -> None:
        self.failure = failure_of(error, self.student, self.expect.count)

    def run(self) -> str:
        """Try it, and return the outcome."""
        try:
            self.begin()
            self.case.run(student=self.student, expect=self.expect, draw=self.draw)
        except pytest.skip.Exception:
            return SKIPPED
        except (Exception, pytest.fail.Exception) as error:
            self.failed(error)
            return FAILED
        return PASSED


class Bank:
    """A lesson's wrong variants, opened when the first is needed, and how each fails each case.

    What a case draws depends on its key and the seed only. With a `seed` of its own a bank tells mistakes apart
    on that one, whatever seed a submission is checked on, so that it computes each failure once for a class.
    """

    def __init__(self, lesson: Lesson, seed: int | None = None) -> None:
        self.lesson = lesson
        self.seed = seed
        self._variants: list[tuple[Misconception, Variant]] | None = None
        self._failures: dict[tuple[str, int, str], Failure | None] = {}

    @property
    def variants(self) -> list[tuple[Misconception, Variant]]:
        if self._variants is None:
            self._variants = [(each, Variant(self.lesson, each)) for each in read_bank(self.lesson)]
        return self._variants

    def like(self, attempt: Attempt) -> list[Misconception]:
        """The misconceptions whose variant fails the attempt's case just so."""
        if not diagnosable(attempt):
            return []
        if self.seed is not None and self.seed != attempt.seed:
            attempt = Attempt(attempt.case, attempt.backend, self.seed)
            attempt.run()
            if not diagnosable(attempt):
                return []
        assert attempt.failure is not None
        return [
            known
            for known, variant in self.variants
            if attempt.failure.equals(self._failure(known, variant, attempt))
        ]

    def _failure(self, known: Misconception, variant: Variant, attempt: Attempt) -> Failure | None:
        key = (attempt.case.key, attempt.seed, known.name)
        if key not in self._failures:
            again = Attempt(attempt.case, variant, attempt.seed)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                again.run()
            self._failures[key] = again.failure
        return self._failures[key]

    def close(self) -> None:
        for _, variant in self._variants or []:
            variant.close()


def diagnosable(attempt: Attempt) -> bool:
    """Whether the attempt failed with something that can be compared with a variant's failure."""
    return attempt.failure is not None and attempt.failure.kind not in UNDIAGNOSED


class Bench:
    """A lesson's submission behind its backend for one run of the checks, and the bank to name mistakes from."""

    def __init__(self, lesson: Lesson, submission: Submission, backend: Backend, bank: Bank | None) -> None:
        self.lesson = lesson
        self.backend = backend
        self.bank = bank
        self.fused = fused_notes(submission)

    def record(self, attempt: Attempt, outcome: str) -> dict[str, Any]:
        """The verdict on an attempt as plain data, from which `report.build` makes the report."""
        case, student = attempt.case, attempt.student
        failure = attempt.failure or Failure("", 0, None, "the check stopped before it began")
        mistakes = self.bank.like(attempt) if self.bank and outcome == FAILED else []
        return {
            "lesson": self.lesson.slug,
            **case.task,
            "check": case.name,
            "case": case.case,
            "points": case.points,
            "outcome": NOT_DONE if failure.kind == UNDONE else outcome,
            "broken": failure.kind == BROKEN,
            # Where the file stopped while it was loaded is known once a check has asked it something.
            "notes": [*self.backend.stops, *self.fused],
            "asked": student.names,
            "error": [failure.error.identity, failure.error.function] if failure.error else None,
            "message": failure.message if outcome == FAILED else "",
            "mistakes": [[each.name, each.sentence] for each in mistakes],
            "printed": printed(*self.backend.printed()),
        }


class Checks:
    """A lesson's checks, collected once. A run takes milliseconds beside what the student's code takes.

    Raises `ExerciseError` if the checks themselves cannot be run.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.cases = collect(lesson)

    def run(
        self,
        submission: Submission,
        *,
        backend: Backend | None = None,
        seed: int = 0,
        bank: Bank | None = None,
    ) -> Report:
        """Run every case on a submission that runs behind `backend`: by default in this process. Mistakes are
        named from `bank`."""
        own = InProcess(submission, keep_printed=True) if backend is None else None
        bench = Bench(self.lesson, submission, own or backend, bank)  # type: ignore[arg-type]
        try:
            with quiet():
                records = [self._tried(case, bench, seed) for case in self.cases]
        finally:
            if own is not None:
                own.close()
        report = build(records)
        report.submission, report.seed = submission.name, seed
        return report

    def _tried(self, case: CheckCase, bench: Bench, seed: int) -> dict[str, Any]:
        attempt = Attempt(case, bench.backend, seed)
        return bench.record(attempt, attempt.run())


@contextmanager
def quiet() -> Generator[None]:
    """Without warnings, which student's code and odd answers cause, and on one thread: the checks' tensors are
    tiny, and threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
