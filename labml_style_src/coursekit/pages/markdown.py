r"""A Python-Markdown extension: `$inline$` and `$$display$$` formulas, rendered by KaTeX.

The formulas are replaced before Markdown reads its blocks, so that an underscore in a formula is no emphasis, a
`|` no table cell and a line that begins with `=` no heading. `\$` is a dollar; code is left alone.
"""

import re

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

from coursekit.pages import katex

# The first alternatives match what is not to be read: an escaped dollar, raw blocks, and code spans.
FORMULA = re.compile(
    r"""
    (?P<literal>
        \\\$
      | <(?P<tag>pre|svg|script|style|code)\b.*?</(?P=tag)>
      | (?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)
    )
    | \$\$(?P<display>.+?)\$\$
    | (?<![\w$])\$(?![\s$])(?P<inline>(?:\\.|[^$\\])+?)(?<!\s)\$(?![\w$])(?=(?P<mark>[.,;:!?)\]])?)
    """,
    re.DOTALL | re.VERBOSE,
)

WORD_JOINER = "\u2060"


class FormulaPreprocessor(Preprocessor):
    """Puts rendered formulas into Markdown's stash of finished HTML."""

    def run(self, lines: list[str]) -> list[str]:
        return FORMULA.sub(self._replace, "\n".join(lines)).split("\n")

    def _replace(self, match: re.Match[str]) -> str:
        if match["literal"]:
            return match["literal"]
        if match["display"] is not None:
            return self.md.htmlStash.store(katex.render(match["display"], display=True))
        # A line may break after a formula, but not between a formula and its full stop.
        joined = WORD_JOINER if match["mark"] else ""
        return self.md.htmlStash.store(katex.render(match["inline"])) + joined


class FormulaExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.registerExtension(self)
        # After fenced code (25) has been stashed, before raw HTML (20) is parsed.
        md.preprocessors.register(FormulaPreprocessor(md), "formulas", 24)
        if "$" not in md.ESCAPED_CHARS:
            md.ESCAPED_CHARS.append("$")


def makeExtension(**settings: object) -> FormulaExtension:
    return FormulaExtension(**settings)
