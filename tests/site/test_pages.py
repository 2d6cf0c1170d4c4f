"""Every kind of page, at three widths and in both schemes, as a reader's browser shows it."""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from tests.site.conftest import WIDTHS, Visit

from coursekit.course import Course

PATHS = [
    "/", "/mechanisms/", "/mechanisms/alibi/", "/mechanisms/scaled_dot_product/", "/mechanisms/multi_head/",
    "/notebooks/alibi/", "/exercises/", "/exercises/alibi/", "/conventions/", "/contributing/", "/choose/",
    "/source/annotated_attention/alibi/",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_page_is_calm(visit: Visit, path: str) -> None:
    """At every width and in both schemes: no error in the console, nothing loaded from elsewhere, and nothing that
    scrolls the window sideways."""
    page = visit.open(path)
    for width in WIDTHS.values():
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )
            wide, window = page.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert wide <= window, f"{path} is {wide} px wide in a window of {window} px"
    assert visit.complaints == []
    assert visit.foreign == []


@pytest.mark.parametrize("visit", [{"width": "phone"}], indirect=True, ids=["phone"])
def test_every_page_fits_a_phone(visit: Visit, site_folder: Path) -> None:
    pages = [path.parent.relative_to(site_folder).as_posix() for path in site_folder.rglob("index.html")]
    for path in sorted(path for path in pages if not path.startswith("source/")):
        page = visit.open(f"/{path}/".replace("/./", "/"))
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= WIDTHS["phone"], f"{path} is {wide} px wide"
    assert visit.foreign == []


