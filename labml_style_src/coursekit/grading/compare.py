"""Whether an answer is right, and if not, where it is first wrong, in words.

The bound comes from `coursekit.numerics.measure`, never from taste. What is left to say here is how much a
correct answer may differ when it is written differently and no peer was given. Rounding theory (Higham,
*Accuracy and Stability of Numerical Algorithms*, 3.1) bounds the error of a sum of `n` terms, in any order,
by `n * eps` times the sum of their sizes. So the slack of an entry is

    terms * eps * max(largest expected value, largest)

where `terms` is the length of the longest chain of sums behind an entry (64 covers the lessons' small shapes:
scores over d, softmax over s, output over s), `largest` the size of the biggest intermediate (1 for standard
normal inputs; the scores, when a check makes them large), and `eps` that of the dtype of the answer.
In float64 with entries of order one that is 1.4e-14: a wrong formula is far outside. Below float32 the course
accumulates in float32 and rounds once, so one eps of the largest expected value is enough. The oracle is
itself float64, so in float64 the slack is added to what a peer needs.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from coursekit import numerics
from coursekit.grading.values import Other, dtype_name, in_words, plain

CLASSES = {"b": "true or false", "i": "whole numbers", "u": "whole numbers", "f": "floating point"}
Explain = Callable[[dict[str, int]], str | None]


def complaint(
    actual: Any,
    expected: Any,
    *,
    axes: str = "",
    what: str = "the result",
    peer: Any = None,
    factor: float = numerics.OUTPUT_FACTOR,
    terms: int = 64,
    largest: float = 1.0,
    explain: Explain | None = None,
) -> str | None:
    """What is wrong with `actual`, in words, or None if nothing is."""
    wanted = np.asarray(plain(expected))
    words = axes.split()
    if words and len(words) != wanted.ndim:
        return wrong_rank(actual, wanted, words, what)
    if problem := wrong_kind(actual, wanted, words, what):
        return problem
    given = np.asarray(actual)
    if wanted.dtype.kind != "f":
        wrong = given != wanted
    elif (given == wanted).all():
        # The most frequent answer of all; no bound is below zero.
        return None
    else:
        dtype = getattr(torch, dtype_name(given)) if given.dtype.kind == "f" else torch.float64
        if peer is None:
            trusted = numerics.to_float64(wanted) + slack(wanted, dtype, terms, largest)
        elif dtype == torch.float64:
            # The same way off as the peer, so that the two add up.
            trusted = numerics.to_float64(plain(peer))
            sign = np.where(trusted < wanted, -1.0, 1.0)
            trusted = trusted + sign * slack(wanted, dtype, terms, largest)
        else:
            trusted = plain(peer)
        measured = numerics.measure(given, trusted, wanted, dtype=dtype, factor=factor)
        wrong = numerics.errors(numerics.to_float64(given), numerics.to_float64(wanted)) > measured.bound
    if not wrong.any():
        return None
    return first_wrong(given, wanted, wrong, words, what, explain)


def slack(expected: np.ndarray, dtype: torch.dtype, terms: int, largest: float) -> float:
    """The error that a differently written correct answer may have; the module's docstring derives it."""
    finite = np.abs(expected[np.isfinite(expected)])
    biggest = float(finite.max(initial=0.0))
    eps = torch.finfo(dtype).eps
    if eps > torch.finfo(torch.float32).eps:
        return eps * biggest
    return terms * eps * max(biggest, largest)


def wrong_rank(actual: Any, expected: np.ndarray, words: list[str], what: str) -> str:
    """The complaint where the expected value has not the axes that it should have: it was computed from an
    answer that has not either. Raises `ValueError`, for the check's author, if the answer has them."""
    if isinstance(actual, np.ndarray) and actual.ndim == len(words):
        raise ValueError(
            f"axes='{' '.join(words)}' names {len(words)} axes, the expected value has {expected.ndim}"
        )
    came = f"has shape {actual.shape}" if isinstance(actual, np.ndarray) else f"is {in_words(actual)}"
    return f"{what} {came}, expected {len(words)} axes ({', '.join(words)})"


