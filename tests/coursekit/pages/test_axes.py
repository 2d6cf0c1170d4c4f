"""Names of axes: no two expressions can be taken for each other, and the simplest one is shown."""

import math

import pytest

from coursekit.pages.shapes.axes import ASSIGNMENTS, Namer, expressions

LETTERS = {letter: tuple(run[letter] for run in ASSIGNMENTS) for letter in ASSIGNMENTS[0]}


def test_every_letter_has_a_prime_of_its_own_in_every_run() -> None:
    for run in ASSIGNMENTS:
        assert sorted(run) == [chr(code) for code in range(ord("a"), ord("z") + 1)]
        assert len(set(run.values())) == 26
        assert all(n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1)) for n in run.values())
        assert run["w"] < run["t"] < run["s"]
        assert run["n"] < run["t"]


def test_no_letter_looks_like_a_number() -> None:
    assert all(len(set(sizes)) > 1 for sizes in LETTERS.values())


def test_no_two_expressions_agree_in_all_runs() -> None:
    seen: dict[tuple[int, ...], str] = {}
    count = 0
    for text, sizes in expressions(LETTERS):
        assert seen.setdefault(sizes, text) == text
        count += 1
    assert count > 5000


@pytest.mark.parametrize(
    ("axis", "name"),
    [
        (lambda b, h, t, s, d: d, "d"),
        (lambda b, h, t, s, d: 1, "1"),
        (lambda b, h, t, s, d: 8, "8"),
        (lambda b, h, t, s, d: h * d, "h·d"),
        (lambda b, h, t, s, d: 2 * d, "2d"),
        (lambda b, h, t, s, d: 3 * h * d, "3h·d"),
        (lambda b, h, t, s, d: s + 1, "s+1"),
        (lambda b, h, t, s, d: t + s, "t+s"),
        (lambda b, h, t, s, d: t + s - 1, "t+s-1"),
        (lambda b, h, t, s, d: s - t, "s-t"),
        (lambda b, h, t, s, d: b * t * d, "b·t·d"),
        (lambda b, h, t, s, d: 7 * d + 5, str(7 * ASSIGNMENTS[0]["d"] + 5)),
    ],
)
def test_names(axis, name: str) -> None:
    letters = {letter: LETTERS[letter] for letter in "bhtsd"}
    sizes = tuple(axis(*(run[letter] for letter in "bhtsd")) for run in ASSIGNMENTS)
    assert Namer(letters).axis(sizes) == name


def test_halves_and_quotients() -> None:
    h, d = LETTERS["h"], LETTERS["d"]
    even = tuple(2 * size for size in d)
    assert Namer({"d": even}).axis(d) == "d/2"
    assert Namer({"h": h, "m": tuple(x * y for x, y in zip(h, d, strict=True))}).axis(d) == "m/h"


def test_what_is_bound_first_wins_and_letters_win_over_names() -> None:
    assert Namer({"t": (3, 5, 7), "s": (3, 5, 7)}).axis((3, 5, 7)) == "t"
    assert Namer({"n_heads": (3, 5, 7), "h": (3, 5, 7)}).axis((3, 5, 7)) == "h"
    assert Namer({"window": (3, 5, 7), "h": (11, 13, 17)}).axis((6, 10, 14)) == "2·window"


def test_an_axis_that_changed_has_no_name() -> None:
    assert Namer({"d": (3, 5, 7)}).shape([None, (3, 5, 7), (1, 1, 1)]) == "_ d 1"
