"""Pages that are lists: the indexes of mechanisms, notebooks and exercises, and the views of a source."""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coursekit.course import Lesson, Mechanism
from coursekit.pages.code import source_view
from coursekit.pages.front import front_matter
from coursekit.pages.notebooks import read_lesson
from coursekit.pages.site.exercises import in_numbers, read_tasks

CHECK = re.compile(r"\s*\[check:[^\]]*\]")
FIGURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")


def first_paragraph(prose: str) -> str:
    """The first paragraph that is no heading and no figure, without its checks."""
    for paragraph in re.split(r"\n\s*\n", prose):
        text = " ".join(FIGURE.sub("", CHECK.sub("", paragraph)).split())
        if text and not text.startswith(("#", "---", "<", "|", "%")):
            return text
    return ""


@dataclass(frozen=True)
class Entry:
    """A page in a list: its lesson's number, its title, the name of its folder, what is said of it, and the
    pages in which it is continued, each by title and folder."""

    number: int
    title: str
    slug: str
    text: str
    further: tuple[tuple[str, str], ...] = ()


def mechanism_entry(mechanism: Mechanism, parts: Iterable[Mechanism] = ()) -> Entry:
    """A mechanism is listed with the problem with which it begins, and with its parts."""
    prose = ast.get_docstring(ast.parse(mechanism.source.read_text("utf-8"))) or ""
    further = tuple((part.title, part.slug) for part in parts)
    return Entry(mechanism.lesson.number, mechanism.title, mechanism.slug, first_paragraph(prose), further)


def notebook_entry(lesson: Lesson) -> Entry:
    """A notebook is listed with its own title and the first paragraph after it."""
    prose = [cell.source for cell in read_lesson(lesson).cells if cell.cell_type == "markdown"]
    titles = [text[2:].partition("\n")[0].strip() for text in prose if text.startswith("# ")]
    title, text = next(iter(titles), lesson.title), next(filter(None, map(first_paragraph, prose)), "")
    return Entry(lesson.number, title, lesson.slug, text)


def exercise_entry(lesson: Lesson) -> Entry:
    tasks = read_tasks(lesson)
    return Entry(lesson.number, lesson.title, lesson.slug, f"{in_numbers(tasks)}.")


def render_index(title: str, intro: str, entries: list[Entry]) -> str:
    """An index page: each entry with its number, its title and what is said of it."""
    head = front_matter(title=title, hide=["navigation", "toc"])
    items = [_item(entry) for entry in entries]
    return "\n\n".join([f"{head}# {title}", intro, '<div class="lessons" markdown="1">', *items, "</div>\n"])


def _item(entry: Entry) -> str:
    number = f'<span class="number">{entry.number}</span>'
    heading = f"### [{entry.title}]({entry.slug}/index.md)"
    links = ", ".join(f"[{title}]({slug}/index.md)" for title, slug in entry.further)
    continues = f"Continues in {links}." if links else ""
    parts = [number, heading, entry.text, *filter(None, [continues])]
    return '<div class="lesson" markdown="1">\n' + "\n\n".join(parts) + "\n\n</div>"


def render_source(path: Path, root: Path) -> str:
    """A file as it is, each line with the anchor `L<number>`; found by no search and in no navigation."""
    name = path.relative_to(root).as_posix()
    head = front_matter(
        title=name, template="chapter.html", hide=["navigation", "toc"], search={"exclude": True}
    )
    return f'{head}<p class="eyebrow">{name}</p>\n\n# {path.name}\n\n{source_view(path.read_text("utf-8"))}\n'
