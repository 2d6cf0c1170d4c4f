"""Highlighted code says exactly what the code says, and marks the names it is asked to mark."""

import html
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coursekit.pages import code
from coursekit.pages.code import highlight, highlight_lines, source_view


def plain(rendered: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", rendered))


def test_classes():
    assert highlight('@d\ndef f(x=1):  # c < d\n    return "a & b"').split("\n") == [
        "@d",
        '<span class="k">def</span> <span class="d">f</span>(x=<span class="n">1</span>):  '
        '<span class="c"># c &lt; d</span>',
        '    <span class="k">return</span> <span class="s">"a &amp; b"</span>',
    ]


def test_a_string_of_several_lines_is_marked_on_each_and_an_f_string_is_one():
    lines = highlight_lines('x = f"{y!r:>{w}} {{}}" + """a\n\n  b"""')
    assert lines[0].startswith('x = <span class="s">f"{y!r:&gt;{w}} {{}}"</span> + <span class="s">')
    assert lines[1:] == ["", '<span class="s">  b"""</span>']


def test_names_are_asked_for_where_they_mean_what_they_say():
    asked = []
    text = "def f(self, key):\n    é, q = self.key, x.key\n    return sorted(key, key=q)\n"
    lines = highlight_lines(text, lambda line, name: asked.append((line, name)) or f' data-sym="{name}"')
    assert asked == [
        (1, "f"),
        (1, "self"),
        (1, "key"),
        (2, "é"),
        (2, "q"),
        (2, "self"),
        (2, "self.key"),
        (2, "x"),
        (3, "sorted"),
        (3, "key"),
        (3, "q"),
    ]
    assert '<span class="d" data-sym="f">f</span>' in lines[0]
    assert lines[2].count('data-sym="key"') == 1


@pytest.mark.parametrize(
    "text", ["%config x = 1\n!pip install y\nx = 1", "def f(:\n  '", "x = (a\n% b)", "  x\n y"]
)
def test_what_is_no_python_is_shown_as_it_is(text):
    assert plain(highlight(text)) == text


def test_magics_are_marked_as_comments():
    assert highlight("%matplotlib inline\nx = 1").startswith('<span class="c">%matplotlib inline</span>\n')


@pytest.mark.parametrize("path", [__file__, code.__file__, re.__file__, html.__file__])
def test_highlighting_changes_no_character_of_a_file(path):
    text = Path(path).read_text("utf-8")
    assert plain(highlight(text)) == text


@given(st.text(alphabet="ab1 \n\t#'\"\\(){}[]=.,:;%!<&éf\f", max_size=60))
def test_highlighting_changes_no_character_of_any_text(text):
    assert plain(highlight(text)) == text


def test_source_view_has_an_anchor_for_each_line():
    view = source_view("import a\n\nx = 1  # é\n")
    assert re.findall(r'<span class="line" id="(L\d+)"><a class="ln" href="#(L\d+)"', view) == [
        ("L1", "L1"),
        ("L2", "L2"),
        ("L3", "L3"),
    ]
    assert plain(view) == "import a\n\nx = 1  # é\n"
