"""A lesson's checks on a submission, and its bank of misconceptions to name mistakes from.

`Checks` runs them all and gives a report; `plugin.py` does the same case by case when a person runs pytest.
"""

import contextlib
import io

from coursekit.course import Lesson
from coursekit.grading.attempt import Attempt, Bench, diagnosable, tried
from coursekit.grading.backends import Backend, InProcess
from coursekit.grading.bank import Misconception, read_bank
from coursekit.grading.cases import collect
from coursekit.grading.diagnosis import Variant
from coursekit.grading.failure import Failure
from coursekit.grading.report import Report
from coursekit.grading.submission import Submission


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
            with attempt.backend.apart():
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
        bench = Bench(self.lesson.slug, submission, own or backend, bank)  # type: ignore[arg-type]
        try:
            report = tried(self.cases, bench, seed)
        finally:
            if own is not None:
                own.close()
        report.submission, report.seed = submission.name, seed
        return report
