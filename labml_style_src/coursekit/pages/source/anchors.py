"""Names for rows that outlive an edit: derived from qualified names and assignments, not from counts."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from coursekit.pages.source.lines import Lines
from coursekit.pages.source.rows import Row


def name_rows(lines: Lines, rows: list[Row]) -> Iterator[Row]:
    """The rows, with an anchor of its own for each row and heading.

    It is the first of these that is still free: the qualified name, that and a name assigned in the row, that
    and the word of one of its statements (`return`, `for`); a number follows only when all are taken.
    """
    taken: set[str] = set()
    reserved = {found.qualname for found in lines.definitions}

    def take(row: Row) -> str:
        inner = [option for option in _inside(lines, row) if option not in reserved] or [
            f"{row.qualname}.code"
        ]
        numbered = (f"{inner[0]}-{n}" for n in itertools.count(2))
        options = itertools.chain(filter(None, [row.qualname]), inner, numbered)
        anchor = next(option for option in options if option not in taken)
        taken.add(anchor)
        return anchor

    for row in rows:
        heading = replace(row.heading, anchor=take(row)) if row.heading else None
        yield replace(row, heading=heading, anchor=take(row))


def _inside(lines: Lines, row: Row) -> list[str]:
    """The anchors that the row's own statements suggest."""
    assigned = [name for line in row.lines for name in lines.names.get(line, [])]
    words = [lines.words[line] for line in row.lines if line in lines.words]
    prefix = f"{row.qualname}." if row.qualname else ""
    return [prefix + word for word in [*assigned, *words] or ["code"]]
