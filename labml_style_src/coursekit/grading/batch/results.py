"""The folder of a batch: what is kept of each student, and the gradebook made from it.

OUT/batch.json              lesson, rules, where the submissions are, the fingerprint of the secret
OUT/secret                  hexadecimal, for its owner alone (or a file that `--secret` names)
OUT/results/<student>.json  `Result.as_dict`, written whole or not at all
OUT/feedback/<student>.html, OUT/report.html
OUT/grades.csv              one line a student, by name

Nothing but the secret differs between two runs on the same submissions with the same secret: no times, no paths
of the machine. `names.file_stem` says what a student's files are called. One run at a time writes to a folder.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coursekit.files import write_text
from coursekit.grading.batch.assignment import DIGITS, Assignment
from coursekit.grading.batch.names import file_stem
from coursekit.grading.batch.result import Result
from coursekit.grading.submission import ExerciseError
from coursekit.grading.verbs import clean
from coursekit.words import number

COLUMNS = ("student", "slug", "score", "max_score", "status", "late_days", "sandbox")
# What was being written when a run was killed.
LEFT = (".batch.json.*", ".grades.csv.*", ".report.html.*", "results/.*.json.*", "feedback/.*.html.*")
# A spreadsheet takes a cell that begins so for a formula; some look past blanks, some know the wide forms.
FORMULA = re.compile(r"^[\s'\"]*[=+\-@＝＋－＠|%]|^[\t\r]")
CELL_LIMIT = 1000


@dataclass(frozen=True)
class Batch:
    """What all results of a folder have in common. `submissions` and `secret` are paths as seen from the folder; the
    first is empty where parts with different ones were merged."""

    assignment: Assignment
    fingerprint: str
    submissions: str = ""
    secret: str = "secret"

    @property
    def slug(self) -> str:
        return self.assignment.slug

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "assignment": self.assignment.as_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Batch":
        return cls(**{**data, "assignment": Assignment.from_dict(data["assignment"])})


class Results:
    """The results in one folder, by student."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def batch(self) -> Batch | None:
        """What was graded here; None if nothing was. Raises `ExerciseError` if that cannot be read."""
        path = self.folder / "batch.json"
        if not path.exists():
            return None
        try:
            return Batch.from_dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExerciseError(f"{path} is damaged: {type(error).__name__} {error}"[:300]) from None

    def graded(self) -> Batch:
        """The same. Raises `ExerciseError` if nothing was graded here."""
        if (batch := self.batch) is None:
            raise ExerciseError(f"nothing was graded in {self.folder}: it has no batch.json")
        return batch

    def begin(self, batch: Batch) -> None:
        """Make the folder ready for these rules. Raises `ExerciseError` if it is another batch's."""
        known = self.batch
        if known is not None:
            agree(self.folder, known, batch)
        for pattern in LEFT:
            for left in self.folder.glob(pattern):
                left.unlink()
        write_text(self.folder / "batch.json", as_json(batch.as_dict()))

    def path(self, student: str) -> Path:
        return self.folder / "results" / f"{file_stem(student)}.json"

    def save(self, result: Result) -> None:
        write_text(self.path(result.student), as_json(result.as_dict()))

    def get(self, student: str) -> Result | None:
        """A student's result; None if there is none, or none that can be read."""
        path = self.path(student)
        return read_result(path) if path.is_file() else None

    def all(self) -> list[Result]:
        """Every result, by student. Raises `ExerciseError` for a file that is damaged."""
        found = []
        for path in sorted((self.folder / "results").glob("[!.]*.json")):
            result = read_result(path)
            if result is None:
                raise ExerciseError(f"{path} is damaged: remove it and grade again")
            found.append(result)
        return sorted(found, key=lambda result: result.student)

    def write_gradebook(self, results: Iterable[Result] | None = None) -> Path:
        """Write `grades.csv` from the results and return its path."""
        path = self.folder / "grades.csv"
        write_text(path, gradebook(self.all() if results is None else results))
        return path


def read_result(path: Path) -> Result | None:
    try:
        return Result.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def as_json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=True) + "\n"


def gradebook(results: Iterable[Result]) -> str:
    """The text of `grades.csv`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for result in results:
        row = (
            *(result.student, result.slug, exact(result.score), exact(result.max_score)),
            *(result.status, str(result.late_days), "+".join(result.sandbox) or "none"),
        )
        table.writerow(map(cell, row))
    return text.getvalue()


def exact(score: float) -> str:
    """A score with all its decimals."""
    return number(score, DIGITS)


def cell(value: str) -> str:
    """Text for one cell of a spreadsheet: bounded, without control characters, never a formula."""
    shown = clean(value, CELL_LIMIT)
    return f"'{shown}" if FORMULA.match(value) or FORMULA.match(shown) else shown


def agree(folder: Path, known: Batch, other: Batch) -> None:
    """Raise `ExerciseError` unless both are of one lesson and one secret."""
    if known.slug != other.slug:
        raise ExerciseError(
            f"{folder} has results of '{known.slug}', not of '{other.slug}': choose another folder"
        )
    if known.fingerprint != other.fingerprint:
        raise ExerciseError(f"{folder} was graded with another secret: its inputs were other ones")


def merge(to: Path, parts: list[Path]) -> list[Result]:
    """Bring the results of several folders together in one, which may be one of them, and return them all.

    Raises `ExerciseError`, with nothing written, if lessons, secrets or rules differ, or if a student has
    different results in two folders.
    """
    target = Results(to)
    folders = [Results(part) for part in parts if part.resolve() != to.resolve()]
    known = {target: target.batch} if target.batch else {}
    batches = {**known, **{each: each.graded() for each in folders}}
    if not batches:
        raise ExerciseError("no results to merge: name at least one folder")
    first, batch = next((each, found) for each, found in batches.items() if found)
    owners: dict[str, tuple[Path, Result]] = {}
    for each, other in batches.items():
        assert other is not None
        agree(first.folder, batch, other)
        if other.assignment != batch.assignment:
            raise ExerciseError(f"{first.folder} and {each.folder} were graded by different rules")
        for result in each.all():
            place, same = owners.setdefault(result.student, (each.folder, result))
            if same != result:
                raise ExerciseError(f"{result.student} has different results in {place} and in {each.folder}")
    results = [owners[student][1] for student in sorted(owners)]
    submissions = shared({each.folder / other.submissions for each, other in batches.items() if other})
    secret = shared({each.folder / other.secret for each, other in batches.items() if other})
    places = (
        seen_from(to, submissions) if submissions else "",
        seen_from(to, secret) if secret else "secret",
    )
    target.begin(Batch(batch.assignment, batch.fingerprint, *places))
    for result in results:
        target.save(result)
    return results


def shared(paths: set[Path]) -> Path | None:
    """What all these paths lead to, if it is one place."""
    places = {path.resolve() for path in paths}
    return next(iter(places)) if len(places) == 1 else None


def seen_from(folder: Path, path: Path) -> str:
    """A path as it is reached from a folder; on another drive, where it is."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_posix()
