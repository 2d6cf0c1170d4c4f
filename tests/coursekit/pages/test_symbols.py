r"""Notation tables and the scopes made of them."""

import ast
from textwrap import dedent

import pytest

from coursekit.pages.symbols import Notation, names_in, read_notation, read_scopes
from coursekit.pages.symbols.notation import cells

ROLES = {"query": ["query", "q"], "bias": ["bias", "slopes"]}
SOURCE = '''\
r"""# Title

| symbol | code | shape | meaning |
|---|---|---|---|
| $Q$, $\\mathbf{q}_i$ | `query`, `q`, `self.w_q` | `b h t d` | a query |
| $m_h$ | `slopes` | `h` | one slope a head |
| $\\tau$ | - | scalar | no code |
"""


def first(query, scale):
    slopes = query * scale


def second(x):
    r"""A table of its own.

    | symbol | code | shape | meaning |
    |---|---|---|---|
    | $y$ | `x` | `t` | something |
    | $m$ | `slopes` | `t` | other slopes |
    """
    slopes = x


class Third:
    r"""
    | symbol | code | shape | meaning |
    |---|---|---|---|
    | $W$ | `w_o` | | a matrix |
    """

    def __init__(self):
        self.w_q = self.w_o = 1

    def forward(self, q):
        def inner(slopes):
            return slopes

        return q @ self.w_o
'''


def scopes(text: str = SOURCE) -> Notation:
    return read_scopes(text, "file.py", ROLES)


def table(*rows: str) -> str:
    return "\n".join(["| symbol | code | shape | meaning |", "|---|---|---|---|", *rows])


def test_a_table_is_read() -> None:
    symbols, problems = read_notation(
        "Text.\n\n" + table("| $P$, $P_{ij}$ | `p` | `t s` | a |", "| $n$ | – | | |"), 10
    )
    assert problems == []
    first, second = symbols
    assert (first.id, first.texes, first.names, first.shape, first.meaning, first.line) == (
        "p", ("P", "P_{ij}"), ("p",), "`t s`", "a", 14,
    )  # fmt: skip
    assert (second.id, second.names, second.line) == ("tex.n", (), 15)


def test_only_notation_tables_are_read() -> None:
    other = "| a | b | c | d |\n|---|---|---|---|\n| $P$ | `p` | | |\n\n"
    fenced = f"```\n{table('| $P$ | `p` | | |')}\n```\n"
    assert read_notation(other + fenced, 1) == ([], [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("| $P_$ | `p` | | |", "the symbol $P_$ cannot be read: an argument is missing"),
        ("| P | `p` | | |", "has no formula"),
        ("| $P$ | `p + 1` | | |", "`p + 1` is no name"),
        ("| $P$ | p | | |", "write `name`, or -"),
        ("| $P$ | `p` | |", "3 cells, not 4"),
    ],
)
def test_rows_that_cannot_be_read(row: str, message: str) -> None:
    symbols, (problem,) = read_notation(table(row), 7, "file.py")
    assert symbols == []
    assert (problem.file, problem.line) == ("file.py", 9)
    assert message in problem.message


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("| a | b |", ["a", "b"]),
        ("a | b", ["a", "b"]),
        (r"| $|x|$ | `a|b` | \| |", ["$|x|$", "`a|b`", r"\|"]),
        ("| a | |", ["a", ""]),
    ],
)
def test_cells(row: str, parts: list[str]) -> None:
    assert cells(row) == parts


def test_scopes() -> None:
    notation = scopes()
    assert notation.problems == ()
    ids = {name: [symbol.id for symbol in scope.symbols] for name, scope in notation.scopes.items()}
    assert ids == {
        "": ["query", "slopes", "tex.tau"],
        "first": ["query", "slopes"],
        "second": ["x", "second.slopes"],
        "Third": ["query", "slopes", "w_o"],
        "Third.__init__": ["query", "w_o"],
        "Third.forward": ["query", "slopes", "w_o"],
    }


def test_formulas_are_valid_in_the_whole_file_unless_overridden() -> None:
    written = {name: [symbol.id for symbol in scope.written] for name, scope in scopes().scopes.items()}
    assert written["first"] == ["query", "slopes", "tex.tau"]
    assert written["second"] == ["query", "tex.tau", "x", "second.slopes"]
    assert written["Third.forward"] == ["query", "slopes", "tex.tau", "w_o"]


def test_names_and_roles() -> None:
    notation = scopes()
    method, function = notation.scope("Third.forward"), notation.scope("first")
    assert method.attributes("self.w_q") == ' data-sym="query" data-role="query"'
    assert method.attributes("w_q") == ""
    assert method.attributes("self.w_o") == method.attributes("w_o") == ' data-sym="w_o"'
    assert function.attributes("slopes") == ' data-sym="slopes" data-role="bias"'
    assert function.attributes("bias") == "", "no symbol, no colour"
    assert function.attributes("scale") == ""


def test_a_symbol_without_code_has_the_role_of_the_base_of_its_formula() -> None:
    text = f'r"""# T\n{table("| $P_{ij}$ | - | | |", "| $Q_P$ | - | | |")}\n"""'
    weights, other = read_scopes(text, "file.py", {"weights": ["P"]}).scope("").symbols
    assert (weights.role, other.role) == ("weights", None)


def test_the_scope_of_what_has_none_is_the_one_around_it() -> None:
    notation = scopes()
    assert notation.scope("Third.forward.<locals>.inner") == notation.scope("Third.forward")
    assert notation.scope("CONSTANT") == notation.scope("")


def test_a_symbol_repeated_in_a_function_keeps_its_id() -> None:
    own = '    r"""\n' + "".join(
        f"    {line}\n" for line in table("| $m_h$ | `slopes` | `t` | |").split("\n")
    )
    text = SOURCE + f'\n\ndef fourth(slopes):\n{own}    """\n'
    (symbol,) = scopes(text).scope("fourth").symbols
    assert (symbol.id, symbol.shape) == ("slopes", "`t`")


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        (["| $a$ | `absent` | | |"], 4, "names `absent`, which this file does not have"),
        (["| $a$ | `x` | | |", "| $b$ | `y`, `x` | | |"], 5, "`x` is already a symbol in line 4"),
        (["| $a_i$ | `x` | | |", "| $a_{i}$ | `y` | | |"], 5, "$a_{i}$ is already a symbol in line 4"),
    ],
)
def test_problems_of_a_scope(rows: list[str], line: int, message: str) -> None:
    text = f'r"""# T\n{table(*rows)}\n"""\ndef f(x, y):\n    pass\n'
    (problem,) = scopes(text).problems
    assert (problem.file, problem.line) == ("file.py", line)
    assert message in problem.message


def test_a_name_of_another_function_is_no_name_of_this_one() -> None:
    text = SOURCE.replace("| $y$ | `x` |", "| $y$ | `query` |")
    (problem,) = scopes(text).problems
    assert problem.message == "the Notation table names `query`, which 'second' does not have"


def test_names_in() -> None:
    tree = ast.parse(
        dedent("""
        class Config:
            d_model: int
            n = 1

            def f(self, a, *b, c=1, **d):
                self.e, f = a
                return [g for g in b if self.h.i and CONSTANT]
        """)
    )
    names = names_in(tree)
    assert {"a", "b", "c", "d", "f", "g", "CONSTANT", "self.d_model", "self.n", "self.e", "self.h"} <= names
    assert not {"e", "h", "i", "self.i", "self.f"} & names