@pytest.mark.parametrize(
    "visit", [{"scheme": "light"}, {"scheme": "dark"}], indirect=True, ids=["light", "dark"]
)
@pytest.mark.parametrize(
    "path", ["/", "/mechanisms/alibi/", "/notebooks/alibi/", "/exercises/alibi/", "/choose/"]
)
def test_axe_finds_no_serious_barrier(visit: Visit, path: str) -> None:
    page = visit.open(path)
    result = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
    serious = [
        f"{violation['id']}: {violation['nodes'][0]['html'][:160]}"
        for violation in result.response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_roles_are_readable_on_their_papers(visit: Visit, scheme: str) -> None:
    """Every role's colour has a contrast of at least 4.5 to 1 on the page's paper and on the code's."""
    page = visit.open("/")
    theme = {"light": "default", "dark": "slate"}[scheme]
    page.evaluate("theme => document.body.dataset.mdColorScheme = theme", theme)
    names = ["query", "key", "value", "weights", "bias", "mask", "ink", "soft", "ok", "warn", "paper", "code"]
    read = "names => names.map(name => getComputedStyle(document.body).getPropertyValue('--' + name).trim())"
    colours = dict(zip(names, page.evaluate(read, names), strict=True))
    papers = [colours.pop("paper"), colours.pop("code")]
    poor = {
        (name, paper): round(contrast(colour, paper), 2)
        for name, colour in colours.items()
        for paper in papers
        if contrast(colour, paper) < 4.5
    }
    assert poor == {}


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours written as #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(part, 16) / 255 for part in re.findall("..", colour.lstrip("#"))]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("visit", [{"scripts": False}], indirect=True, ids=["no-scripts"])
def test_a_chapter_reads_without_scripts(visit: Visit, course: Course) -> None:
    """Formulas, code, shapes and figures are all there before any script runs."""
    page = visit.open("/mechanisms/alibi/")
    assert page.locator("h1").inner_text() == course.lesson("alibi").title
    assert page.locator(".katex-html").count() > 20
    assert page.locator(".line[data-shape]").count() > 10
    assert page.locator("figure svg").first.is_visible()
    page.locator("button.check").first.click()
    assert page.locator(".record:popover-open").count() == 1


def test_lines_stand_beside_their_prose(visit: Visit) -> None:
    """On a wide window prose starts level with the code it explains."""
    page = visit.open("/mechanisms/alibi/")
    offsets = page.evaluate(
        """() => [...document.querySelectorAll('.row:not(.headed)')].map(row => {
             const prose = row.querySelector('.prose').firstElementChild.getBoundingClientRect().top;
             const code = row.querySelector('.line').getBoundingClientRect().top;
             return Math.abs(prose - code);
           })"""
    )
    assert offsets
    assert max(offsets) < 16


# A label is the line's ::after and has no box to ask for. It covers nothing if it stands in the flow and either fits
# beside the code or has a row for itself.
COVERED = """() => [...document.querySelectorAll('.line[data-shape]')].filter(line => {
  const label = getComputedStyle(line, '::after'), text = line.querySelector('.tok').getBoundingClientRect();
  const room = line.clientWidth - parseFloat(getComputedStyle(line).paddingLeft) + 0.5;
  const beside = text.width + parseFloat(label.width) <= room;
  const under = line.clientHeight >= text.height + parseFloat(label.height) / 2;
  return label.position !== 'static' || !(beside || under);
}).map(line => line.textContent.trim())"""


def test_no_shape_covers_code(visit: Visit) -> None:
    for slug in ("scaled_dot_product", "flash", "ring", "bigbird"):
        page = visit.open(f"/mechanisms/{slug}/")
        assert page.locator(".line[data-shape]").count() > 0
        for width in (*WIDTHS.values(), 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(COVERED) == [], f"{slug} in a window of {width} px"


@pytest.mark.parametrize("visit", [{"width": "phone"}], indirect=True, ids=["phone"])
def test_on_a_phone_code_follows_its_prose(visit: Visit) -> None:
    page = visit.open("/mechanisms/alibi/")
    order = page.evaluate(
        """() => [...document.querySelectorAll('.row')].map(row =>
             row.querySelector('.code').getBoundingClientRect().top
             - row.querySelector('.prose').getBoundingClientRect().bottom)"""
    )
    assert min(order) >= -1


def test_the_headings_of_a_page_of_prose_stand_beside_it(visit: Visit) -> None:
    """In a wide window they do, stay in sight and cover nothing; a phone and a chapter do without."""
    page = visit.open("/results/")
    contents = page.locator("nav.contents")
    headings = page.locator(".book :is(h2, h3)").all_inner_texts()
    assert contents.locator("a").all_inner_texts() == headings
    contents.locator("a").last.click()
    assert page.locator(".book :is(h2, h3)").last.evaluate(
        "heading => { const box = heading.getBoundingClientRect(); return box.top > 60 && box.bottom < innerHeight; }"
    )
    for width in (1200, 1440, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        left, right, widest = page.evaluate(
            """() => { const box = document.querySelector('.contents').getBoundingClientRect();
            return [box.left, box.right, Math.max(...[...document.querySelector('.book').children]
              .map(part => part.getBoundingClientRect().right))]; }"""
        )
        assert widest < left < right < width
        assert contents.is_visible()
    page.set_viewport_size({"width": WIDTHS["phone"], "height": 900})
    assert not contents.is_visible()
    assert visit.open("/mechanisms/alibi/").locator("nav.contents").count() == 0


def test_a_full_stop_stays_with_its_pill(visit: Visit) -> None:
    page = visit.open("/choose/")
    apart = """() => [...document.querySelectorAll('.claim')].filter(claim => {
      const mark = document.createRange();
      mark.selectNodeContents(claim.lastChild);
      return mark.getBoundingClientRect().top > claim.querySelector('.check').getBoundingClientRect().bottom;
    }).map(claim => claim.textContent)"""
    assert page.locator(".claim").count() > 5
    for width in range(320, 600, 20):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(apart) == [], f"in a window of {width} px"


def test_previous_and_next_walk_through_the_course(visit: Visit, course: Course) -> None:
    first, *others = [mechanism.slug for mechanism in course.mechanisms]
    page = visit.open(f"/mechanisms/{first}/")
    for slug in others:
        page.locator("footer .next").click()
        page.wait_for_url(f"**/mechanisms/{slug}/")
    page.locator("footer .previous").click()
    page.wait_for_url(f"**/mechanisms/{others[-2]}/")
