"""A lesson as a pair: `lesson.py` (py:percent, to edit and review) and `lesson.ipynb` (to open and run).

`lesson.py` is the source of truth. The notebook is written from it, without outputs and with cell ids that
are a hash of the cell's text: so inserting a cell changes one place in the file, the anchors of a page stay,
and a notebook that was edited by hand shows it, because an id no longer fits its cell.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupytext.compare import NotebookDifference, compare_notebooks
from nbformat import NotebookNode

from coursekit.course import CourseError, Lesson
from coursekit.files import write_text

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL = re.compile(r"# %%")


def read_lesson(lesson: Lesson) -> NotebookNode:
    """The lesson as a notebook: what `lesson.ipynb` has to be."""
    return from_text(lesson.notebook.read_text("utf-8"), lesson.slug)


def from_text(text: str, slug: str) -> NotebookNode:
    """The notebook of a py:percent text, with its cell ids."""
    parsed = jupytext.reads(text, fmt="py:percent")
    notebook: Any = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
    notebook.nbformat_minor = 5
    notebook.cells = parsed.cells
    for cell, name in zip(notebook.cells, cell_ids(notebook, slug), strict=True):
        cell["id"] = name
    return notebook


def cell_ids(notebook: NotebookNode, slug: str) -> list[str]:
    """The id that each cell ought to have: a hash of the slug, its kind and its text, and of how many equal
    cells stand before it."""
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for cell in notebook.cells:
        content = (cell.cell_type, cell.source)
        text = "\0".join([slug, *content, str(seen[content])])
        names.append(hashlib.sha256(text.encode()).hexdigest()[:12])
        seen[content] += 1
    return names


def cell_lines(text: str) -> list[int]:
    """The file line on which each cell's text begins, for a py:percent text that begins with a cell (after
    its header)."""
    lines = text.splitlines()
    return [
        next((row for row in range(number, len(lines)) if lines[row].strip()), number) + 1
        for number, line in enumerate(lines, start=1)
        if CELL.match(line)
    ]


def to_json(notebook: NotebookNode) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def difference(lesson: Lesson) -> str | None:
    """What sets the two halves of a lesson apart, or None: the cells have to be equal, the committed notebook
    without outputs and its ids those of `cell_ids`."""
    if not lesson.ipynb.exists():
        return "there is no lesson.ipynb"
    notebook, wanted = _read(lesson.ipynb), read_lesson(lesson)
    try:
        compare_notebooks(notebook, wanted, fmt="py:percent")
    except NotebookDifference as error:
        return str(error)
    if any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells):
        return "lesson.ipynb holds outputs"
    if is_edited(notebook, lesson.slug):
        return "the cell ids of lesson.ipynb are not those of its cells"
    return None


def is_edited(notebook: NotebookNode, slug: str) -> bool:
    """Whether cells were changed since the notebook was written from its `lesson.py`."""
    return [cell.get("id") for cell in notebook.cells] != cell_ids(notebook, slug)


def sync(lesson: Lesson) -> bool:
    """Write `lesson.ipynb` from `lesson.py`; return whether it changed.

    Raises `CourseError` if the notebook was edited by hand and says something else than `lesson.py`: it would
    lose that edit.
    """
    wanted = read_lesson(lesson)
    if lesson.ipynb.exists():
        notebook = _read(lesson.ipynb)
        texts = [[(cell.cell_type, cell.source) for cell in half.cells] for half in (notebook, wanted)]
        if texts[0] != texts[1] and is_edited(notebook, lesson.slug):
            raise CourseError(
                f"{lesson.ipynb} was edited and is not what lesson.py says: keep that edit with "
                f"`attn sync {lesson.slug} --from-notebook`, or delete the file to drop it"
            )
    return write_text(lesson.ipynb, to_json(wanted))


def sync_back(lesson: Lesson) -> bool:
    """Write `lesson.py` from `lesson.ipynb`, keeping its header, then the notebook again; return whether
    `lesson.py` changed."""
    if not lesson.ipynb.exists():
        raise CourseError(f"{lesson.ipynb} does not exist: there is nothing to take an edit from")
    text = jupytext.writes(_read(lesson.ipynb), fmt="py:percent")
    if lesson.notebook.exists():
        header = lesson.notebook.read_text("utf-8").partition("# %%")[0]
        text = header + "".join(text.partition("# %%")[1:])
    changed = write_text(lesson.notebook, text)
    write_text(lesson.ipynb, to_json(read_lesson(lesson)))
    return changed


def _read(path: Path) -> NotebookNode:
    try:
        return nbformat.reads(path.read_text("utf-8"), as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise CourseError(f"{path} is no notebook: {error}") from None
