"""How a check failed, in a form that can be compared with how a wrong variant fails it."""

from dataclasses import dataclass
from typing import Any

from coursekit.grading.compare import same
from coursekit.grading.expect import Unmet
from coursekit.grading.values import in_words
from coursekit.grading.verbs import Student, StudentError

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
        lost = error.type in ("Timeout", "OutOfTime", "Ended", "WireError")
        kind = BROKEN if error.loading else LOST if lost else UNDONE if error.not_done else "student"
        return Failure(kind, count, list(trace), error.text, error)
    # `pytest.fail` raises what is no Exception.
    if isinstance(error, AssertionError) or not isinstance(error, Exception):
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
