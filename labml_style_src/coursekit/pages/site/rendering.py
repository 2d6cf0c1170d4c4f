"""Running MkDocs as a library: the whole site, or only the pages that changed."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coursekit.files import write_text
from coursekit.pages.problems import Problem
from coursekit.pages.site.generate import Page

# What MkDocs says of every build of the changed pages alone.
PARTIAL = "A 'dirty' build is being performed"


def run_mkdocs(config_file: Path, pages: Sequence[Page], partial: bool = False) -> list[Problem | str]:
    """Render the site into `site_dir`; what MkDocs warns of, or fails with, is a fault.

    With `partial` only the pages are rendered that are newer than their HTML; the rest of the site is what
    the last run left there.
    """
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with _warnings() as heard:
        try:
            config = load_config(str(config_file))
            index = Path(config.site_dir) / "search" / "search_index.json"
            before = _read(index) if partial else None
            for plugin in config.plugins.values():
                # MkDocs keeps plugins from run to run, and this one would add what it indexed last time.
                if hasattr(plugin, "search_index_prev"):
                    plugin.search_index_prev = None
            config.plugins.on_startup(command="build", dirty=partial)
            build(config, dirty=partial)
            config.plugins.on_shutdown()
            if before is not None:
                # MkDocs has indexed the rendered pages alone.
                merged = merge_index(before, _read(index))
                write_text(index, json.dumps(merged, separators=(",", ":"), ensure_ascii=False))
        except Exception as error:
            if not heard:
                heard.append(f"mkdocs: {type(error).__name__}: {error}")
    return [_at_source(message, pages) for message in heard]


def _read(index: Path) -> dict[str, Any]:
    return json.loads(index.read_text("utf-8"))


def merge_index(before: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The search index with the entries of the pages in `fresh` in the place of their old ones."""
    old, new = _by_page(before), _by_page(fresh)
    return {**fresh, "docs": [entry for entries in (old | new).values() for entry in entries]}


def _by_page(index: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    pages: dict[str, list[dict[str, Any]]] = {}
    for entry in index["docs"]:
        pages.setdefault(entry["location"].partition("#")[0], []).append(entry)
    return pages


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
    handler.addFilter(lambda record: not record.getMessage().startswith(PARTIAL))
    handler.emit = lambda record: heard.append(record.getMessage())
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
