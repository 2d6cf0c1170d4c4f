"""The figures of the ALiBi page, drawn from the mechanism itself. Each function returns one SVG."""

import math

import torch

from annotated_attention.alibi import alibi_bias, alibi_slopes
from annotated_attention.scaled_dot_product import attention_weights


def text(
    x: float, y: float, content: str, *, anchor: str = "middle", colour: str = "soft", size: int = 13
) -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text class="fig-text" {place} fill="var(--{colour})">{content}</text>'


def rect(
    x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0, rx: float = 1.5
) -> str:
    place = f'x="{x:g}" y="{y:.2f}" width="{width:g}" height="{height:.2f}" rx="{rx:g}"'
    return f'<rect {place} fill="var(--{colour})" fill-opacity="{opacity:.3f}"/>'


def circle(x: float, y: float, radius: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="var(--{colour})"/>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "line") -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="var(--{colour})"/>'


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}"><title>{title}</title>{"".join(parts)}</svg>'


def decay() -> str:
    """What each of eight heads leaves of a key's weight, from 47 tokens back to the query itself."""
    n_heads, length, step, height, gap = 8, 48, 7.5, 30, 11
    # Equal scores: only the bias is left, and the weight relative to the query's own key is its exponential.
    remains = alibi_bias(n_heads, 1, length, offset=length - 1).exp()[:, 0]
    parts = []
    for h, slope in enumerate(alibi_slopes(n_heads).tolist()):
        floor = (h + 1) * (height + gap)
        parts.append(line(0, floor + 0.5, length * step, floor + 0.5))
        for j, share in enumerate(remains[h].tolist()):
            bar = share * height
            if bar > 0.2:
                parts.append(rect(j * step, floor - bar, step - 2, bar, "weights", 0.3 + 0.6 * share))
        fraction = f"1/{round(1 / slope)}"
        parts.append(text(length * step + 10, floor - 2, fraction, anchor="start", colour="bias"))
    base = n_heads * (height + gap) + 22
    parts.append(text(0, base, "47 tokens back", anchor="start"))
    parts.append(text(length * step, base, "the query itself", anchor="end"))
    parts.append(text(length * step + 10, 9, "slope", anchor="start"))
    title = "What eight heads see of the last 48 tokens: the steepest a handful, the gentlest nearly all"
    return svg(412, base + 8, title, parts)


def two_biases() -> str:
    """Two causal biases that differ by a constant in each row, and the weights that both produce."""
    size, cell, gap, top = 6, 26, 38, 26
    slope = alibi_slopes(8)[0]
    hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
    by_distance = alibi_bias(8, size, size)[0].masked_fill(hidden, -torch.inf)
    by_position = (slope * torch.arange(size)).expand(size, size).masked_fill(hidden, -torch.inf)
    zeros = torch.zeros(1, 1, size, 1)
    weights, same = (attention_weights(zeros, zeros, bias)[0, 0] for bias in (by_distance, by_position))
    assert torch.allclose(weights, same)

    parts = []
    panels = [("− (i − j)", by_distance / slope, "bias"), ("j", by_position / slope, "bias")]
    panels.append(("weights", weights, "weights"))
    for panel, (title, values, colour) in enumerate(panels):
        left = 22 + panel * (size * cell + gap)
        parts.append(text(left + size * cell / 2, 14, title, colour=colour))
        for i in range(size):
            for j in range(size):
                x, y, value = left + j * cell, top + i * cell, values[i, j].item()
                if j > i:
                    parts.append(circle(x + cell / 2, y + cell / 2, 1.2, "mask"))
                    continue
                share = value if colour == "weights" else 0.75 * abs(value) / size
                parts.append(rect(x + 1, y + 1, cell - 2, cell - 2, colour, 0.06 + 0.9 * share, 3))
                if colour == "bias":
                    number = f"{value:.0f}".replace("-", "−") if value else "0"
                    parts.append(text(x + cell / 2, y + cell / 2 + 4, number, colour="ink"))
        parts.append(text(left - 10, top + size * cell / 2 + 4, "i", size=12) if panel == 0 else "")
        parts.append(text(left + size * cell / 2, top + size * cell + 16, "j", size=12))
    middle = top + size * cell / 2 + 5
    parts.append(text(22 + size * cell + gap / 2, middle, "+ i", colour="ink"))
    parts.append(text(22 + 2 * size * cell + 1.5 * gap, middle, "→", colour="ink"))
    title = "Distance and position differ by a constant in each row, and give the same weights"
    return svg(22 + 3 * size * cell + 2 * gap + 4, top + size * cell + 22, title, parts)


def slopes() -> str:
    """Where the slopes of 8, 12 and 16 heads lie between 1 and 1/256, and where the short cut puts twelve."""
    left, octave, rows = 86, 52, {8: 30, 12: 80, 16: 130}

    def place(slope: float) -> float:
        return left - math.log2(slope) * octave

    parts = []
    for exponent in range(9):
        x = left + exponent * octave
        parts.append(line(x, 14, x, 148))
        parts.append(text(x, 168, f"1/{2**exponent}" if exponent else "1", size=12))
    for slope in alibi_slopes(12)[8:].tolist():
        parts.append(line(place(slope), rows[12], place(slope), rows[16], "bias"))
    for slope in alibi_slopes(8).tolist():
        parts.append(line(place(slope), rows[8], place(slope), rows[12], "bias"))
    for n_heads, y in rows.items():
        parts.append(text(left - 24, y + 4, f"{n_heads} heads", anchor="end"))
        for slope in alibi_slopes(n_heads).tolist():
            parts.append(circle(place(slope), y, 5, "bias"))
    for h in range(1, 13):
        x, y = left + 8 * h / 12 * octave, rows[12] + 19
        parts.append(f'<path d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6" stroke="var(--soft)" fill="none"/>')
    title = "Twelve heads take the eight slopes of eight heads and four of the sixteen between them"
    return svg(left + 8 * octave + 24, 176, title, parts)
