"""One case of a check tried on a submission, and the verdict. pytest takes no part in it: the checks may have
been collected by it (`cases.py`), or come as data (`public/`).
"""

import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from coursekit.course import EnvironmentFault
from coursekit.grading.backends import Backend
from coursekit.grading.bank import Misconception
from coursekit.grading.draw import Draw, seed_of
from coursekit.grading.expect import Expect
from coursekit.grading.failure import BROKEN, UNDIAGNOSED, UNDONE, Failure, failure_of
from coursekit.grading.feedback import printed
from coursekit.grading.notes import fused_notes
from coursekit.grading.report import FAILED, NOT_DONE, PASSED, SKIPPED, Report, build
from coursekit.grading.session import seed_everything
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import Student, clean

MESSAGE_LIMIT = 10_000


class Skipped(Exception):
    """The check does not want to be run here."""


class Case(Protocol):
    """One case of a check. `key` is its name within the file, from which its inputs are drawn; `task` has the
    key, title and hints of its task."""

    @property
    def key(self) -> str: ...

    @property
    def task(self) -> dict[str, Any]: ...

    @property
    def name(self) -> str: ...

    @property
    def case(self) -> str: ...

    @property
    def points(self) -> float: ...

    def run(self, **fixtures: Any) -> None:
        """Call the check with `student`, `expect` and `draw`. Whatever it demands and does not get comes as an
        exception."""
        ...


class Attempt:
    """One case of a check on one backend: its fixtures, and how it failed if it did."""

    def __init__(self, case: Case, backend: Backend, seed: int) -> None:
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
        """Try it, and return the outcome. Raises `EnvironmentFault` if the machine cannot run the submission."""
        try:
            self.begin()
            self.case.run(student=self.student, expect=self.expect, draw=self.draw)
        except Skipped:
            return SKIPPED
        except EnvironmentFault:
            # The machine's fault, not an answer: nobody loses points for it.
            raise
        except Exception as error:
            self.failed(error)
            return FAILED
        return PASSED


def diagnosable(attempt: Attempt) -> bool:
    """Whether the attempt failed with something that can be compared with a variant's failure."""
    return attempt.failure is not None and attempt.failure.kind not in UNDIAGNOSED


class Namer(Protocol):
    """Whoever knows which mistakes fail a case just as an attempt did."""

    def like(self, attempt: Attempt) -> list[Misconception]: ...


class Bench:
    """A submission behind its backend for one run of a lesson's checks, and who names mistakes."""

    def __init__(self, slug: str, submission: Submission, backend: Backend, bank: Namer | None) -> None:
        self.slug = slug
        self.backend = backend
        self.bank = bank
        self.fused = fused_notes(submission)

    def record(self, attempt: Attempt, outcome: str) -> dict[str, Any]:
        """The verdict on an attempt as plain data, from which `report.build` makes the report."""
        case, student = attempt.case, attempt.student
        failure = attempt.failure or Failure("", 0, None, "the check stopped before it began")
        said = printed(*self.backend.printed())
        mistakes = self.bank.like(attempt) if self.bank and outcome == FAILED else []
        # To name a mistake the check may run again: what is printed then was told already.
        self.backend.printed()
        return {
            "lesson": self.slug,
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
            # A check may put an answer's own text into its message.
            "message": clean(failure.message, MESSAGE_LIMIT) if outcome == FAILED else "",
            "mistakes": [[each.name, each.sentence] for each in mistakes],
            "printed": said,
        }


def tried(cases: Iterable[Case], bench: Bench, seed: int, tasks: Iterable[dict[str, Any]] = ()) -> Report:
    """The report of every case on a bench's submission. Of `tasks` those are in it too that have no case."""
    with quiet():
        attempts = (Attempt(case, bench.backend, seed) for case in cases)
        records = [bench.record(attempt, attempt.run()) for attempt in attempts]
    return build(records, tasks)


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
