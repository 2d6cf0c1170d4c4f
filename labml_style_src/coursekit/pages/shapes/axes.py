"""Naming an axis by what its size was in three runs.

Each run gives every letter its own prime. The three assignments are chosen so that no two of the expressions
below, over all 26 letters, agree in all three runs (a test tries them all): a size that fits `h·d` three
times is `h·d`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping

RUNS = 3
Sizes = tuple[int, ...]  # of one axis, one number a run
Axis = Sizes | None  # None: the size changed within a run, from one pass of a loop to the next

# Small for the letters of this book, with w < t < s and n < t, so that windows and blocks fit.
_LETTERS = "bhgrtsdewnm" + "acfijklopquvxyz"
_PRIMES = (
    (3, 5, 13, 2, 23, 31, 17, 29, 7, 11, 53, 59, 41, 73, 37, 89, 83, 47, 79, 71, 97, 61, 43, 101, 19, 67),
    (2, 3, 11, 7, 29, 41, 31, 5, 17, 13, 61, 73, 97, 37, 89, 101, 23, 83, 47, 19, 59, 53, 43, 67, 79, 71),
    (5, 2, 13, 11, 19, 37, 31, 29, 7, 3, 53, 47, 41, 23, 79, 67, 71, 101, 83, 59, 61, 97, 89, 17, 43, 73),
)
ASSIGNMENTS = tuple(dict(zip(_LETTERS, primes, strict=True)) for primes in _PRIMES)


def expressions(letters: Mapping[str, Sizes]) -> Iterator[tuple[str, Sizes]]:
    """Expressions over the letters, simplest first, with their sizes, where these are whole and positive."""
    for text, sizes in _expressions(letters):
        if all(size > 0 and size == int(size) for size in sizes):
            yield text, tuple(int(size) for size in sizes)


def _expressions(letters: Mapping[str, Sizes]) -> Iterator[tuple[str, Iterable[float]]]:
    yield from letters.items()
    for a, sizes in letters.items():
        times = a if len(a) == 1 else f"·{a}"
        yield from ((f"{k}{times}", [k * size for size in sizes]) for k in (2, 3, 4))
        yield from ((f"{a}/{k}", [size / k for size in sizes]) for k in (2, 4))
        yield from ((f"{a}{k:+d}", [size + k for size in sizes]) for k in (1, -1, 2, -2))
    pairs = list(itertools.combinations(letters.items(), 2))
    for (a, x), (b, y) in pairs:
        yield f"{a}·{b}", [p * q for p, q in zip(x, y, strict=True)]
        yield f"{a}+{b}", [p + q for p, q in zip(x, y, strict=True)]
    for (a, x), (b, y) in itertools.permutations(letters.items(), 2):
        yield f"{a}-{b}", [p - q for p, q in zip(x, y, strict=True)]
        yield f"{a}/{b}", [p / q for p, q in zip(x, y, strict=True)]
    for a, sizes in letters.items():
        times = a if len(a) == 1 else f"·{a}"
        yield from ((f"2{times}{k:+d}", [2 * size + k for size in sizes]) for k in (1, -1))
    for (a, x), (b, y) in pairs:
        yield from ((f"{k}{a}·{b}", [k * p * q for p, q in zip(x, y, strict=True)]) for k in (2, 3))
        yield from ((f"{a}+{b}{k:+d}", [p + q + k for p, q in zip(x, y, strict=True)]) for k in (1, -1))
    for (a, x), (b, y) in itertools.permutations(letters.items(), 2):
        yield f"{a}-{b}+1", [p - q + 1 for p, q in zip(x, y, strict=True)]
    for (a, x), (b, y), (c, z) in itertools.combinations(letters.items(), 3):
        yield f"{a}·{b}·{c}", [p * q * r for p, q, r in zip(x, y, z, strict=True)]


class Namer:
    """Names the axes of one frame.

    `letters` are the sizes that names have there, those to be preferred first. Names of one letter are tried
    in every expression before longer names are tried at all: the book speaks in letters.
    """

    def __init__(self, letters: Mapping[str, Sizes]) -> None:
        changing = {name: sizes for name, sizes in letters.items() if len(set(sizes)) > 1}
        short = {name: sizes for name, sizes in changing.items() if len(name) == 1}
        long = {name: sizes for name, sizes in changing.items() if len(name) > 1}
        self.names: dict[Sizes, str] = {}
        for text, sizes in itertools.chain(expressions(short), expressions(long)):
            self.names.setdefault(sizes, text)

    def axis(self, axis: Axis) -> str:
        """The simplest expression that fits all runs; a number if the size never changed, or if nothing fits
        (that of the first run); `_` for a size that changes while a loop runs."""
        if axis is None:
            return "_"
        return str(axis[0]) if len(set(axis)) == 1 else self.names.get(axis, str(axis[0]))

    def shape(self, axes: Iterable[Axis]) -> str:
        return " ".join(self.axis(axis) for axis in axes)
