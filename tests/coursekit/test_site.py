"""The whole site of a small course: what is built, how little is built again, and every fault at its line."""

import json
import re
import shutil

import pytest

from coursekit.course import Course
from coursekit.pages import site
from coursekit.pages.site import deadlinks


def built(course, path):
    return (course.root / "build" / "site" / path).read_text("utf-8")


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def faults(course):
    with pytest.raises(site.BuildError) as caught:
        site.build(Course(course.root))
    return caught.value.problems


def test_every_page_is_there(built_course):
    pages = sorted(
        path.relative_to(built_course.root / "build" / "site").as_posix()
        for path in (built_course.root / "build" / "site").rglob("*.html")
    )
    assert pages == [
        "404.html",
        "exercises/gated/index.html",
        "exercises/index.html",
        "index.html",
        "mechanisms/gated/index.html",
        "mechanisms/index.html",
        "notebooks/gated/index.html",
        "notebooks/index.html",
        "source/annotated_attention/gated/index.html",
        "source/tests/gated/index.html",
    ]
    assert (built_course.root / "build/site/notebooks/gated.ipynb").exists()


def test_the_pages_hold_what_they_are_made_of(built_course):
    mechanism = built(built_course, "mechanisms/gated/index.html")
    assert 'class="katex"' in mechanism
    assert 'data-shape="b h t s"' in mechanism
    assert '<figure class="opening-figure"' in mechanism
    assert 'class="check stale"' in mechanism
    assert 'id="L10"' in built(built_course, "source/annotated_attention/gated/index.html")
    assert "tensor([1., 1., 1.])" in built(built_course, "notebooks/gated/index.html")
    exercise = built(built_course, "exercises/gated/index.html")
    assert "Task 1: the attention" in exercise
    assert "2 points · 1 check · 1 hint" in exercise
    assert "1 task, 2 points · <a" in exercise
    assert "Mistakes we have met" in exercise
    assert "NotImplementedError" in exercise
    assert "softmax(dim=-1), value" not in exercise


def test_nothing_is_fetched_from_another_host_and_no_link_is_dead(built_course):
    assert list(deadlinks.dead_links(built_course.root / "build" / "site")) == []


def test_search_finds_the_mechanism_and_not_its_plain_source(built_course):
    index = json.loads(built(built_course, "search/search_index.json"))
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert "mechanisms/gated/" in places
    assert not any(place.startswith("source/") for place in places)


def test_with_nothing_changed_nothing_is_done(built_course):
    said = []
    assert not site.build(built_course, said.append).changed
    assert said == []


def test_an_edit_reaches_its_page_and_touches_no_other(warm_course):
    folder = warm_course.root / "build" / "site"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.html")}
    edit(warm_course.lesson("gated").notebook, "Three queries look", "Three of them look")
    assert site.build(Course(warm_course.root)).changed
    changed = {
        path.relative_to(folder).as_posix() for path in before if path.stat().st_mtime_ns != before[path]
    }
    assert changed == {"notebooks/gated/index.html"}


def test_a_partial_build_and_one_from_nothing_give_the_same_site(warm_course):
    folder = warm_course.root / "build" / "site"
    lesson = warm_course.lesson("gated")
    edit(lesson.source, "## The function", "## The renamed function")
    edit(lesson.source, "The idea, in another.", "The idea, in a third.")
    site.build(Course(warm_course.root))

    def content():
        ignored = {"sitemap.xml.gz"}
        files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ignored]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    partial = content()
    index = json.loads(partial.pop("search/search_index.json"))
    titles = [entry["title"] for entry in index["docs"]]
    assert titles.count("The renamed function") == 1
    assert "The function" not in titles
    for folder_of_a_build in ("docs", "next", "site"):
        shutil.rmtree(warm_course.root / "build" / folder_of_a_build)
    site.build(Course(warm_course.root))
    whole = content()
    assert json.loads(whole.pop("search/search_index.json"))["docs"] == index["docs"]
    assert {name for name in whole if whole[name] != partial.get(name)} == set()
    assert set(whole) == set(partial)


def test_a_new_page_renders_every_page_anew(warm_course):
    folder = warm_course.root / "build" / "site"
    (warm_course.root / "docs" / "more.md").write_text("# More\n\nText.\n", "utf-8")
    site.build(Course(warm_course.root))
    assert all("More" in path.read_text("utf-8") for path in folder.rglob("index.html"))
    (warm_course.root / "docs" / "more.md").unlink()
    site.build(Course(warm_course.root))
    assert not (folder / "more").exists()
    assert not any('more/"' in path.read_text("utf-8") for path in folder.rglob("index.html"))


