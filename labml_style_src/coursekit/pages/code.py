"""Python as HTML: almost monochrome, with the names that a reader can point at marked.

Classes: `k` keyword, `s` string, `c` comment, `n` number, `d` the name being defined. Python's own tokenizer
finds them, so that a page shows what Python reads.
"""

import ast
import html
import io
import keyword
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coursekit.pages.source.lines import split_lines, unify_newlines

# From 3.12 and 3.14 on an f-string and a t-string are several tokens; on a page each is one string.
OPENING = {getattr(tokenize, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
CLOSING = {getattr(tokenize, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}

Attributes = Callable[[int, str], str]


@dataclass(frozen=True)
class Span:
    """Columns `start` to `end` of a line, and the attributes of the element around them."""

    line: int
    start: int
    end: int
    attributes: str


def highlight(text: str) -> str:
    """The HTML of some Python code. What is no Python (a half-written cell) is shown plain."""
    return "\n".join(highlight_lines(text))


def highlight_lines(text: str, attributes: Attributes = lambda line, name: "") -> list[str]:
    """The HTML of each line, without its line break.

    `attributes(line, name)` gives the HTML attributes of a name, with a leading space, or "" (see
    `symbols.Scope.attributes`); an attribute is asked for as `self.name`. Another object's attribute and the
    keyword of a call are only spelled like a name, so they are not asked for.
    """
    lines = split_lines(unify_newlines(text))
    spans: dict[int, list[Span]] = {}
    for span in _spans(_without_magics(lines), attributes):
        spans.setdefault(span.line, []).append(span)
    return [_render(line, spans.get(number, [])) for number, line in enumerate(lines, 1)]


def source_view(text: str) -> str:
    """A whole file for the /source/ pages: every line highlighted, with the anchor `L<number>`."""
    lines = enumerate(highlight_lines(text.rstrip("\r\n")), 1)
    rendered = "".join(numbered_line(code, n, f"#L{n}", f' id="L{n}"') for n, code in lines)
    return f'<div class="source"><pre><code>{rendered}</code></pre></div>'


def numbered_line(code: str, number: int, link: str, attributes: str = "") -> str:
    """A line of highlighted code behind its number, which links to `link`. CSS draws the number, so that
    copying and search meet the code alone."""
    return (
        f'<span class="line"{attributes}><a class="ln" href="{link}" data-n="{number}" tabindex="-1" '
        f'aria-label="line {number}"></a><span class="tok">{code}</span>\n</span>'
    )


def _render(line: str, spans: list[Span]) -> str:
    parts, at = [], 0
    for span in spans:
        inside = html.escape(line[span.start : span.end], quote=False)
        parts += [html.escape(line[at : span.start], quote=False), f"<span{span.attributes}>{inside}</span>"]
        at = span.end
    return "".join([*parts, html.escape(line[at:], quote=False)])


def _without_magics(lines: list[str]) -> list[str]:
    """Notebook commands (`%matplotlib`, `!pip`) made comments, unless the text is Python as it stands: a line
    may begin with `%` inside a bracket."""
    try:
        ast.parse("\n".join(lines))
    except (SyntaxError, ValueError):
        return ["#" + line[1:] if line.startswith(("%", "!")) else line for line in lines]
    return lines


def _spans(lines: list[str], attributes: Attributes) -> Iterator[Span]:
    text = "\n".join(lines)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return
    call_keywords = _call_keywords(text)
    before: list[tokenize.TokenInfo] = []
    for token in _whole_strings(tokens):
        line, column = token.start
        marks = _class(token, before)
        if token.type == tokenize.NAME and token.start not in call_keywords and marks != ' class="k"':
            asked = _asked_name(token, before)
            marks += attributes(line, asked) if asked else ""
        if marks:
            for number in range(line, token.end[0] + 1):
                start = column if number == line else 0
                end = token.end[1] if number == token.end[0] else len(lines[number - 1])
                if end > start:
                    yield Span(number, start, end, marks)
        before = [*before[-1:], token]


def _class(token: tokenize.TokenInfo, before: list[tokenize.TokenInfo]) -> str:
    if token.type == tokenize.NAME and before and before[-1].string in ("def", "class"):
        return ' class="d"'
    if token.type == tokenize.NAME:
        return ' class="k"' if keyword.iskeyword(token.string) else ""
    kinds = {tokenize.STRING: "s", tokenize.COMMENT: "c", tokenize.NUMBER: "n"}
    return f' class="{kinds[token.type]}"' if token.type in kinds else ""


def _asked_name(token: tokenize.TokenInfo, before: list[tokenize.TokenInfo]) -> str:
    """The name by which a token's symbol is found; '' for an attribute of something that is not `self`."""
    if not before or before[-1].string != ".":
        return token.string
    return f"self.{token.string}" if before[0].string == "self" else ""


def _call_keywords(text: str) -> set[tuple[int, int]]:
    """Where the `name` of each `call(name=...)` stands."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return set()
    rows = text.split("\n")
    return {
        (node.lineno, len(rows[node.lineno - 1].encode()[: node.col_offset].decode()))
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg
    }


def _whole_strings(tokens: list[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
    """The tokens, each f-string joined to one."""
    depth, first = 0, None
    for token in tokens:
        if token.type in OPENING:
            first = first if depth else token
            depth += 1
        elif token.type in CLOSING:
            depth -= 1
            if depth == 0 and first:
                yield tokenize.TokenInfo(tokenize.STRING, "", first.start, token.end, first.line)
        elif depth == 0:
            yield token
