"""The tree that MkDocs reads: `build/docs/` and `build/mkdocs.yml`, from pages and hand-written files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from coursekit.course import Course
from coursekit.files import remove_others, write_bytes, write_text
from coursekit.pages import inputs
from coursekit.pages.site.generate import Page, settings


def write_tree(course: Course, pages: Sequence[Page]) -> None:
    """Bring the tree up to date, touching only what changed."""
    folder = course.root / "build"
    theme = theme_folder(course)
    written = {page.path for page in pages} | {file for page in pages for file in page.files}
    for page in pages:
        write_text(folder / "docs" / page.path, page.markdown)
        for path, content in page.files.items():
            write_bytes(folder / "docs" / path, content)
    for path in sorted((course.root / "docs").rglob("*")):
        relative = path.relative_to(course.root / "docs")
        in_theme = theme is not None and path.is_relative_to(theme)
        published = path.is_file() and path.suffix not in (".py", ".pyc")  # not docs/figures.py
        if published and not in_theme and relative.as_posix() not in written:
            write_bytes(folder / "docs" / relative, path.read_bytes())
            written.add(relative.as_posix())
    remove_others(folder / "docs", map(Path, written))
    config: dict[str, Any] = {"INHERIT": "../mkdocs.yml", "docs_dir": "docs", "site_dir": "next"}
    if theme is not None:
        config["theme"] = {"custom_dir": f"../{theme.relative_to(course.root).as_posix()}"}
    # Links are checked on the built pages, where the source of each is known.
    quiet = dict.fromkeys(("not_found", "absolute_links", "unrecognized_links", "anchors"), "ignore")
    config["validation"] = {"links": quiet, "nav": {"omitted_files": "ignore"}}
    config["nav"] = navigation(pages)
    write_text(folder / "mkdocs.yml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def theme_folder(course: Course) -> Path | None:
    """The theme's own templates, which lie under `docs/` and are no pages."""
    name = settings(course).get("theme", {}).get("custom_dir")
    return course.root / name if name else None


def navigation(pages: Sequence[Page]) -> list[dict[str, Any]]:
    """Home, a section for each kind of page that a lesson has, then the hand-written pages, those for people of
    a class (`for-*.md`) in a section too. Every page has its title here, so that its neighbours can name it
    when it is not rendered again."""
    nav: list[dict[str, Any]] = [{"Home": page.path} for page in pages if page.path == "index.md"]
    for section in ("Mechanisms", "Notebooks", "Exercises"):
        inside = [{title(page): page.path} for page in pages if page.path.startswith(f"{section.lower()}/")]
        if len(inside) > 1:
            nav.append({section: inside})
    hand = [page for page in pages if "/" not in page.path and page.path != "index.md"]
    classes = [{title(page): page.path} for page in hand if page.path.startswith("for-")]
    # How to take part comes after what there is to read.
    hand.sort(key=lambda page: page.path == "contributing.md")
    nav += [{title(page): page.path} for page in hand if not page.path.startswith("for-")]
    return nav + ([{"Class": classes[::-1]}] if classes else [])


def title(page: Page) -> str:
    """A page's title: that of its front matter, or its first heading."""
    lines = page.markdown.splitlines()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        meta = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)])) or {}
        if "title" in meta:
            return str(meta["title"])
    headings = [line[2:].strip() for line in lines if line.startswith("# ")]
    return headings[0] if headings else Path(page.path).stem.capitalize()


def frame(course: Course) -> str:
    """A hash of all that stands around every page: as long as it is the same, a page that has not changed
    need not be rendered again."""
    folder = course.root / "build"
    theme = theme_folder(course)
    around = [course.root / "mkdocs.yml", folder / "mkdocs.yml", *([theme] if theme is not None else [])]
    names = sorted(path.relative_to(folder).as_posix() for path in (folder / "docs").rglob("*"))
    return inputs.files_hash(course.root, around, inputs.engine(), inputs.versions(), *names)
