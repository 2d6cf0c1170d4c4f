"""KaTeX at build time, in one long-lived V8.

`vendor/katex.min.js` is KaTeX 0.19.1 as published (MIT); `docs/assets/katex/` has its style sheet and fonts. V8
comes as a wheel (mini-racer), so that no machine needs Node. A formula takes about a millisecond.
"""

import atexit
import functools
import re
import threading
from pathlib import Path

from py_mini_racer import JSEvalException, MiniRacer

KATEX_JS = Path(__file__).parent / "vendor" / "katex.min.js"

# `trust` allows \htmlData, which marks a symbol for linking: the formulas are the course's own.
RENDER_JS = """
function renderTex(tex, display) {
  return katex.renderToString(tex, {displayMode: display, throwOnError: true, trust: true, strict: false});
}
"""
ANNOTATION = re.compile(r"<annotation\b.*?</annotation>", re.DOTALL)
LOCK = threading.Lock()


class TexError(ValueError):
    """KaTeX cannot read a formula; the message says what it expected and where."""


@functools.cache
def _engine() -> MiniRacer:
    engine = MiniRacer()
    # Left to the interpreter's own end, V8 can wait for ever for a thread that Python has already frozen.
    atexit.register(engine.close)
    # Left to the end of the interpreter, V8's thread keeps one process in four from ending.
    atexit.register(engine.close)
    engine.eval(KATEX_JS.read_text("utf-8"))
    engine.eval(RENDER_JS)
    return engine


@functools.lru_cache(maxsize=65536)
def render(tex: str, display: bool = False) -> str:
    """The HTML and MathML of a formula. Raises `TexError` if KaTeX cannot read it.

    The TeX source, which KaTeX keeps as an annotation inside the MathML, is taken out, and the visual half is kept
    from the search index: otherwise every formula would be indexed three times. The visual half becomes an element
    of a name of its own, because to the indexer an exclusion ends with the first closing tag of the same name.
    """
    with LOCK:
        try:
            html = _engine().call("renderTex", tex.strip(), display)
        except JSEvalException as error:
            raise TexError(_message(str(error))) from None
    html = ANNOTATION.sub("", str(html))
    before, visual = html.split('<span class="katex-html" aria-hidden="true">')
    ends = "</span>" * (3 if display else 2)
    visual = visual.removesuffix(ends)
    opening = '<katex-visual class="katex-html" aria-hidden="true" data-search-exclude>'
    return f"{before}{opening}{visual}</katex-visual>{ends.removesuffix('</span>')}"


def _message(error: str) -> str:
    """KaTeX's sentence out of V8's report, on one line."""
    match = re.search(
        r"ParseError: (KaTeX parse error: .*?)(?:\n\S*!?function|\n\s*at |\Z)", error, re.DOTALL
    )
    return " ".join((match[1] if match else error).replace("\u0332", "").split())
