"""From a lesson's `exercise.py`, which has the solution, to what a student starts with.

Between `### BEGIN SOLUTION` and `### END SOLUTION`, lines of their own inside a function, stands what the
student is to write; the stub raises `NotImplementedError` there.
"""

import ast
import re
from pathlib import Path

from coursekit.grading.submission import ExerciseError

# A shorter line (`return out`, `h = x // 2`) is anybody's.
TELLING_TOKENS = 7
TOKEN = re.compile(r"\w+|[^\w\s]")

MARKER = re.compile(r"^(?P<indent>\s*)###\s*(?P<which>BEGIN|END) SOLUTION\s*$")


def make_stub(text: str, name: str = "exercise.py") -> str:
    """The exercise without its solutions. Raises `ExerciseError`, naming the line, if the markers do not
    pair up, hold nothing, or stand outside a function."""
    lines = text.splitlines()
    tree = ast.parse(text)
    stub: list[str] = []
    done = 0
    blocks = solution_blocks(text, name)
    if not blocks:
        raise ExerciseError(f"{name} has no ### BEGIN SOLUTION: a stub of it would be the solution")
    for begin, end in blocks:
        function = function_around(tree, begin)
        if function is None:
            raise ExerciseError(f"{name}:{begin}: a solution stands inside a function")
        indent = MARKER.match(lines[begin - 1])["indent"]  # type: ignore[index]
        stub += lines[done : begin - 1]
        stub.append(f'{indent}raise NotImplementedError("{function} is not done yet")')
        done = end
    made = "\n".join([*stub, *lines[done:]]) + "\n"
    try:
        ast.parse(made)
    except SyntaxError as error:
        raise ExerciseError(
            f"{name}: the stub is not valid Python, line {error.lineno}: {error.msg}"
        ) from None
    return made


def leaked_lines(text: str, name: str = "exercise.py") -> list[str]:
    """The lines of the solution that the stub still holds: in a docstring, a comment or another function. They
    are compared by tokens, so that neither spaces nor line breaks hide one.

    Raises `ExerciseError` as `make_stub` does.
    """
    given = f" {' '.join(TOKEN.findall(make_stub(text, name)))} "
    lines = text.splitlines()
    own = (line.strip() for begin, end in solution_blocks(text, name) for line in lines[begin : end - 1])
    tokens = {line: TOKEN.findall(line) for line in own}
    return [
        line
        for line, found in tokens.items()
        if len(found) >= TELLING_TOKENS and f" {' '.join(found)} " in given
    ]


def without_markers(text: str) -> str:
    """The exercise with its solutions, as a student may read it."""
    return "\n".join(line for line in text.splitlines() if not MARKER.match(line)) + "\n"


def solution_blocks(text: str, name: str = "exercise.py") -> list[tuple[int, int]]:
    """The line numbers of each pair of markers."""
    lines = text.splitlines()
    blocks: list[tuple[int, int]] = []
    opened = 0
    for place, line in enumerate(lines, start=1):
        match = MARKER.match(line)
        if match is None:
            continue
        if (match["which"] == "BEGIN") == bool(opened):
            last = f"the one of line {opened} is still open" if opened else "none is open"
            raise ExerciseError(f"{name}:{place}: ### {match['which']} SOLUTION, but {last}")
        if match["which"] == "BEGIN":
            opened = place
            continue
        if not any(line.strip() for line in lines[opened : place - 1]):
            raise ExerciseError(f"{name}:{opened}: the solution is empty")
        blocks.append((opened, place))
        opened = 0
    if opened:
        raise ExerciseError(f"{name}:{opened}: ### BEGIN SOLUTION without an END")
    return blocks


def function_around(tree: ast.AST, line: int, prefix: str = "") -> str | None:
    """The qualified name of the innermost function around a line."""
    found = None
    for node in ast.iter_child_nodes(tree):
        if not (getattr(node, "lineno", line + 1) <= line <= (getattr(node, "end_lineno", 0) or 0)):
            continue
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{prefix}{node.name}" if named else ""
        inner = function_around(node, line, f"{name}." if named else prefix)
        is_function = named and not isinstance(node, ast.ClassDef)
        found = inner or (name if is_function else None)
    return found


def stub_notebook(stub: str, command: str) -> str:
    """The stub as a notebook: each top-level definition has its own cell, under its docstring as Markdown, and
    the last cell runs the `command` that checks it."""
    from nbformat import v4, writes

    cells = notebook_cells(stub)
    cells += [("markdown", "Save the notebook, then check it:"), ("code", f"!{command}")]
    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    # nbformat would draw the names of the cells.
    named = [make[kind](source, id=f"cell-{place}") for place, (kind, source) in enumerate(cells, start=1)]
    notebook = v4.new_notebook(cells=named)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return writes(notebook) + "\n"


def notebook_cells(stub: str) -> list[tuple[str, str]]:
    """Kind and source of each cell, from a stub's text."""
    lines = stub.splitlines()
    tree = ast.parse(stub)
    cells: list[tuple[str, str]] = []
    done = 0
    body = list(tree.body)
    if body and ast.get_docstring(tree):
        cells.append(("markdown", ast.get_docstring(tree) or ""))
        done = body.pop(0).end_lineno or 0
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        # Comments and decorators directly above belong to the definition.
        start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        while start > done and lines[start - 1].startswith("#"):
            start -= 1
        add_code(cells, lines[done:start])
        text, first = definition_parts(node, lines, start)
        cells.append(("markdown", f"## `{node.name}`\n\n{text}".strip()))
        add_code(cells, first)
        done = node.end_lineno or 0
    add_code(cells, lines[done:])
    return cells


def add_code(cells: list[tuple[str, str]], lines: list[str]) -> None:
    source = "\n".join(lines).strip("\n")
    if source.strip():
        cells.append(("code", source))


def definition_parts(
    node: ast.FunctionDef | ast.ClassDef, lines: list[str], start: int
) -> tuple[str, list[str]]:
    """The docstring of a definition, and its lines without it."""
    docstring = ast.get_docstring(node)
    end = node.end_lineno or 0
    if docstring is None or len(node.body) < 2:
        return docstring or "", lines[start:end]
    string = node.body[0]
    rest = lines[string.end_lineno : end]
    while rest and not rest[0].strip():
        rest = rest[1:]
    return docstring, lines[start : string.lineno - 1] + rest


def write_new(path: Path, text: str) -> None:
    """Write a file that must not exist yet. Raises `ExerciseError` if it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise ExerciseError(
            f"{path} exists already and is left as it is: move it away to start anew"
        ) from None
