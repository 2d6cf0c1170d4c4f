"""When each student handed in, as the instructor says: `times.csv`.

student,handed_in
jane,2026-12-01T23:59:00+01:00
doejohn_456,2026-12-02T08:30:00      without a zone the grader's own
"""

import csv
from datetime import UTC, datetime
from pathlib import Path

from coursekit.grading.submission import ExerciseError

NAME = "times.csv"
COLUMNS = ["student", "handed_in"]


def read_times(path: Path) -> dict[str, datetime]:
    """When each student handed in, from `times.csv`; nothing if there is none. Raises `ExerciseError`, naming the
    line, if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        lines = list(csv.reader(path.read_text("utf-8-sig").splitlines(), strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExerciseError(f"{path} cannot be read: {error}") from None
    if lines[0] != COLUMNS:
        raise ExerciseError(
            f"{path}:1: wanted the columns {','.join(COLUMNS)}; came {','.join(lines[0])[:100]}"
        )
    times: dict[str, datetime] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        try:
            student, text = cells
            when = datetime.fromisoformat(text.strip())
        except ValueError:
            form = "student,2026-12-01T23:59:00+01:00"
            raise ExerciseError(f"{path}:{number}: wanted {form}; came {','.join(cells)[:100]}") from None
        if student in times:
            raise ExerciseError(f"{path}:{number}: {student} stands in it twice")
        times[student] = (when if when.tzinfo else when.astimezone()).astimezone(UTC)
    return times
