"""API first, code follows within minutes (PAGES2)."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from coursekit.pages.problems import Problem


@dataclass(frozen=True)
class Symbol:
    """One row of a Notation table. `shape` and `meaning` are the cells' Markdown; `line` is the row's line in the file."""

    id: str
    texes: tuple[str, ...]
    names: tuple[str, ...]  # `query`, `q`, `self.w_q`; empty for a symbol without code
    role: str | None
    shape: str
    meaning: str
    line: int


@dataclass(frozen=True)
class Scope:
    """The symbols that are valid in one place (the module's prose, or one function or class)."""

    symbols: tuple[Symbol, ...]
    roles: Mapping[str, str]  # code name -> role, for every listed name, symbol or not

    def symbol(self, name: str) -> Symbol | None:
        """The symbol of a code name; an attribute is asked for as `self.w_q`."""
        ...

    def attributes(self, name: str) -> str:
        """` data-sym="slopes" data-role="bias"`, ` data-role="query"` or an empty string: the HTML attributes (with a
        leading space) of a code name, for a NAME token or a code span."""
        ...


@dataclass(frozen=True)
class Notation:
    """The scopes of a file: `""` is the module's prose, the others are qualified names of functions, classes, methods."""

    scopes: Mapping[str, Scope]
    problems: tuple[Problem, ...]

    def scope(self, qualname: str) -> Scope:
        """The scope of a qualified name; that of the nearest enclosing one if it has none of its own."""
        ...


def read_scopes(text: str, path: str, roles: Mapping[str, list[str]]) -> Notation:
    """Every scope of a source file, from the Notation tables in its docstrings; `path` is for the problems' `file`."""
    ...


def read_notation(markdown: str, line: int, path: str = "") -> tuple[list[Symbol], list[Problem]]:
    """The rows of every table whose header is `symbol | code | shape | meaning`; `line` is the file line of markdown's first."""
    ...


def names_in(node: ast.AST) -> frozenset[str]:
    """Parameters, locals and attributes (`self.w_q`) of a function, method or class."""
    ...


def link_tex(tex: str, scope: Scope) -> str:
    """The formula with each symbol wrapped: `{\\htmlData{sym=slopes,role=bias}{m_h}}`."""
    ...


def link_prose(markdown: str, scope: Scope) -> str:
    """Markdown with linked formulas (`$..$`, `$$..$$`) and linked code spans; code fences are left alone. In a Notation
    table the code cell's spans get `tabindex="0"` as well."""
    ...
