"""A message on the terminal: sentences wrap, quoted lines of source are cut to the width instead.

Only this module and `feedback.render` need Rich.
"""

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from coursekit.grading.feedback import QUOTE


class Quoted:
    """One line, cut where the terminal ends."""

    def __init__(self, line: str, style: str) -> None:
        self.line = line
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(self.line, style=self.style, no_wrap=True, overflow="crop")
        if text.cell_len > options.max_width:
            text.truncate(options.max_width - 2, overflow="crop")
            text.append(" …")
        yield text


def message(text: str, style: str) -> Group:
    """A message, its first line a sentence."""
    first, *rest = text.split("\n")
    lines = [Quoted(line, style) if QUOTE.match(line) else Text(line, style=style) for line in rest]
    return Group(Text(first, style=style), *lines)
