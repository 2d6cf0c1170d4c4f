"""Which symbol a token means in which place: the scopes of a source file.

The formulas of a module's Notation table are valid in the whole file; its code names in the module's prose
and in every function that has them. A table in a docstring adds to it, or overrides it, for that function or
class. In one scope a name, and a formula, has one symbol.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from coursekit.pages.problems import Problem
from coursekit.pages.symbols.links import link_prose, link_tex
from coursekit.pages.symbols.notation import Scope, Symbol, read_notation
from coursekit.pages.symbols.tex import parse

__all__ = [
    "Notation",
    "Scope",
    "Symbol",
    "link_prose",
    "link_tex",
    "names_in",
    "read_notation",
    "read_scopes",
]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Notation:
    """The scopes of a file by qualified name; `""` is the module's prose."""

    scopes: Mapping[str, Scope]
    problems: tuple[Problem, ...]

    def scope(self, qualname: str) -> Scope:
        """The scope of a qualified name, or of the nearest enclosing one that has a scope of its own."""
        while qualname not in self.scopes:
            qualname = qualname.rpartition(".")[0]
        return self.scopes[qualname]


def read_scopes(text: str, path: str, roles: Mapping[str, list[str]]) -> Notation:
    """Every scope of a source file.

    `roles` lists the names of each role, as code or as the base of a formula (`P` for $P_{ij}$); `path` is
    the file that problems name. Problems are: a row that cannot be read, a name that the code does not have,
    a name or a formula that two symbols of a scope claim.
    """
    return _Reader(path, {name: role for role, names in roles.items() for name in names}).read(
        ast.parse(text)
    )


class _Reader:
    """Walks a module's definitions, with the symbols met so far by id: on a page an id has one meaning."""

    def __init__(self, path: str, role_of: Mapping[str, str]) -> None:
        self.path = path
        self.role_of = role_of
        self.by_id: dict[str, Symbol] = {}
        self.scopes: dict[str, Scope] = {}
        self.problems: list[Problem] = []

    def read(self, module: ast.Module) -> Notation:
        symbols = self.table(module, "", names_in(module))
        self.scopes[""] = Scope(tuple(symbols), tuple(symbols))
        self.visit(module, "", symbols)
        return Notation(self.scopes, tuple(sorted(set(self.problems))))

    def visit(self, node: ast.Module | ast.ClassDef, prefix: str, outer: list[Symbol]) -> None:
        """The scopes of the functions and classes directly inside a node."""
        for child in (child for child in node.body if isinstance(child, Definition)):
            qualname, names = prefix + child.name, names_in(child)
            own = self.table(child, qualname, names)
            claimed = frozenset[str]().union(*(symbol.claims for symbol in own))
            symbols = [symbol for symbol in outer if not symbol.claims & claimed] + own
            valid = [symbol for symbol in symbols if any(_has(names, name) for name in symbol.names)]
            self.scopes[qualname] = Scope(tuple(valid), tuple(symbols))
            if isinstance(child, ast.ClassDef):
                self.visit(child, f"{qualname}.", symbols)

    def table(self, node: ast.Module | Definition, qualname: str, names: frozenset[str]) -> list[Symbol]:
        """The symbols of the tables in a node's docstring, with their roles and their ids on the page."""
        docstring = _docstring(node)
        if docstring is None:
            return []
        symbols, problems = read_notation(str(docstring.value), docstring.lineno, self.path)
        self.problems += problems + self.claimed_twice(symbols)
        where = f"'{qualname}'" if qualname else "this file"
        for symbol in symbols:
            for name in (name for name in symbol.names if not _has(names, name)):
                self.report(symbol, f"the Notation table names `{name}`, which {where} does not have")
        return [self.on_page(symbol, qualname) for symbol in symbols]

    def on_page(self, symbol: Symbol, qualname: str) -> Symbol:
        """The symbol with its role. If its id means another symbol already, it gets one with its qualname."""
        names = [name.removeprefix("self.") for name in symbol.names]
        names += [atoms[0].key for tex in symbol.texes if (atoms := parse(tex))]
        role = next(filter(None, map(self.role_of.get, names)), None)
        other = self.by_id.get(symbol.id)
        is_same = other is None or {c for c in symbol.claims & other.claims if c.startswith("$")}
        symbol = replace(symbol, role=role, id=symbol.id if is_same else f"{qualname or 'self'}.{symbol.id}")
        self.by_id.setdefault(symbol.id, symbol)
        return symbol

    def claimed_twice(self, symbols: Iterable[Symbol]) -> list[Problem]:
        owner: dict[str, Symbol] = {}
        return [
            Problem(
                self.path, symbol.line, f"{claim} is already a symbol in line {first.line}: it can have one"
            )
            for symbol in symbols
            for claim in sorted(symbol.claims)
            if (first := owner.setdefault(claim, symbol)) is not symbol
        ]

    def report(self, symbol: Symbol, message: str) -> None:
        self.problems.append(Problem(self.path, symbol.line, message))


def _docstring(node: ast.Module | Definition) -> ast.Constant | None:
    match node.body[:1]:
        case [ast.Expr(ast.Constant(str()) as docstring)]:
            return docstring
    return None


def _has(names: frozenset[str], name: str) -> bool:
    return name in names or f"self.{name}" in names


def names_in(node: ast.AST) -> frozenset[str]:
    """Every name of a function, class or module: parameters, locals, globals it reads, its own name and those
    of functions inside it, and attributes as `self.w_q`. The fields in a class's body are attributes."""
    names: set[str] = set()
    for child in ast.walk(node):
        match child:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Attribute(value=ast.Name("self"), attr=name):
                names.add(f"self.{name}")
            case ast.ClassDef(name=name, body=body):
                names |= {name, *(f"self.{field}" for field in _fields(body))}
    return frozenset(names)


def _fields(body: list[ast.stmt]) -> set[str]:
    """The names that a class's body assigns."""
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}
