"""The page of a mechanism: its chapter as Markdown, derivation on the left and code on the right.

The page is for Python-Markdown with attr_list, md_in_html, tables, fenced_code, toc and
coursekit.pages.markdown. Code is raw HTML inside the rows; headings stand between the rows, or search would
file all code under the title.
"""

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath

from coursekit.course import CONTENT_PACKAGE
from coursekit.pages.code import highlight_lines, numbered_line
from coursekit.pages.front import front_matter
from coursekit.pages.inserts import Figures
from coursekit.pages.markdown import FORMULA
from coursekit.pages.problems import PageError, Problem
from coursekit.pages.proofs.checks import Checks
from coursekit.pages.proofs.records import Record
from coursekit.pages.source import Chapter, Section
from coursekit.pages.source.headings import Heading, fenced
from coursekit.pages.source.lines import Prose
from coursekit.pages.source.rows import Row
from coursekit.pages.symbols import Notation, link_prose

# What a reader needs, in seconds: for a word, for a displayed formula, for a line of code.
SECONDS = (0.3, 20, 5)

# Hides the shapes of the whole page; the style sheet does it, so it works without scripts.
SHAPES_SWITCH = (
    '<div class="shapes"><label><input type="checkbox" id="shapes" checked>shapes, as recorded</label></div>'
)


@dataclass(frozen=True)
class Facts:
    """What a page says that is not in its source.

    `number` and `slug` are the lesson's; `family` has its other mechanisms: what one is to this, its address
    and its title. `notation` comes from `symbols.read_scopes`; `shapes` maps a line of the file to the shape
    shown at its end (`ShapeRecord.lines`); `tests` are those of the proof with their addresses, `lookup(test)`
    their records; `figures` maps a name to its SVG. `problems` were found elsewhere (shapes that disagree, a
    figure that raises) and are reported with the page's own; the notation's are read from it.
    """

    number: int
    slug: str
    notation: Notation
    tests: Mapping[str, str]
    lookup: Callable[[str], Sequence[Record]]
    shapes: Mapping[int, str]
    figures: Mapping[str, str]
    family: Sequence[tuple[str, str, str]] = ()
    problems: Sequence[Problem] = ()


def render_mechanism(chapter: Chapter, facts: Facts) -> str:
    """The Markdown of the page /mechanisms/<slug>/.

    Raises `PageError` with every problem of the chapter: those of its grammar and its notation, unknown and
    failed checks, unknown figures, and `facts.problems`. TeX is not checked here; see `formulas`.
    """
    page = Page(chapter, facts)
    text = "\n\n".join(page.parts())
    problems = [*chapter.problems, *facts.notation.problems, *facts.problems]
    problems += page.checks.problems + page.figures.problems
    if problems:
        raise PageError(problems)
    return (
        front_matter(
            title=chapter.title, template="chapter.html", hide=["navigation", "toc"], search={"boost": 3}
        )
        + text
        + "\n"
    )


def formulas(chapter: Chapter) -> list[tuple[str, bool, int]]:
    """Every formula of the chapter: its TeX, whether it is displayed, and its line in the file."""
    return [
        (match["inline"] or match["display"], match["display"] is not None, prose.line + newlines)
        for prose in _all_prose(chapter)
        for text in [_without_fences(prose.text)]
        for match in FORMULA.finditer(text)
        if match["literal"] is None
        for newlines in [text.count("\n", 0, match.start())]
    ]


def reading_minutes(chapter: Chapter) -> int:
    """How long the chapter takes to read, at least a minute."""
    words = sum(len(re.findall(r"[^\W\d_]{2,}", prose.text)) for prose in _all_prose(chapter))
    displayed = sum(display for _, display, _ in formulas(chapter))
    code = sum(len(row.lines) for row in chapter.rows)
    counts = (words, displayed, code)
    return max(1, round(sum(n * seconds for n, seconds in zip(counts, SECONDS, strict=True)) / 60))


def _all_prose(chapter: Chapter) -> Iterator[Prose]:
    """The chapter's Markdown, headings included."""
    yield from chapter.proses
    yield from (Prose(row.heading.text, row.heading.line) for row in chapter.rows if row.heading)


