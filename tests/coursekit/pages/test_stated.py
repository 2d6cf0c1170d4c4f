"""Stated shapes: what is read, what agrees, and what is said when it does not."""

import pytest

from coursekit.pages.shapes.agreement import agree, read_shape
from coursekit.pages.shapes.recording import Frame, ShapeRecord
from coursekit.pages.shapes.stated import check_stated
from coursekit.pages.symbols import read_scopes

B, H, G, T, S, D = (3, 2, 5), (5, 3, 2), (13, 11, 7), (23, 29, 19), (31, 41, 37), (17, 31, 11)
TWO_D = tuple(2 * size for size in D)
ONE = (1, 1, 1)
LETTERS = {"b": B, "h": H, "t": T, "s": S, "d": D}


@pytest.mark.parametrize(
    ("stated", "seen", "agrees"),
    [
        ("b h t d", (B, H, T, D), True),
        ("b h t d", (B, H, S, D), False),
        ("b h t", (B, H, T, D), False),
        ("... d", (B, H, T, D), True),
        ("... d", (D,), True),
        ("*batch t d", (D,), False),
        ("b h t 1", (B, H, T, ONE), True),
        ("t 2d", (T, TWO_D), True),
        ("t 2*d", (T, TWO_D), True),
        ("t d+d", (T, TWO_D), True),
        ("t d/2", (T, D), False),
        ("2d/4·2", (D,), True),
        ("x x", (G, G), True),
        ("x x", (G, T), False),
        ("2x x", (tuple(2 * size for size in G), G), True),
        ("2x", (G,), False),
        ("width", (G,), False),
        ("b h t d", (B, None, T, D), True),
    ],
)
def test_agreement(stated: str, seen: tuple, agrees: bool) -> None:
    shape = read_shape(stated)
    assert shape is not None
    assert (agree(shape, seen, LETTERS) is not None) == agrees


@pytest.mark.parametrize(
    ("seen", "agrees"),
    [((T, S), True), ((ONE, S), True), ((B, ONE, T, S), True), ((S, T), False), ((), True)],
)
def test_broadcasting(seen: tuple, agrees: bool) -> None:
    shape = read_shape("b h t s")
    assert shape is not None
    assert (agree(shape, seen, LETTERS, broadcast=True) is not None) == agrees


@pytest.mark.parametrize("text", ["", "s + 1", "d!", "f(x)", "1.5 d", "t, s", "x.y", "if x"])
def test_what_is_no_shape(text: str) -> None:
    assert read_shape(text) is None


def faults(shapes: str, table: str = "", frame: Frame | None = None) -> list[tuple[int, str]]:
    """What is wrong with a paragraph, which begins in line 4, beside a frame of `f`."""
    text = (
        f'r"""# T\n{table}\n"""\ndef f(query, key, value, mask, n, t):\n    r"""Does it.\n\n    {shapes}\n\n'
    )
    text += '    Not read: `b q q`.\n    """\n    output = weights = query\n'
    frame = frame or Frame(
        "f",
        {
            "query": (B, H, T, D),
            "key": (B, G, S, D),
            "value": (B, G, S, G),
            "mask": (T, S),
            "output": (B, H, T, G),
            "weights": (B, H, T, S),
        },
        [(B, H, T, G), (B, H, T, S)],
        {"b": B, "h": H, "t": T, "s": S, "d": D},
    )
    notation = read_scopes(text, "f.py", {})
    assert notation.problems == ()
    record = ShapeRecord({}, (frame,), ())
    return [(problem.line, problem.message) for problem in check_stated(text, "f.py", notation, record)]


