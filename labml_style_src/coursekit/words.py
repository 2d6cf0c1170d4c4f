"""Numbers, counts and lists as they are read."""

from collections.abc import Iterable

LIST_LIMIT = 20


def number(value: float, digits: int = 2) -> str:
    """At most so many digits behind the point, as few as are needed; no zero is negative."""
    return f"{round(value, digits) + 0.0:.{digits}f}".rstrip("0").rstrip(".")


def count(many: int, noun: str) -> str:
    """`1 day`, `1,200 days`."""
    return f"{many:,} {plural(noun, many)}"


def plural(noun: str, many: float) -> str:
    return noun if many == 1 else f"{noun}s"


def of(part: float, whole: float, noun: str) -> str:
    """`3 of 4 points`, `1 of 1 point`."""
    return f"{number(part)} of {number(whole)} {plural(noun, whole)}"


def few(items: Iterable[str], limit: int = LIST_LIMIT) -> list[str]:
    """The first of a list that may be long, and how many more there are, as a last item."""
    items = list(items)
    more = len(items) - limit
    return items[:limit] + ([f"... and {more:,} more"] if more > 0 else [])


def listed(items: Iterable[str], limit: int = LIST_LIMIT) -> str:
    """The same in a sentence: `ada, ben and 3 more`."""
    items = list(items)
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more:,} more" if more > 0 else "")