def test_all_faults_are_named_at_once_with_file_and_line(warm_course):
    lesson = warm_course.lesson("gated")
    edit(lesson.source, "[check:test_agrees_with_pytorch]", "[check:test_that_is_not_there]")
    edit(lesson.source, "| `scale` | scalar", "| `no_such_name` | scalar")
    edit(lesson.source, "the result is `b h t e`", "the result is `b h s e`")
    edit(lesson.source, "whatever $d$", r"whatever $\frac{d$")
    edit(lesson.source, "(figure:weights)", "(figure:nothing)")
    edit(lesson.notebook, "# One: they are", r"# One $\undefined$: they are")
    edit(warm_course.root / "docs" / "index.md", "# Home", "# Home\n\nA formula, $\\sqrt{$.")
    lesson.misconceptions.unlink()
    problems = faults(warm_course)

    def line(path, text):
        lines = path.read_text("utf-8").splitlines()
        return next(number for number, content in enumerate(lines, 1) if text in content)

    source = "labml_style_src/annotated_attention/gated.py"
    for text, message in [
        ("test_that_is_not_there", "test_that_is_not_there"),
        ("no_such_name", "no_such_name"),
        ("the result is `b h s e`", "b h s e"),
        (r"whatever $\frac{d$", "KaTeX"),
        ("figure:nothing", "nothing"),
    ]:
        wanted = f"{source}:{line(lesson.source, text)}: "
        assert any(problem.startswith(wanted) and message in problem for problem in problems), (
            text,
            problems,
        )
    assert "lesson 'gated' lacks lessons/01_gated/misconceptions.py" in problems
    assert any(problem.startswith("docs/index.md:3: KaTeX") for problem in problems)


def test_a_file_that_is_no_python_and_one_without_a_title_are_named(warm_course):
    lesson = warm_course.lesson("gated")
    good = lesson.source.read_text("utf-8")
    lesson.source.write_text(f"{good}def (\n", "utf-8")
    last = good.count("\n") + 1
    name = "labml_style_src/annotated_attention/gated.py"
    assert faults(warm_course) == [f"{name}:{last}: SyntaxError: invalid syntax"]
    lesson.source.write_text(good.replace("# Gated", "Gated", 1), "utf-8")
    assert faults(warm_course) == [f"{name}:1: the module docstring needs a first line '# Title'"]


FIGURES = """import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def cost():
    cases = json.loads((RESULTS / "gated.json").read_text("utf-8"))["cases"]
    return f'<svg viewBox="0 0 9 9"><title>{len(cases)} cases</title></svg>'
"""
MEASURED = """import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def many():
    return str(len(json.loads((RESULTS / "gated.json").read_text("utf-8"))["cases"]))


def table():
    return "| a |\\n|---|\\n| b |"
"""


def test_a_hand_written_page_has_figures_of_what_was_measured_and_claims_with_their_records(warm_course):
    root = warm_course.root
    results = root / "benchmarks" / "results" / "gated.json"
    results.parent.mkdir(parents=True)
    results.write_text('{"cases": [1, 2]}', "utf-8")
    (root / "docs" / "figures.py").write_text(FIGURES, "utf-8")
    (root / "docs" / "measured.py").write_text(MEASURED, "utf-8")
    claim = "It agrees [check:gated.test_agrees_with_pytorch]."
    text = f"# More\n\n{claim}\n\n![A $t$](figure:cost)\n\nWritten `![a](figure:b)` and `[check:c]`.\n"
    text += "\nOf [measured:many] cases, `[measured:d]`:\n\n[measured:table]\n"
    (root / "docs" / "more.md").write_text(text, "utf-8")
    site.build(Course(root))
    page = built(warm_course, "more/index.html")
    assert re.search(r'<button[^>]*class="check stale"[^>]*>agrees with pytorch · stale</button>', page)
    assert 'href="../source/tests/gated/#L' in page
    assert "<title>2 cases</title>" in page
    assert "![a](figure:b)" in page
    assert "[check:c]" in page
    assert "Of 2 cases, <code>[measured:d]</code>:" in page
    assert "<td>b</td>" in page
    assert not (root / "build" / "site" / "figures.py").exists()
    results.write_text('{"cases": [1, 2, 3]}', "utf-8")
    site.build(Course(root))
    assert "<title>3 cases</title>" in built(warm_course, "more/index.html")
    assert "Of 3 cases" in built(warm_course, "more/index.html")
    edit(root / "docs" / "more.md", "gated.test_agrees", "gated.test_disagrees")
    edit(root / "docs" / "more.md", "figure:cost", "figure:price")
    edit(root / "docs" / "more.md", "[measured:many]", "[measured:few]")
    said = "\n".join(faults(warm_course))
    assert "docs/more.md:3: unknown check 'gated.test_disagrees_with_pytorch': did you mean" in said
    assert "docs/more.md:5: unknown figure 'price': figures.py has cost" in said
    assert "docs/more.md:9: unknown 'few': docs/measured.py has many, table" in said


