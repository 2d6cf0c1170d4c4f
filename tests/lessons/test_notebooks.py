"""Every lesson's notebook: both halves are equal, it begins as all begin, and imports what a reader has."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from coursekit.course import Lesson, find_course
from coursekit.pages import notebooks

COURSE = find_course(Path(__file__))
LESSONS = [pytest.param(lesson, id=lesson.slug) for lesson in COURSE.lessons]
# Beside the standard library; all of it comes with what the first cell installs.
MAY_IMPORT = {"annotated_attention", "coursekit", "torch", "numpy", "matplotlib"}

pytestmark = pytest.mark.parametrize("lesson", LESSONS)


def code_cells(lesson: Lesson) -> list[str]:
    return [cell.source for cell in notebooks.read_lesson(lesson).cells if cell.cell_type == "code"]


def imports(source: str) -> set[str]:
    """The top-level packages that Python text imports; what only Jupyter understands is left out."""
    text = re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE)
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_both_halves_are_equal_and_hold_no_output(lesson: Lesson) -> None:
    assert notebooks.difference(lesson) is None, (
        f"`attn sync {lesson.slug}` writes lesson.ipynb from lesson.py"
    )


def test_first_cell_installs_what_the_setting_says(lesson: Lesson) -> None:
    settings = tomllib.loads((COURSE.root / "pyproject.toml").read_text("utf-8"))["tool"]["coursekit"]
    first = code_cells(lesson)[0]
    assert f'INSTALL = "{settings["install"]}"' in first.splitlines()


def test_first_two_cells_are_those_of_every_lesson(lesson: Lesson) -> None:
    model = COURSE.lessons[0]
    for ours, theirs in zip(code_cells(lesson)[:2], code_cells(model)[:2], strict=True):
        assert ours == theirs, f"the first two code cells of {lesson.slug} and {model.slug} differ"


def test_imports_only_what_a_reader_has(lesson: Lesson) -> None:
    first, *others = code_cells(lesson)
    assert imports(first) <= sys.stdlib_module_names, "nothing is installed yet in the first cell"
    # Only the lesson about Transformers needs it, and says how to come by it.
    extra = {"transformers"} if any("annotated-attention[models]" in cell for cell in others) else set()
    assert set().union(*map(imports, others)) - sys.stdlib_module_names <= MAY_IMPORT | extra


def test_predicts_before_it_runs(lesson: Lesson) -> None:
    """A lesson asks, and hides at least two of its answers; what opens a fold also closes it."""
    text = "\n".join(
        cell.source for cell in notebooks.read_lesson(lesson).cells if cell.cell_type == "markdown"
    )
    assert text.count("**Predict.**") >= 4
    assert 2 <= text.count("<details") == text.count("</details>") == text.count("</summary>")
