"""The page of a mechanism, up to the HTML that Python-Markdown makes of it."""

import html
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown import Markdown

from coursekit.course import Course
from coursekit.pages.mechanism import Facts, formulas, reading_minutes, render_mechanism
from coursekit.pages.problems import PageError, Problem
from coursekit.pages.proofs.records import Record
from coursekit.pages.source import read_chapter
from coursekit.pages.symbols import read_scopes

ROOT = Path(__file__).parents[3]
ROLES = {"query": ["query", "q"], "weights": ["weights"]}
EXTENSIONS = [
    "attr_list",
    "md_in_html",
    "tables",
    "fenced_code",
    "admonition",
    "toc",
    "pymdownx.superfences",
    "coursekit.pages.markdown",
]

SOURCE = r'''r"""# Mean of *scores*

Opening with $q_i$ and `query`.

![What a_b gives, $q_i$.](figure:first)

## Derivation

$$p_{ij} = q_i \cdot 2$$

| symbol | code | shape | meaning |
|---|---|---|---|
| $q_i$ | `query` | `t` | a query [check:test_rows\|in a row] |
| $p_{ij}$ | `weights` | `t` | a weight |

![Second.](figure:second)
"""

import torch


def mean(query):
    """## The mean $p_{ij}$

    Half of `query` [check:test_half].

    ```
    [check:not_one] $no$
    ```
    """
    text = """*a* _b_ <i> & &amp; `c` $x$ \\( # not

    ## not a heading
    """
    if query < 1 and text:
        raise ValueError(f"<{query}>")

    # Then ![Third](figure:first) the end.
    weights = query * 2
    return weights
'''

PASSED = Record("CPU", "passed", 12, 2.2e-16, 1.1e-15, {"python": "3.11.7", "torch": "2.13.0"}, False)
STALE = replace(PASSED, stale=True, device="GPU", error=None, bound=None, cases=1)
SVG = '<svg viewBox="0 0 2 1"><title>t</title>\n\n<text class="fig-text">a_b *c* d_e</text></svg>'


def facts(text: str = SOURCE, **changes) -> Facts:
    given = Facts(
        number=6,
        slug="mean",
        notation=read_scopes(text, "mean.py", ROLES),
        tests={"test_half": "../../source/tests/mean/#L41", "test_rows": ""},
        lookup=lambda test: [PASSED, STALE] if test == "test_half" else [],
        shapes={39: "t"},
        figures={"first": SVG, "second": SVG},
    )
    return replace(given, **changes)


def page(text: str = SOURCE, **changes) -> str:
    return render_mechanism(read_chapter(text, "mean.py"), facts(text, **changes))


def as_html(markdown: str) -> str:
    return Markdown(extensions=EXTENSIONS).convert(markdown.split("---\n", 2)[2])


def code_of(rendered: str) -> list[str]:
    """The code of each row, as a reader would copy it."""
    blocks = re.findall(r'<div class="code[^>]*>\s*<pre><code>(.*?)</code></pre>', rendered, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]*>", "", block)) for block in blocks]


def test_the_page_has_the_agreed_structure():
    rendered = as_html(page())
    tree = ElementTree.fromstring(f"<body>{_xml(rendered)}</body>")
    opening, sheet = tree.find("./div[@class='opening']"), tree.find("./div[@class='sheet']")
    assert opening is not None
    assert sheet is not None
    assert [child.get("class") for child in opening] == ["opening-text", "opening-figure"]
    heading, headed, row = [child for child in sheet if child.tag == "h2" or "row" in child.get("class", "")]
    assert (heading.tag, heading.get("id")) == ("h2", "mean")
    assert (headed.get("class"), row.get("class")) == ("row headed", "row")
    assert [part.get("class") for part in [*headed, *row]] == ["prose", "code first", "prose", "code last"]
    assert (headed[1].get("id"), row[1].get("id")) == ("mean.text", "mean.weights")
    assert not sheet.findall("./div//h1") + sheet.findall("./div//h2")
    assert tree.find("./h2[@id='derivation']") is not None
    assert tree.find("./figure[@class='figure']/div/svg") is not None
    assert sheet.find("./div[@class='row']/div[@class='prose']/figure") is not None


def _xml(rendered: str) -> str:
    """HTML as XML: attributes without a value get one, elements without content an end."""
    rendered = re.sub(r" (popover|checked|data-search-exclude)(?=[ >])", r' \1=""', rendered)
    return re.sub(r"(<input[^>]*)>", r"\1/>", rendered)


def test_code_passes_through_markdown_untouched():
    lines = SOURCE.split("\n")
    chapter = read_chapter(SOURCE, "mean.py")
    expected = ["".join(lines[number - 1] + "\n" for number in row.lines) for row in chapter.rows]
    assert code_of(as_html(page())) == expected
    assert any('text = """*a* _b_ <i> & &amp; `c` $x$ \\\\( # not\n\n    ## not' in code for code in expected)


def test_lines_carry_number_link_shape_and_symbols():
    rendered = as_html(page())
    line = next(i for i, text in enumerate(SOURCE.split("\n"), 1) if "weights = query" in text)
    assert (
        f'<a class="ln" href="../../source/annotated_attention/mean/#L{line}" data-n="{line}" tabindex="-1" '
        f'aria-label="line {line}"></a><span class="tok">    '
        f'<span data-sym="weights" data-role="weights">weights</span>'
        f' = <span data-sym="query" data-role="query">query</span>'
    ) in rendered
    assert 'data-shape="t"><a class="ln" href="../../source/annotated_attention/mean/#L39"' in rendered
    assert '<code data-sym="query" data-role="query">query</code>' in rendered
    assert '<code data-sym="query" data-role="query" tabindex="0">query</code>' in rendered
    assert 'data-sym="query"' in rendered.split("</h1>")[1].split("</p>")[0], (
        "the formula of the opening is linked"
    )


