"""Every Markdown page of the site, as text, and every fault that is found on the way."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from coursekit.course import CONTENT_PACKAGE, Course, CourseError, Lesson, Mechanism
from coursekit.pages import formulas, notebooks
from coursekit.pages.notebooks import outputs
from coursekit.pages.problems import PageError, Problem
from coursekit.pages.proofs import records
from coursekit.pages.site import hand_written, listing
from coursekit.pages.site.exercises import render_exercise
from coursekit.pages.site.gather import Material
from coursekit.pages.site.mechanisms import render


@dataclass(frozen=True)
class Page:
    """A page: its path below `build/docs`, its Markdown, the files that it shows, and the sources that it was
    made from (name and text), in which the place of a fault is looked for."""

    path: str
    markdown: str
    sources: list[tuple[str, str]]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def html(self) -> str:
        """Where MkDocs writes it."""
        stem = self.path.removesuffix(".md")
        return f"{stem}.html" if stem.rpartition("/")[2] == "index" else f"{stem}/index.html"


def generate(course: Course, material: Material) -> tuple[list[Page], list[Problem | str]]:
    """All pages in the order of the navigation, and all faults; pages with a fault are missing."""
    problems: list[Problem | str] = list(course.problems())
    proofs = records.load(course)
    makers: list[Callable[[], Page]] = [
        lambda path=path: hand_written_page(course, path, material, proofs)
        for path in sorted((course.root / "docs").glob("*.md"))
    ]
    roles = settings(course).get("extra", {}).get("roles", {})
    # A lesson that lacks a piece still has its other pages read, so that all faults are found.
    mechanisms = [each for each in course.mechanisms if all(path.exists() for path in each.pieces())]
    lessons = _with(course, lambda lesson: [lesson.notebook])
    exercises = _with(course, lambda lesson: [lesson.exercise, lesson.checks, lesson.misconceptions])
    makers.append(lambda: mechanism_index(mechanisms))
    for each in mechanisms:
        seen, figures = material.shapes[each.slug], material.figures[each.lesson.slug]
        family = [other.source for other in each.lesson.mechanisms]
        files = [each.source, *each.proofs, *each.lesson.drawings, *filter(Path.exists, family)]
        makers.append(_once(mechanism_page, files, course, each, seen, figures, proofs, roles))
    makers.append(lambda: notebook_index(lessons))
    for lesson in lessons:
        notebook = material.notebooks[lesson.slug]
        makers.append(_once(notebook_page, [lesson.notebook], course, lesson, notebook))
    makers.append(lambda: exercise_index(exercises))
    for lesson in exercises:
        files = [lesson.exercise, lesson.checks, lesson.misconceptions]
        makers.append(_once(exercise_page, files, course, lesson))
    for each in mechanisms:
        makers.append(_once(source_page, [each.source], course, CONTENT_PACKAGE, each.source))
        makers += [_once(source_page, [proof], course, "tests", proof) for proof in each.proofs]
    pages = []
    for make in makers:
        try:
            pages.append(make())
        except PageError as error:
            problems += error.problems
        except CourseError as error:
            problems.append(str(error))
    return pages, list({str(problem): problem for problem in problems}.values())


def _with(course: Course, pieces: Callable[[Lesson], list[Path]]) -> list[Lesson]:
    """The lessons that have these pieces."""
    return [lesson for lesson in course.lessons if all(path.exists() for path in pieces(lesson))]


_MADE: dict[tuple[str, ...], tuple[str, Page]] = {}


def _once(make: Callable[..., Page], files: Sequence[Path], *arguments: Any) -> Callable[[], Page]:
    """`make(*arguments)`, or the page that it gave last time in this process if no file and no argument has
    changed since."""

    def made() -> Page:
        digest = hashlib.sha256(repr(arguments).encode())
        for path in files:
            digest.update(path.read_bytes() + b"\0")
        key, now = (make.__name__, *map(str, files)), digest.hexdigest()
        if key not in _MADE or _MADE[key][0] != now:
            _MADE[key] = (now, make(*arguments))
        return _MADE[key][1]

    return made


@cache
def _parsed(text: str) -> dict[str, Any]:
    # Tags such as !ENV mean something to MkDocs only.
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    return yaml.load(text, Loader=loader) or {}


def settings(course: Course) -> dict[str, Any]:
    """What `mkdocs.yml` says."""
    return _parsed((course.root / "mkdocs.yml").read_text("utf-8"))


def _source(course: Course, path: Path) -> tuple[str, str]:
    return path.relative_to(course.root).as_posix(), path.read_text("utf-8")


def hand_written_page(course: Course, path: Path, material: Material, proofs: records.Records) -> Page:
    markdown = hand_written.render(course, path, material.all_drawings, material.measured, proofs)
    return Page(path.relative_to(course.root / "docs").as_posix(), markdown, [_source(course, path)])


def mechanism_page(
    course: Course,
    mechanism: Mechanism,
    seen: Any,
    figures: dict[str, str] | PageError,
    proofs: records.Records,
    roles: dict[str, list[str]],
) -> Page:
    markdown = render(course, mechanism, seen, figures, proofs, roles)
    sources = [_source(course, path) for path in [mechanism.source, *mechanism.lesson.drawings]]
    return Page(f"mechanisms/{mechanism.slug}/index.md", markdown, sources)


def notebook_page(course: Course, lesson: Lesson, notebook: NotebookNode | PageError) -> Page:
    if isinstance(notebook, PageError):
        raise notebook
    name, text = _source(course, lesson.notebook)
    begins = notebooks.cell_lines(text)
    faults = [
        fault
        for cell, line in zip(notebook.cells, begins, strict=False)
        if cell.cell_type == "markdown"
        for fault in formulas.faults(cell.source, name, line)
    ]
    if faults:
        raise PageError(faults)
    page = outputs.render_notebook(notebook, lesson, outputs.reading_minutes(notebook))
    files = {f"notebooks/{lesson.slug}/{file}": content for file, content in page.files.items()}
    files[f"notebooks/{lesson.slug}.ipynb"] = notebooks.to_json(notebooks.read_lesson(lesson)).encode()
    return Page(f"notebooks/{lesson.slug}/index.md", page.markdown, [(name, text)], files)


def exercise_page(course: Course, lesson: Lesson) -> Page:
    markdown = render_exercise(lesson)
    sources = [_source(course, path) for path in (lesson.exercise, lesson.misconceptions)]
    faults = [
        Problem(sources[0][0], _line_of(fault, markdown, sources[0][1]), fault.message)
        for fault in formulas.faults(markdown, "", 1)
    ]
    if faults:
        raise PageError(faults)
    return Page(f"exercises/{lesson.slug}/index.md", markdown, sources)


def _line_of(fault: Problem, markdown: str, source: str) -> int:
    """The line of the source that has the text of the page's line with the fault."""
    text = markdown.splitlines()[fault.line - 1].strip()
    match = re.search(re.escape(text), source)
    return source.count("\n", 0, match.start()) + 1 if match else 1


