"""`attn new SLUG`: every piece of a new mechanism, small and whole, so that the tests pass and the site
builds before the first word is changed. The pieces are the files of `templates/`."""

import re
from pathlib import Path

from coursekit.course import Course, CourseError, Lesson
from coursekit.files import write_text
from coursekit.pages import notebooks

TEMPLATES = Path(__file__).parent / "templates"
SLUG = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# What a first lesson needs; every other one takes over the first two cells of the first.
SETUP = "# %%\nimport torch\n\ngenerator = torch.manual_seed(0)\n"


def new(course: Course, slug: str, number: int | None = None) -> list[Path]:
    """Write the pieces of a new mechanism and return their paths.

    The number is by default the one after the last lesson's. Raises `CourseError` if the slug is no name for
    a mechanism, or the slug or the number is taken; nothing is ever overwritten.
    """
    if not SLUG.fullmatch(slug):
        raise CourseError(
            f"'{slug}' is no slug: wanted lower-case letters, digits and _, such as 'sliding_window'"
        )
    taken = {lesson.number: lesson.slug for lesson in course.lessons}
    if slug in taken.values():
        raise CourseError(f"there is a lesson '{slug}' already")
    number = max(taken, default=0) + 1 if number is None else number
    if number in taken:
        raise CourseError(f"number {number:02d} is taken by '{taken[number]}'")
    if not 0 < number < 100:
        raise CourseError(f"number is {number}: wanted 1 to 99")
    lesson = Lesson(course.root, number, slug)
    there = [path for path in lesson.pieces() if path.exists()]
    if there:
        raise CourseError(f"{there[0].relative_to(course.root).as_posix()} exists already")
    title = slug.replace("_", " ")
    words = {"slug": slug, "title": title.capitalize(), "title_lower": title, "setup": setup_cells(course)}
    words["function"] = slug if slug.endswith("attention") else f"{slug}_attention"
    for path, template in templates(lesson).items():
        text = (TEMPLATES / template).read_text("utf-8")
        write_text(path, re.sub(r"@(\w+)@", lambda match: words[match[1]], text))
    notebooks.sync(lesson)
    return lesson.pieces()


def templates(lesson: Lesson) -> dict[Path, str]:
    """Which template makes which piece."""
    return {
        lesson.source: "mechanism.py.txt",
        lesson.test: "test.py.txt",
        lesson.figures: "figures.py.txt",
        lesson.notebook: "lesson.py.txt",
        lesson.exercise: "exercise.py.txt",
        lesson.checks: "test_exercise.py.txt",
        lesson.misconceptions: "misconceptions.py.txt",
    }


def setup_cells(course: Course) -> str:
    """The two cells with which every lesson begins (installing on Colab; imports and the style of plots),
    taken from the first lesson so that they are the same everywhere."""
    for lesson in course.lessons:
        if lesson.notebook.exists():
            cells = re.split(r"^(?=# %%)", lesson.notebook.read_text("utf-8"), flags=re.MULTILINE)
            code = [cell.rstrip() + "\n" for cell in cells if re.match(r"# %%(?! \[markdown\])", cell)]
            return "\n".join(code[:2])
    return SETUP
