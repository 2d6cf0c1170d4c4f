"""Checks of one function, written down as the public checks are, for the tests of `coursekit.grading.public`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from coursekit.grading.attempt import Attempt
from coursekit.grading.backends import Backend, InProcess
from coursekit.grading.failure import Failure
from coursekit.grading.public.data import PublicCase
from coursekit.grading.public.record import record
from coursekit.grading.submission import Submission

# What a student writes who has all right.
RIGHT = """
import numpy as np
import torch

def double(x):
    return 2 * x

def pair(x):
    return x, -x

def parts(x):
    return {"first": x, "second": x + 1}

def word(n):
    return "ab" * n

def positive(x):
    return x > 0

def nothing(x):
    return None

def checked(x):
    if x.ndim > 1:
        raise ValueError("x has too many axes")
    return x

class Sum:
    def __init__(self, start=0.0):
        self.total = start

    def add(self, x):
        self.total = self.total + x
        return self.total
"""


@dataclass(frozen=True)
class OneCase:
    """A check that is one function."""

    function: Callable[..., None]
    key: str = "TestIt::test_it"
    task: dict[str, Any] = field(default_factory=lambda: {"key": "TestIt", "title": "It", "hints": []})
    name: str = "test_it"
    case: str = ""
    points: float = 1

    def run(self, **fixtures: Any) -> None:
        self.function(fixtures["student"], fixtures["expect"], fixtures["draw"])


def student(text: str = RIGHT) -> InProcess:
    return InProcess(Submission(text, "it.py", "/somewhere/it.py"))


def recorded(function: Callable[..., None], lenient: bool = False) -> PublicCase:
    case = OneCase(function)
    steps = record(case, student(), 0)
    return PublicCase(case.key, case.task, case.name, case.case, case.points, steps, lenient)


def failure(case: Any, backend: Backend) -> Failure | None:
    attempt = Attempt(case, backend, 0)
    attempt.run()
    return attempt.failure


def same_words(function: Callable[..., None], *wrong: str, lenient: bool = False) -> list[str]:
    """What the recorded check says of the right code and of each wrong one; it is what the check itself says."""
    case, told = recorded(function, lenient), []
    for text in (RIGHT, *wrong):
        ours, theirs = failure(case, student(text)), failure(OneCase(function), student(text))
        assert (ours and ours.message) == (theirs and theirs.message)
        assert ours is theirs is None or ours.equals(theirs)
        told.append(ours.message if ours else "")
    assert told[0] == ""
    return told[1:]
