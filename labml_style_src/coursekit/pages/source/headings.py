"""Headings in Markdown prose: found outside fenced code, taken off a row, refused in its middle."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from coursekit.pages.source.lines import Prose

HEADING = re.compile(r"(#{1,6})[ \t]*(.*?)[ \t]*#*[ \t]*")
SETEXT = re.compile(r"(?:=+|-+)[ ]*")
FORMULA = re.compile(r"\$\$.+?\$\$", re.DOTALL)
FENCE = re.compile(r"\s*(```+|~~~+)")


@dataclass(frozen=True)
class Heading:
    level: int
    text: str
    line: int
    anchor: str = ""


def fenced(lines: list[str]) -> list[bool]:
    """For each line of Markdown, whether it belongs to a fenced code block."""
    inside, flags = "", []
    for line in lines:
        fence = FENCE.match(line)
        flags.append(bool(inside or fence))
        if fence and not inside:
            inside = fence[1]
        elif fence and inside in fence[1] and not line.strip(" `~"):
            inside = ""
    return flags


def trim(prose: Prose) -> Prose:
    """Without blank lines at either end."""
    text = prose.text.lstrip("\n")
    return Prose(text.rstrip(), prose.line + len(prose.text) - len(text))


def take_heading(prose: Prose) -> tuple[Heading | None, Prose]:
    first, _, rest = prose.text.partition("\n")
    match = HEADING.fullmatch(first)
    if not match or not match[2]:
        return None, prose
    return Heading(len(match[1]), match[2], prose.line), trim(Prose(rest, prose.line + 1))


def misplaced_headings(heading: Heading | None, prose: Prose) -> Iterator[tuple[int, str]]:
    """Headings stand outside the rows, so one inside a row's prose cannot be shown."""
    if heading and heading.level == 1:
        yield heading.line, "a page has one title, in its module docstring: begin this heading with '##'"
    # A line of a displayed formula may be no more than an equals sign.
    lines = FORMULA.sub(lambda match: "\n" * match[0].count("\n"), prose.text).split("\n")
    for i, (line, code) in enumerate(zip(lines, fenced(lines), strict=True)):
        underlined = i and lines[i - 1].strip() and SETEXT.fullmatch(line)
        if not code and (underlined or HEADING.match(line)):
            yield prose.line + i, "a heading must be the first line of its docstring or comment"
