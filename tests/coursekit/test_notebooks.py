"""Lessons as notebooks: the pair, what runs, and the page that shows it."""

import json

import nbformat
import pytest

from coursekit.course import CourseError
from coursekit.pages import notebooks
from coursekit.pages.notebooks import execute, outputs
from coursekit.pages.problems import PageError

LESSON = """# ---
# jupyter:
#   kernelspec: {name: python3, display_name: Python 3}
# ---

# %% [markdown]
# # A title

# %%
x = 1

# %%
x = 1

# %%

print(x)
"""


def test_ids_are_those_of_the_text_and_inserting_a_cell_changes_no_other():
    before = [cell.id for cell in notebooks.from_text(LESSON, "gated").cells]
    assert len(set(before)) == 4
    longer = LESSON.replace("# %%\nx = 1", "# %%\ny = 2\n\n# %%\nx = 1", 1)
    after = [cell.id for cell in notebooks.from_text(longer, "gated").cells]
    assert [name for name in after if name in before] == before
    assert [cell.id for cell in notebooks.from_text(LESSON, "other").cells] != before


def test_a_cell_is_found_in_the_file():
    lines = LESSON.splitlines()
    assert [lines[line - 1] for line in notebooks.cell_lines(LESSON)] == [
        "# # A title",
        "x = 1",
        "x = 1",
        "print(x)",
    ]


def test_the_pair_is_whole_and_sync_is_idle(small_course):
    lesson = small_course.lesson("gated")
    assert notebooks.difference(lesson) is None
    assert not notebooks.sync(lesson)
    notebook = nbformat.read(lesson.ipynb, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"


def test_sync_follows_lesson_py_whichever_file_is_newer(small_course):
    lesson = small_course.lesson("gated")
    text = lesson.notebook.read_text("utf-8")
    lesson.notebook.write_text(text + "\n# %%\nprint(2)\n", "utf-8")
    lesson.ipynb.touch()
    assert "print(2)" in (notebooks.difference(lesson) or "")
    assert notebooks.sync(lesson)
    assert notebooks.difference(lesson) is None


def test_an_edit_made_in_jupyter_is_not_lost(small_course):
    lesson = small_course.lesson("gated")
    notebook = json.loads(lesson.ipynb.read_text("utf-8"))
    notebook["cells"][-1]["source"] = "print(3)"
    notebook["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "3\n"}]
    notebook["cells"][-1]["execution_count"] = 7
    lesson.ipynb.write_text(json.dumps(notebook), "utf-8")
    with pytest.raises(CourseError, match="--from-notebook"):
        notebooks.sync(lesson)
    header = lesson.notebook.read_text("utf-8").partition("# %%")[0]
    assert notebooks.sync_back(lesson)
    text = lesson.notebook.read_text("utf-8")
    assert text.startswith(header)
    assert text.endswith("# %%\nprint(3)\n")
    assert notebooks.difference(lesson) is None


def test_outputs_alone_are_no_edit(small_course):
    lesson = small_course.lesson("gated")
    notebook = json.loads(lesson.ipynb.read_text("utf-8"))
    notebook["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "3\n"}]
    lesson.ipynb.write_text(json.dumps(notebook), "utf-8")
    assert notebooks.difference(lesson) == "lesson.ipynb holds outputs"
    assert notebooks.sync(lesson)
    assert notebooks.difference(lesson) is None


def test_a_cell_that_fails_is_named_with_its_file_and_line(small_course):
    lesson = small_course.lesson("gated")
    lesson.notebook.write_text(
        "# %% [markdown]\n# # Title\n\n# %%\nx = 0\n\n# %%\ny = 1\n\ny / x\n\n# %%\nprint('not reached')\n",
        "utf-8",
    )
    with pytest.raises(PageError) as caught:
        execute.execute(small_course, lesson)
    (problem,) = caught.value.problems
    assert str(problem) == (
        "lessons/01_gated/lesson.py:10: cell 3 fails: ZeroDivisionError: division by zero"
    )
    assert not execute.is_cached(small_course, lesson)


def test_a_lesson_that_is_no_python_is_named_with_its_line(small_course):
    lesson = small_course.lesson("gated")
    lesson.notebook.write_text("# %%\nx = (\n", "utf-8")
    with pytest.raises(PageError, match=r"lessons/01_gated/lesson.py:2: .*was never closed"):
        execute.execute(small_course, lesson)


def test_outputs_come_from_the_cache_until_code_changes(warm_course):
    lesson = warm_course.lesson("gated")
    assert execute.is_cached(warm_course, lesson)
    text = lesson.notebook.read_text("utf-8")
    lesson.notebook.write_text(text.replace("Three queries look", "Three of them look"), "utf-8")
    assert execute.is_cached(warm_course, lesson)
    notebook = execute.execute(warm_course, lesson)
    assert any("Three of them" in cell.source for cell in notebook.cells)
    assert notebook.cells[-1].outputs[0].text == "tensor([1., 1., 1.])\n"
    source = lesson.source.read_text("utf-8")
    lesson.source.write_text(source.replace("The idea, in another.", "Another."), "utf-8")
    assert execute.is_cached(warm_course, lesson)
    lesson.source.write_text(source.replace("** -0.5", "** -0.25"), "utf-8")
    assert not execute.is_cached(warm_course, lesson)


def test_a_plot_takes_the_colours_of_the_page_and_ids_of_its_own():
    plot = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="504pt" height="216pt" viewBox="0 0 504 216">\n'
        "<metadata>x</metadata>\n"
        '<defs><path id="m1" style="stroke: #0B5FA5"/></defs>\n<use xlink:href="#m1"/>\n'
        '<g clip-path="url(#p2)"><clipPath id="p2"/></g>\n'
        "<text style=\"font-size: 8px; font-family: 'DejaVu Sans', serif; fill: #66707a\">a  b</text>\n</svg>"
    )
    assert outputs.page_svg(plot, "c") == (
        '<svg data-search-exclude viewBox="0 0 504 216"><defs><path id="c-m1" style="stroke: var(--query)"/></defs>'
        '<use xlink:href="#c-m1"/><g clip-path="url(#c-p2)"><clipPath id="c-p2"/></g>'
        '<text style="font-size: 8px; font-family: inherit; fill: var(--soft)">a  b</text></svg>'
    )


def test_every_kind_of_output_has_its_form(small_course):
    notebook = notebooks.from_text("# %% [markdown]\n# # Title\n# Prose $x$.\n\n# %%\nx < 1\n", "gated")
    png = "iVBORw0KGgo="
    notebook.cells[1].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="a < "),
        nbformat.v4.new_output("stream", name="stdout", text="\x1b[31mb\x1b[0m\n"),
        nbformat.v4.new_output("execute_result", data={"text/plain": "True"}),
        nbformat.v4.new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"}),
    ]
    page = outputs.render_notebook(notebook, small_course.lesson("gated"), 3)
    name = notebook.cells[1].id
    assert 'title: "Title"' in page.markdown
    assert "Prose $x$." in page.markdown
    assert f'<div class="cell" id="cell-{name}">' in page.markdown
    assert '<pre class="output stdout">a &lt; b</pre>' in page.markdown
    assert '<pre class="output result">True</pre>' in page.markdown
    assert f'<img src="{name}-2.png" alt="">' in page.markdown
    assert page.files[f"{name}-2.png"].startswith(b"\x89PNG")
    assert "&lt;Figure" not in page.markdown
    assert 'href="../gated.ipynb" download' in page.markdown
