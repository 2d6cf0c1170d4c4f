"""Wrong answers on purpose, to see whether a recorded check judges them as the check itself does."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from coursekit.grading.backends import Backend
from coursekit.grading.values import Reference


class Altered:
    """A backend whose answers go through `change`: all of them, or the `only` one with that number."""

    def __init__(self, backend: Backend, change: Callable[[Any], Any], only: int | None = None) -> None:
        self.backend = backend
        self.change = change
        self.only = only
        self.count = 0

    @property
    def stops(self) -> list[str]:
        return self.backend.stops

    def ask(self, request: dict[str, Any]) -> Any:
        answer = self.backend.ask(request)
        if request["verb"] == "begin":
            self.count = 0
            return answer
        self.count += 1
        if isinstance(answer, Reference) or self.only not in (None, self.count - 1):
            return answer
        if request["verb"] == "vjp":
            # PyTorch makes as many gradients as there are inputs, whatever the student wrote.
            return tuple(None if part is None else self.change(part) for part in answer)
        return self.change(answer)

    def apart(self) -> AbstractContextManager[None]:
        return nullcontext()

    def printed(self) -> tuple[str, int]:
        return self.backend.printed()

    def close(self) -> None:
        """The backend belongs to the caller."""


def another(answer: Any) -> Any:
    """An answer of the same form, with other content."""
    match answer:
        case dict():
            return {key: another(part) for key, part in answer.items()}
        case tuple() | list():
            return type(answer)(map(another, answer))
        case np.ndarray() if answer.dtype.kind == "b":
            return ~answer
        case np.ndarray() if answer.dtype.kind in "iu":
            return answer + answer.dtype.type(1)
        case np.ndarray():
            return (answer * answer.dtype.type(1.25) + answer.dtype.type(0.375)).astype(answer.dtype)
        case None | bool() | int():
            return int(answer or 0) + 1
        case float():
            return answer * 1.25 + 0.375
        case str():
            return answer[::-1] + "?"
        case _:
            return answer


def in_float32(answer: Any) -> Any:
    return each_array(answer, lambda array: array.astype(np.float32) if array.dtype.kind == "f" else array)


def with_an_axis(answer: Any) -> Any:
    return each_array(answer, lambda array: array[None])


def without_its_end(answer: Any) -> Any:
    """The answer without its last entry, part or character."""
    match answer:
        case np.ndarray() if answer.ndim:
            return answer[..., :-1]
        case tuple() | list() | str():
            return answer[:-1]
        case dict():
            return dict(list(answer.items())[:-1])
        case int() | float():
            return answer - 1
        case _:
            return None


def with_more(answer: Any) -> Any:
    """The answer with one part more."""
    match answer:
        case np.ndarray() if answer.ndim:
            return np.concatenate([answer, answer[..., -1:]], axis=-1)
        case tuple() | list():
            return type(answer)([*answer, answer[-1] if answer else None])
        case str():
            return answer + "0"
        case dict():
            return answer | {"more": 1}
        case _:
            return (answer,)


def each_array(answer: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    match answer:
        case dict():
            return {key: each_array(part, change) for key, part in answer.items()}
        case tuple() | list():
            return type(answer)(each_array(part, change) for part in answer)
        case np.ndarray():
            return change(answer)
        case _:
            return answer


def nothing(_answer: Any) -> None:
    return None


def in_a_list(answer: Any) -> list[Any]:
    return [answer]


CHANGES = (nothing, another, in_float32, with_an_axis, without_its_end, with_more, str, in_a_list)


def probes(backend: Backend) -> Iterator[Altered]:
    """Wrong students: every answer is wrong in one way, or the first, second or third alone."""
    for number, change in enumerate(CHANGES):
        yield Altered(backend, change)
        yield Altered(backend, change, number % 3)
