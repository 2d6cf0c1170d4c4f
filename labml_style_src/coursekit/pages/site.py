"""The whole site from the whole course: gather, generate a tree of Markdown, run MkDocs, check every link.

    build/docs/        the tree that MkDocs reads: docs/ and the generated pages
    build/mkdocs.yml   ../mkdocs.yml with the computed navigation
    build/next/        what MkDocs wrote, before it is checked
    build/site/        the last site without a fault
    build/cache/       what is expensive, by content: notebook outputs, shapes, figures

Every fault of a source is collected and reported at once, as `file:line: message`; the last good site stays.
"""

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coursekit.course import Course
from coursekit.pages import deadlinks, gather, generate, inputs
from coursekit.pages.files import mirror, remove_others, write_bytes, write_text
from coursekit.pages.generate import Page
from coursekit.pages.problems import Problem
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
    faults = run_mkdocs(folder / "mkdocs.yml", pages) or check_links(course, folder / "next", pages)
    if faults:
        raise BuildError(faults)
    mirror(folder / "next", folder / "site")
    shutil.rmtree(folder / "next")
    write_text(stamp, json.dumps({"inputs": key, "pages": len(pages)}))
    return Built(True, len(pages), time.monotonic() - began)


def write_tree(course: Course, pages: Sequence[Page]) -> None:
    """Bring `build/docs` and `build/mkdocs.yml` up to date, touching only what changed."""
    folder = course.root / "build"
    theme = _settings(course).get("theme", {}).get("custom_dir")
    written = {page.path for page in pages} | {file for page in pages for file in page.files}
    for page in pages:
        write_text(folder / "docs" / page.path, page.markdown)
        for path, content in page.files.items():
            write_bytes(folder / "docs" / path, content)
    for path in sorted((course.root / "docs").rglob("*")):
        relative = path.relative_to(course.root / "docs")
        in_theme = theme is not None and path.is_relative_to(course.root / theme)
        if path.is_file() and not in_theme and relative.as_posix() not in written:
            write_bytes(folder / "docs" / relative, path.read_bytes())
            written.add(relative.as_posix())
    remove_others(folder / "docs", map(Path, written))
    config: dict[str, Any] = {"INHERIT": "../mkdocs.yml", "docs_dir": "docs", "site_dir": "next"}
    if theme is not None:
        config["theme"] = {"custom_dir": f"../{theme}"}
    # Links are checked here, on the built pages, where the source of each is known.
    quiet = dict.fromkeys(("not_found", "absolute_links", "unrecognized_links", "anchors"), "ignore")
    config["validation"] = {"links": quiet, "nav": {"omitted_files": "ignore"}}
    config["nav"] = navigation(pages)
    write_text(folder / "mkdocs.yml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def navigation(pages: Sequence[Page]) -> list[dict[str, Any]]:
    """Home, a section for each kind of page that a lesson has, then the hand-written pages."""
    nav: list[dict[str, Any]] = [{"Home": page.path} for page in pages if page.path == "index.md"]
    for section in ("Mechanisms", "Notebooks", "Exercises"):
        inside = [page.path for page in pages if page.path.startswith(f"{section.lower()}/")]
        if len(inside) > 1:
            nav.append({section: inside})
    hand = [page.path for page in pages if "/" not in page.path and page.path != "index.md"]
    # How to take part comes after what there is to read.
    nav += [
        {_heading(pages, path): path} for path in sorted(hand, key=lambda path: path == "contributing.md")
    ]
    return nav


def _heading(pages: Sequence[Page], path: str) -> str:
    """A page's title: that of its front matter, or its first heading."""
    text = next(page.markdown for page in pages if page.path == path)
    match = re.search(r"^title: (.+)$", text.partition("\n---")[0], re.MULTILINE) or re.search(
        r"^# (.+)$", text, re.MULTILINE
    )
    return match[1].strip().strip("\"'") if match else Path(path).stem.capitalize()


def _settings(course: Course) -> dict[str, Any]:
    return generate.settings(course)


def run_mkdocs(config_file: Path, pages: Sequence[Page]) -> list[Problem | str]:
    """Run MkDocs as a library; what it warns of, or fails with, is a fault."""
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    with _warnings() as heard:
        try:
            config = load_config(str(config_file))
            config.plugins.on_startup(command="build", dirty=False)
            mkdocs_build(config)
            config.plugins.on_shutdown()
        except Exception as error:
            if not heard:
                heard.append(f"mkdocs: {type(error).__name__}: {error}")
    return [_at_source(message, pages) for message in heard]


def _at_source(message: str, pages: Sequence[Page]) -> Problem | str:
    """A message of MkDocs, with the source of the page that it names."""
    for page in pages:
        if f"'{page.path}'" in message and page.sources:
            return Problem(page.sources[0][0], 1, message)
    return message


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """What MkDocs logs as a warning or worse, which then is not printed."""
    heard: list[str] = []
    logger = logging.getLogger("mkdocs")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def check_links(course: Course, site: Path, pages: Sequence[Page]) -> list[Problem | str]:
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
