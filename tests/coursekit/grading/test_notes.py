"""Ready-made attention is noted, and nothing else is."""

import pytest

from coursekit.course import find_course
from coursekit.grading.notes import fused_notes
from coursekit.grading.submission import Submission, read_submission

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


def noted(text: str) -> str:
    return "".join(fused_notes(Submission(HEAD + text, "a.py", "a.py")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def f(q):\n    return F.scaled_dot_product_attention(q, q, q)", "line 5 calls F.scaled_dot"),
        ("def f(q):\n    return torch.nn.functional.scaled_dot_product_attention(q, q, q)", "calls torch.nn"),
        ("class L(nn.MultiheadAttention):\n    pass", "line 4 uses nn.MultiheadAttention"),
        ("class L:\n    def g(self):\n        self.l = nn.MultiheadAttention(2, 2)", "line 6 calls nn.Mul"),
        ("from torch.nn.functional import scaled_dot_product_attention as s\nf = s", "line 5 uses s"),
        ("from torch.nn.attention.flex_attention import flex_attention\n"
         "def f(q):\n    return flex_attention(q, q, q)", "line 6 calls flex_attention"),
        ("def f(q):\n    return F.ｓcaled_dot_product_attention(q, q, q)", "line 5 calls F.scaled_dot"),
    ],
)  # fmt: skip
def test_what_is_ready_made_is_noted(text: str, told: str):
    said = noted(text)
    assert said.startswith("Note: the exercise asks you to build this yourself; ")
    assert told in said


@pytest.mark.parametrize(
    "text",
    [
        "x = F.scaled_dot_product_attention(q, q, q)  # a comparison",
        "def scaled_dot_product_attention(q):\n    return q\n\ndef f(q):\n"
        "    return scaled_dot_product_attention(q)",
        "def f(layer: nn.MultiheadAttention) -> nn.MultiheadAttention:\n    return layer",
        "def f(q):\n    return torch.autograd.grad(q.sum(), q)",
        'def f(q):\n    """Not F.scaled_dot_product_attention."""',
        "def f(:",
    ],
)
def test_nothing_else_is(text: str):
    assert noted(text) == ""


def test_in_a_notebook_the_cell_is_named_and_a_broken_one_hides_nothing():
    cells = ["def f(:", "import torch.nn.functional as F", "def g(q):\n    return F.flex_attention(q)"]
    text = "\n\n".join(cells)
    found = fused_notes(Submission(text, "a.ipynb", "a", [1, 3, 5]))
    assert found[0].endswith("; code cell 3, line 2 calls F.flex_attention.")


@pytest.mark.parametrize("lesson", find_course().lessons, ids=lambda lesson: lesson.slug)
def test_the_courses_solutions_are_clean(lesson):
    assert fused_notes(read_submission(lesson.exercise)) == []
