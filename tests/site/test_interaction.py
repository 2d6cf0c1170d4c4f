"""What a reader does on a page: points at symbols, searches, opens a record, copies code, hides the shapes."""

import json
import re
from pathlib import Path

import pytest
from tests.site.conftest import Visit

ALIBI = "/mechanisms/alibi/"


def lit(visit: Visit) -> set[str]:
    return set(visit.page.locator(".lit").evaluate_all("places => places.map(place => place.dataset.sym)"))


def test_pointing_at_a_symbol_lights_it_everywhere(visit: Visit) -> None:
    """In formula, prose table and code, and from each of them."""
    page = visit.open(ALIBI)
    for start in ("td code[data-sym=slopes]", ".code [data-sym=slopes]", ".katex-html [data-sym=slopes]"):
        page.locator(start).first.hover()
        assert lit(visit) == {"slopes"}, start
        for place in (".katex-html .lit", "td .lit", ".code .lit"):
            assert page.locator(place).count() > 0, f"{start} does not light {place}"
    page.mouse.move(2, 2)
    assert lit(visit) == set()


def test_a_symbol_in_code_tells_its_shape_and_meaning(visit: Visit) -> None:
    page = visit.open(ALIBI)
    row = page.locator("tr:has(td code[data-sym=slopes])").first
    page.locator(".code [data-sym=slopes]").first.hover()
    note = page.locator(".symbol-note").inner_text()
    assert row.locator("td").nth(2).inner_text() in note
    assert row.locator("td").nth(3).inner_text() in note


def test_symbols_work_from_the_keyboard(visit: Visit) -> None:
    page = visit.open(ALIBI)
    page.locator("td code[data-sym=slopes]").first.focus()
    assert lit(visit) == {"slopes"}
    page.keyboard.press("Enter")
    page.wait_for_url("**/alibi/#sym=slopes")
    page.keyboard.press("Escape")
    page.wait_for_url("**/alibi/")


def test_a_symbol_can_be_shared(visit: Visit) -> None:
    page = visit.open(ALIBI + "#sym=slopes")
    assert lit(visit) == {"slopes"}
    assert page.locator("td code[data-sym=slopes]").first.evaluate(
        "cell => { const box = cell.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"
    )


def test_a_tap_keeps_a_symbol_lit(visit: Visit) -> None:
    page = visit.open(ALIBI)
    page.locator("td code[data-sym=slopes]").first.click()
    page.mouse.move(2, 2)
    assert lit(visit) == {"slopes"}


def test_search_finds_a_section_and_opens_there(visit: Visit) -> None:
    page = visit.open("/")
    page.keyboard.press("/")
    page.keyboard.type("alibi_slopes")
    result = page.locator(".md-search-result__link[href*='/mechanisms/alibi/'][href*='#']").first
    result.wait_for(timeout=10_000)
    result.click()
    page.wait_for_url("**/mechanisms/alibi/**#*")
    anchor = page.url.split("#")[1]
    assert "alibi" in anchor
    assert page.locator(f"[id='{anchor}']").evaluate(
        "place => place.getBoundingClientRect().top < innerHeight"
    )


@pytest.mark.parametrize(("words", "slug"), [("MLA", "choose"), ("softmax", "scaled_dot_product")])
def test_search_finds_a_word_between_brackets(visit: Visit, words: str, slug: str) -> None:
    """`(MLA)` and `softmax(QK)` are found as the words MLA and softmax, and the panel stays in the window."""
    visit.page.set_viewport_size({"width": 1440, "height": 900})
    page = visit.open("/")
    page.keyboard.press("/")
    page.keyboard.type(words)
    found = page.locator(".md-search-result__item > a:first-child")
    found.first.wait_for(timeout=20_000)
    first = [link.get_attribute("href") or "" for link in found.all()[:5]]
    assert any(f"/{slug}/" in link for link in first), first
    assert page.locator(".md-search__scrollwrap").evaluate(
        "panel => { const box = panel.getBoundingClientRect(); return box.left >= 0 && box.right <= innerWidth; }"
    )


