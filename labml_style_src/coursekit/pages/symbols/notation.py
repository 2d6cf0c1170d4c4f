r"""Notation tables: Markdown tables whose header is `symbol | code | shape | meaning`, one symbol a row.

    | symbol | code | shape | meaning |
    |---|---|---|---|
    | $P$, $P_{ij}$ | `weights` | `b h t s` | how much of key $j$ query $i$ takes |
    | $q_i$ | `query`, `q`, `self.q` | `b h t d` | a query |
    | $\tau$ | - | scalar | a symbol that the code has no name for |

A name is that of a parameter, a local or an attribute; `self.w_q` is the attribute alone, `w_q` either.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from coursekit.pages.markdown import FORMULA
from coursekit.pages.problems import Problem
from coursekit.pages.symbols.tex import Atom, TexSyntaxError, normalise, parse

HEADER = ("symbol", "code", "shape", "meaning")
DELIMITER_CELL = re.compile(r":?-+:?")
FENCE = re.compile(r" *(?P<mark>`{3,}|~{3,})")
NAME = re.compile(r"(?:self\.)?[A-Za-z_]\w*")
CODE_SPAN = re.compile(r"(?P<ticks>`+)(?!`)\s?(?P<code>.*?)\s?(?<!`)(?P=ticks)(?!`)", re.DOTALL)
NO_CODE = {"", "-", "–", "—"}


@dataclass(frozen=True)
class Symbol:
    """One row of a Notation table: the ways to write it, its code names (none for a symbol without code), the
    Markdown of the other two cells, and the row's line in the file."""

    id: str
    texes: tuple[str, ...]
    names: tuple[str, ...]
    role: str | None
    shape: str
    meaning: str
    line: int

    @cached_property
    def claims(self) -> frozenset[str]:
        """What only one symbol of a scope may have: its code names and its formulas."""
        return frozenset({f"`{name}`" for name in self.names} | {f"${normalise(tex)}$" for tex in self.texes})


@dataclass(frozen=True)
class Scope:
    """What is valid in one place: the symbols whose code names are, and those whose formulas are."""

    symbols: tuple[Symbol, ...] = ()
    written: tuple[Symbol, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Symbol]:
        return {name: symbol for symbol in self.symbols for name in symbol.names}

    @cached_property
    def patterns(self) -> list[tuple[tuple[Atom, ...], Symbol]]:
        """The symbols' atoms, longest first; of equal length the one that says more (an index) first."""
        texes = [(parse(tex), symbol) for symbol in self.written for tex in symbol.texes]
        return sorted(texes, key=lambda item: (-len(item[0]), -sum(len(atom.normal) for atom in item[0])))

    def symbol(self, name: str) -> Symbol | None:
        """The symbol of a code name. An attribute is asked for as `self.w_q`; a table's `w_q` answers too."""
        return self.by_name.get(name) or self.by_name.get(name.removeprefix("self."))

    def attributes(self, name: str) -> str:
        """The HTML attributes of a code name, with a leading space: ` data-sym="slopes" data-role="bias"`;
        nothing for a name that is no symbol: what has a colour also has a meaning that can be looked up."""
        symbol = self.symbol(name)
        if symbol is None:
            return ""
        return f' data-sym="{symbol.id}"' + (f' data-role="{symbol.role}"' if symbol.role else "")


def read_notation(markdown: str, line: int, path: str = "") -> tuple[list[Symbol], list[Problem]]:
    """The symbols of every Notation table in `markdown`, whose first line is the file's line `line`.

    A symbol's id is its first code name; without code it is made from its TeX. The role is not known here.
    """
    symbols, problems = [], []
    lines = markdown.split("\n")
    for index in notation_rows(lines):
        symbol, faults = _read_row(cells(lines[index]), line + index)
        symbols += [symbol] if symbol else []
        problems += [Problem(path, line + index, fault) for fault in faults]
    return symbols, problems


def _read_row(row: list[str], line: int) -> tuple[Symbol | None, list[str]]:
    """The symbol of a row, or what is wrong with it."""
    if len(row) != len(HEADER):
        return None, [
            f"this row of a Notation table has {len(row)} cells, not {len(HEADER)}: {' | '.join(HEADER)}"
        ]
    faults = []
    found = (match for match in FORMULA.finditer(row[0]) if match["literal"] is None)
    texes = tuple(match["inline"] or match["display"] for match in found)
    for tex in texes:
        try:
            normalise(tex)
        except TexSyntaxError as error:
            faults.append(f"the symbol ${tex}$ cannot be read: {error}")
    if not texes:
        faults.append(f"the symbol cell '{row[0]}' has no formula: write it as $...$")
    names = tuple(match["code"] for match in CODE_SPAN.finditer(row[1]))
    faults += [f"`{name}` is no name: a code cell holds names" for name in names if not NAME.fullmatch(name)]
    if not names and row[1] not in NO_CODE:
        faults.append(f"the code cell '{row[1]}' has no name: write `name`, or - for a symbol without code")
    if faults:
        return None, faults
    without_code = "tex." + re.sub(r"[\W_]+", "_", texes[0].replace("'", "_prime")).strip("_")
    symbol_id = names[0].removeprefix("self.") if names else without_code
    return Symbol(symbol_id, texes, names, None, row[2], row[3], line), []


def prose_lines(lines: list[str]) -> Iterator[int]:
    """The indices of the lines that stand in no code fence."""
    fence = ""
    for index, text in enumerate(lines):
        match = FENCE.match(text)
        if fence:
            closes = match is not None and match["mark"].startswith(fence) and not text[match.end() :].strip()
            fence = "" if closes else fence
        elif match:
            fence = match["mark"]
        else:
            yield index


def notation_rows(lines: list[str]) -> list[int]:
    """The indices of the lines that are rows, without header and delimiter, of a Notation table."""
    rows: list[int] = []
    prose = set(prose_lines(lines))
    for index in sorted(prose):
        head = {index - 1, index - 2} <= prose and _opens_notation(lines[index - 2], lines[index - 1])
        if "|" in lines[index] and (index - 1 in rows or head):
            rows.append(index)
    return rows


def _opens_notation(header: str, delimiter: str) -> bool:
    names = tuple(cell.lower().strip("* ") for cell in cells(header))
    return names == HEADER and all(DELIMITER_CELL.fullmatch(cell) for cell in cells(delimiter))


def cells(row: str) -> list[str]:
    r"""The stripped cells of a table row. A `|` in a formula or a code span, and `\|`, separates none."""
    masked = FORMULA.sub(lambda match: "\0" * len(match[0]), row).replace("\\|", "\0\0")
    edges = [place for place, character in enumerate(masked) if character == "|"]
    if not masked.lstrip().startswith("|"):
        edges = [-1, *edges]
    if not masked.rstrip().endswith("|"):
        edges = [*edges, len(row)]
    return [row[left + 1 : right].strip() for left, right in itertools.pairwise(edges)]
