"""Numbers, counts and lists as they are read."""

import pytest

from coursekit.words import count, few, listed, number, of


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2, "2"), (10.0, "10"), (2.5, "2.5"), (1 / 3, "0.33"), (-0.001, "0"), (1234567.891, "1234567.89")],
)
def test_a_number_has_the_digits_it_needs(value: float, shown: str):
    assert number(value) == shown


def test_a_score_may_keep_more_digits():
    assert number(1 / 3, 4) == "0.3333"


def test_one_is_no_plural():
    assert [count(many, "day") for many in (0, 1, 1200)] == ["0 days", "1 day", "1,200 days"]
    assert [of(1, 1, "point"), of(0.5, 2, "point")] == ["1 of 1 point", "0.5 of 2 points"]


def test_of_a_long_list_the_first_are_told_and_how_many_follow():
    assert few("abc", 3) == ["a", "b", "c"]
    assert few("abcde", 3) == ["a", "b", "c", "... and 2 more"]
    assert listed("abc", 3) == "a, b, c"
    assert listed("abcde", 3) == "a, b, c and 2 more"
