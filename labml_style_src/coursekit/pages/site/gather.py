"""What a build needs that takes time: shapes and figures from a run, and notebooks with their outputs.

Each is kept in `build/cache` under a key of all that can change it. Notebooks run beside the rest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from coursekit.course import Course, Lesson, Mechanism
from coursekit.files import write_text
from coursekit.imports import code_key
from coursekit.pages import inputs
from coursekit.pages.notebooks import execute
from coursekit.pages.problems import PageError, Problem
from coursekit.pages.worker import Worker


@dataclass
class Material:
    """By slug: the shapes that were seen in each mechanism (as JSON), each lesson's figures (SVG by name) and its
    executed notebook; and of the hand-written pages the drawings, and the words for what was measured. What failed is
    its `PageError`."""

    shapes: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, str] | PageError] = field(default_factory=dict)
    notebooks: dict[str, NotebookNode | PageError] = field(default_factory=dict)
    drawings: dict[str, str] | PageError = field(default_factory=dict)
    measured: dict[str, str] | PageError = field(default_factory=dict)

    @property
    def all_drawings(self) -> dict[str, str] | PageError:
        """What a hand-written page may show: its own drawings, and each lesson's as `slug.name`."""
        if isinstance(self.drawings, PageError):
            return self.drawings
        lessons = {slug: drawn for slug, drawn in self.figures.items() if isinstance(drawn, dict)}
        return self.drawings | {
            f"{slug}.{name}": svg for slug, drawn in lessons.items() for name, svg in drawn.items()
        }


def gather(course: Course, worker: Worker, progress: Callable[[str], None]) -> Material:
    """Run what has to be run, and take the rest from the cache."""
    material = Material()
    lessons = [lesson for lesson in course.lessons if lesson.notebook.exists()]
    waiting = [lesson.slug for lesson in lessons if not execute.is_cached(course, lesson)]
    if waiting:
        progress(f"running {len(waiting)} notebooks: {', '.join(waiting)}")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else each kernel warns of frozen modules
    with ThreadPoolExecutor(execute.WORKERS) as beside:
        running: dict[str, Future[NotebookNode]] = {}
        for lesson in lessons:
            try:
                running[lesson.slug] = beside.submit(execute.prepare(course, lesson))
            except PageError as error:
                material.notebooks[lesson.slug] = error
        for mechanism in course.mechanisms:
            if mechanism.source.exists():
                material.shapes[mechanism.slug] = seen(course, worker, mechanism)
        for lesson in course.lessons:
            material.figures[lesson.slug] = all_drawn(course, worker, lesson)
        measured = sorted((course.root / "benchmarks" / "results").glob("*.json"))
        material.drawings = drawn(course, worker, course.root / "docs" / "figures.py", "docs", measured)
        material.measured = drawn(course, worker, course.root / "docs" / "measured.py", "measured", measured)
        for slug, future in running.items():
            try:
                material.notebooks[slug] = future.result()
            except PageError as error:
                material.notebooks[slug] = error
            if slug in waiting:
                progress(f"ran the notebook of {slug}")
    return material


def seen(course: Course, worker: Worker, mechanism: Mechanism) -> Any:
    """The shapes of a mechanism. They are kept by line, so the key covers the whole text of the file."""
    pages = Path(__file__).parents[1]
    engine = code_key(pages.parents[1], [pages / "shapes" / "__init__.py"])
    path = mechanism.source
    texts = [path.read_text("utf-8"), engine]
    return _kept(course, worker, "shapes", mechanism.slug, path, mechanism.module, texts)


def all_drawn(course: Course, worker: Worker, lesson: Lesson) -> dict[str, str] | PageError:
    """A lesson's figures, from all their files."""
    figures: dict[str, str] = {}
    for path in lesson.drawings:
        owner = lesson.slug + path.stem.removeprefix("figures")
        found = drawn(course, worker, path, owner, lesson.results)
        if isinstance(found, PageError):
            return found
        if twice := figures.keys() & found.keys():
            place = path.relative_to(course.root).as_posix()
            return PageError([Problem(place, 1, f"figure '{min(twice)}' is drawn in another file, too")])
        figures |= found
    return figures


def drawn(
    course: Course, worker: Worker, path: Path, owner: str, measured: Sequence[Path]
) -> dict[str, str] | PageError:
    """What the functions of a file make, which belongs to a lesson or to the hand-written pages: figures or Markdown,
    also of what was measured."""
    if not path.exists():
        return {}
    texts = [each.read_text("utf-8") for each in (path, *measured)]
    return _kept(course, worker, "figures", owner, path, f"figures_{owner}", texts)


def _kept(
    course: Course, worker: Worker, job: str, slug: str, path: Path, module: str, texts: list[str]
) -> Any | PageError:
    """The worker's answer about a file, from the cache if the code and the texts are those of last time."""
    try:
        key = code_key(course.root, [path], inputs.versions(), *texts)
    except SyntaxError:
        key = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    cached = course.root / "build" / "cache" / job / f"{slug}-{key[:20]}.json"
    if cached.exists():
        return json.loads(cached.read_text("utf-8"))
    try:
        answer = worker.ask(job, path, module)
    except PageError as error:
        return error
    for stale in cached.parent.glob(f"{slug}-*.json"):
        stale.unlink(missing_ok=True)
    write_text(cached, json.dumps(answer))
    return answer
