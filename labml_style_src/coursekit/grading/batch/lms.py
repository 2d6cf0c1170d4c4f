"""Scores into the gradebooks of Canvas and Moodle, by filling in the roster that the instructor exported there.

Nothing is invented: every row, column and byte of the roster stays, and only the assignment's column (for Moodle's
worksheet also the comments) gets values. Whoever cannot be matched is named.

Canvas: the file of "Grades > Export", as `lib/gradebook_exporter.rb` and `lib/gradebook_importer.rb` of
https://github.com/instructure/canvas-lms write and read it. Columns: `Student` ("Doe, Jane"; or `LastName`,
`FirstName`), `ID`, `SIS User ID`, `SIS Login ID`, `Integration ID`, `Root Account`, `Section`, own columns, then
`Title (id)` for each assignment and read-only totals. Below the header may stand a row of "Manual Posting", then
`    Points Possible`. The test student comes last. "EX" is an excused student, "N/A" one to whom the assignment was
not given. Delimiter, byte order mark and decimal mark follow the instructor's settings. Since Canvas reads every
column back, the export should be a fresh one.

Moodle: the "grading worksheet" of an assignment, as `mod/assign/gradingtable.php` writes it and
`mod/assign/feedback/offline/importgradeslib.php` of https://github.com/moodle/moodle reads it. Columns:
`Identifier` ("Participant 123"), `Full name`, `Email address` and other identity fields, `Status`, `Grade`,
`Maximum grade`, `Grade can be changed`, `Last modified (grade)`, `Feedback comments`. Moodle skips, without a word,
a grade above the maximum; comments are HTML. The gradebook's own CSV, with `Email address` and `ID number` and a
column an assignment, is filled in too. Headers in another language: name the columns.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from coursekit.grading.batch.export import words
from coursekit.grading.batch.matching import System, folded, label, matched, names_of, position
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.batch.results import exact
from coursekit.grading.batch.roster import Roster, number_in
from coursekit.grading.submission import ExerciseError
from coursekit.grading.verbs import clean
from coursekit.words import count

# Comments that were written by `merge` begin so, and only those are ever replaced.
OURS = '<pre class="attn">'


CANVAS = System(
    "Canvas",
    keys=("SIS Login ID", "SIS User ID", "ID", "Integration ID"),
    names=(("Student",), ("FirstName", "LastName")),
    number="ID",
    other=("Section", "Root Account"),
    kept=("EX", "N/A"),
    # Also as "Unposted Final Score", "Homework Final Points", "Override Score (Fall 2026)".
    totals=re.compile(r"(Current|Final) (Score|Points|Grade)|Override (Score|Grade|Status)"),
)
MOODLE = System(
    "Moodle",
    keys=("Identifier", "ID number", "Email address", "Username"),
    names=(("Full name",), ("First name", "Last name"), ("First name", "Surname")),
    number="Identifier",
    other=("Status", "Last modified (submission)", "Last modified (grade)", "Institution", "Department"),
    grade="Grade",
    maximum="Maximum grade",
    locked="Grade can be changed",
    comments="Feedback comments",
)


@dataclass
class Merged:
    """The roster with the scores in it, and whom to look at: results that belong to no row, rows without a
    result, results that were not written, scores that replaced others."""

    content: bytes
    column: str
    filled: int
    strangers: list[str]
    absent: list[str]
    left: list[str]
    replaced: list[str]

    def lines(self) -> list[str]:
        """All of it in words, each name once."""
        told = [f"{count(self.filled, 'score')} in column '{clean(self.column, 200)}'"]
        for names, what in (
            (self.strangers, "in no row of the roster"),
            (self.absent, "without a result"),
            (self.left, "not written"),
            (self.replaced, "replaced another score"),
        ):
            told += [f"{what}: {clean(name, 200)}" for name in names]
        return told


def merge(
    content: bytes,
    results: Sequence[Result],
    system: System,
    *,
    column: str = "",
    match: Sequence[str] = (),
    scale: bool = False,
) -> Merged:
    """Fill the scores into a roster. `column` names the assignment's column; without it, the one whose title has
    the lesson's slug. `match` names the columns that tell who a row is, for rosters in another language.

    Raises `ExerciseError` for a roster that cannot be read, a column that is not there or not the only one,
    a student whom two rows fit, a row that two results fit, and other points than the roster's without `scale`.
    """
    roster = Roster.read(content)
    points = points_row(roster)
    target = find_column(roster, system, points, column, results[0].slug if results else "")
    rows = [row for row in range(1, len(roster.rows)) if is_student(roster, system, row)]
    found, strangers = matched(roster, system, rows, results, match)
    maximum = position(roster, system.maximum)
    locked, comments = position(roster, system.locked), position(roster, system.comments)
    telling = [place for place in (maximum, target) if place is not None]
    mark = roster.decimal_mark(*telling, *range(len(roster.headers)))
    merged = Merged(b"", roster.headers[target], 0, strangers, [], [], [])
    for row in rows:
        who, result = label(roster, system, row), found.get(row)
        if result is None:
            merged.absent.append(who)
            continue
        old = roster.value(row, target).strip()
        if result.status == ERROR:
            merged.left.append(f"{who}: the grader failed, grade again ({result.message})")
            continue
        if old.upper() in system.kept or (locked is not None and roster.value(row, locked) == "No"):
            merged.left.append(f"{who}: the roster has '{old}'" if old else f"{who}: the grade is locked")
            continue
        most = number_in(roster.value(row, maximum)) if maximum is not None else None
        most = number_in(roster.value(points, target)) if points is not None else most
        score = converted(result, most, scale, who)
        merged.filled += 1
        if number_in(old) != score:
            if old:
                merged.replaced.append(f"{who}: {exact(score)} for {old}")
            roster.set(row, target, f"{score:.2f}".rstrip("0").rstrip(".").replace(".", mark))
        if comments is not None:
            said = roster.value(row, comments)
            if said and not said.startswith(OURS):
                merged.left.append(f"{who}: the comment, since there is one")
            else:
                roster.set(row, comments, comment(result))
    merged.content = roster.content
    return merged


def points_row(roster: Roster) -> int | None:
    """Canvas' row with the points of each assignment."""
    rows = range(1, min(4, len(roster.rows)))
    return next((row for row in rows if roster.value(row, 0).strip() == "Points Possible"), None)