def _without_fences(markdown: str) -> str:
    """The Markdown with the lines of fenced code emptied."""
    lines = markdown.split("\n")
    return "\n".join("" if code else line for line, code in zip(lines, fenced(lines), strict=True))


def _block(kind: str, *parts: str) -> str:
    """An element whose content is read as Markdown."""
    return "\n\n".join([f'<div class="{kind}" markdown="1">', *filter(None, parts), "</div>"])


class Page:
    """One page while it is written: badges are counted and problems collected on the way."""

    def __init__(self, chapter: Chapter, facts: Facts) -> None:
        self.chapter, self.facts = chapter, facts
        self.source = f"../../source/{CONTENT_PACKAGE}/{PurePath(chapter.path).stem}/"
        self.checks = Checks(chapter.path, facts.tests, facts.lookup)
        self.figures = Figures(chapter.path, facts.figures)
        self.code = highlight_lines(chapter.text, self._attributes)

    def parts(self) -> Iterator[str]:
        yield self._opening()
        if self.chapter.body.text:
            yield self._prose(self.chapter.body, "")
        yield from self._sheets()

    def _opening(self) -> str:
        slug = self.facts.slug
        eyebrow = " · ".join(
            [
                f"Lesson {self.facts.number}",
                f"{reading_minutes(self.chapter)} min",
                f'<a href="../../notebooks/{slug}/">notebook</a>',
                f'<a href="../../exercises/{slug}/">exercise</a>',
                *self._family(),
            ]
        )
        text, figure = self.figures.take_first(self._linked(self.chapter.opening, ""))
        title = f'<p class="eyebrow">{eyebrow}</p>\n\n# {self.chapter.title}'
        return _block("opening", _block("opening-text", title, self.figures.replace(text)), figure)

    def _family(self) -> Iterator[str]:
        """What leads to the lesson's other pages, said once for all that it leads to."""
        for says, group in groupby(self.facts.family, key=lambda member: member[0]):
            links = (f'<a href="{to}">{html.escape(title)}</a>' for _, to, title in group)
            yield f"{says} {', '.join(links)}"

    def _sheets(self) -> Iterator[str]:
        """The code, one sheet a heading: in a grid of its own a heading stays close to its prose, however
        long the code beside them is. The sheets touch, so the reader sees one."""
        switch = [SHAPES_SWITCH] if self.facts.shapes else []
        sheet = [*switch]
        for section in self.chapter.sections:
            for row in section.rows:
                if row.heading and sheet != switch:
                    yield _block("sheet", *sheet)
                    sheet = []
                sheet += self._row(row, section)
        if sheet != switch:
            yield _block("sheet", *sheet)

    def _row(self, row: Row, section: Section) -> Iterator[str]:
        if row.heading:
            yield self._heading(row.heading, row.qualname)
        prose = self._prose(Prose(row.prose, row.prose_line), row.qualname)
        kind = "code" + " first" * (row is section.rows[0]) + " last" * (row is section.rows[-1])
        code = (
            f'<div class="{kind}" data-qualname="{row.qualname}" id="{row.anchor}">'
            f"<pre><code>{self._code(row)}</code></pre></div>"
        )
        yield _block("row headed" if row.heading else "row", _block("prose", prose), code)

    def _heading(self, heading: Heading, qualname: str) -> str:
        text = self._linked(Prose(heading.text, heading.line), qualname)
        return f"{'#' * heading.level} {text} {{#{heading.anchor}}}"

    def _code(self, row: Row) -> str:
        return "".join(
            numbered_line(
                self.code[n - 1],
                n,
                f"{self.source}#L{n}",
                f' data-shape="{self.facts.shapes[n]}"' if self.facts.shapes.get(n) else "",
            )
            for n in row.lines
        )

    def _prose(self, prose: Prose, qualname: str) -> str:
        return self.figures.replace(self._linked(prose, qualname)).strip("\n")

    def _linked(self, prose: Prose, qualname: str) -> str:
        """The Markdown with its badges and linked symbols; figures still as written."""
        self.figures.check(prose.text, prose.line)
        text = self.checks.replace(prose.text, prose.line)
        return link_prose(text, self.facts.notation.scope(qualname))

    def _attributes(self, line: int, name: str) -> str:
        found = self.chapter.lines.definition_at(line)
        return self.facts.notation.scope(found.qualname if found else "").attributes(name)
