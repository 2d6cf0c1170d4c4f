"""What a file depends on: the course's own files that it imports, and its text without prose.

Both serve keys for caches and records: a key covers all code that can change a result, and no comment or
docstring, so that mending a sentence makes nothing stale.
"""

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from coursekit.course import SOURCE_ROOT

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.lru_cache(maxsize=1024)
def code_text(text: str) -> str:
    """The text without comments, docstrings and blank lines.

    The pieces are cut out of the text, because printing a syntax tree (`ast.unparse`) differs from one Python
    version to the next. Raises `SyntaxError` if the text is no Python.
    """
    lines = text.splitlines(keepends=True)
    cuts = [*_docstrings(text, lines), *_comments(text)]
    for (row, column), (end_row, end_column) in sorted(cuts, reverse=True):
        lines[row - 1 : end_row] = [lines[row - 1][:column] + lines[end_row - 1][end_column:]]
    kept = (line.rstrip() for line in "".join(lines).splitlines())
    return "\n".join(line for line in kept if line) + "\n"


def _docstrings(text: str, lines: list[str]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end (row from 1, column in characters) of every docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            string = node.body[0]
            assert string.end_lineno is not None
            assert string.end_col_offset is not None
            # The syntax tree counts bytes.
            start = len(lines[string.lineno - 1].encode()[: string.col_offset].decode())
            end = len(lines[string.end_lineno - 1].encode()[: string.end_col_offset].decode())
            yield (string.lineno, start), (string.end_lineno, end)


def _comments(text: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start, token.end


@functools.lru_cache(maxsize=1024)
def imported_modules(text: str, package: str = "") -> frozenset[str]:
    """Every module name that the text imports, anywhere in it; `from a import b` gives `a` and `a.b`.

    `package` is the dotted package of the file, against which relative imports are read.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(names)


def closure(
    root: Path, paths: Iterable[Path], follow: Callable[[str], bool] = lambda module: True
) -> list[Path]:
    """The files, and every file of the course (its source root, then its root) that they import, in turn, as
    far as `follow` says yes to a module."""
    found: set[Path] = set()
    waiting = [path for path in paths if path.exists()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported_modules(path.read_text("utf-8"), _package(root, path)):
            waiting += _files_of(root, name) if follow(name) else []
    return sorted(found)


def _package(root: Path, path: Path) -> str:
    top = root / SOURCE_ROOT if path.is_relative_to(root / SOURCE_ROOT) else root
    return ".".join(path.relative_to(top).parent.parts) if path.is_relative_to(top) else ""


def _files_of(root: Path, name: str) -> list[Path]:
    """The files that importing `name` runs: each package's `__init__.py` and the module itself."""
    parts = name.split(".")
    for top in (root / SOURCE_ROOT, root):
        if (top / parts[0]).is_dir() or (top / f"{parts[0]}.py").is_file():
            files = []
            for depth in range(1, len(parts) + 1):
                stem = top.joinpath(*parts[:depth])
                files += [stem / "__init__.py", stem.with_name(f"{stem.name}.py")]
            return [file for file in files if file.is_file()]
    return []


def code_key(root: Path, paths: Iterable[Path], *extra: str) -> str:
    """A hash of the code of the files and of all that they import, and of any `extra` text.

    It is the same on every machine and Python version: it covers paths relative to `root` and `code_text`.
    """
    digest = hashlib.sha256()
    for path in closure(root, paths):
        digest.update(f"{path.relative_to(root).as_posix()}\n{code_text(path.read_text('utf-8'))}\0".encode())
    for text in extra:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()
