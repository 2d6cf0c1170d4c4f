"""Figures in prose: `![caption](figure:name)` becomes the drawing with its caption."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from coursekit.pages.problems import Problem

# A fence or a span of code: what looks like an insert there is shown, not replaced. It is tried first.
CODE = r"(?P<code> ^(?P<fence>```+|~~~+).*?(?:^(?P=fence)|\Z) | (?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`) )"
# A caption may hold formulas and code with brackets, but no other image.
FIGURE = re.compile(
    rf"{CODE} | !\[(?P<caption>(?:(?!!\[|\]\().)*)\]\(figure:(?P<name>[^)]*)\)",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


@dataclass
class Figures:
    """Puts a chapter's drawings (name -> SVG) into its prose and collects the names that have none."""

    path: str
    drawings: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)

    def check(self, markdown: str, line: int) -> None:
        """Report unknown figures; `line` is the file's line of the Markdown's first."""
        for match in FIGURE.finditer(markdown):
            if not match["code"] and match["name"] not in self.drawings:
                message = (
                    f"unknown figure '{match['name']}': figures.py has {', '.join(self.drawings) or 'none'}"
                )
                self.problems.append(
                    Problem(self.path, line + markdown.count("\n", 0, match.start()), message)
                )

    def replace(self, markdown: str) -> str:
        """The Markdown with each figure as a block of its own."""

        def figure(match: re.Match[str]) -> str:
            return match["code"] or f"\n\n{self._figure(match, 'figure')}\n\n"

        return FIGURE.sub(figure, markdown)

    def take_first(self, markdown: str) -> tuple[str, str]:
        """The Markdown without its first figure, and that figure for the margin of an opening."""
        match = next((match for match in FIGURE.finditer(markdown) if not match["code"]), None)
        if not match:
            return markdown, ""
        rest = markdown[: match.start()].rstrip() + "\n\n" + markdown[match.end() :].lstrip()
        return rest, self._figure(match, "opening-figure")

    def _figure(self, match: re.Match[str], kind: str) -> str:
        drawing = self.drawings.get(match["name"], "").strip()
        drawing = re.sub(r"^<svg\b(?![^>]*\brole=)", '<svg role="img"', drawing)
        # Its labels are no sentence: search would show them glued together.
        drawing = drawing.replace("<svg", "<svg data-search-exclude", 1)
        # The drawing is raw HTML; the caption is Markdown, for it may have formulas.
        caption = " ".join(match["caption"].split())
        return (
            f'<figure class="{kind}" markdown="1">\n<div class="drawing">{drawing}</div>\n'
            f'<figcaption markdown="span">{caption}</figcaption>\n</figure>'
        )
