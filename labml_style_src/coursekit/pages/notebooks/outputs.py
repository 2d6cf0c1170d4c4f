"""An executed notebook as a Markdown page: prose, code as on every page, outputs as text or plots.

A plot that matplotlib wrote as SVG stands inline. It names colours of the book's light scheme; each becomes
the page's own variable, so that the plot follows the scheme, and the letters take the page's font.
"""

import base64
import html
import itertools
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from nbformat import NotebookNode

from coursekit.course import Lesson
from coursekit.pages.code import highlight
from coursekit.pages.front import front_matter

# The colours that a lesson's plots are drawn in, and the variable that each stands for.
COLOURS = {
    "#fffefb": "paper",
    "#1f2328": "ink",
    "#66707a": "soft",
    "#e6e3da": "line",
    "#0b5fa5": "query",
    "#a04600": "key",
    "#08724f": "value",
    "#7a2b8c": "weights",
    "#ad1237": "bias",
    "#5b6470": "mask",
}
COLOUR = re.compile("|".join(COLOURS), re.IGNORECASE)
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PROLOGUE = re.compile(r"\A.*?(?=<svg\b)", re.DOTALL)
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
SVG_TAG = re.compile(r"<svg\b[^>]*>")
SIZE = re.compile(r'\s(?:width|height)="[^"]*"')
FONT = re.compile(r"font-family: [^;\"]*")
IDENTIFIER = re.compile(r'(?P<before>\bid="|href="#|url\(#)(?P<name>[^")]+)')


@dataclass(frozen=True)
class NotebookPage:
    """A page's Markdown, and the files that it shows, by their path beside the page."""

    markdown: str
    files: dict[str, bytes]


def render_notebook(notebook: NotebookNode, lesson: Lesson, minutes: int) -> NotebookPage:
    """The page of an executed notebook. Links on it are relative to `notebooks/<slug>/`."""
    files: dict[str, bytes] = {}
    cells = [
        part
        for hidden, group in itertools.groupby(notebook.cells, _is_hidden)
        for part in _folded([_cell(cell, files) for cell in group], hidden)
    ]
    title = next((title for cell in notebook.cells if (title := _title(cell))), lesson.title)
    links = [] if lesson.is_companion else [f'<a href="../../mechanisms/{lesson.slug}/">mechanism</a>']
    links += [
        f'<a href="../../exercises/{lesson.slug}/">exercise</a>',
        f'<a href="../{lesson.slug}.ipynb" download>download .ipynb</a>',
    ]
    eyebrow = " · ".join([f"Notebook {lesson.number}", f"{minutes} min", *links])
    head = front_matter(title=title, template="chapter.html", hide=["navigation", "toc"])
    body = "\n\n".join([f'<p class="eyebrow">{eyebrow}</p>', *cells])
    return NotebookPage(f'{head}<div class="notebook" markdown="1">\n\n{body}\n\n</div>\n', files)


def reading_minutes(notebook: NotebookNode) -> int:
    """About 200 words of prose a minute, and half a minute for each cell of code."""
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    return max(1, round(words / 200 + sum(cell.cell_type == "code" for cell in notebook.cells) / 2))


def _title(cell: NotebookNode) -> str | None:
    match = re.match(r"# (.+)", cell.source) if cell.cell_type == "markdown" else None
    return match[1].strip() if match else None


def _is_hidden(cell: NotebookNode) -> bool:
    """Whether JupyterLab shows the cell folded: what every lesson sets up in the same way."""
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def _folded(cells: list[str], hidden: bool) -> list[str]:
    """The cells of a run, behind one line that opens them if they are hidden."""
    if not hidden:
        return cells
    return [
        "\n".join(
            [
                '<details class="setup">',
                "<summary>Setup, the same in every lesson</summary>",
                *cells,
                "</details>",
            ]
        )
    ]


def _cell(cell: NotebookNode, files: dict[str, bytes]) -> str:
    if cell.cell_type == "markdown":
        return cell.source
    code = highlight(cell.source)
    outputs = [_output(output, f"{cell.id}-{n}", files) for n, output in enumerate(_joined(cell.outputs))]
    lines = [
        f'<div class="cell" id="cell-{cell.id}">',
        f'<div class="code"><pre><code>{code}</code></pre></div>',
    ]
    return "\n".join([*lines, *filter(None, outputs), "</div>"])


def _joined(outputs: list[NotebookNode]) -> list[dict]:
    """The outputs, with what a stream printed in several pieces put together."""
    joined: list[dict] = []
    for output in outputs:
        stream = output.output_type == "stream"
        if stream and joined and joined[-1].get("name") == output.name:
            joined[-1]["text"] += output.text
        else:
            joined.append(dict(output))
    return joined


def _output(output: dict, name: str, files: dict[str, bytes]) -> str:
    """The HTML of one output, as the richest of its forms that a page can carry."""
    if output["output_type"] == "stream":
        return _text(output["text"], output["name"])
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return f'<figure class="output">{page_svg("".join(data["image/svg+xml"]), name)}</figure>'
    if "image/png" in data:
        file = PurePosixPath(f"{name}.png")
        files[str(file)] = base64.b64decode("".join(data["image/png"]))
        return f'<figure class="output"><img src="{file}" alt=""></figure>'
    return _text("".join(data.get("text/plain", "")), "result")


def _text(text: str, kind: str) -> str:
    text = ANSI.sub("", text).rstrip()
    return f'<pre class="output {kind}">{html.escape(text, quote=False)}</pre>' if text else ""


def page_svg(svg: str, name: str) -> str:
    """A plot that can stand inline: its colours and letters those of the page, its size that of its place,
    its ids those of no other plot (they begin with `name`), and its letters not in the search."""
    svg = METADATA.sub("", PROLOGUE.sub("", svg))
    svg = SVG_TAG.sub(lambda match: SIZE.sub("", match[0]), svg, count=1)
    svg = COLOUR.sub(lambda match: f"var(--{COLOURS[match[0].lower()]})", svg)
    svg = FONT.sub("font-family: inherit", svg)
    svg = IDENTIFIER.sub(lambda match: f"{match['before']}{name}-{match['name']}", svg)
    svg = svg.replace("<svg", "<svg data-search-exclude", 1)
    return re.sub(r">\s+<", "><", svg).strip()
