"""Laws of the annotated-source parser, on real files and on random ones: nothing of the code is lost."""

import ast
import io
import textwrap
import tokenize
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coursekit.pages.source import Chapter, read_chapter
from coursekit.pages.source.lines import LAYOUT_TOKENS, docstring_node

ROOT = Path(__file__).parents[3]
STANDARD_LIBRARY = Path(textwrap.__file__).parent
REAL_FILES = [
    *sorted((ROOT / "labml_style_src").rglob("*.py")),
    *(STANDARD_LIBRARY / name for name in ["argparse.py", "ast.py", "dataclasses.py", "enum.py", "heapq.py"]),
    *(STANDARD_LIBRARY / name for name in ["inspect.py", "statistics.py", "tokenize.py", "asyncio/locks.py"]),
]


def code_lines(text: str) -> list[int]:
    """The lines with a token that is neither layout nor a docstring, found without the parser under test."""
    tree = ast.parse(text)
    scopes = [
        node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
    ]
    scopes += [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
    docstrings = [node for scope in scopes if (node := docstring_node(scope))]
    starts = {(node.lineno, node.col_offset) for node in docstrings}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kept = [token for token in tokens if token.type not in LAYOUT_TOKENS and token.start not in starts]
    return sorted({line for token in kept for line in range(token.start[0], token.end[0] + 1)})


def assert_nothing_is_lost(found: Chapter) -> None:
    listed = [line for row in found.rows for line in row.lines]
    assert listed == sorted(set(listed)), "a line is shown twice or out of order"
    assert not set(listed) & set(found.omitted)
    assert set(code_lines(found.text)) <= set(listed) | set(found.omitted)
    lines = found.text.split("\n")
    for row in found.rows:
        for number, line in enumerate(row.prose.split("\n"), row.prose_line):
            written = lines[number - 1].expandtabs()
            # An escape in a docstring that is not raw stands for something else than it says.
            assert line.strip() in written or "\\" in written, f"line {number} is not where it is said to be"
    comments = {comment.line for comment in found.lines.comments} - set(found.omitted)
    proses = [(row.prose_line, row.prose_line + row.prose.count("\n")) for row in found.rows]
    headings = {row.heading.line for row in found.rows if row.heading}
    assert all(line in headings or any(a <= line <= b for a, b in proses) for line in comments)
    anchors = [row.anchor for row in found.rows] + [row.heading.anchor for row in found.rows if row.heading]
    assert len(set(anchors)) == len(anchors)


@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.name)
def test_nothing_of_a_real_file_is_lost(path: Path):
    found = read_chapter(path.read_text("utf-8"), str(path))
    if not found.lines.moved:
        assert_nothing_is_lost(found)


@st.composite
def sources(draw: st.DrawFn) -> str:
    """Random nested code with comments and docstrings in every place."""

    def body(indent: int, depth: int) -> list[str]:
        pad = "    " * indent
        lines = []
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(
                st.sampled_from(["plain", "comment", "blank", "wrapped", "string", "def", "if", "semi"])
            )
            match kind:
                case "comment":
                    lines += [
                        pad + "# Words.",
                        pad + draw(st.sampled_from(["# More.", "#", "# ## Head", "# noqa"])),
                    ]
                case "blank":
                    lines.append("")
                case "wrapped":
                    lines += [pad + "a = (", pad + "# inside", pad + "    1", pad + ")"]
                case "string":
                    lines += [pad + 'b = """', "# text", "", '"""']
                case "semi":
                    lines.append(pad + "c = 1; d = 2  # why")
                case "def" if depth:
                    lines += [
                        pad + draw(st.sampled_from(["def f(", "async def g(", "class A("])),
                        pad + "    ):",
                    ]
                    if draw(st.booleans()):
                        lines += [pad + '    r"""Doc.', "", pad + '    End."""']
                    lines += body(indent + 1, depth - 1)
                case "if" if depth:
                    lines += [pad + "if a:", *body(indent + 1, depth - 1)]
                    if draw(st.booleans()):
                        lines += [pad + "# Else.", pad + "else:", *body(indent + 1, depth - 1)]
        return [*lines, pad + "pass", *draw(st.sampled_from([[], [pad + "# End."], [pad + "    # Deep."]]))]

    return "\n".join(body(0, 3)) + draw(st.sampled_from(["", "\n"]))


@given(sources())
def test_nothing_of_any_source_is_lost(text: str):
    found = read_chapter(text, "x.py")
    assert_nothing_is_lost(found)
    assert read_chapter(text.replace("\n", "\r\n"), "x.py").rows == found.rows