def is_student(roster: Roster, system: System, row: int) -> bool:
    """Whether a row is a student's: not empty, not Canvas' rows below the header, not its test student."""
    values = [roster.value(row, column).strip() for column in range(len(roster.rows[row]))]
    if all(not value or value.startswith("Manual Posting") or value == "Muted" for value in values):
        return False
    return values[0] != "Points Possible" and not names_of(roster, system, row) & {folded("Test Student")}


def find_column(roster: Roster, system: System, points: int | None, wanted: str, slug: str) -> int:
    """The column that takes the scores."""
    headers = roster.headers
    known = {*system.keys, *system.other, *(name for names in system.names for name in names)}
    known |= {system.maximum, system.locked, system.comments}

    def open_to_scores(place: int) -> bool:
        stated = roster.value(points, place).strip() if points is not None else ""
        computed = headers[place] in known or system.totals.search(headers[place])
        return bool(headers[place]) and not computed and (not stated or number_in(stated) is not None)

    places = [place for place in range(len(headers)) if open_to_scores(place)]
    listed = "; ".join(f"'{clean(headers[place], 100)}'" for place in places) or "none"
    if wanted:
        fits = [place for place in places if wanted in (headers[place], *titled(headers[place]))]
        said = f"named '{clean(wanted, 100)}'"
    elif system.grade in headers:
        return headers.index(system.grade)
    else:
        same = [place for place in places if folded(titled(headers[place])[0]) == folded(slug)]
        fits = same or [place for place in places if slug and folded(slug) in folded(headers[place])]
        said = f"for '{slug}' (say which with --column)"
    if len(fits) != 1:
        many = "more than one column" if fits else "no column"
        raise ExerciseError(f"the {system.name} roster has {many} {said}; those that take scores: {listed}")
    return fits[0]


def titled(header: str) -> tuple[str, str]:
    """`Title (123)` as its title and its number."""
    match = re.fullmatch(r"(.*?)\s*\((\d+)\)", header)
    return (match[1], match[2]) if match else (header, "")


def converted(result: Result, most: float | None, scale: bool, who: str) -> float:
    """The score in the roster's points, to the two decimals that both systems keep."""
    if most is None or most == result.max_score or not (result.max_score or result.score):
        if scale and most is None:
            raise ExerciseError(f"--scale: the roster does not say how many points there are for {who}")
        return round(result.score, 2)
    if not scale or not most:
        raise ExerciseError(
            f"the roster has {exact(most)} points where the results have {exact(result.max_score)} ({who}): "
            "change the points there and export again" + (", or give --scale" if most else "")
        )
    return round(result.score * most / result.max_score, 2)


def comment(result: Result) -> str:
    """The feedback as HTML for Moodle's comments: everything in it is escaped."""
    return f"{OURS}{escape(words(result))}</pre>"