def wrong_kind(actual: Any, expected: np.ndarray, words: list[str], what: str) -> str | None:
    """The complaint about an answer that is no array of the right shape and kind of number."""
    wanted = f"an array of shape {expected.shape}" if expected.ndim else "a number"
    if expected.ndim and words:
        wanted += f" ({', '.join(words)})"
    if actual is None:
        return f"{what} is None, expected {wanted}: is a return missing?"
    if isinstance(actual, list | tuple) and expected.ndim:
        maker = "stack" if any(isinstance(part, np.ndarray) for part in actual) else "tensor"
        wanted = wanted.replace("an array", "a tensor", 1)
        return f"{what} is {in_words(actual)}, expected {wanted}: torch.{maker}(...) makes one of it"
    if not isinstance(actual, bool | int | float | np.ndarray):
        return f"{what} is {in_words(actual)}, expected {wanted}"
    given = np.asarray(actual)
    if given.shape != expected.shape:
        came = f"has shape {given.shape}" if given.ndim else f"is {in_words(actual)}"
        return f"{what} {came}, expected {wanted}"
    given_class, wanted_class = (CLASSES.get(array.dtype.kind, "complex") for array in (given, expected))
    # The whole number 1 is a fine answer where 1.0 is expected; an array of integers is a sign of truncation.
    whole = isinstance(actual, int) and not isinstance(actual, bool) and wanted_class == "floating point"
    if given_class != wanted_class and not whole:
        return f"{what} holds {given_class} ({dtype_name(given)}), expected {wanted_class}"
    return None


def first_wrong(
    given: np.ndarray,
    expected: np.ndarray,
    wrong: np.ndarray,
    words: list[str],
    what: str,
    explain: Explain | None,
) -> str:
    """The first wrong entry in words, how many there are, and what `explain` says about it."""
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    value, target = given[index], expected[index]
    shown, wanted = distinct(value, target)
    place = ", ".join(f"{word} {i}" for word, i in zip(words, index, strict=True)) if words else ""
    place = place or (f"entry {list(index)}" if index else "")
    sentence = (
        f"{what}: {place} is {shown}, expected {wanted}" if place else f"{what} is {shown}, expected {wanted}"
    )
    if wrong.size > 1:
        count = int(wrong.sum())
        many = "every entry is" if count == wrong.size else f"{count} of {wrong.size} entries are"
        sentence += f" ({many if count > 1 else f'1 of {wrong.size} entries is'} wrong)"
    reason = (
        explain(dict(zip(words or map(str, itertools.count()), index, strict=False))) if explain else None
    )
    sentence += f": {reason}" if reason else ""
    return sentence + precision_note(given, expected, wrong)


def precision_note(given: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> str:
    """A remark if a float64 answer is off by about what float32 rounds away."""
    if given.dtype != np.float64 or not (
        np.isfinite(given[wrong]).all() and np.isfinite(expected[wrong]).all()
    ):
        return ""
    scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)), 1e-30)
    relative = float(np.abs(given[wrong] - expected[wrong]).max()) / scale
    eps = torch.finfo(torch.float32).eps
    return (
        "\nThe error is as small as float32's rounding: did a step run in float32?"
        if 1e-10 < relative < 4 * eps
        else ""
    )


def distinct(value: Any, target: Any) -> tuple[str, str]:
    """Both numbers with as few digits as show that they differ; -0 is 0."""
    if value.dtype.kind != "f" and target.dtype.kind != "f":
        return str(value), str(target)
    for digits in (3, 5, 8, 12, 17):
        shown, wanted = f"{float(value) + 0.0:.{digits}g}", f"{float(target) + 0.0:.{digits}g}"
        if shown != wanted:
            return shown, wanted
    return repr(float(value)), repr(float(target))


def same(ours: Any, theirs: Any) -> bool:
    """Whether two answers are one and the same but for rounding. This names mistakes; it judges nothing."""
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        if ours.shape != theirs.shape or CLASSES.get(ours.dtype.kind) != CLASSES.get(theirs.dtype.kind):
            return False
        return bool(np.allclose(ours, theirs, rtol=0.0, atol=closeness(ours, theirs), equal_nan=True))
    if isinstance(ours, Exception) and isinstance(theirs, Exception):
        return str(ours) == str(theirs)
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, float) and isinstance(theirs, float | int):
        return same(np.asarray(ours), np.asarray(float(theirs)))
    if isinstance(ours, Other):
        return ours == theirs
    return type(ours) is type(theirs) and ours == theirs


def closeness(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Rounding of two ways to one answer: so much of the largest."""
    if ours.dtype.kind != "f":
        return 0.0
    finite = np.abs(theirs[np.isfinite(theirs)])
    return relative_closeness(dtype_name(ours), dtype_name(theirs)) * float(finite.max(initial=0.0))


def relative_closeness(*dtypes: str) -> float:
    """1e6 eps in float64, 100 in float32, 4 below, of the coarser of these floating dtypes."""
    eps = max(torch.finfo(getattr(torch, dtype)).eps for dtype in dtypes)
    return (1e6 if eps < 1e-15 else 100 if eps < 1e-6 else 4) * eps
