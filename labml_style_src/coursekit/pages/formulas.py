"""Formulas that KaTeX cannot read, with the file and line where they are written."""

import re

from coursekit.pages import katex
from coursekit.pages.markdown import FORMULA
from coursekit.pages.problems import Problem

FENCE = re.compile(r"^(?P<fence> {0,3}(?:```+|~~~+))[^\n]*\n.*?^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE)


def faults(markdown: str, file: str, line: int) -> list[Problem]:
    """A problem for each formula of a Markdown text that cannot be rendered; `line` is the file's line on
    which the text begins."""
    # Code in a fence is not read, but its lines count.
    markdown = FENCE.sub(lambda match: "\n" * match[0].count("\n"), markdown)
    problems = []
    for match in FORMULA.finditer(markdown):
        display, inline = match["display"], match["inline"]
        if display is None and inline is None:
            continue
        try:
            katex.render(inline if display is None else display, display is not None)
        except katex.TexError as error:
            problems.append(Problem(file, line + markdown.count("\n", 0, match.start()), str(error)))
    return problems
