r"""A Python-Markdown extension: `$inline$` and `$$display$$` formulas by KaTeX, and `arXiv:` numbers as links.

The formulas are replaced before Markdown reads its blocks, so that an underscore in a formula is no emphasis, a
`|` no table cell and a line that begins with `=` no heading. `\$` is a dollar; code is left alone.
"""

import re
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
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

# A paper's number, of today's form (2310.01889) or that of before 2007 (cs.CL/0506077).
ARXIV = r"\barXiv:(\d{4}\.\d{4,5}(?:v\d+)?|[a-z-]+(?:\.[A-Z]{2})?/\d{7})\b"

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


class ArxivLink(InlineProcessor):
    """A paper's number in prose leads to the paper; in code and in the text of a link it stays text."""

    ANCESTOR_EXCLUDES = ("a",)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:  # type: ignore[override]
        link = Element("a", href=f"https://arxiv.org/abs/{m[1]}")
        link.text = m[0]
        return link, m.start(), m.end()


class CourseMarkdown(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.registerExtension(self)
        # After fenced code (25) has been stashed, before raw HTML (20) is parsed.
        md.preprocessors.register(FormulaPreprocessor(md), "formulas", 24)
        # After code (190) and links (160), which keep what they hold.
        md.inlinePatterns.register(ArxivLink(ARXIV, md), "arxiv", 105)
        if "$" not in md.ESCAPED_CHARS:
            md.ESCAPED_CHARS.append("$")


def makeExtension(**settings: object) -> CourseMarkdown:
    return CourseMarkdown(**settings)
