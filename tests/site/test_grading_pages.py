"""The pages of a graded class in a real browser: nothing runs, nothing is loaded, everybody can read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from tests.coursekit.grading.batch.made_up import NASTY, report, result
from tests.site.conftest import WIDTHS

from coursekit.course import Lesson
from coursekit.grading.batch import pages
from coursekit.grading.batch.assignment import Assignment, Late
from coursekit.grading.batch.result import ERROR, NOT_RUN, UNREADABLE, Result
from coursekit.grading.batch.similar import Group, Pair

EVIL = (
    "</style></title><script>document.title = 'caught'</script>"
    "<img src=https://example.org/x onerror=\"document.title = 'caught'\">"
)
RULES = Assignment("alibi", late=Late(per_day=0.1, days=5), weights={"TestSlopes": 5})


def a_class() -> list[Result]:
    """Every status, and a student who would do harm in every field."""
    nasty = report(message=f"{EVIL}\nline 2: {EVIL}\n{'x' * 5000}")
    nasty.notes = [EVIL, NASTY]
    nasty.tasks[1].checks[0].cases[0].printed = EVIL * 9
    known = {"report": nasty, "message": EVIL, "events": [EVIL] * 40, "evidence": ["\u202e" + EVIL]}
    return [
        result("Ada Abel", 4.0, earned=5.0, max_score=9.0, late_days=2),
        result("ben", 9.0, max_score=9.0),
        result(f"{EVIL} \u202egnp.exe", 1.0, submission=EVIL, sandbox=[EVIL], **known),
        result("unread", 0.0, status=UNREADABLE, message=EVIL, report=None),
        result("not run", 0.0, status=NOT_RUN, message=EVIL, report=None),
        result("error", 0.0, status=ERROR, message=EVIL, report=None),
        *(result(f"student-{i}", float(i % 9), max_score=9.0) for i in range(20)),
    ]


@pytest.fixture(scope="module")
def folder(course, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, lesson = tmp_path_factory.mktemp("out"), course.lesson("alibi")
    assert isinstance(lesson, Lesson)
    found = a_class()
    for each in found:
        pages.write_feedback(out, lesson, RULES, each)
    names = tuple(sorted(each.student for each in found[:3]))
    pairs = (Pair(names[0], names[1], 0.97, 80.0), Pair(names[1], names[2], 0.61, 44.0))
    pages.write_report(out, lesson, RULES, found, [Group(names, pairs)])
    return out


class Tab:
    """A browser tab that remembers what it asked for, what was refused and every complaint."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.refused: dict[str, str | None] = {}
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.refused.update({request.url: request.failure}))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, path: Path) -> Page:
        self.page.goto(path.as_uri())
        return self.page


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    page = browser.new_page()
    yield Tab(page)
    page.close()


def files(folder: Path) -> list[Path]:
    """The report, and the page of each kind of student."""
    return [folder / "report.html", *(folder / pages.feedback_path(each.student) for each in a_class()[:6])]


def test_nothing_runs_and_nothing_is_loaded(folder: Path, tab: Tab):
    assert len(list((folder / "feedback").iterdir())) == 26
    for path in files(folder):
        page = tab.open(path)
        assert page.title() != "caught"
        assert page.locator("img, script, iframe, object").count() == 0
    assert [url for url in tab.requests if not url.startswith("data:")] == [
        path.as_uri() for path in files(folder)
    ]
    assert tab.complaints == []


def test_the_policy_would_stop_what_slipped_through(folder: Path, tab: Tab, tmp_path: Path):
    """A page with the same head, into which markup was let on purpose."""
    text = (folder / "report.html").read_text("utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("<main>", f"<main>{EVIL}", 1), "utf-8")
    page = tab.open(broken)
    assert page.locator("main img").count() == 1
    assert page.title() != "caught"
    assert len([text for text in tab.complaints if "Content Security Policy" in text]) >= 2
    assert tab.refused == {"https://example.org/x": "csp"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_them(folder: Path, tab: Tab, scheme: Literal["light", "dark"]):
    tab.page.emulate_media(color_scheme=scheme)
    for path in files(folder):
        found = Axe().run(tab.open(path)).response["violations"]
        assert [f"{each['id']}: {each['nodes'][0]['html'][:160]}" for each in found] == [], path.name


def test_nothing_scrolls_sideways(folder: Path, tab: Tab):
    for path in files(folder):
        page = tab.open(path)
        for width in (320, *WIDTHS.values()):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{path.name} is {wide} px wide in a window of {width} px"


def test_the_report_leads_to_each_student_and_each_band_to_its_own(folder: Path, tab: Tab):
    page = tab.open(folder / "report.html")
    targets = page.eval_on_selector_all("a", "links => links.map(link => link.href)")
    students = {path.as_uri() for path in (folder / "feedback").iterdir()}
    assert {each for each in targets if "/feedback/" in each} == students
    inside = {each.partition("#")[2] for each in targets if "#" in each}
    assert len(inside) > 9
    for anchor in inside:
        assert page.locator(f"[id='{anchor}']").count() == 1
    page.get_by_role("link", name="Ada Abel").first.click()
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_text("2 days late: 20 % less").is_visible()
