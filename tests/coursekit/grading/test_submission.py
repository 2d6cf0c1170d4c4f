"""Reading what a student hands in."""

import json
from pathlib import Path

import pytest

from coursekit.grading.submission import ExerciseError, read_notebook, read_submission, without_magics


def notebook(*cells: str) -> str:
    return json.dumps(
        {
            "cells": [
                {"cell_type": "markdown", "source": ["# not code"]},
                *({"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells),
            ]
        }
    )


def test_code_cells_are_joined_and_lines_told_by_cell():
    found = read_notebook(notebook("import math\nx = 1", "%matplotlib inline\ny = x", "z = 1"), "a.ipynb")
    namespace: dict = {}
    exec(found.text, namespace)
    assert (namespace["x"], namespace["y"]) == (1, 1)
    line = found.text.splitlines().index("y = x") + 1
    assert found.where(line) == "code cell 2, line 2"
    assert found.line(line) == "y = x"
    assert found.where(1) == "code cell 1, line 1"


def test_lines_of_a_python_file_are_told_as_they_are(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\n", "utf-8")
    found = read_submission(tmp_path / "a.py")
    assert (found.where(2), found.line(2), found.line(99)) == ("line 2", "y = 2", "")


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("!pip install x\ny = 1", "pass  # !pip install x\ny = 1"),
        ("if True:\n    !ls", "if True:\n    pass  # !ls"),
        ("math?\nx = 1", "pass  # math?\nx = 1"),
        ("x = (7\n% 4)", "x = (7\n% 4)"),
        ("%%time\nx = 1", "# %%time\nx = 1"),
        ("%%bash\nls\nrm x", "# %%bash\n# ls\n# rm x"),
    ],
)
def test_what_only_jupyter_understands_is_a_comment(cell: str, wanted: str):
    assert without_magics(cell) == wanted


def test_what_is_no_submission_is_refused_in_words(tmp_path: Path):
    (tmp_path / "bad.py").write_bytes(b"x = '\xff'")
    (tmp_path / "bad.ipynb").write_text("[]", "utf-8")
    (tmp_path / "a.txt").write_text("x", "utf-8")
    for name, problem in (
        ("bad.py", "is not UTF-8 text: byte 5"),
        ("bad.ipynb", "is not a notebook"),
        ("a.txt", "is not a submission"),
        ("none.py", "there is no file"),
    ):
        with pytest.raises(ExerciseError, match=problem):
            read_submission(tmp_path / name)


def test_thousands_of_cell_magics_are_read_like_one():
    assert without_magics("%%time\n" * 5000 + "x = 1").splitlines()[-2:] == ["# %%time", "x = 1"]
