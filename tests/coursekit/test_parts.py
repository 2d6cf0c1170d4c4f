"""A lesson that goes on in a second file: the part has a page, a proof and a record of its own."""

import json
import re
import shutil

import pytest

from coursekit import __main__
from coursekit.course import Course
from coursekit.pages import site
from coursekit.pages.proofs import records, verify

SOURCE = '''r"""# Gated & tiled

The whole of the scores does not fit, so they come in tiles of $n$ keys.

![The same three queries.](figure:weights)

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | `tile` | scalar | how many keys at a time [check:test_tiles] |
"""

from annotated_attention.gated import gated_attention


def gated_tiles(query, key, value, tile):
    r"""## The tiles

    One after the other [check:test_further]."""
    scores = query @ key.mT
    return gated_attention(query, key[..., :tile, :], value[..., :tile, :]), scores


def example(axes: dict[str, int]) -> None:
    import torch

    t, s, d = (axes[name] for name in "tsd")
    gated_tiles(torch.ones(1, 1, t, d), torch.ones(1, 1, s, d), torch.ones(1, 1, s, d), 2)
'''
TEST = "def test_tiles():\n    from annotated_attention.gated_tiles import gated_tiles\n"
FURTHER = "def test_further():\n    pass\n"


def add_part(course: Course) -> Course:
    tests = course.root / "tests" / "annotated_attention"
    (course.lesson("gated").source.parent / "gated_tiles.py").write_text(SOURCE, "utf-8")
    (tests / "test_gated_tiles.py").write_text(TEST, "utf-8")
    # No source is called so: further proof of the part, whose name is the longest that fits.
    (tests / "test_gated_tiles_more.py").write_text(FURTHER, "utf-8")
    return Course(course.root)


@pytest.fixture(scope="module")
def course(built_course, tmp_path_factory) -> Course:
    """The small course and a part, built; tests leave it as they found it."""
    root = tmp_path_factory.mktemp("parts") / "course"
    shutil.copytree(built_course.root, root)
    course = add_part(Course(root))
    site.build(course)
    return course


def built(course: Course, path: str) -> str:
    return (course.root / "build" / "site" / path / "index.html").read_text("utf-8")


def test_its_page_is_that_of_a_mechanism(course):
    page = built(course, "mechanisms/gated_tiles")
    assert '<figure class="opening-figure"' in page
    assert 'data-shape="1 1 t s"' in page
    assert re.search(r'<code data-sym="\w+"[^>]*>tile</code>', page)
    assert 'href="../../source/annotated_attention/gated_tiles/#L' in page
    line = TEST.split("\n").index("def test_tiles():") + 1
    assert f'<a href="../../source/tests/gated_tiles/#L{line}"><code>test_tiles</code>' in page
    assert '<a href="../../source/tests/gated_tiles_more/#L1"><code>test_further</code>' in page


def test_it_and_its_lesson_lead_to_each_other(course):
    lesson, part = built(course, "mechanisms/gated"), built(course, "mechanisms/gated_tiles")
    assert 'continues in <a href="../gated_tiles/">Gated &amp; tiled</a></p>' in lesson
    eyebrow = re.search(r'<p class="eyebrow">(.*?)</p>', part)
    assert eyebrow
    assert eyebrow[1].startswith("Lesson 1 · ")
    assert '<a href="../../notebooks/gated/">notebook</a>' in eyebrow[1]
    assert eyebrow[1].endswith('part of <a href="../gated/">Gated</a>')


def test_it_stands_right_after_its_lesson(course):
    listed = built(course, "mechanisms")
    assert re.findall(r'<h3[^>]*><a href="(.*?)">', listed) == ["gated/"]
    assert 'Continues in <a href="gated_tiles/">Gated &amp; tiled</a>.' in listed
    assert re.findall(r'class="number">(.*?)<', listed) == ["1"]
    assert 'class="next" rel="next" href="../gated_tiles/"' in built(course, "mechanisms/gated")
    part = built(course, "mechanisms/gated_tiles")
    assert 'class="previous" rel="prev" href="../gated/"' in part
    assert 'class="next"' not in part, "the next page belongs to another section"


def test_search_finds_it_and_a_second_build_does_nothing(course):
    index = json.loads((course.root / "build/site/search/search_index.json").read_text("utf-8"))
    titles = {entry["location"]: entry["title"] for entry in index["docs"]}
    assert titles["mechanisms/gated_tiles/"] == "Gated & tiled"
    assert "mechanisms/gated_tiles/#gated_tiles" in titles
    assert not site.build(Course(course.root)).changed


def test_its_faults_are_named_and_its_title_reaches_its_lesson(warm_course):
    course = add_part(warm_course)
    source = course.lesson("gated").parts[0].source
    source.write_text(SOURCE.replace("test_tiles]", "test_tile]"), "utf-8")
    with pytest.raises(site.BuildError) as caught:
        site.build(course)
    assert caught.value.problems == [
        "labml_style_src/annotated_attention/gated_tiles.py:9: unknown check 'test_tile': did you mean 'test_tiles'?"
    ]
    source.write_text(SOURCE.replace("# Gated", "# Split"), "utf-8")
    site.build(Course(course.root))
    assert ">Split &amp; tiled</a></p>" in built(course, "mechanisms/gated")


def test_verify_runs_every_proof_of_a_lesson_and_an_edit_makes_only_its_own_record_stale(
    small_course, monkeypatch, capsys
):
    course = add_part(small_course)
    lesson, part = course.lesson("gated").mechanisms
    result = verify.verify(course, [lesson, part])
    assert list(result) == ["gated", "gated_tiles"]
    assert {name: test["outcome"] for name, test in result["gated_tiles"]["tests"].items()} == {
        "test_further": "passed",
        "test_tiles": "passed",
    }
    assert records.load(course).stale() == []

    part.proofs[1].write_text(f"{FURTHER}    assert True\n", "utf-8")
    assert records.load(course).stale() == ["gated_tiles"]
    part.proofs[1].write_text(FURTHER, "utf-8")
    part.source.write_text(SOURCE.replace("2)", "3)"), "utf-8")
    monkeypatch.chdir(course.root)
    monkeypatch.setattr("sys.argv", ["attn", "verify", "--check"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert (
        capsys.readouterr().out
        == "the record of 'gated_tiles' on cpu is older than its code: attn verify gated\n"
    )

    # A part that is gone leaves no record behind.
    for path in (part.source, *part.proofs):
        path.unlink()
    monkeypatch.setattr(verify, "run_tests", lambda *_: {})
    verify.verify(Course(course.root), [lesson])
    assert list(records.load(course).devices["cpu"]["mechanisms"]) == ["gated"]
