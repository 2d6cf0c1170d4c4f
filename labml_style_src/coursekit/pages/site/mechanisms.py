"""Everything that the page of a mechanism needs, brought together from the course's files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from coursekit.course import Course, Mechanism
from coursekit.pages import katex
from coursekit.pages.mechanism import Facts, formulas, render_mechanism
from coursekit.pages.problems import PageError, Problem
from coursekit.pages.proofs.records import Records, known_tests
from coursekit.pages.shapes import ShapeRecord, check_stated
from coursekit.pages.source import Chapter, read_chapter
from coursekit.pages.symbols import read_scopes


def render(
    course: Course,
    mechanism: Mechanism,
    seen: Any,
    figures: dict[str, str] | PageError,
    proofs: Records,
    roles: dict[str, list[str]],
) -> str:
    """The page's Markdown. `seen` is the `ShapeRecord` as JSON; it and `figures` may be why they are missing.

    Raises `PageError` with every fault of the prose, the formulas, the shapes and the figures.
    """
    name = mechanism.source.relative_to(course.root).as_posix()
    text = mechanism.source.read_text("utf-8")
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
        number=mechanism.lesson.number,
        slug=mechanism.lesson.slug,
        notation=notation,
        tests={test: _address(*place) for test, place in known_tests(mechanism).items()},
        lookup=lambda test: proofs.lookup(mechanism, test),
        shapes=shapes,
        figures=figures,
        family=family(mechanism),
        problems=[replace(problem, file=_relative(problem.file, course)) for problem in problems],
    )
    return render_mechanism(chapter, facts)


def family(mechanism: Mechanism) -> list[tuple[str, str, str]]:
    """From a part the way back to its lesson, from a lesson the ways to its parts: what leads there, the address
    and the title."""
    lesson = mechanism.lesson
    if not mechanism.is_part:
        return [("continues in", f"../{part.slug}/", part.title) for part in lesson.parts]
    whole = f"../../notebooks/{lesson.slug}/" if lesson.is_companion else f"../{lesson.slug}/"
    return [("part of", whole, lesson.title)]


def _address(test_file: Path, line: int) -> str:
    return f"../../source/tests/{test_file.stem.removeprefix('test_')}/#L{line}"


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
