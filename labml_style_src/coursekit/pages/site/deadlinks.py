"""Every link of the built site has to lead somewhere: to a file, to an anchor that exists, and never out of
the site to fetch a thing that the page needs."""

import functools
import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

RAW_TEXT = re.compile(r"<(script|style)\b([^>]*)>.*?</\1>|<!--.*?-->", re.DOTALL)
TAG = re.compile(r"<([a-z][a-z0-9-]*)((?:[^<>\"']|\"[^\"]*\"|'[^']*')*)>", re.IGNORECASE)
ATTRIBUTE = re.compile(r"(?<![\w-])(id|href|src|rel|name)=(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
FETCHED = {"stylesheet", "preload", "modulepreload", "icon", "prefetch", "manifest"}
# `#sym=slopes` shares a highlighted symbol and is no place on the page.
STATE = "sym="


@functools.lru_cache(maxsize=4096)
def scan(page: str) -> tuple[frozenset[str], tuple[tuple[str, str], ...]]:
    """The anchors of a page, and its links: each what it is for ("go" or "fetch") and its address."""
    anchors, links = set(), []
    for tag in TAG.finditer(RAW_TEXT.sub(r"<\1\2>", page)):
        name = tag[1].lower()
        found = {m[1]: html.unescape(m[2] or m[3] or m[4] or "") for m in ATTRIBUTE.finditer(tag[2])}
        anchors |= {found[key] for key in ("id", "name") if key in found and (key == "id" or name == "a")}
        if "src" in found:
            links.append(("fetch", found["src"]))
        if name == "link" and FETCHED & set(found.get("rel", "").split()):
            links.append(("fetch", found.get("href", "")))
        elif name == "a" and "href" in found:
            links.append(("go", found["href"]))
    return frozenset(anchors), tuple(dict.fromkeys(links))


def dead_links(site: Path) -> Iterator[tuple[str, str, str]]:
    """For every link that leads nowhere: the page it is on, its address and what is wrong, over all pages."""
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    # The page for missing pages can stand at any depth, so its links begin at the root of the host.
    pages = {
        name: (site / name).read_text("utf-8")
        for name in sorted(files)
        if name.endswith(".html") and name != "404.html"
    }
    for name, text in pages.items():
        for purpose, address in scan(text)[1]:
            reason = _fault(name, purpose, address, files, pages)
            if reason:
                yield name, address, reason


def _fault(page: str, purpose: str, address: str, files: set[str], pages: dict[str, str]) -> str | None:
    """Why a link leads nowhere, or None."""
    parts = urlsplit(address)
    if parts.scheme == "data" or (purpose == "go" and (parts.scheme or parts.netloc)):
        return None
    if parts.scheme or parts.netloc:
        return "would be fetched from another host"
    if parts.path.startswith("/"):
        return "begins at the root of the host: write it relative to the page"
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path)))
    if not parts.path:
        target = page
    elif parts.path.endswith("/") or parts.path.split("/")[-1] in (".", ".."):
        target = posixpath.normpath(f"{target}/index.html")
    if target not in files:
        return "leads to no file of the site"
    anchor = unquote(parts.fragment)
    if anchor and not anchor.startswith(STATE) and target in pages and anchor not in scan(pages[target])[0]:
        return f"leads to no anchor: {target} has no '{anchor}'"
    return None