def test_search_shows_no_letters_of_figures(site_folder: Path) -> None:
    """What stands in a drawing is no sentence."""
    index = json.loads((site_folder / "search" / "search_index.json").read_text("utf-8"))
    texts = [doc["text"] for doc in index["docs"] if doc["location"].partition("#")[0] == "mechanisms/flash/"]
    page = (site_folder / "mechanisms/flash/index.html").read_text("utf-8")
    drawn = [
        re.sub(r"<[^>]*>", "", svg)
        for svg in re.findall(r"<svg[^>]*data-search-exclude.*?</svg>", page, re.DOTALL)
    ]
    assert drawn
    assert texts
    assert not any(letters in text for letters in drawn for text in texts)


def test_search_indexes_no_formula_twice(site_folder: Path) -> None:
    """Each formula is in the index once, as its MathML; numbers of lines, shapes and records are not in it."""
    index = json.loads((site_folder / "search" / "search_index.json").read_text("utf-8"))
    texts = "".join(doc["text"] for doc in index["docs"] if doc["location"].startswith("mechanisms/alibi/"))
    assert "o=s−t" in texts
    assert "o=s−to=s−t" not in texts
    assert "cases · CPU" not in texts


def test_a_record_says_what_was_measured(visit: Visit) -> None:
    page = visit.open(ALIBI)
    page.locator("button.check.passed").first.click()
    record = page.locator(".record:popover-open")
    text = record.inner_text()
    assert "passed" in text
    assert "torch" in text
    link = record.locator("a").first
    href = link.get_attribute("href")
    link.click()
    page.wait_for_url("**/source/tests/alibi/**")
    assert href is not None
    line = href.split("#")[1]
    assert "def test_" in page.locator(f".line:has(#{line}), #{line}.line").first.inner_text()


def test_the_switch_hides_every_shape(visit: Visit) -> None:
    page = visit.open(ALIBI)
    shown = """[...document.querySelectorAll('.line[data-shape]')]
        .filter(line => !['none', '""'].includes(getComputedStyle(line, '::after').content)).length"""
    assert page.evaluate(shown) == page.locator(".line[data-shape]").count() > 0
    page.locator("#shapes").uncheck()
    assert page.evaluate(shown) == 0
    page.reload()
    assert page.evaluate(shown) == 0, "the choice is remembered"


def test_copying_a_function_gives_its_code_alone(visit: Visit) -> None:
    page = visit.open(ALIBI)
    cell = page.locator(".code[data-qualname=alibi_slopes]").first
    cell.hover()
    cell.locator("button.copy").click()
    code = page.evaluate("navigator.clipboard.readText()")
    assert code.startswith("def alibi_slopes(")
    compile("from __future__ import annotations\n" + code, "copied", "exec")


def test_a_row_links_to_its_line_of_the_source(visit: Visit) -> None:
    page = visit.open(ALIBI)
    number = page.locator(".code[data-qualname=alibi_slopes] .ln").first
    line = number.get_attribute("data-n")
    number.click()
    page.wait_for_url(f"**/source/annotated_attention/alibi/#L{line}")
    assert "def alibi_slopes" in page.locator(f".line:has(#L{line}), #L{line}.line").first.inner_text()


def test_the_notebook_page_has_outputs_and_a_download(visit: Visit) -> None:
    page = visit.open(ALIBI)
    page.locator(".eyebrow a", has_text="notebook").click()
    page.wait_for_url("**/notebooks/alibi/")
    assert page.locator("svg").count() > 1
    assert page.locator("pre.output").count() > 0
    with page.expect_download() as download:
        page.locator("a[href$='.ipynb']").first.click()
    assert download.value.suggested_filename.endswith(".ipynb")


@pytest.mark.parametrize("visit", [{"width": "phone"}], indirect=True, ids=["phone"])
def test_the_menu_of_a_phone_opens(visit: Visit) -> None:
    page = visit.open(ALIBI)
    page.locator(".menu summary").click()
    page.locator(".menu a", has_text="Exercises").click()
    page.wait_for_url("**/exercises/")


def test_light_and_dark_can_be_chosen(visit: Visit) -> None:
    page = visit.open("/")
    scheme = "document.body.dataset.mdColorScheme"
    assert page.evaluate(scheme) == "default"
    page.locator("label[title='Switch to dark']").click()
    assert page.evaluate(scheme) == "slate"
