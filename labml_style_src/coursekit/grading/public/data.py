"""The file of public checks: cases as steps, and how each known mistake fails them.

It is a series of `wire` messages, one about the whole and one for each case, so nothing in it is ever run. The
first message has the version of the format and the hash of the others.
"""

import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

from coursekit.grading import wire
from coursekit.grading.attempt import Attempt, diagnosable
from coursekit.grading.bank import Misconception
from coursekit.grading.failure import Failure
from coursekit.grading.public.replay import replay
from coursekit.grading.public.sketch import alike, sketch
from coursekit.grading.submission import ExerciseError

VERSION = 1


@dataclass(frozen=True)
class PublicCase:
    """One case of a check as data; see `attempt.Case`. With `lenient` a missing attribute of an answer is
    None, since the check asks for it so."""

    key: str
    task: dict[str, Any]
    name: str
    case: str
    points: float
    steps: list[dict[str, Any]]
    lenient: bool = False

    def run(self, **fixtures: Any) -> None:
        replay(self.steps, fixtures["student"], fixtures["expect"], self.lenient)


@dataclass(frozen=True)
class KnownFailure:
    """How a misconception fails a case: see `Failure`. `answer` is a sketch."""

    mistake: int
    kind: str
    count: int
    answer: Any


@dataclass(frozen=True)
class PublicChecks:
    """What a bundle can check. `tasks` are all of the lesson's, in order, and `points` what each of them gives
    with all its checks; `failures` has, by case, how misconceptions fail it."""

    slug: str
    tasks: list[dict[str, Any]]
    points: dict[str, float]
    cases: list[PublicCase]
    mistakes: list[Misconception] = field(default_factory=list)
    failures: dict[str, list[KnownFailure]] = field(default_factory=dict)

    def like(self, attempt: Attempt) -> list[Misconception]:
        """The misconceptions that fail a case just as this attempt did."""
        if not diagnosable(attempt):
            return []
        assert attempt.failure is not None
        ours = known_failure(0, attempt.failure)
        return [
            self.mistakes[known.mistake]
            for known in self.failures.get(attempt.case.key, [])
            if (ours.kind, ours.count) == (known.kind, known.count) and alike(ours.answer, known.answer)
        ]

    def encoded(self) -> bytes:
        """The content of the file."""
        numbers = {task["key"]: number for number, task in enumerate(self.tasks)}
        rest = b"".join(
            wire.encode(
                {
                    **{
                        name: getattr(case, name)
                        for name in ("key", "name", "case", "points", "steps", "lenient")
                    },
                    "task": numbers[case.task["key"]],
                    "failures": [vars(known) for known in self.failures.get(case.key, [])],
                }
            )
            for case in self.cases
        )
        whole = {
            **{name: getattr(self, name) for name in ("slug", "tasks", "points")},
            "mistakes": [vars(known) for known in self.mistakes],
            "version": VERSION,
            "content": hashlib.sha256(rest).hexdigest(),
        }
        return wire.encode(whole) + rest


def known_failure(mistake: int, failure: Failure) -> KnownFailure:
    return KnownFailure(mistake, failure.kind, failure.count, sketch(failure.answer))


def decoded(content: bytes) -> PublicChecks:
    """What `encoded` wrote. Raises `ExerciseError` if the file is not whole, or of another version."""
    stream = io.BytesIO(content)
    try:
        whole = wire.receive(stream, inputs=True)
        rest = content[stream.tell() :]
        if whole.pop("version") != VERSION or whole.pop("content") != hashlib.sha256(rest).hexdigest():
            raise wire.WireError("the public checks are not whole, or of another version")
        cases, failures = [], {}
        while stream.tell() < len(content):
            found = wire.receive(stream, inputs=True)
            known = found.pop("failures")
            cases.append(PublicCase(**{**found, "task": whole["tasks"][found["task"]]}))
            failures[found["key"]] = [KnownFailure(**each) for each in known]
        mistakes = [Misconception(**each) for each in whole.pop("mistakes")]
        return PublicChecks(**whole, cases=cases, mistakes=mistakes, failures=failures)
    except (wire.WireError, EOFError, KeyError, TypeError) as error:
        raise ExerciseError(f"check.pyz is damaged, get it again: {error}") from None