def test_badges_show_the_record():
    rendered = as_html(page())
    assert '<button type="button" class="check passed" popovertarget="check-2">✓ half</button>' in rendered
    assert (
        '<span popover class="record" id="check-2" data-search-exclude>'
        '<a href="../../source/tests/mean/#L41"><code>test_half</code></a>'
        "<small>passed · error 2.2e-16, bound 1.1e-15 (0.20 of it) · 12 cases · CPU · "
        "torch 2.13.0, Python 3.11.7</small>"
        "<small>passed, before the code changed · 1 case · GPU · torch 2.13.0, Python 3.11.7</small></span>"
    ) in rendered
    assert (
        '<td>a query <button type="button" class="check stale" popovertarget="check-1">in a row · stale'
        in rendered
    )
    assert "PU · torch 2.13.0, Python 3.11.7</small></span>.</span>" in rendered, (
        "the full stop stays with its badge"
    )
    assert "no record yet" in rendered
    assert "[check:not_one] $no$" in rendered


@pytest.mark.parametrize("records", [[], [STALE], [replace(PASSED, outcome="skipped")]])
def test_a_check_without_a_fresh_pass_is_stale(records):
    text = page(lookup=lambda _: records)
    assert 'class="check stale"' in text
    assert "✓" not in text


def test_a_page_without_shapes_has_no_switch_for_them():
    assert 'id="shapes"' in page()
    assert 'id="shapes"' not in page(shapes={})
    assert code_of(as_html(page(shapes={}))) == code_of(as_html(page()))


def test_front_matter_and_eyebrow():
    text = page()
    assert text.startswith(
        '---\ntitle: "Mean of *scores*"\ntemplate: "chapter.html"\nhide: ["navigation", "toc"]\n'
        'search: {"boost": 3}\n---\n'
    )
    assert (
        '<p class="eyebrow">Lesson 6 · 1 min · <a href="../../notebooks/mean/">notebook</a> · '
        '<a href="../../exercises/mean/">exercise</a></p>'
    ) in text


def test_the_eyebrow_leads_to_the_rest_of_the_lesson():
    text = page(
        family=[("continues in", "../mean_fast/", "Mean <fast>"), ("continues in", "../mean_z/", "Z")]
    )
    assert (
        'exercise</a> · continues in <a href="../mean_fast/">Mean &lt;fast&gt;</a>, '
        '<a href="../mean_z/">Z</a></p>'
    ) in text


def test_every_problem_is_reported_with_its_line():
    text = SOURCE.replace("`weights` |", "`nobody` |").replace("[check:test_half]", "[check:test_hlf]")
    failed = replace(PASSED, outcome="failed")
    with pytest.raises(PageError) as raised:
        page(
            text,
            figures={"first": SVG},
            lookup=lambda _: [failed],
            problems=[Problem("mean.py", 40, "shapes")],
        )
    found = [(problem.line, problem.message.split(":")[0]) for problem in raised.value.problems]
    assert [line for line, _ in found] == [13, 14, 16, 25, 40]
    assert found[0][1] == "check 'test_rows' failed on CPU"
    assert found[2][1] == "unknown figure 'second'"
    assert "did you mean 'test_half'?" in str(raised.value)


def test_formulas_have_their_lines():
    found = formulas(read_chapter(SOURCE, "mean.py"))
    assert (r"p_{ij} = q_i \cdot 2", True, 9) in found
    assert [line for tex, display, line in found if tex == "q_i" and not display] == [3, 5, 13]
    assert ("p_{ij}", False, 23) in found
    assert not any(tex in ("no", "x") for tex, _, _ in found)


def test_reading_time_grows_with_the_text():
    longer = SOURCE.replace("Opening with", "word " * 2000 + "Opening with")
    assert reading_minutes(read_chapter(SOURCE, "x.py")) == 1
    assert reading_minutes(read_chapter(longer, "x.py")) == 11


@pytest.mark.parametrize("mechanism", Course(ROOT).mechanisms, ids=lambda mechanism: mechanism.slug)
def test_the_course_s_own_mechanisms_render(mechanism):
    lesson, path = mechanism.lesson, mechanism.source
    text = path.read_text("utf-8")
    chapter = read_chapter(text, path.name)

    class Anything(dict):
        def __missing__(self, name):
            return SVG

        def __contains__(self, name):
            return True

        def get(self, name, default=None):
            return SVG

    tests = dict.fromkeys(re.findall(r"\[check:(\w+)", text), "")
    notation = read_scopes(text, path.name, ROLES)
    given = Facts(lesson.number, lesson.slug, notation, tests, lambda _: [PASSED], {}, Anything())
    rendered = as_html(render_mechanism(chapter, given))
    lines = chapter.text.split("\n")
    assert code_of(rendered) == ["".join(lines[n - 1] + "\n" for n in row.lines) for row in chapter.rows]
    assert "\x02" not in rendered
    assert "[check:" not in rendered
    assert all(f'id="{row.anchor}"' in rendered for row in chapter.rows)
