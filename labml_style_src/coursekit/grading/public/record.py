"""Running a check with the solution and writing down what it asks and what it demands.

A check is data only if nothing but its answers' own parts reaches a demand, and nothing of an answer reaches
a question or an expected value unless it is such a part itself. The first is seen from origins. For the second
the check runs twice, and the second time each answer that it gets is another one (the solution goes on as if
nothing had happened): whatever then differs depends on the answers in a way that data cannot say.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from coursekit.grading import wire
from coursekit.grading.attempt import Attempt, Case
from coursekit.grading.backends import Backend
from coursekit.grading.expect import Expect
from coursekit.grading.public.origins import Origin, Origins, reached
from coursekit.grading.public.probes import another
from coursekit.grading.public.replay import placed
from coursekit.grading.values import copied, plain
from coursekit.grading.verbs import StudentError

EXPLAINED_LIMIT = 100_000


class NotPublic(Exception):
    """This check cannot be data; the message says why."""


@dataclass
class Step:
    """A question, or a demand on the part `judged` of an answer (None: it was of a kind that has no origin).
    `links` are the other places in `data` where parts of answers belong."""

    data: dict[str, Any]
    links: list[tuple[tuple[Any, ...], Origin]]
    judged: Origin | None = None

    def agrees(self, other: "Step") -> bool:
        ours, theirs = (wire.encode({"data": step.data, "links": step.links}) for step in (self, other))
        return ours == theirs and self.judged in (None, other.judged)

    @property
    def message(self) -> dict[str, Any]:
        return self.data | {"links": self.links} | ({"judged": self.judged} if self.judged else {})


def record(case: Case, backend: Backend, seed: int) -> list[dict[str, Any]]:
    """The steps of a case as plain data. Raises `NotPublic` if it is more than data."""
    first, second = (recorded(case, backend, seed, changed) for changed in (False, True))
    if len(first) != len(second):
        raise NotPublic("what it does depends on an answer")
    for one, other in zip(first, second, strict=True):
        if "demand" in other.data and "ask" not in other.data and other.judged is None:
            raise NotPublic("what it judges is no part of an answer")
        if not one.agrees(other):
            raise NotPublic("what it asks or expects depends on an answer")
    return [step.message for step in second]


def recorded(case: Case, backend: Backend, seed: int, changed: bool) -> list[Step]:
    steps = Steps(backend, changed)
    attempt = Attempt(case, steps, seed)
    try:
        attempt.begin()
        case.run(student=attempt.student, expect=Recording(steps), draw=attempt.draw)
    except NotPublic:
        raise
    except Exception as error:
        raise NotPublic(f"it works with an answer ({type(error).__name__}: {error})"[:200]) from error
    return steps.steps


class Steps:
    """A backend that writes down what it is asked, passes it on, and gives followed answers."""

    def __init__(self, backend: Backend, changed: bool) -> None:
        self.backend = backend
        self.changed = changed
        self.steps: list[Step] = []
        self.answers: list[Any] = []
        self.origins = Origins()

    @property
    def stops(self) -> list[str]:
        return self.backend.stops

    def apart(self) -> AbstractContextManager[None]:
        return nullcontext()

    def printed(self) -> tuple[str, int]:
        return self.backend.printed()

    def close(self) -> None:
        """The backend belongs to the caller."""

    def ask(self, request: dict[str, Any]) -> Any:
        if request["verb"] == "begin":
            return self.backend.ask(request)
        links: list[Any] = []
        bare = unlinked({"ask": request}, (), links, self.origins)
        self.steps.append(Step(copied(bare), links))
        for place, origin in links:
            bare = placed(bare, place, reached(self.answers, origin))
        self.answers.append(None)
        answer = self.backend.ask(bare["ask"])
        self.answers[-1] = answer
        if request["verb"] == "new":
            return answer
        return self.origins.follow(len(self.answers) - 1, another(answer) if self.changed else answer)


class Recording(Expect):
    """Writes demands down and judges nothing."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    def close(self, actual: Any, expected: Any, *, explain: Any = None, **options: Any) -> None:
        if explain is not None:
            options["explain"] = tabulated(explain, np.shape(plain(expected)), options.get("axes", ""))
        self._demand("close", actual, expected, **options)

    def equal(self, actual: Any, expected: Any, **options: Any) -> None:
        self._demand("equal", actual, expected, **options)

    def unpack(self, actual: Any, *names: str) -> tuple[Any, ...]:
        self._demand("unpack", actual, *names)
        return tuple(actual)

    def names(self, actual: Any, names: Iterable[str], **options: Any) -> None:
        self._demand("names", actual, tuple(names), **options)

    def true(self, condition: Any, message: str) -> None:
        raise NotPublic("it demands a condition")

    def raises(
        self,
        error: str,
        function: Callable[..., Any],
        *args: Any,
        match: str = "",
        what: str = "",
        **kwargs: Any,
    ) -> None:
        before = len(self.steps.steps)
        try:
            function(*args, **kwargs)
        except StudentError:
            pass
        else:
            raise NotPublic("the solution does not raise what it should")
        asked = self.steps.steps[before:]
        if len(asked) != 1:
            raise NotPublic("it asks more than one question until an error comes")
        del self.steps.steps[before:]
        data = {"demand": "raises", "args": (error,), "options": {"match": match, "what": what}}
        self.steps.steps.append(Step(data | asked[0].data, asked[0].links))

    def _demand(self, kind: str, actual: Any, *args: Any, **options: Any) -> None:
        origin = self.steps.origins.of(actual)
        if origin is None and actual is not None and not isinstance(actual, bool):
            raise NotPublic("what it judges is no part of an answer")
        links: list[Any] = []
        data = unlinked({"demand": kind, "args": args, "options": options}, (), links, self.steps.origins)
        self.steps.steps.append(Step(plain(data), links, origin))


def unlinked(value: Any, place: tuple[Any, ...], links: list[Any], origins: Origins) -> Any:
    """The value with None at each part that comes from an answer; `links` gets the place and the origin."""
    if origin := origins.of(value):
        links.append((place, origin))
        return None
    match value:
        case dict():
            return {key: unlinked(part, (*place, key), links, origins) for key, part in value.items()}
        case tuple() | list():
            parts = [unlinked(part, (*place, at), links, origins) for at, part in enumerate(value)]
            return tuple(parts) if isinstance(value, tuple) else parts
        case _:
            return value


def tabulated(explain: Callable[[dict[str, int]], str | None], shape: tuple[int, ...], axes: str) -> Any:
    """What `explain` says of each index: the different remarks, and which one is at which index."""
    if int(np.prod(shape)) > EXPLAINED_LIMIT:
        raise NotPublic("what it explains is too much to write down")
    words = axes.split() or [str(axis) for axis in range(len(shape))]
    if len(set(words)) < len(shape):
        raise NotPublic("its remarks do not know all axes")
    remarks: dict[str | None, int] = {}
    table = np.zeros(shape, np.uint16)
    for index in np.ndindex(*shape):
        remark = explain(dict(zip(words, index, strict=False)))
        table[index] = remarks.setdefault(remark, len(remarks))
    return {"remarks": list(remarks), "table": table}
