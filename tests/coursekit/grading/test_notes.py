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
        ("def f(q):\n    return getattr(F, 'scaled_dot_product_attention')(q, q, q)",
         "line 5 calls scaled_dot_product_attention by its name"),
        ("def f(q):\n    g = getattr(torch.nn, 'MultiheadAttention')\n    return g(2, 2)(q, q, q)",
         "line 5 uses MultiheadAttention by its name"),
        ("def f(q):\n    return vars(F)['scaled_dot_product_attention'](q, q, q)", "by its name"),
        ("def f(q):\n    return F.__dict__['scaled_dot_product_attention'](q, q, q)", "by its name"),
        ("import operator\ndef f(q):\n"
         "    return operator.attrgetter('functional.scaled_dot_product_attention')(nn)(q, q, q)", "by its name"),
        ("import importlib\ndef f(q):\n"
         "    return importlib.import_module('torch.nn.functional').scaled_dot_product_attention(q, q, q)",
         "line 6 calls scaled_dot_product_attention"),
        ("def f(q):\n    return __import__('torch').nn.functional.scaled_dot_product_attention(q, q, q)", "calls"),
        ("import sys\ndef f(q):\n    m = sys.modules['torch.nn.functional']\n"
         "    return m.scaled_dot_product_attention(q, q, q)", "line 7 calls m.scaled_dot_product_attention"),
        ("def f(q):\n    return torch.ops.aten._scaled_dot_product_attention_math(q, q, q)[0]", "calls torch.ops"),
        ("def f(q):\n    return torch._C._nn.scaled_dot_product_attention(q, q, q)", "calls torch._C"),
        ("def f(*q):\n    return torch._native_multi_head_attention(*q)", "calls torch._native"),
        ("from torch.nn import functional\ndef f(q):\n    return functional.scaled_dot_product_attention(q, q, q)",
         "line 6 calls functional.scaled"),
        ("from torch.nn import functional as my\ndef f(q):\n    return my.scaled_dot_product_attention(q, q, q)",
         "line 6 calls my.scaled"),
        ("from torch.nn.functional import *\ndef f(q):\n    return scaled_dot_product_attention(q, q, q)",
         "line 6 calls scaled_dot_product_attention"),
        ("G = F\nH = G\ndef f(q):\n    return H.scaled_dot_product_attention(q, q, q)", "line 7 calls H.scaled"),
        ("def f(q):\n    attend: object = torch.nn\n    return attend.MultiheadAttention(2, 2)(q, q, q)",
         "line 6 calls attend.MultiheadAttention"),
        ("def f(q):\n    if (g := F):\n        return g.scaled_dot_product_attention(q, q, q)", "line 6 calls g.s"),
        ("def f(q):\n    return F.ｓcaled_dot_product_attention(q, q, q)", "line 5 calls F.scaled_dot"),
        ('def f(q):\n    """One\n    two.\n    """; return F.scaled_dot_product_attention(q, q, q)', "line 7 calls"),
        ('def f(q):\n    """One\u2028\n    """\n    return F.scaled_dot_product_attention(q, q, q)', "line 7 calls"),
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
        # The student's own, by the same ways.
        "class A:\n    def scaled_dot_product_attention(self, q):\n        return q\n"
        "    def forward(self, q):\n        return getattr(self, 'scaled_dot_product_attention')(q)",
        "from torch.nn.functional import *\ndef scaled_dot_product_attention(q):\n    return q\n\n"
        "def f(q):\n    return scaled_dot_product_attention(q)",
        "def f(weights):\n    return weights['MultiheadAttention']",
        "KINDS = {'MultiheadAttention': 1}\ndef f(q):\n    return print('MultiheadAttention', KINDS)",
        "layer = torch.load('x')\ndef f(q):\n    return layer.MultiheadAttention",
        # Put together while it runs: not read (sandbox/watch.py hears it).
        "def f(q):\n    return getattr(F, 'scaled_dot_' + 'product_attention')(q, q, q)",
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