def source_page(course: Course, kind: str, path: Path) -> Page:
    slug = path.stem.removeprefix("test_") if kind == "tests" else path.stem
    return Page(f"source/{kind}/{slug}/index.md", listing.render_source(path, course.root), [])


def mechanism_index(mechanisms: Sequence[Mechanism]) -> Page:
    intro = "Each is one file of Python that reads like a chapter, the derivation beside the code."
    by_lesson = [list(group) for _, group in groupby(mechanisms, key=lambda each: each.lesson.number)]
    entries = [listing.mechanism_entry(first, parts) for first, *parts in by_lesson]
    return Page("mechanisms/index.md", listing.render_index("Mechanisms", intro, entries), [])


def notebook_index(lessons: Sequence[Lesson]) -> Page:
    intro = "Predict, run, explain. Read them here with their outputs, or download one and change it."
    entries = [listing.notebook_entry(lesson) for lesson in lessons]
    return Page("notebooks/index.md", listing.render_index("Notebooks", intro, entries), [])


def exercise_index(lessons: Sequence[Lesson]) -> Page:
    intro = (
        "You write the mechanism; the checks name the first wrong number and, if it is known, the mistake."
    )
    entries = [listing.exercise_entry(lesson) for lesson in lessons]
    return Page("exercises/index.md", listing.render_index("Exercises", intro, entries), [])