def test_figures_of_a_lesson_go_on_in_further_files(warm_course):
    root, lesson = warm_course.root, warm_course.lesson("gated")
    more = lesson.folder / "figures_more.py"
    more.write_text("def second():\n    return '<svg><title>the second</title></svg>'\n", "utf-8")
    (root / "docs" / "more.md").write_text("# More\n\n![A](figure:gated.second)\n", "utf-8")
    site.build(Course(root))
    assert "<title>the second</title>" in built(warm_course, "more/index.html")
    edit(more, "the second", "another")
    site.build(Course(root))
    assert "<title>another</title>" in built(warm_course, "more/index.html")
    first = re.search(r"^def (\w+)", lesson.figures.read_text("utf-8"), re.MULTILINE)
    assert first is not None
    edit(more, "def second", f"def {first[1]}")
    said = "\n".join(faults(warm_course))
    assert f"lessons/01_gated/figures_more.py:1: figure '{first[1]}' is drawn in another file, too" in said


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("mechanisms/lost/index.md", "leads to no file"),
        ("mechanisms/gated/index.md#lost", "no 'lost'"),
        ("/mechanisms/gated/", "begins at the root"),
        ("notebooks/lost.ipynb", "leads to no file"),
    ],
)
def test_a_dead_link_is_named_where_it_is_written(warm_course, link, reason):
    edit(warm_course.root / "docs" / "index.md", "# Home", f"# Home\n\nText, and\n[a link]({link}).")
    (problem,) = faults(warm_course)
    assert problem.startswith("docs/index.md:4: ")
    assert reason in problem


def test_a_dead_link_in_a_mechanism_is_named_in_its_source(warm_course):
    lesson = warm_course.lesson("gated")
    edit(lesson.source, "The idea, in another.", "The idea, [in another](../lost/).")
    (problem,) = faults(warm_course)
    assert re.match(r"labml_style_src/annotated_attention/gated.py:\d+: the link '../lost/' leads", problem)


def test_the_last_good_site_stays_and_a_fault_is_found_again(warm_course):
    edit(warm_course.root / "docs" / "index.md", "mechanisms/gated/index.md", "mechanisms/lost/index.md")
    before = built(warm_course, "index.html")
    assert faults(warm_course) == faults(warm_course)
    assert built(warm_course, "index.html") == before


def test_a_figure_and_an_example_that_raise_are_named_at_their_line(warm_course):
    lesson = warm_course.lesson("gated")
    edit(lesson.figures, "    squares = [", "    1 / 0\n    squares = [")
    edit(lesson.source, "    b, h, t, s, d, e = ", "    axes['nothing']\n    b, h, t, s, d, e = ")
    text = "\n".join(faults(warm_course))
    assert re.search(r"lessons/01_gated/figures.py:\d+: ZeroDivisionError: division by zero", text)
    assert re.search(r"labml_style_src/annotated_attention/gated.py:\d+: .*nothing", text)


EXPERIMENT_RESULTS = """{"experiment": "gated", "size": "default", "date": "2026-01-02", "machine": {"cores": 2},
 "versions": {"torch": "2.13"}, "claims": [{"says": "It is $2n$.", "paper": "2", "ours": "3", "holds": false}],
 "runs": [{"settings": {"seed": 0}, "measured": {"x": 1}, "seconds": 90.0}]}"""
DRAWN = """

def measured():
    text = (Path(__file__).parent / "results" / "x.json").read_text()
    return f'<svg viewBox="0 0 9 9"><title>{len(text)}</title></svg>'
"""


def test_a_hand_written_page_shows_what_experiments_found_and_figures_of_lessons(warm_course):
    root, lesson = warm_course.root, warm_course.lesson("gated")
    (lesson.folder / "experiment.py").write_text('"""# Twice\n"""\n', "utf-8")
    results = lesson.folder / "results" / "experiment.default.json"
    results.parent.mkdir()
    results.write_text(EXPERIMENT_RESULTS, "utf-8")
    (results.parent / "x.json").write_text("1234", "utf-8")
    text = lesson.figures.read_text("utf-8")
    lesson.figures.write_text(f"{text}\nfrom pathlib import Path\n{DRAWN}", "utf-8")
    page = root / "docs" / "more.md"
    page.write_text("# More\n\n[results:gated]\n\n[results]\n\n![A](figure:gated.measured)\n", "utf-8")
    site.build(Course(root))
    html = built(warm_course, "more/index.html")
    assert "not here" in html
    assert '<a href="#gated-claims">Twice</a></td>\n<td>0 of 1 claim</td>' in html
    assert '<a id="gated-claims">' in html
    assert "1 run, 1 seed, 2 minutes of runs on 2 cores, PyTorch 2.13, 2026-01-02" in html
    assert "<title>4</title>" in html
    # What was measured since is drawn anew.
    (results.parent / "x.json").write_text("12345", "utf-8")
    site.build(Course(root))
    assert "<title>5</title>" in built(warm_course, "more/index.html")
    edit(page, "results:gated", "results:gaited")
    edit(page, "figure:gated.measured", "figure:gated.lost")
    said = "\n".join(faults(warm_course))
    assert "docs/more.md:3: unknown experiment 'gaited': there are gated" in said
    assert "docs/more.md:7: unknown figure 'gated.lost'" in said
    edit(page, "results:gaited", "results:gated.full")
    assert "docs/more.md:3: " in "\n".join(faults(warm_course))
