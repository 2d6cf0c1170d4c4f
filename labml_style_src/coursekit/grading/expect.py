"""The fixture `expect`: what a check demands of an answer, and what the student is told if it is not met."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from coursekit import numerics
from coursekit.grading import compare
from coursekit.grading.values import dtype_name, in_words, plain
from coursekit.grading.verbs import COARSENESS, Student, StudentError, clean
from coursekit.words import count


class Unmet(AssertionError):
    """A demand that was not met: the message is for the student. `count` says which demand of the check it
    was, `actual` what the student's code answered, where it can be compared with a variant's."""

    def __init__(self, message: str, kind: str, count: int, actual: Any = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.count = count
        self.actual = actual


class Expect:
    """Demands on one check's answers. Each raises `Unmet` with a sentence for the student; `student` is who
    gave the answers, to name the call that gave none."""

    def __init__(self, student: Student | None = None) -> None:
        self.student = student
        self.count = 0

    def close(
        self,
        actual: Any,
        expected: Any,
        *,
        axes: str = "",
        what: str = "the result",
        peer: Any = None,
        factor: float = numerics.OUTPUT_FACTOR,
        terms: int = 64,
        largest: float = 1.0,
        explain: compare.Explain | None = None,
    ) -> None:
        """The answer equals `expected` (the reference in float64) up to rounding.

        `axes` has a word for each axis (`"batch head query key"`), `what` names the answer. `peer` is a
        trusted answer in the dtype under test: give one for float32 and below where the sums are long.
        Without it the bound allows for sums of `terms` terms whose sizes are up to `largest`
        (`compare.py` derives it). `factor` is 3 for gradients. `explain(index)` may add a remark; its
        argument maps each axis word to the first wrong index.
        """
        self.count += 1
        problem = self._too_coarse(actual, what) or compare.complaint(
            actual,
            expected,
            axes=axes,
            what=what,
            peer=peer,
            factor=factor,
            terms=terms,
            largest=largest,
            explain=explain,
        )
        if problem:
            self._fail(self._nothing(actual, what) or problem, "value", actual)

    def equal(self, actual: Any, expected: Any, *, what: str = "the result") -> None:
        """The answer is exactly this: a number, a text, None, a shape, a tuple of such, or an array."""
        self.count += 1
        expected = plain(expected)
        if hasattr(expected, "shape") or (isinstance(expected, bool | int) and hasattr(actual, "shape")):
            # `terms=0` leaves no slack; whole numbers and truth values are compared exactly anyway.
            problem = compare.complaint(actual, expected, what=what, terms=0)
        else:
            given = tuple(actual) if isinstance(actual, list) and isinstance(expected, tuple) else actual
            alike = isinstance(given, bool) == isinstance(expected, bool)
            fine = alike and not hasattr(given, "shape") and given == expected
            problem = None if fine else f"{what} is {in_words_exact(actual)}, expected {expected!r}"
        if problem:
            self._fail(self._nothing(actual, what) or problem, "value", actual)

    def unpack(self, actual: Any, *names: str) -> tuple[Any, ...]:
        """The parts of an answer that must be a tuple of that many: `out, weights = expect.unpack(answer,
        "output", "weights")`."""
        self.count += 1
        if isinstance(actual, tuple | list) and len(actual) == len(names):
            return tuple(actual)
        wanted = f"a tuple of {len(names)}: ({', '.join(names)})"
        problem = f"the result is {in_words(actual)}, expected {wanted}"
        self._fail(self._nothing(actual, "the result") or problem, "value", actual)

    def names(self, actual: Any, names: Iterable[str], *, what: str = "the result", remark: str = "") -> None:
        """The answer is a dict with just these names, in whatever order; `remark` may say where they come from."""
        self.count += 1
        names = list(names)
        if not isinstance(actual, dict):
            wanted = f"a dict of {count(len(names), 'name')}"
            problem = f"{what} is {in_words(actual)}, expected {wanted}"
            self._fail(self._nothing(actual, what) or problem, "value", actual)
        missing = ", ".join(f"`{name}`" for name in names if name not in actual)
        other = ", ".join(f"`{clean(str(name), 100)}`" for name in actual if name not in names)
        said = f": {remark}" if remark else ""
        if missing:
            but = f", but has {other}" if other else ""
            self._fail(f"{what} has no {missing}{but}{said}", "value", actual)
        if other:
            self._fail(f"{what} also has {other}{said}", "value", actual)

    def true(self, condition: Any, message: str) -> None:
        """The condition holds; `message` tells the student what does not."""
        self.count += 1
        if not condition:
            self._fail(message, "condition")

    def raises(
        self,
        error: str,
        function: Callable[..., Any],
        *args: Any,
        match: str = "",
        what: str = "",
        **kwargs: Any,
    ) -> None:
        """`function`, which calls the student's code, raises this type of error (by its name), and its
        message has the regular expression `match` in it. `what` says what is wrong with the input."""
        self.count += 1
        what = f"{what}: " if what else ""
        try:
            answer = function(*args, **kwargs)
        except StudentError as raised:
            # What stands in the stub, what is missing, slow or dead is told as such.
            if (
                raised.not_done
                or raised.loading
                or raised.type in ("MissingName", "Timeout", "OutOfTime", "Ended")
            ):
                raise
            if error != raised.type and error not in raised.bases:
                self._fail(f"{what}expected {error}, but the code raises\n{raised.text}", "raises")
            if not re.search(match, raised.message):
                told = f"'{raised.message}'" if raised.message else "empty"
                self._fail(f"{what}the message of {error} should mention {match}, but is {told}", "raises")
            return
        self._fail(f"{what}expected {error}, but the code returns {in_words(answer)}", "raises")

    def _too_coarse(self, actual: Any, what: str) -> str | None:
        """An answer in a dtype that is coarser than all that was asked with: its rounding would hide mistakes."""
        if self.student is None or not hasattr(actual, "dtype"):
            return None
        came, sent = dtype_name(actual), self.student.coarsest
        if COARSENESS.get(came, 0) <= COARSENESS[sent]:
            return None
        return f"{what} is in {came}, which is less exact than the inputs: expected {sent} or better"

    def _nothing(self, actual: Any, what: str) -> str | None:
        """Where None is no answer: the call that returned it, or the entry that a dict lacks."""
        if actual is not None or self.student is None or not self.student.trace:
            return None
        last, call = self.student.trace[-1], self.student.last
        if isinstance(last, dict):
            return f"{what} is missing from the dict that {call} returns" if what not in last else None
        return f"{call} returns None: is a return missing?" if last is None and call.endswith(")") else None

    def _fail(self, message: str, kind: str, actual: Any = None) -> NoReturn:
        raise Unmet(message, kind, self.count, actual)


def in_words_exact(value: Any) -> str:
    """A short value itself, a long one by what it is."""
    exact = repr(value)
    return exact if isinstance(value, tuple | list | dict) and len(exact) < 100 else in_words(value)
