"""The shapes that a lesson's `figures.py` draws with, as SVG text.

Lengths are in the units of the figure's own `viewBox`. A colour is the name of one of the page's: `query`, `key`,
`value`, `weights`, `bias`, `mask`, `ink`, `soft`, `line`, `paper`. So a figure is light or dark as its page is.
"""

from collections.abc import Iterable


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "middle",
    colour: str = "soft",
    size: float = 13,
    mono: bool = False,
) -> str:
    place = f'x="{_short(x)}" y="{_short(y)}" text-anchor="{anchor}" font-size="{size:g}"'
    family = ' font-family="var(--md-code-font-family, monospace)"' if mono else ""
    return f'<text class="fig-text" {place}{family} fill="var(--{colour})">{content}</text>'


def rect(
    x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0, rx: float = 1.5
) -> str:
    size = f'width="{_short(width)}" height="{_short(height)}" rx="{rx:g}"'
    return f'<rect x="{_short(x)}" y="{_short(y)}" {size} {_fill(colour, opacity)}/>'


def circle(x: float, y: float, radius: float, colour: str, opacity: float = 1.0) -> str:
    return f'<circle cx="{_short(x)}" cy="{_short(y)}" r="{_short(radius)}" {_fill(colour, opacity)}/>'


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str = "line", width: float = 1.0, opacity: float = 1.0
) -> str:
    ends = f'x1="{_short(x1)}" y1="{_short(y1)}" x2="{_short(x2)}" y2="{_short(y2)}"'
    return f"<line {ends} {_stroke(colour, width, opacity)}/>"


def path(d: str, colour: str = "soft", width: float = 1.0, opacity: float = 1.0) -> str:
    """A line along the commands of an SVG path."""
    return f'<path d="{d}" fill="none" {_stroke(colour, width, opacity)}/>'


def curve(
    points: Iterable[tuple[float, float]],
    colour: str,
    width: float = 2.0,
    opacity: float = 1.0,
    dash: str = "",
) -> str:
    """A line through points."""
    marks = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{marks}" fill="none" {_stroke(colour, width, opacity)}{dashes} stroke-linejoin="round"/>'


def svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """The figure; `title` says what it shows to those who do not see it."""
    return f'<svg viewBox="0 0 {width:g} {height:g}"><title>{title}</title>{"".join(parts)}</svg>'


def _short(length: float) -> str:
    return f"{length:z.2f}".rstrip("0").rstrip(".")


def _fill(colour: str, opacity: float) -> str:
    return f'fill="var(--{colour})" fill-opacity="{opacity:.3g}"'


def _stroke(colour: str, width: float, opacity: float) -> str:
    return f'stroke="var(--{colour})" stroke-width="{width:g}" stroke-opacity="{opacity:.3g}"'
