"""What each line of a Python file is: code, prose, or nothing.

Prose is a docstring, or a comment on a line of its own outside every bracket. Positions come from `ast` and
`tokenize`, never from the look of a line: a `#` in a string is no comment, a blank line in one is code.
"""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

# Comments that speak to a tool, not to a reader: they stay code.
DIRECTIVE = re.compile(
    r"#\s*(?:type:|noqa|fmt:|isort:|pragma\b|ruff:|pylint:|pyright:|mypy:|flake8|!|-\*-)", re.IGNORECASE
)
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Prose:
    """Markdown from a docstring or a comment; its line `i` (from 0) is the file's line `line + i`."""

    text: str
    line: int

    @property
    def end(self) -> int:
        return self.line + self.text.count("\n")


@dataclass(frozen=True)
class Definition:
    """A function or class: `start` is its first decorator's line, `body` the line of the first statement
    inside (the docstring, if there is one), `end` its last line."""

    node: Scope
    qualname: str

    @property
    def kind(self) -> str:
        return "class" if isinstance(self.node, ast.ClassDef) else "function"

    @property
    def start(self) -> int:
        return first_line(self.node)

    @property
    def body(self) -> int:
        return first_line(self.node.body[0])

    @property
    def end(self) -> int:
        return self.node.end_lineno or self.node.lineno


@dataclass(frozen=True)
class Comment(Prose):
    """Comment lines that follow each other in one column: one thought."""

    column: int


def first_line(node: ast.stmt) -> int:
    """The line of a statement's first decorator, or of the statement."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def lines_of(statements: Iterable[ast.stmt]) -> set[int]:
    """Every line that these statements touch."""
    return {n for node in statements for n in range(first_line(node), (node.end_lineno or node.lineno) + 1)}


def docstring_node(node: ast.Module | Scope) -> ast.Constant | None:
    """The docstring's own node, for its position."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return first.value if isinstance(first.value.value, str) else None
    return None


def split_lines(text: str) -> list[str]:
    """The lines as Python counts them: a form feed or U+2028 ends none."""
    return text.split("\n")


