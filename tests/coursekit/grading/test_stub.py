"""Stubs: what a student starts with."""

import ast
import json

import pytest
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.grading.stub import make_stub, notebook_cells, stub_notebook, without_markers
from coursekit.grading.submission import ExerciseError, read_notebook

NESTED = """class Cache:
    def update(self, x):
        for i in x:
            ### BEGIN SOLUTION
            self.total += i

            ### END SOLUTION
        if x:
                ### BEGIN SOLUTION
                y = 1
                ### END SOLUTION
        return y

    def twice(self):
        def inner():
            ### BEGIN SOLUTION
            return 2
            ### END SOLUTION
        return inner() * 2
"""


def test_the_solution_is_cut_and_names_what_is_not_done():
    stub = make_stub(EXERCISE)
    assert "softmax(-1)" not in stub
    assert "SOLUTION" not in stub
    assert '    raise NotImplementedError("centre is not done yet")' in stub
    assert '        raise NotImplementedError("weights is not done yet")' in stub
    assert 'NotImplementedError("RunningMean.add is not done yet")' in stub
    assert '"""Subtract each row\'s mean from the row."""' in stub


def test_blocks_in_methods_loops_and_inner_functions_keep_their_indentation():
    stub = make_stub(NESTED)
    ast.parse(stub)
    lines = [line for line in stub.splitlines() if "raise" in line]
    assert [len(line) - len(line.lstrip()) for line in lines] == [12, 16, 12]
    assert "Cache.update" in lines[0]
    assert "Cache.twice.inner" in lines[2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "def f():\n    ### BEGIN SOLUTION\n    return 1\n",
            "exercise.py:2: ### BEGIN SOLUTION without an END",
        ),
        ("def f():\n    pass\n    ### END SOLUTION\n", "exercise.py:3: ### END SOLUTION, but none is open"),
        (
            "def f():\n    ### BEGIN SOLUTION\n    x = 1\n    ### BEGIN SOLUTION\n    ### END SOLUTION\n",
            "exercise.py:4: ### BEGIN SOLUTION, but the one of line 2 is still open",
        ),
        (
            "def f():\n    ### BEGIN SOLUTION\n\n    ### END SOLUTION\n    pass\n",
            "exercise.py:2: the solution is",
        ),
        (
            "### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n",
            "exercise.py:1: a solution stands inside a function",
        ),
        ("def f():\n    return 1\n", "has no ### BEGIN SOLUTION"),
    ],
)
def test_markers_that_do_not_pair_are_named_with_their_line(text: str, problem: str):
    with pytest.raises(ExerciseError, match=problem):
        make_stub(text)


def test_the_notebook_has_a_cell_for_each_definition_under_its_task():
    cells = notebook_cells(make_stub(EXERCISE))
    kinds = [kind for kind, _ in cells]
    assert kinds == ["markdown", "code", *["markdown", "code"] * 3]
    assert cells[0][1].startswith("# Tiny")
    assert cells[2][1] == "## `centre`\n\nSubtract each row's mean from the row."
    assert cells[3][1] == 'def centre(x):\n    raise NotImplementedError("centre is not done yet")'
    # A class keeps the docstrings of its methods.
    assert "Add a number" in cells[-1][1]


def test_the_notebook_is_a_submission_like_the_stub():
    text = stub_notebook(make_stub(EXERCISE), "attn check tiny")
    notebook = json.loads(text)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["cells"][-1]["source"] in ("!attn check tiny", ["!attn check tiny"])
    namespace: dict = {}
    exec(read_notebook(text, "tiny.ipynb").text, namespace)
    with pytest.raises(NotImplementedError):
        namespace["centre"](1)


def test_the_solution_is_shown_without_markers():
    shown = without_markers(EXERCISE)
    assert "SOLUTION" not in shown
    assert "return scores.softmax(-1)" in shown
