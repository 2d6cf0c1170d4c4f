"""Running the lessons as notebooks. A run is kept by content: it happens again only when its code, the
course's code that it imports, or a version changes."""

import ast
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from coursekit.course import Course, Lesson, environment_of
from coursekit.files import write_text
from coursekit.imports import code_key
from coursekit.pages import inputs, notebooks
from coursekit.pages.problems import PageError, Problem

WORKERS = 2
# A lesson may train a model for half a minute; a slow or busy machine takes several times as long.
CELL_TIMEOUT_S = 300
LINE_IN_CELL = re.compile(r"Cell In\[\d+\], line (\d+)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def execute(course: Course, lesson: Lesson) -> NotebookNode:
    """The lesson's notebook with its outputs, from the cache if nothing that they depend on has changed.

    Raises `PageError` with the file, line and number of the cell that failed.
    """
    return prepare(course, lesson)()


def prepare(course: Course, lesson: Lesson) -> Callable[[], NotebookNode]:
    """What runs the notebook, or fetches its outputs, when it is called, in any thread.

    All Python is read here and not there: in Python 3.11 two threads that build syntax trees at once can
    disturb each other. Raises `PageError` if the lesson is no Python.
    """
    notebook = _read(course, lesson)
    cached = cache_file(course, lesson, notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    def run() -> NotebookNode:
        if not cached.exists():
            _run(course, lesson, notebook)
            for stale in cached.parent.glob(f"{lesson.slug}-*.json"):
                stale.unlink(missing_ok=True)
            write_text(cached, json.dumps([cell.outputs for cell in cells]))
        for cell, outputs in zip(cells, json.loads(cached.read_text("utf-8")), strict=True):
            cell.outputs = [nbformat.from_dict(output) for output in outputs]
        return notebook

    return run


def is_cached(course: Course, lesson: Lesson) -> bool:
    try:
        return cache_file(course, lesson, _read(course, lesson)).exists()
    except PageError:
        return False


def cache_file(course: Course, lesson: Lesson, notebook: NotebookNode) -> Path:
    """Where the outputs of this notebook are kept. The key covers its code cells, and not its prose; and what the
    lesson's experiments measured, which it may plot."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    measured = [path.read_text("utf-8") for path in lesson.results]
    key = code_key(course.root, [lesson.notebook], *cells, *measured, inputs.versions())
    return course.root / "build" / "cache" / "notebooks" / f"{lesson.slug}-{key[:20]}.json"


def _read(course: Course, lesson: Lesson) -> NotebookNode:
    """The notebook of a lesson whose code Python can read; magics are comments in `lesson.py`."""
    try:
        ast.parse(lesson.notebook.read_text("utf-8"))
    except SyntaxError as error:
        raise PageError([Problem(_name(course, lesson), error.lineno or 1, error.msg)]) from None
    return notebooks.read_lesson(lesson)


def _run(course: Course, lesson: Lesson, notebook: NotebookNode) -> None:
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(lesson.folder)}},
    )
    threads = str(max(1, (os.cpu_count() or 1) // WORKERS))
    environment = {**environment_of(course), "OMP_NUM_THREADS": threads}
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        raise PageError([_failure(course, lesson, notebook, f"{error.ename}: {error.evalue}")]) from None
    except (CellTimeoutError, DeadKernelError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PageError([_failure(course, lesson, notebook, reason)]) from None


def _failure(course: Course, lesson: Lesson, notebook: NotebookNode, reason: str) -> Problem:
    """The problem of the last cell that began to run, at the line of it that its traceback names."""
    started = [n for n, cell in enumerate(notebook.cells) if "iopub.execute_input" in _timing(cell)]
    number = started[-1] if started else 0
    traceback = [
        ANSI.sub("", "\n".join(output.traceback))
        for output in notebook.cells[number].get("outputs", [])
        if output.output_type == "error"
    ]
    lines = LINE_IN_CELL.findall("\n".join(traceback))
    begins = notebooks.cell_lines(lesson.notebook.read_text("utf-8"))
    line = (begins[number] if number < len(begins) else 1) + (int(lines[0]) - 1 if lines else 0)
    return Problem(_name(course, lesson), line, f"cell {number + 1} fails: {ANSI.sub('', reason)}")


def _timing(cell: NotebookNode) -> dict[str, str]:
    return cell.metadata.get("execution", {})


def _name(course: Course, lesson: Lesson) -> str:
    return lesson.notebook.relative_to(course.root).as_posix()
