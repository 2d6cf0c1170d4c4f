"""The figures of the ALiBi page, drawn from the mechanism itself. Each function returns one SVG."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from annotated_attention.alibi import alibi_bias, alibi_slopes
from annotated_attention.scaled_dot_product import attention_weights
from coursekit.drawing import circle, line, rect, svg, text


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


RESULTS = Path(__file__).parent / "results" / "experiment.default.json"
COLOURS = {"alibi": "bias", "rotary": "query", "sinusoidal": "key", "learned": "value"}


def costs(position: str, how: str, trained_on: int = 64) -> dict[int, list[float]]:
    """Bits per byte by length, a number for each seed, as `attn experiment alibi` measured them."""
    found: dict[int, list[float]] = {}
    for run in json.loads(RESULTS.read_text("utf-8"))["runs"]:
        chosen: dict[str, Any] = run["settings"]
        if (chosen["position"], chosen["length"]) == (position, trained_on) and "tested" in chosen:
            for length in chosen["tested"]:
                found.setdefault(length, []).append(run["measured"][f"{how}_{length}"])
    return found


class Plot:
    """Axes: lengths in octaves to the right, bits per byte upwards."""

    def __init__(self, lengths: list[int], low: float, high: float, every: float, height: int = 230) -> None:
        self.first, self.low, self.rise = lengths[0], low, height / (high - low)
        self.left, self.floor, self.parts = 44, height + 32, []
        self.octave = 294 / math.log2(lengths[-1] / lengths[0])
        end = self.x(lengths[-1])
        for n in range(round((high - low) / every) + 1):
            y = self.y(low + n * every)
            self.parts.append(line(self.left, y, end, y))
            self.parts.append(text(self.left - 8, y + 4, f"{low + n * every:.1f}", anchor="end", size=12))
        for length in lengths:
            self.parts.append(text(self.x(length), self.floor + 18, str(length), size=12))
        middle = (self.left + end) / 2
        self.parts.append(text(middle, self.floor + 36, "bytes that are read at a time"))
        self.parts.append(text(0, 12, "bits per byte", anchor="start", size=12))

    def x(self, length: float) -> float:
        return self.left + math.log2(length / self.first) * self.octave

    def y(self, bits: float) -> float:
        return self.floor - (bits - self.low) * self.rise

    def curve(self, points: dict[int, list[float]], colour: str, dash: str = "") -> None:
        """The mean over the seeds, and behind it the span of them all."""
        shown = {length: points[length] for length in points if length >= self.first}
        tops = [f"{self.x(length):.1f} {self.y(max(bits)):.1f}" for length, bits in shown.items()]
        bottoms = [f"{self.x(length):.1f} {self.y(min(bits)):.1f}" for length, bits in shown.items()]
        means = [
            f"{self.x(length):.1f} {self.y(statistics.fmean(bits)):.1f}" for length, bits in shown.items()
        ]
        around = "L".join([*tops, *reversed(bottoms)])
        self.parts.append(f'<path d="M{around}Z" fill="var(--{colour})" fill-opacity="0.18"/>')
        style = f'stroke="var(--{colour})" stroke-width="2" fill="none" stroke-dasharray="{dash}"'
        self.parts.append(f'<path d="M{"L".join(means)}" {style}/>')

    def names(self, ends: dict[str, tuple[float, str]]) -> None:
        """Beside the last point of each curve, and no closer together than they can be read."""
        floor = math.inf
        for name, (bits, colour) in sorted(ends.items(), key=lambda end: end[1][0]):
            floor = min(self.y(bits) + 4, floor - 15)
            self.parts.append(text(self.x(512) + 8, floor, name, anchor="start", colour=colour))

    def svg(self, title: str) -> str:
        return svg(432, self.floor + 44, title, self.parts)


def extrapolation() -> str:
    """What a byte costs by the context it has, for each kind of position."""
    curves = {position: costs(position, "sliding") for position in COLOURS}
    bits = [bit for points in curves.values() for length in points if length >= 16 for bit in points[length]]
    low, high = math.floor(2 * min(bits)) / 2, math.ceil(2 * max(bits)) / 2
    plot = Plot([16, 32, 64, 128, 256, 512], low, high, 0.5)
    end = plot.x(64)
    plot.parts.append(line(end, plot.floor, end, 36, "soft"))
    plot.parts.append(text(end - 6, 46, "trained on 64", anchor="end", size=12))
    for position, points in curves.items():
        plot.curve(points, COLOURS[position])
    names = {"ALiBi" if name == "alibi" else name: name for name in curves}
    plot.names({shown: (statistics.fmean(curves[name][512]), COLOURS[name]) for shown, name in names.items()})
    return plot.svg("Beyond the trained length ALiBi stays where it was, and all others rise")


def early_bytes() -> str:
    """ALiBi alone, evaluated twice: in blocks, and with stride 1."""
    lengths = [8, 16, 32, 64, 128, 256, 512]
    blocks, sliding = ({t: costs("alibi", how)[t] for t in lengths} for how in ("blocks", "sliding"))
    bits = [bit for points in (blocks, sliding) for costly in points.values() for bit in costly]
    plot = Plot(lengths, math.floor(10 * min(bits)) / 10, math.ceil(10 * max(bits)) / 10, 0.1)
    end = plot.x(64)
    plot.parts.append(line(end, plot.floor, end, 36, "soft"))
    plot.parts.append(text(end + 6, 46, "trained on 64", anchor="start", size=12))
    plot.curve(blocks, "soft", "5 4")
    plot.curve(sliding, "bias")
    plot.names(
        {
            "blocks": (statistics.fmean(blocks[512]), "soft"),
            "stride 1": (statistics.fmean(sliding[512]), "bias"),
        }
    )
    return plot.svg(
        "In longer blocks a byte of ALiBi's gets cheaper; with its full context each, it does not"
    )