def unify_newlines(text: str) -> str:
    """CRLF, CR and a byte order mark are no part of a line."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


class Lines:
    """The lines of one file, classified. `text` must be valid Python (`SyntaxError` otherwise)."""

    def __init__(self, text: str) -> None:
        self.text = unify_newlines(text)
        self.tree = ast.parse(self.text)
        self.lines = split_lines(self.text)

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def definitions(self) -> list[Definition]:
        """Every function and class at any depth, in file order."""
        return sorted(_definitions(self.tree, ""), key=lambda found: found.start)

    def definition_at(self, line: int) -> Definition | None:
        """The innermost function or class that covers this line."""
        covering = [found for found in self.definitions if found.start <= line <= found.end]
        return covering[-1] if covering else None

    @cached_property
    def docstrings(self) -> dict[int, Prose]:
        """The prose of each definition's docstring, by the definition's `start`; the module's under 0."""
        nodes = {0: docstring_node(self.tree)}
        nodes |= {found.start: docstring_node(found.node) for found in self.definitions}
        cleaned = {start: _clean(node) for start, node in nodes.items() if node is not None}
        return {start: prose for start, prose in cleaned.items() if prose.text}

    @cached_property
    def moved(self) -> list[int]:
        """Lines of docstrings whose escapes add or remove a line break, so that lines cannot be counted."""
        nodes = [docstring_node(self.tree), *(docstring_node(found.node) for found in self.definitions)]
        return [
            node.lineno
            for node in nodes
            if node is not None and str(node.value).count("\n") != (node.end_lineno or 0) - node.lineno
        ]

    @cached_property
    def comments(self) -> list[Comment]:
        """The prose comments, consecutive lines of one column joined."""
        blocks: list[list[tokenize.TokenInfo]] = []
        for token in self._own_line_comments():
            last = blocks[-1][-1] if blocks else None
            if last and token.start == (last.start[0] + 1, last.start[1]):
                blocks[-1].append(token)
            else:
                blocks.append([token])
        return [
            Comment("\n".join(_uncomment(token.string) for token in block), line, self.indent(line))
            for block in blocks
            for line in [block[0].start[0]]
        ]

    @cached_property
    def code(self) -> list[int]:
        """The lines that hold code, in order: what is neither prose nor blank, and blanks inside a string."""
        prose = {line for comment in self.comments for line in range(comment.line, comment.end + 1)}
        prose |= self._docstring_lines
        inside = {
            line
            for token in self.tokens
            if token.type not in LAYOUT_TOKENS
            for line in range(token.start[0], token.end[0] + 1)
        }
        numbers = range(1, len(self.lines) + 1)
        return [n for n in numbers if n not in prose and (n in inside or self.lines[n - 1].strip())]

    def indent(self, line: int) -> int:
        """The column of the line's first character, tabs as Python counts them."""
        text = self.lines[line - 1]
        return len(text[: len(text) - len(text.lstrip())].expandtabs(8))

    @cached_property
    def names(self) -> dict[int, list[str]]:
        """For each line, the names that statements beginning there assign."""
        names: dict[int, list[str]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ASSIGNMENTS):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                leaves = [leaf for target in targets for leaf in _leaves(target) if leaf != "_"]
                names.setdefault(node.lineno, []).extend(leaves)
        return names

    @cached_property
    def words(self) -> dict[int, str]:
        """For each line, the statement that begins there as a word: return, if, for, def; code for a call."""
        words: dict[int, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.stmt) and not isinstance(node, ASSIGNMENTS):
                word = type(node).__name__.lower().removeprefix("async").removeprefix("function")
                word = {"expr": "code", "classdef": "class"}.get(word, word)
                words.setdefault(node.lineno, word)
        return words

    @cached_property
    def _docstring_lines(self) -> set[int]:
        """The lines that docstrings have to themselves."""
        nodes = [docstring_node(self.tree), *(docstring_node(found.node) for found in self.definitions)]
        spans = [(node.lineno, node.end_lineno or node.lineno) for node in nodes if node is not None]
        own = {line for start, end in spans for line in range(start, end + 1)}
        shared = {
            line
            for token in self.tokens
            if token.type not in LAYOUT_TOKENS
            and not (token.type == tokenize.STRING and {token.start[0], token.end[0]} <= own)
            for line in (token.start[0], token.end[0])
        }
        alone = [(start, end) for start, end in spans if not shared & set(range(start, end + 1))]
        return {line for start, end in alone for line in range(start, end + 1)}

    def _own_line_comments(self) -> Iterator[tokenize.TokenInfo]:
        depth = 0
        for token in self.tokens:
            if token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
            if token.type != tokenize.COMMENT or depth or DIRECTIVE.match(token.string):
                continue
            line, column = token.start
            if not self.lines[line - 1][:column].strip():
                yield token


def _definitions(node: ast.AST, prefix: str) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Scope):
            yield Definition(child, prefix + child.name)
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from _definitions(child, prefix)


def _clean(node: ast.Constant) -> Prose:
    """The docstring without its indentation, beginning at its first line of text."""
    value = str(node.value)
    lines = inspect.cleandoc(value).split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    blank = len(value) - len(value.lstrip())
    return Prose("\n".join(lines), node.lineno + value[:blank].count("\n"))


def _uncomment(comment: str) -> str:
    """The comment's text, with the indentation beyond its first blank."""
    text = comment[1:]
    return (text[1:] if text[:1].isspace() else text).rstrip()


def _leaves(target: ast.expr) -> Iterator[str]:
    """The names in an assignment's target, from left to right: `a`, `self.b` as b, `c[0]` as c."""
    match target:
        case ast.Name(name) | ast.Attribute(attr=name):
            yield name
        case ast.Tuple(elements) | ast.List(elements):
            for element in elements:
                yield from _leaves(element)
        case ast.Starred(value) | ast.Subscript(value):
            yield from _leaves(value)
