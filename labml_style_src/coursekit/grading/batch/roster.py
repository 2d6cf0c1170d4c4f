"""A CSV file that another system exported, kept byte for byte but for the cells that are set.

Reading such a file with the `csv` module and writing it again changes quotes, line ends, the byte order mark and
the blanks before Canvas' `Points Possible`. So the cells are kept here as they stand in the file, quotes included.
"""

import re
from dataclasses import dataclass

from coursekit.grading.submission import ExerciseError

DELIMITERS = (",", ";", "\t")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NUMBER = re.compile(r"[+-]?\d+(?:(?P<mark>[.,])\d+)?")


@dataclass
class Roster:
    """`rows` has the raw cells, the header first, `ends` the line end of each row; `encoding` and `mark` (the
    byte order mark, or nothing) say how it becomes bytes again."""

    rows: list[list[str]]
    ends: list[str]
    delimiter: str
    encoding: str
    mark: bytes

    @classmethod
    def read(cls, content: bytes) -> "Roster":
        """Raises `ExerciseError` if the bytes are no CSV file: not text, a quote left open, a single column."""
        mark = BYTE_ORDER_MARK if content.startswith(BYTE_ORDER_MARK) else b""
        text, encoding = decoded(content.removeprefix(mark))
        split = {delimiter: raw_rows(text, delimiter) for delimiter in DELIMITERS}
        # The header tells: the delimiter that splits it most.
        delimiter = max(DELIMITERS, key=lambda each: len(split[each][0][0]))
        rows, ends = split[delimiter]
        if len(rows[0]) < 2:
            raise ExerciseError("the roster is no CSV file: its first line has only one column")
        for number, row in enumerate(rows, start=1):
            if any(cell.startswith('"') and not closed(cell) for cell in row):
                raise ExerciseError(f"the roster's row {number} has a quote that is not closed")
        return cls(rows, ends, delimiter, encoding, mark)

    @property
    def headers(self) -> list[str]:
        return [unquoted(cell).strip() for cell in self.rows[0]]

    def value(self, row: int, column: int) -> str:
        """What a cell says; nothing where the row is too short to have it."""
        cells = self.rows[row]
        return unquoted(cells[column]) if column < len(cells) else ""

    def set(self, row: int, column: int, value: str) -> None:
        """Write into a cell, in quotes where it was in quotes or has to be."""
        cells = self.rows[row]
        cells += [""] * (column + 1 - len(cells))
        needs = re.search(rf'["\r\n{re.escape(self.delimiter)}]|^\s|\s$', value)
        quoted = needs or cells[column].startswith('"')
        cells[column] = '"' + value.replace('"', '""') + '"' if quoted else value

    def decimal_mark(self, *columns: int) -> str:
        """The mark that the numbers of these columns have, the first column that has one deciding; else what
        goes with the delimiter."""
        for column in columns:
            for row in range(1, len(self.rows)):
                number = NUMBER.fullmatch(self.value(row, column).strip())
                if number and number["mark"]:
                    return number["mark"]
        return "," if self.delimiter == ";" else "."

    @property
    def content(self) -> bytes:
        text = "".join(self.delimiter.join(row) + end for row, end in zip(self.rows, self.ends, strict=True))
        # Only cells that were set can hold what an old encoding has no sign for.
        return self.mark + text.encode(self.encoding, errors="replace")


def decoded(content: bytes) -> tuple[str, str]:
    if b"\0" in content:
        raise ExerciseError("the roster is UTF-16, or no text: export it again, as CSV in UTF-8")
    for encoding in ("utf-8", "cp1252"):
        try:
            return content.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    raise ExerciseError("the roster is neither UTF-8 nor Windows text: export it again, as CSV in UTF-8")


def raw_rows(text: str, delimiter: str) -> tuple[list[list[str]], list[str]]:
    """The cells as they stand, and how each row ends. A last line that ends has an empty row after it."""
    plain = rf"[^{re.escape(delimiter)}\r\n]*"
    pattern = re.compile(rf'("(?:[^"]|"")*"{plain}|{plain})({re.escape(delimiter)}|\r\n|\r|\n|\Z)')
    rows, ends, row, place = [], [], [], 0
    while True:
        match = pattern.match(text, place)
        assert match is not None, "the pattern matches anywhere"
        cell, end = match.groups()
        row.append(cell)
        place = match.end()
        if end == delimiter:
            continue
        rows.append(row)
        ends.append(end)
        row = []
        if not end:
            return rows, ends


def closed(cell: str) -> bool:
    return re.match(r'"(?:[^"]|"")*"', cell) is not None


def unquoted(cell: str) -> str:
    """What a raw cell says."""
    match = re.match(r'"((?:[^"]|"")*)"', cell)
    return match[1].replace('""', '"') + cell[match.end() :] if match else cell


def number_in(text: str) -> float | None:
    """The number that a cell holds, with either decimal mark; `None` if it holds none."""
    text = text.strip()
    return float(text.replace(",", ".")) if NUMBER.fullmatch(text) else None
