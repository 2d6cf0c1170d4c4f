"""Naming a mistake: the check is run again with each wrong variant of the bank in the student's place, and a
variant that fails at the same demand with the same answer is the mistake.
"""

from dataclasses import dataclass
from typing import Any

import pytest

from coursekit.course import Lesson
from coursekit.grading.backends import InProcess
from coursekit.grading.bank import Misconception
from coursekit.grading.compare import same
from coursekit.grading.expect import Unmet
from coursekit.grading.session import Randomness
from coursekit.grading.submission import ExerciseError, Submission, read_submission
from coursekit.grading.values import in_words
from coursekit.grading.verbs import Student, StudentError


class Variant(InProcess):
    """The lesson's solution with one name replaced by its wrong variant."""

    def __init__(self, lesson: Lesson, misconception: Misconception) -> None:
        super().__init__(read_submission(lesson.exercise))
        if self.problem is not None:
            raise ExerciseError(f"{lesson.exercise} cannot be imported: {self.problem.text}")
        bank = read_submission(lesson.misconceptions)
        self.random = Randomness(self.submission.text + bank.text)
        module = self.session.module
        names = dict(module.__dict__)
        exec(compile(bank.text, bank.filename, "exec", dont_inherit=True), names)
        setattr(module, misconception.target, names[misconception.name])


def variant_submission(lesson: Lesson, misconception: Misconception) -> Submission:
    """The variant as text, as a student who makes this mistake would hand it in."""
    exercise = lesson.exercise.read_text("utf-8")
    bank = lesson.misconceptions.read_text("utf-8")
    # The bank runs among copies of the exercise's names, as in `Variant`.
    tail = (
        "\n_names = dict(globals())\n"
        f"exec(compile({bank!r}, 'misconceptions.py', 'exec'), _names)\n"
        f"{misconception.target} = _names[{misconception.name!r}]\n"
    )
    return Submission(exercise + tail, misconception.name, f"<{misconception.name}>")


# Failures with nothing to compare: the task is not begun, the file does not load, no answer came.
UNDONE, BROKEN, LOST = UNDIAGNOSED = ("not done", "broken", "lost")


@dataclass(frozen=True)
class Failure:
    """How a check failed. `kind` is how it was noticed, `count` how many demands came before, `answer` what
    is compared with a variant's; `error` is what the student's code raised, if that ended the check."""

    kind: str
    count: int
    answer: Any
    message: str
    error: StudentError | None = None

    def equals(self, other: "Failure | None") -> bool:
        """Whether the same mistake shows: at the same demand, in the same way, with the same answer."""
        return (
            other is not None
            and (self.kind, self.count) == (other.kind, other.count)
            and same(self.answer, other.answer)
        )


def failure_of(error: BaseException, student: Student, count: int) -> Failure:
    """A check's exception as a `Failure`. Where no single answer was judged, every answer of the student's
    code up to then must agree, exceptions with their message."""
    trace = student.trace
    if isinstance(error, Unmet):
        value = error.kind == "value"
        return Failure(error.kind, error.count, error.actual if value else list(trace), str(error))
    if isinstance(error, StudentError):
        lost = error.type in ("Timeout", "Ended", "WireError")
        kind = BROKEN if error.loading else LOST if lost else UNDONE if error.not_done else "student"
        return Failure(kind, count, list(trace), error.text, error)
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return Failure("assert", count, list(trace), str(error) or "an assertion of the check does not hold")
    return Failure("check", count, list(trace), unusable(error, student))


def unusable(error: BaseException, student: Student) -> str:
    """The sentence for an answer that a check cannot even work with: what was answered, then the error."""
    last = student.trace[-1] if student.trace else None
    if last is None and student.last.endswith(")"):
        return f"{student.last} returns None: is a return missing?"
    if isinstance(error, KeyError) and isinstance(last, dict) and error.args[0] not in last:
        return f"{error.args[0]} is missing from the dict that {student.last} returns"
    verb = "returns" if student.last.endswith(")") else "is"
    answer = in_words(last)
    if isinstance(last, tuple | list) and 0 < len(last) < 5:
        answer += f" ({', '.join(map(in_words, last))})"
    return f"{student.last} {verb} {answer}, which the check cannot use ({type(error).__name__}: {error})"
