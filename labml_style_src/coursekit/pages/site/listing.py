"""Pages that are lists: the indexes of mechanisms, notebooks and exercises, and the views of a source."""

import ast
import re
from pathlib import Path

from coursekit.course import Lesson
from coursekit.pages.code import source_view
from coursekit.pages.front import front_matter
from coursekit.pages.notebooks import read_lesson
from coursekit.pages.site.exercises import read_tasks

CHECK = re.compile(r"\s*\[check:[^\]]*\]")
FIGURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")


def first_paragraph(prose: str) -> str:
    """The first paragraph that is no heading and no figure, without its checks."""
    for paragraph in re.split(r"\n\s*\n", prose):
        text = " ".join(FIGURE.sub("", CHECK.sub("", paragraph)).split())
        if text and not text.startswith(("#", "---", "<", "|", "%")):
            return text
    return ""


def summary(lesson: Lesson) -> str:
    """What a lesson is about: the problem with which its mechanism begins."""
    if lesson.is_companion or not lesson.source.exists():
        return ""
    return first_paragraph(ast.get_docstring(ast.parse(lesson.source.read_text("utf-8"))) or "")


def notebook_entry(lesson: Lesson) -> tuple[str, str]:
    """The title of a lesson's notebook, and the first paragraph after it."""
    prose = [cell.source for cell in read_lesson(lesson).cells if cell.cell_type == "markdown"]
    titles = [text[2:].partition("\n")[0].strip() for text in prose if text.startswith("# ")]
    return next(iter(titles), lesson.title), next(filter(None, map(first_paragraph, prose)), "")


def exercise_summary(lesson: Lesson) -> str:
    tasks = read_tasks(lesson)
    return f"{len(tasks)} tasks, {sum(task.points for task in tasks)} points."


def render_index(title: str, intro: str, entries: list[tuple[Lesson, str, str]]) -> str:
    """An index page: each lesson with its title and what is said of it."""
    head = front_matter(title=title, hide=["navigation", "toc"])
    items = [
        f'<div class="lesson" markdown="1">\n<span class="number">{lesson.number}</span>\n\n'
        f"### [{heading}]({lesson.slug}/index.md)\n\n{text}\n\n</div>"
        for lesson, heading, text in entries
    ]
    return "\n\n".join([f"{head}# {title}", intro, '<div class="lessons" markdown="1">', *items, "</div>\n"])


def render_source(path: Path, root: Path) -> str:
    """A file as it is, each line with the anchor `L<number>`; found by no search and in no navigation."""
    name = path.relative_to(root).as_posix()
    head = front_matter(
        title=name, template="chapter.html", hide=["navigation", "toc"], search={"exclude": True}
    )
    return f'{head}<p class="eyebrow">{name}</p>\n\n# {path.name}\n\n{source_view(path.read_text("utf-8"))}\n'
