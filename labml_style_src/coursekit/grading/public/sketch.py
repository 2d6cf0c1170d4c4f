"""What is kept of a wrong answer, enough to know it again: of an array its shape and a few weighted sums.

Two answers that are the same but for rounding have sketches that are `alike`. Two that differ by more could
only be taken for each other if all the sums agreed by chance.
"""

import math
from typing import Any

import numpy as np

from coursekit.grading.compare import CLASSES, relative_closeness
from coursekit.grading.values import Other, dtype_name

SUMS = 4


def sketch(value: Any) -> Any:
    """The sketch of an answer, or of a list of answers and exceptions, as plain data."""
    match value:
        case np.ndarray():
            return {"array": _array(value)}
        case tuple() | list():
            return {type(value).__name__: [sketch(part) for part in value]}
        case dict():
            return {"dict": [(key, sketch(part)) for key, part in value.items()]}
        case Exception():
            return {"error": str(value)}
        case Other():
            return {"other": value.kind}
        case float():
            return {"array": _array(np.asarray(value))}
        case _:
            return value


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two sketches are of the same answer but for rounding, as in `compare.same`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        [(kind, one)], [(other_kind, other)] = ours.items(), theirs.items()
        if kind != other_kind:
            return False
        if kind == "array":
            return _arrays_alike(one, other)
        return alike(one, other)
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


def _array(array: np.ndarray) -> tuple[Any, ...]:
    """Shape, kind of number, dtype, sums and the largest entry."""
    flat: Any = array.ravel()
    if array.dtype.kind == "c":
        flat = np.concatenate([flat.real, flat.imag])
    numbers, places = flat.astype(np.float64), np.arange(1.0, flat.size + 1) ** 2
    content = np.where(np.isfinite(numbers), numbers, 0.0)
    # Where NaN and the infinities stand.
    odd = np.isnan(numbers) + 2.0 * np.isposinf(numbers) + 4.0 * np.isneginf(numbers)
    sums = [float(np.cos(k * places) @ content) for k in range(1, SUMS + 1)]
    kind = CLASSES.get(array.dtype.kind, "complex")
    largest = float(np.abs(content).max(initial=0.0))
    return array.shape, kind, dtype_name(array), (*sums, float(np.cos(places) @ odd)), largest


def _arrays_alike(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    (shape, kind, dtype, sums, _), (*others, other_dtype, other_sums, largest) = ours, theirs
    if [shape, kind] != others:
        return False
    floating = kind == CLASSES["f"]
    # What one entry may be off by adds up like the steps of a random walk.
    close = relative_closeness(dtype, other_dtype) if floating else 1e-12
    slack = 4 * math.sqrt(math.prod(shape)) * close * largest
    differences = np.abs(np.subtract(sums, other_sums))
    return bool((differences[:-1] <= slack).all() and differences[-1] < 1e-6)