@pytest.mark.parametrize(
    "text",
    [
        "**Shapes.** `query` is `b h t d`, `key` is `b g s d`; `value` is `b g s e`.",
        "**Shapes.** `key` and `value` are `b g s d` and `b g s e`. `query`: `b h t d`.",
        "**Shapes.** `query` (`b h t d`), `key` `b g s d`, both `mask` and `mask` have shape `t s`.",
        "**Shapes.** `value` and the output are `... x`. Each row sums to `1`.",
        "**Shapes.** The results are `b h t e` and `b h t s`.",
        "**Shapes.** the output is `b h t e` and the weights\n    `b h t s`: one row a query, `n` times `t`.",
        "**Shapes.** `mask` is `s t` or `t s`; it may be `None`, `is_causal=True` or `if x y`.",
        "**Shapes.** `mask` broadcasts to `b h t s`; `mask` must be broadcastable to `h t s`.",
        "**Shapes.** `n` is `t`, which nobody saw.",
        "**Shapes.** If `n` is given, `query` is a `b h t d`.",
        "**Raises.** `query` is `t t t`.",
    ],
)
def test_paragraphs_that_agree(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("`query` is `b h s d`.", 7, "`query` is stated as `b h s d`, but in f it is `b h t d`"),
        ("A line.\n    And `query` is `b t d`.", 8, "`query` is stated as `b t d`, but in f it is `b h t d`"),
        ("`key` is `b g s d`, `mask` is `s t`.", 7, "`mask` is stated as `s t`, but in f it is `t s`"),
        ("The result is `b h t e`.", 7, "the result is stated as `b h t e`, but in f it is `b h t "),
        ("`key` and `value` are `b g s d`.", 7, "`value` is stated as `b g s d`"),
        ("`mask` is `s t` or `t`.", 7, "`mask` is stated as `s t` or `t`, but in f it is `t "),
        ("`mask` broadcasts to `b h d d`.", 7, "`mask` is stated as"),
        ("`query`, as you know, comes as `b h t d`.", 7, "what has the shape `b h t d`?"),
        ("`key` and `value` are `b s`, `b t` and `b d`.", 7, "2 values have 3 shapes here"),
        ("`keys` is `b g s d`.", 7, "`keys` is given a shape here, but the code has no such name"),
    ],
)
def test_paragraphs_with_faults(text: str, line: int, message: str) -> None:
    ((found_line, found),) = faults(f"**Shapes.** {text}")[:1]
    assert found_line == line
    assert message in found


def table(*rows: str) -> str:
    return "\n".join(["| symbol | code | shape | meaning |", "|---|---|---|---|", *rows])


def test_tables() -> None:
    rows = ["| $q$ | `query` | `b h t d` | |", "| $k$ | `key`, `weights` | `b g s d` or `b h t s` | |"]
    assert faults("", table(*rows, "| $m$ | `mask` | any | |", "| $n$ | `n` | scalar | |")) == []
    wrong = ["| $q$ | `query` | `b t d` | |", "| $k$ | `key` | scalar | |", "| $m$ | `mask` | `t x!` | |"]
    assert faults("", table(*wrong)) == [
        (4, "`query` is stated as `b t d`, but in f it is `b h t d`"),
        (5, "`key` is stated as scalar, but in f it is `b 13 s d`"),
        (6, "the shape `t x!` cannot be read"),
    ]
    scalar = Frame("f", {"query": ()}, [], {})
    assert faults("", table("| $q$ | `query` | `t` | |"), scalar) == [
        (4, "`query` is stated as `t`, but in f it is a scalar")
    ]


def test_a_class_speaks_of_its_methods() -> None:
    text = (
        'class C:\n    r"""**Shapes.** `x` is `t d`, the result is `t`."""\n'
        "    def forward(self, x):\n        pass\n    def other(self, x):\n        pass\n"
    )
    frames = (
        Frame("C.forward", {"x": (T, D)}, [(T, D)], {"t": T, "d": D}),
        Frame("C.other", {"x": (D, T)}, [(D, T)], {"t": T, "d": D}),
    )
    found = check_stated(text, "c.py", read_scopes(text, "c.py", {}), ShapeRecord({}, frames, ()))
    assert [problem.message for problem in found] == [
        "`x` is stated as `t d`, but in C.other it is `d t`",
        "the result is stated as `t`, but in C.forward it is `t d`",
    ]
