"""Everything that the page of a mechanism needs, brought together from the course's files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from coursekit.course import Course, Lesson
from coursekit.pages import katex
from coursekit.pages.mechanism import Facts, formulas, render_mechanism
from coursekit.pages.problems import PageError, Problem
from coursekit.pages.proofs.records import Records, known_tests
from coursekit.pages.shapes import ShapeRecord, check_stated
from coursekit.pages.source import Chapter, read_chapter
from coursekit.pages.symbols import read_scopes


def render(
    course: Course,
    lesson: Lesson,
    seen: Any,
    figures: dict[str, str] | PageError,
    proofs: Records,
    roles: dict[str, list[str]],
) -> str:
    """The page's Markdown. `seen` is the `ShapeRecord` as JSON; it and `figures` may be why they are missing.

    Raises `PageError` with every fault of the prose, the formulas, the shapes and the figures.
    """
    name = lesson.source.relative_to(course.root).as_posix()
    text = lesson.source.read_text("utf-8")
    chapter = read_chapter(text, name)
    problems = formula_faults(chapter)
    if isinstance(figures, PageError):
        problems += figures.problems
        figures = {}
    notation = read_scopes(text, name, roles)
    shapes: dict[int, str] = {}
    if isinstance(seen, PageError):
        problems += seen.problems
    else:
        record = ShapeRecord.from_json(seen)
        shapes = record.lines
        problems += [*record.problems, *check_stated(text, name, notation, record)]
    facts = Facts(
        number=lesson.number,
        slug=lesson.slug,
        notation=notation,
        tests=known_tests(lesson),
        lookup=lambda test: proofs.lookup(lesson, test),
        shapes=shapes,
        figures=figures,
        problems=[replace(problem, file=_relative(problem.file, course)) for problem in problems],
    )
    return render_mechanism(chapter, facts)


def formula_faults(chapter: Chapter) -> list[Problem]:
    """A problem for each formula of the chapter that KaTeX cannot read."""
    problems = []
    for tex, display, line in formulas(chapter):
        try:
            katex.render(tex, display)
        except katex.TexError as error:
            problems.append(Problem(chapter.path, line, str(error)))
    return problems


def _relative(file: str, course: Course) -> str:
    path = Path(file)
    return path.relative_to(course.root).as_posix() if path.is_relative_to(course.root) else file
