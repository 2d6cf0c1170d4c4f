"""The whole site from the whole course: gather, generate a tree of Markdown, run MkDocs, check every link.

    build/docs/        the tree that MkDocs reads: docs/ and the generated pages
    build/mkdocs.yml   ../mkdocs.yml with the computed navigation
    build/next/        what MkDocs wrote, before its links are checked
    build/site/        the last site without a fault
    build/cache/       what is expensive, by content: notebook outputs, shapes, figures

Every fault of a source is collected and reported at once, as `file:line: message`; the last good site stays.
"""

import ast
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coursekit.course import Course
from coursekit.files import mirror, write_text
from coursekit.pages import inputs
from coursekit.pages.problems import Problem
from coursekit.pages.site import deadlinks, gather, generate
from coursekit.pages.site.generate import Page
from coursekit.pages.site.rendering import run_mkdocs
from coursekit.pages.site.tree import frame, write_tree
from coursekit.pages.worker import Worker

Progress = Callable[[str], None]


class BuildError(Exception):
    """The site has faults; `problems` has all of them, each a line that says where."""

    def __init__(self, problems: Sequence[Problem | str]) -> None:
        self.problems = [str(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Built:
    """What a build did: whether there was anything to do, how many pages there are, and how long it took."""

    changed: bool
    pages: int
    seconds: float


def build(course: Course, progress: Progress = lambda message: None, worker: Worker | None = None) -> Built:
    """Build the site into `build/site`, or return at once if nothing has changed since the last build.

    A `worker` that is given stays alive for the next build. Raises `BuildError` with every fault.
    """
    began = time.monotonic()
    folder = course.root / "build"
    stamp, key = folder / "cache" / "site.json", inputs.inputs_hash(course)
    if stamp.exists() and (folder / "site" / "index.html").exists():
        last = json.loads(stamp.read_text("utf-8"))
        if last["inputs"] == key:
            return Built(False, last["pages"], time.monotonic() - began)
    if faults := unreadable(course):
        raise BuildError(faults)
    own = worker or Worker(course.root)
    try:
        material = gather.gather(course, own, progress)
    finally:
        if worker is None:
            own.close()
    progress("writing pages")
    pages, problems = generate.generate(course, material)
    if problems:
        raise BuildError(problems)
    write_tree(course, pages)
    progress(f"rendering {len(pages)} pages")
    faults = render(course, pages) or check_links(folder / "next", pages)
    if faults:
        raise BuildError(faults)
    mirror(folder / "next", folder / "site")
    write_text(stamp, json.dumps({"inputs": key, "pages": len(pages)}))
    return Built(True, len(pages), time.monotonic() - began)


def unreadable(course: Course) -> list[Problem]:
    """A problem for each file of the course that is no Python: all that follows reads syntax trees."""
    problems = []
    for path in inputs.python_files(course):
        try:
            ast.parse(path.read_text("utf-8"))
        except SyntaxError as error:
            name = path.relative_to(course.root).as_posix()
            problems.append(Problem(name, error.lineno or 1, f"{type(error).__name__}: {error.msg}"))
    return problems


def render(course: Course, pages: Sequence[Page]) -> list[Problem | str]:
    """Run MkDocs into `build/next`: on the changed pages, if what stands around every page is as it was when
    the last run ended well, else on all."""
    folder = course.root / "build"
    stamp, now = folder / "cache" / "frame.txt", frame(course)
    partial = stamp.exists() and stamp.read_text("utf-8") == now and (folder / "next" / "index.html").exists()
    stamp.unlink(missing_ok=True)
    faults = run_mkdocs(folder / "mkdocs.yml", pages, partial)
    if not faults:
        write_text(stamp, now)
    return faults


def check_links(site: Path, pages: Sequence[Page]) -> list[Problem | str]:
    """A problem for every link that leads nowhere, at the line of the source where it is written."""
    by_html = {page.html: page for page in pages}
    problems: list[Problem | str] = []
    for html, address, reason in deadlinks.dead_links(site):
        message = f"the link '{address}' {reason}"
        page = by_html.get(html)
        problems.append(_locate(page, address, message) if page and page.sources else f"{html}: {message}")
    return problems


def _locate(page: Page, address: str, message: str) -> Problem:
    """The first line of the page's sources that has the address, or at least its anchor or its last name."""
    path, _, anchor = address.partition("#")
    last = path.rstrip("/").rpartition("/")[2]
    for needle in filter(None, (address, f"#{anchor}" if anchor else "", f"{last}.md", last)):
        for file, text in page.sources:
            if needle in text:
                return Problem(file, text.count("\n", 0, text.index(needle)) + 1, message)
    return Problem(page.sources[0][0], 1, message)
