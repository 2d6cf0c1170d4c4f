"""Where a value comes from: the number of an answer, and the steps from there to a part of it.

`(3, ("item", 0), ("attribute", "dtype"), ("text", None))` is `str(answers[3][0].dtype)`. While a check is
recorded its answers are `followed`: each is of a class derived from its own that remembers its origin through
these steps. Whatever else is computed from it has none.
"""

from typing import Any

import numpy as np
import torch

from coursekit.grading.values import copied

Origin = tuple[Any, ...]


def reached(answers: list[Any], origin: Origin, lenient: bool = False) -> Any:
    """The value at an origin. An answer that has no such part raises what Python raises; with `lenient` an
    attribute that is not there is None."""
    number, *steps = origin
    value: Any = answers[number]
    for kind, operand in steps:
        if kind == "item":
            value = value[as_index(operand)]
        elif kind == "attribute":
            value = getattr(value, operand, None) if lenient else getattr(value, operand)
        elif kind == "tensor":
            value = torch.as_tensor(value)
        else:
            value = str(value)
    return value


def as_index(key: Any) -> Any:
    """An index as Python wants it: `{"slice": (0, 3, None)}` is `0:3`, `{"ellipsis": None}` is `...`."""
    if isinstance(key, tuple):
        return tuple(map(as_index, key))
    if isinstance(key, dict):
        return slice(*key["slice"]) if "slice" in key else ...
    return key


def as_data(key: Any) -> Any:
    """An index as `wire` can send it."""
    if isinstance(key, tuple):
        return tuple(map(as_data, key))
    if isinstance(key, slice):
        return {"slice": (key.start, key.stop, key.step)}
    return {"ellipsis": None} if key is ... else key


class Origins:
    """Knows where a check's values come from, also arrays and tensors that only share the memory of an answer, as
    those of `torch.as_tensor` do."""

    def __init__(self) -> None:
        self._answers: list[Any] = []
        self._as_given: list[Any] = []
        self._places: dict[tuple[Any, ...], Origin] = {}

    def follow(self, number: int, answer: Any) -> Any:
        """The answer with that number, followed."""
        known = followed(answer, (number,))
        while len(self._as_given) <= number:
            self._as_given.append(None)
        self._as_given[number] = copied(answer)
        # Kept, so that nothing else comes to lie where it lies.
        self._answers.append(known)
        self._note(known)
        return known

    def of(self, value: Any) -> Origin | None:
        """Where a value comes from; None if from nowhere, or from more than one step of those above. Raises
        `ValueError` if the check has changed an answer in place."""
        found = getattr(value, "origin", None)
        if found is None and isinstance(value, np.ndarray | torch.Tensor):
            found = self._places.get(memory(value))
            if found is not None and isinstance(value, torch.Tensor):
                found = (*found, ("tensor", None))
        if found is not None and not unchanged(value, reached(self._as_given, found)):
            raise ValueError("the check has changed an answer")
        return found

    def _note(self, value: Any) -> None:
        if isinstance(value, FollowedArray) and value.size:
            self._places.setdefault(memory(value), value.origin)  # type: ignore[arg-type]
        for part in (
            value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
        ):
            self._note(part)


def memory(value: Any) -> tuple[Any, ...]:
    """Where an array or tensor lies, and how it is read there."""
    if isinstance(value, torch.Tensor):
        if value.requires_grad or value.dtype == torch.bfloat16 or value.layout != torch.strided:
            return ()
        value = value.numpy(force=True)
    array = np.asarray(value)
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str


def unchanged(value: Any, given: Any) -> bool:
    if isinstance(value, FollowedDtype):
        return value == given
    if isinstance(value, dict):
        return value.keys() == given.keys() and all(unchanged(value[key], given[key]) for key in value)
    if isinstance(value, tuple | list):
        return len(value) == len(given) and all(map(unchanged, value, given))
    if isinstance(value, np.ndarray | torch.Tensor):
        return np.asarray(value).tobytes() == np.asarray(given).tobytes()
    return value == given


def followed(value: Any, origin: Origin) -> Any:
    """The same value, and it knows its origin; None and truth values cannot."""
    match value:
        case dict():
            parts: Any = {key: followed(part, (*origin, ("item", key))) for key, part in value.items()}
        case tuple() | list():
            parts = [followed(part, (*origin, ("item", place))) for place, part in enumerate(value)]
        case np.ndarray():
            parts = value.view(FollowedArray)
        case bool():
            return value
        case int() | float() | str() | np.dtype():
            parts = value
        case _:
            return value
    made: Any = parts if isinstance(parts, FollowedArray) else _CLASSES[_kind(value)](parts)
    made.origin = origin
    return made


class FollowedArray(np.ndarray):
    origin: Origin | None = None

    def __getitem__(self, key: Any) -> Any:
        return _step(self, super().__getitem__(key), "item", as_data(key))

    @property
    def shape(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _step(self, super().shape, "attribute", "shape")

    @property
    def dtype(self) -> Any:
        return _step(self, super().dtype, "attribute", "dtype")


class FollowedDtype:
    """A dtype of NumPy's that only passes itself on and gives its name."""

    origin: Origin | None = None

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dtype, name)

    def __eq__(self, other: object) -> bool:
        return self.dtype == getattr(other, "dtype", other)

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __str__(self) -> str:
        return _step(self, str(self.dtype), "text", None)


class FollowedStr(str):
    origin: Origin | None = None

    def __getitem__(self, key: Any) -> Any:
        return _step(self, super().__getitem__(key), "item", as_data(key))


class FollowedInt(int):
    origin: Origin | None = None


class FollowedFloat(float):
    origin: Origin | None = None


class FollowedTuple(tuple[Any, ...]):
    origin: Origin | None = None


class FollowedList(list[Any]):
    origin: Origin | None = None


class FollowedDict(dict[Any, Any]):
    origin: Origin | None = None


_CLASSES: dict[type, Any] = {
    dict: FollowedDict,
    tuple: FollowedTuple,
    list: FollowedList,
    int: FollowedInt,
    float: FollowedFloat,
    str: FollowedStr,
    np.dtype: FollowedDtype,
}


def _kind(value: Any) -> type:
    return next(kind for kind in _CLASSES if isinstance(value, kind))


def _step(owner: Any, found: Any, kind: str, operand: Any) -> Any:
    return found if owner.origin is None else followed(found, (*owner.origin, (kind, operand)))
