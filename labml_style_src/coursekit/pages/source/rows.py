"""The rows of an annotated file: which code stands beside which thought."""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from coursekit.pages.source.headings import Heading, take_heading
from coursekit.pages.source.lines import Comment, Lines, Prose, first_line, lines_of


@dataclass(frozen=True)
class Row:
    """A thought and its code, and the heading that stands before them.

    Line `i` of `prose` (from 0) is the file's line `prose_line + i`. `lines` are the file's line numbers of
    the code, ascending, with single blank lines between. Anchors are unique in a file."""

    qualname: str
    prose: str
    prose_line: int
    lines: tuple[int, ...]
    anchor: str = ""
    heading: Heading | None = None


def read_rows(lines: Lines, omitted: set[int]) -> Iterator[Row]:
    """The rows of a file, still without anchors; `omitted` are the lines that are not shown."""
    shown = [line for line in lines.code if line not in omitted]
    if not shown:
        return
    prose, remarks = _thoughts(lines, omitted)
    starts = _starts(lines, shown, sorted(prose))
    ends = [*list(starts.values())[1:], len(lines.lines) + 1]
    for (target, start), end in zip(starts.items(), ends, strict=True):
        after = [comment for line, comment in remarks if start <= line < end]
        joined = _join(sorted([*prose.get(target, []), *after], key=lambda piece: piece.line), target)
        heading, text = take_heading(joined)
        code = tuple(_with_blanks(lines, [line for line in shown if start <= line < end]))
        yield Row(_qualname(lines, target), text.text, text.line, code, heading=heading)


def place(lines: Lines, comment: Comment) -> int | None:
    """The code line a comment is about: the one under it, or the one over it when it ends a body; the
    signature when it stands in it, or first in a body without a docstring. None if it is about no code."""
    if 0 in lines.docstrings and comment.line < lines.docstrings[0].line:
        return None
    for found in lines.definitions:
        if found.start < comment.line < found.body:
            return found.start
    before, after = bisect_left(lines.code, comment.line), bisect_right(lines.code, comment.end)
    if after < len(lines.code) and lines.indent(lines.code[after]) >= comment.column:
        return lines.code[after]
    return lines.code[before - 1] if before else None


def _thoughts(lines: Lines, omitted: set[int]) -> tuple[dict[int, list[Prose]], list[tuple[int, Comment]]]:
    """Prose by the code line at which its row begins, and the remarks that end a body, each with the line
    over it. Prose about omitted code is left out with it."""
    prose: dict[int, list[Prose]] = {}
    remarks: list[tuple[int, Comment]] = []
    definitions = {found.start for found in lines.definitions}
    for start in sorted(definitions & lines.docstrings.keys() - omitted):
        prose[start] = [lines.docstrings[start]]
    for comment in lines.comments:
        line = place(lines, comment)
        if line is None or line in omitted:
            continue
        if line > comment.line or line in definitions:
            prose.setdefault(line, []).append(comment)
        else:
            remarks.append((line, comment))
    return prose, remarks


def _starts(lines: Lines, shown: list[int], targets: list[int]) -> dict[int, int]:
    """For each line that has prose, the line on which its row begins: that line, or an earlier one when the
    code above it is a constant without prose, or has no thought before it that it could join."""
    starts = {target: target for target in targets} or {shown[0]: shown[0]}
    body = [node for node in lines.tree.body if first_line(node) in shown]
    definitions = {found.start for found in lines.definitions}
    bare = [not lines_of([node]) & {*targets, *definitions} for node in body]
    for i, node in enumerate(body):
        run = len(list(itertools.takewhile(bool, bare[i:])))
        after = first_line(body[i + run]) if i + run < len(body) else None
        # Bare statements that follow other statements join the thought before them; here a definition ends.
        if run and after in starts and (i == 0 or first_line(body[i - 1]) in definitions):
            starts[after] = first_line(node)
    first = min(starts)
    starts[first] = min(starts[first], shown[0])
    return dict(sorted(starts.items()))


def _with_blanks(lines: Lines, numbers: list[int]) -> Iterator[int]:
    """The code lines, with one blank line between two where the file has nothing but blank lines."""
    for before, line in itertools.pairwise([0, *numbers]):
        gap = range(before + 1, line)
        if before and gap and not any(lines.lines[n - 1].strip() for n in gap):
            yield gap[0]
        yield line


def _join(pieces: list[Prose], line: int) -> Prose:
    """One text of several, padded with blank lines so that its lines still count as the file's."""
    if not pieces:
        return Prose("", line)
    text = pieces[0].text
    for before, piece in itertools.pairwise(pieces):
        text += "\n" * (piece.line - before.end) + piece.text
    return Prose(text, pieces[0].line)


def _qualname(lines: Lines, line: int) -> str:
    """The function or class around this line; at module level the name that the statement gives, or ''."""
    found = lines.definition_at(line)
    return found.qualname if found else next(iter(lines.names.get(line, [])), "")
