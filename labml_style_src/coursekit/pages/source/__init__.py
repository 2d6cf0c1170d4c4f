"""From an annotated Python file to a chapter: sections of rows, each row a thought and the code it explains.

The grammar (DESIGN.md): the module docstring opens the chapter; a docstring is the prose of its signature; a
comment on its own line is the prose of the code under it, up to the next. Code without prose joins the
thought before it. Imports, `__all__`, `if TYPE_CHECKING` and `example` are left out.
"""

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from coursekit.pages.problems import PageError, Problem
from coursekit.pages.source.anchors import name_rows
from coursekit.pages.source.headings import HEADING, Heading, fenced, misplaced_headings, trim
from coursekit.pages.source.lines import Definition, Lines, Prose, lines_of
from coursekit.pages.source.rows import Row, place, read_rows

NOT_SHOWN = "example"


@dataclass(frozen=True)
class Section:
    """The rows of one top-level function or class (`kind` "function", "class"), or of module-level statements
    that follow each other ("statements")."""

    qualname: str
    kind: str
    rows: tuple[Row, ...]

    @property
    def heading(self) -> Heading | None:
        return self.rows[0].heading


@dataclass(frozen=True)
class Chapter:
    """One annotated file. `opening` is the module docstring between its title and its first `## `, `body` the
    rest of it. `omitted` are the lines of what a page leaves out (imports, `__all__`, `example`) and of the
    comments about it."""

    path: str
    text: str
    title: str
    opening: Prose
    body: Prose
    sections: tuple[Section, ...]
    omitted: tuple[int, ...]
    lines: Lines = field(repr=False, compare=False)
    problems: tuple[Problem, ...] = ()

    @property
    def rows(self) -> list[Row]:
        return [row for section in self.sections for row in section.rows]

    @property
    def proses(self) -> list[Prose]:
        """Every piece of Markdown of the chapter, in file order, headings left out."""
        return [self.opening, self.body, *(Prose(row.prose, row.prose_line) for row in self.rows)]


def read_chapter(text: str, path: str) -> Chapter:
    """Parse an annotated source. `path` is only what messages call the file.

    Faults that leave a chapter (no title, a heading in mid-prose) are collected in `Chapter.problems`; a text
    that is no Python raises `PageError`.
    """
    try:
        lines = Lines(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise PageError([Problem(path, line, f"not valid Python: {getattr(error, 'msg', error)}")]) from None
    moved = 'the backslashes in this docstring move its lines: begin it with r"""'
    faults = [(line, moved) for line in lines.moved]
    title, opening, body = _split_docstring(lines.docstrings.get(0, Prose("", 1)))
    if not title:
        faults.append((opening.line, "the module docstring needs a first line '# Title'"))
    omitted = _omitted(lines)
    rows = list(name_rows(lines, list(read_rows(lines, omitted))))
    for row in rows:
        faults += misplaced_headings(row.heading, Prose(row.prose, row.prose_line))
    return Chapter(
        path=path,
        text=lines.text,
        title=title,
        opening=opening,
        body=body,
        sections=tuple(_sections(lines, rows)),
        omitted=tuple(sorted(omitted | _omitted_comments(lines, omitted))),
        lines=lines,
        problems=tuple(Problem(path, line, message) for line, message in faults),
    )


def _split_docstring(prose: Prose) -> tuple[str, Prose, Prose]:
    """The title, the opening, and the rest from the first `## ` on."""
    lines = prose.text.split("\n")
    title = HEADING.fullmatch(lines[0])
    is_title = bool(title and title[1] == "#" and title[2])
    flags = fenced(lines)
    breaks = (i for i, line in enumerate(lines) if line.startswith("## ") and not flags[i])
    start, end = int(is_title), next(breaks, len(lines))
    opening = trim(Prose("\n".join(lines[start:end]), prose.line + start))
    body = trim(Prose("\n".join(lines[end:]), prose.line + end))
    return (title[2] if title and is_title else ""), opening, body


def _is_left_out(node: ast.stmt) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Assign(targets=[ast.Name("__all__")]) | ast.AnnAssign(target=ast.Name("__all__")):
            return True
        case ast.AugAssign(target=ast.Name("__all__")):
            return True
        case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
        case ast.FunctionDef(name=name):
            return name == NOT_SHOWN
    return False


def _omitted(lines: Lines) -> set[int]:
    """The code lines that no row shows. A line shared with a statement that is shown is shown."""
    docstring = lines.tree.body[:1] if 0 in lines.docstrings else []
    body = lines.tree.body[len(docstring) :]
    left_out = lines_of([*docstring, *(node for node in body if _is_left_out(node))])
    shown = lines_of(node for node in body if not _is_left_out(node))
    return {line for line in lines.code if line in left_out and line not in shown}


def _omitted_comments(lines: Lines, omitted: set[int]) -> set[int]:
    """The lines of comments about omitted code."""
    return {
        line
        for comment in lines.comments
        if (about := place(lines, comment)) is None or about in omitted
        for line in range(comment.line, comment.end + 1)
    }


def _sections(lines: Lines, rows: list[Row]) -> Iterator[Section]:
    top = [found for found in lines.definitions if "." not in found.qualname]

    def owner(row: Row) -> Definition | None:
        return next((found for found in top if row.qualname.split(".")[0] == found.qualname), None)

    for found, group in itertools.groupby(rows, key=owner):
        members = tuple(group)
        yield Section(
            found.qualname if found else members[0].qualname, found.kind if found else "statements", members
        )
