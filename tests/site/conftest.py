"""The built site in a real browser: one build, one server, one Chromium for the whole run."""

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from coursekit.course import Course, find_course
from coursekit.pages import site

CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = {"phone": 390, "tablet": 1024, "desk": 1600}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The worker that gets them begins with them, so that at the end the others need not wait for it."""
    items.sort(key=lambda item: Path(__file__).parent not in item.path.parents)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def course() -> Course:
    return find_course(Path(__file__))


@pytest.fixture(scope="session")
def site_folder(course: Course) -> Path:
    site.build(course)
    return course.root / "build" / "site"


@pytest.fixture(scope="session")
def address(site_folder: Path) -> Iterator[str]:
    """The site, served on a free port of this machine."""
    handler = functools.partial(QuietHandler, directory=str(site_folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install one or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Visit:
    """A browser tab that remembers what went wrong in it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        page.on("request", self._watch)

    def _watch(self, request: object) -> None:
        url = request.url  # type: ignore[attr-defined]
        if not url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(url)

    def open(self, path: str) -> Page:
        response = self.page.goto(self.address + path, wait_until="load")
        assert response is not None
        assert response.ok, f"{path}: {response.status}"
        return self.page


@pytest.fixture
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A fresh tab. `indirect` parameters: a dict with width (a key of WIDTHS), scheme and scripts."""
    wanted = {"width": "desk", "scheme": "light", "scripts": True} | getattr(request, "param", {})
    context = browser.new_context(
        viewport={"width": WIDTHS[wanted["width"]], "height": 900},
        color_scheme=wanted["scheme"],
        java_script_enabled=wanted["scripts"],
        permissions=["clipboard-read", "clipboard-write"],
    )
    yield Visit(context.new_page(), address)
    context.close()
