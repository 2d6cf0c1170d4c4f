"""Who is who: the results of students found in the rows of a roster, however the system names them."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from coursekit.grading.batch.result import Result
from coursekit.grading.batch.roster import Roster
from coursekit.grading.submission import ExerciseError
from coursekit.grading.verbs import clean

# doejane_LATE_4521_998877_alibi (Canvas), Jane Doe_4521_assignsubmission_file_ (Moodle), or what a batch keeps of
# either: doejane_4521.
DOWNLOAD = re.compile(r"(?P<name>.+?)(?:_LATE)?_(?P<number>\d+)(?:_\d+.*|_assignsubmission_.*)?", re.DOTALL)


@dataclass(frozen=True)
class System:
    """What has to be known of a system's roster, by the headers of its columns.

    `keys` name a student in one word, `names` by name; the number in the name of a download is that of the
    column `number`. `grade`, `maximum`, `locked` and `comments` are for Moodle's worksheet. A cell that has
    one of `kept` says something else than a score; `totals` are columns that the system computes.
    """

    name: str
    keys: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    number: str
    other: tuple[str, ...]
    grade: str = ""
    maximum: str = ""
    locked: str = ""
    comments: str = ""
    kept: tuple[str, ...] = ()
    totals: re.Pattern[str] = field(default_factory=lambda: re.compile(r"(?!)"))


def matched(
    roster: Roster, system: System, rows: Sequence[int], results: Sequence[Result], match: Sequence[str]
) -> tuple[dict[int, Result], list[str]]:
    """The result of each row that has one, and the students whom no row fits.

    A student is looked for in this order, and the first that fits anything decides: a key, an address without its
    domain, the name of a person, the number in the name of a download.
    """
    missing = [header for header in match if header not in roster.headers]
    if missing:
        raise ExerciseError(f"--match {missing[0]}: the roster has {', '.join(roster.headers[:12])}")
    keys = [roster.headers.index(header) for header in match or system.keys if header in roster.headers]
    number = position(roster, system.number)
    numbers = keys if match or number is None else [number]
    ways: list[tuple[Callable[[str], Iterable[str]], Callable[[int], Iterable[str]]]] = [
        (lambda student: [student.strip().casefold()], lambda row: keys_of(roster, keys, row)),
        (lambda student: [student.strip().casefold()], lambda row: locals_of(keys_of(roster, keys, row))),
        (lambda student: locals_of([student.casefold()]), lambda row: keys_of(roster, keys, row)),
        (lambda student: [folded(student)], lambda row: names_of(roster, system, row)),
    ]
    indexes = [index_of(rows, ids) for _, ids in ways]
    by_number = index_of(rows, lambda row: keys_of(roster, numbers, row))

    def rows_of(student: str) -> set[int]:
        for (asked, _), index in zip(ways, indexes, strict=True):
            if fits := set[int]().union(*(index.get(each, set()) for each in asked(student) if each)):
                return fits
        return set()

    found: dict[int, Result] = {}
    strangers, problems = [], []
    for result in results:
        fits = rows_of(result.student)
        if not fits and (download := DOWNLOAD.fullmatch(result.student)):
            fits, named = by_number.get(download["number"], set()), rows_of(download["name"])
            # The number decides between namesakes; where it and the name are two people's, nobody guesses.
            if not fits & named:
                fits = fits | named
        who = clean(result.student, 100)
        if not fits:
            strangers.append(result.student)
        elif len(fits) > 1:
            lines = ", ".join(str(row + 1) for row in sorted(fits))
            problems.append(f"'{who}' fits the rows {lines} of the roster")
        elif (row := min(fits)) in found:
            other = clean(found[row].student, 100)
            problems.append(f"'{other}' and '{who}' fit the same row {row + 1} of the roster")
        else:
            found[row] = result
    if problems:
        raise ExerciseError("\n".join(problems))
    return found, strangers


def index_of(rows: Sequence[int], ids: Callable[[int], Iterable[str]]) -> dict[str, set[int]]:
    """Which rows have each of the ids."""
    index: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        for each in ids(row):
            index[each].add(row)
    return index


def keys_of(roster: Roster, keys: Sequence[int], row: int) -> set[str]:
    """The keys of a row; of `Participant 123` also the number."""
    values = {roster.value(row, column).strip().casefold() for column in keys}
    numbers = {match[1] for value in values if (match := re.fullmatch(r"[^\d@]*\s(\d+)", value))}
    return (values | numbers) - {""}


def locals_of(values: Iterable[str]) -> set[str]:
    """Of each address the part before the domain."""
    return {value.partition("@")[0] for value in values if "@" in value}


def names_of(roster: Roster, system: System, row: int) -> set[str]:
    """A person's name, folded, with either part first."""
    found = set()
    for columns in system.names:
        places = [place for column in columns if (place := position(roster, column)) is not None]
        if len(places) != len(columns):
            continue
        parts = [roster.value(row, place).strip() for place in places]
        parts = parts[0].split(",", 1) if len(parts) == 1 else parts
        found |= {folded(" ".join(parts)), folded(" ".join(reversed(parts)))}
    return found - {""}


def folded(name: str) -> str:
    """A name without case, blanks, accents' composition and punctuation."""
    return "".join(sign for sign in unicodedata.normalize("NFKC", name).casefold() if sign.isalnum())


def position(roster: Roster, header: str) -> int | None:
    return roster.headers.index(header) if header and header in roster.headers else None


def label(roster: Roster, system: System, row: int) -> str:
    """How to call a row: its name, or else its first cell."""
    for columns in system.names:
        places = [position(roster, column) for column in columns]
        if None not in places:
            return " ".join(roster.value(row, place) for place in places if place is not None).strip()
    return roster.value(row, 0).strip()
