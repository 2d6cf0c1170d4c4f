"""The figures of the flash pages, drawn from the mechanism itself. Each function returns one SVG."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from annotated_attention.flash import flash_attention, flash_traffic
from annotated_attention.flash_backward import flash_backward_cost
from annotated_attention.flash_merge import finish, merge_attention, summary
from annotated_attention.flash_triton import keys_in_sight, spans_of
from coursekit.drawing import line, rect, svg, text
from coursekit.experiments import Runs, load


def frame(x: float, y: float, width: float, height: float, colour: str, dashed: bool = False) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<rect {place} fill="none" stroke="var(--{colour})" stroke-width="1.5"{dashes}/>'


def arrow(x: float, y: float, length: float, colour: str = "soft") -> str:
    tip = f"M{x} {y}h{length}m-5 -4l5 4l-5 4"
    return f'<path d="{tip}" fill="none" stroke="var(--{colour})" stroke-width="1.5"/>'


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiles() -> str:
    """A causal pass over 24 tokens in tiles of 4 queries and 6 keys, stopped in the middle of a row."""
    t, u, a, cell, left, top, gap, e = 24, 4, 6, 11, 30, 40, 26, 5
    i, j = 12, 6
    query, key, value = (normal(seed, 1, 1, t, n) for n, seed in ((8, 1), (8, 2), (e, 3)))
    output, _ = flash_attention(query, key, value, is_causal=True, block_q=u, block_k=a)
    scores = (query @ key.mT)[0, 0] * 8**-0.5 * 1.4
    m, l, o = summary(scores[i : i + u, : j + a], value[0, 0, : j + a])
    weights = torch.exp(scores[i : i + u, j : j + a] - m)

    side = t * cell
    parts = [text(left + side / 2, 14, "keys, values")]
    middle = top + side / 2
    parts.append(f'<g transform="rotate(-90 12 {middle:g})">{text(12, middle, "queries")}</g>')
    for n in range(0, t, a):
        now = n == j
        x, width = left + n * cell, a * cell - 3
        parts.append(rect(x, top - 18, width / 2 - 1, 8, "key", 1 if now else 0.25))
        parts.append(rect(x + width / 2 + 1, top - 18, width / 2 - 1, 8, "value", 1 if now else 0.25))
    for n in range(0, t, u):
        parts.append(rect(left - 12, top + n * cell, 8, u * cell - 3, "query", 1 if n == i else 0.25))
        for k in range(0, t, a):
            x, y = left + k * cell, top + n * cell
            if k > n + u - 1:
                parts.append(rect(x + a * cell / 2 - 3, y + u * cell / 2 - 3, 3, 3, "mask", 0.6))
                continue
            done = (n, k) < (i, j)
            if (n, k) != (i, j):
                width = min(a, n + u - k) * cell - 3
                parts.append(rect(x, y, width, u * cell - 3, "weights", 0.22 if done else 0.07))
    for row, cells in enumerate(weights.tolist()):
        for column, weight in enumerate(cells):
            x, y = left + (j + column) * cell, top + (i + row) * cell
            parts.append(rect(x, y, cell - 2, cell - 2, "weights", 0.12 + 0.88 * weight))
    parts.append(frame(left + j * cell - 2.5, top + i * cell - 2.5, a * cell + 3, u * cell + 3, "ink"))

    # Beside each row, what is kept of it.
    x = left + side + gap
    columns = {"m": x, "ℓ": x + 22, "o": x + 44}
    for name, place in columns.items():
        parts.append(text(place + (8 if name != "o" else e * 11 / 2), top - 10, name, colour="ink", size=14))
    parts.append(arrow(left + side + 2, top + (i + u / 2) * cell - 1, gap - 8, "ink"))
    for row in range(i + u):
        y, now = top + row * cell, row >= i
        numbers = o[row - i] / l[row - i] if now else output[0, 0, row]
        if now:
            parts.append(rect(columns["m"], y, 16, cell - 2, "query", 0.25 + 0.25 * m[row - i].item()))
            parts.append(rect(columns["ℓ"], y, 16, cell - 2, "weights", 0.1 * l[row - i].item()))
        for n, number in enumerate(numbers.sigmoid().tolist()):
            parts.append(rect(columns["o"] + 11 * n, y, 9, cell - 2, "value", number))
    parts.append(text(columns["m"] + 49, top + (i + u + (t - i - u) / 2) * cell, "to come", size=12))
    title = (
        "Scores in tiles: one is computed, those above the diagonal never; beside each row what is kept of it"
    )
    return svg(columns["o"] + e * 11 + 4, top + side + 2, title, parts)


def steps() -> str:
    """The online softmax over six keys, with every number."""
    scores, values = [1.0, 2.0, 0.0, 3.0, 2.0, 1.0], [4.0, 6.0, 2.0, 6.0, 0.0, 7.0]
    left, step, unit, top = 74, 60, 56, 20
    floor = top + 2.15 * unit
    m, l, o = float("-inf"), 0.0, 0.0
    blocks: list[float] = []
    parts = [line(left - 8, floor + 0.5, left + 6 * step - 4, floor + 0.5)]
    rows = {"S": 24, "v": 44, "m": 74, "shrink": 94, "ℓ": 114, "o": 134}
    names = {"S": "score", "v": "value", "m": "m", "shrink": "shrinks by", "ℓ": "ℓ", "o": "o"}
    for row, below in rows.items():
        strong = row in ("m", "ℓ", "o")
        colour = "ink" if strong else "soft"
        parts.append(text(0, floor + below, names[row], anchor="start", colour=colour, size=12))
    for n, (score, value) in enumerate(zip(scores, values, strict=True)):
        larger = max(m, score)
        shrink, weight = float(torch.tensor(m - larger).exp()), float(torch.tensor(score - larger).exp())
        m, l, o = larger, shrink * l + weight, shrink * o + weight * value
        blocks = [shrink * block for block in blocks] + [weight]
        x, y = left + n * step, floor
        for k, block in enumerate(blocks):
            y -= block * unit
            opacity = 0.95 if k == n else 0.3
            parts.append(rect(x, y + 1, 44, max(block * unit - 1.5, 0.8), "weights", opacity))
        parts.append(text(x + 22, y - 6, f"{l:.2f}", size=12))
        fresh = n > 0 and shrink < 1
        cells = {"S": f"{score:g}", "v": f"{value:g}", "m": f"{m:g}"}
        cells |= {"shrink": f"{shrink:.2f}" if fresh else "·", "ℓ": f"{l:.2f}", "o": f"{o:.2f}"}
        for row, content in cells.items():
            colour = {"S": "key", "v": "value", "shrink": "query" if fresh else "soft"}.get(row, "ink")
            parts.append(text(x + 22, floor + rows[row], content, colour=colour, size=12))
    exact = torch.tensor(scores).softmax(0) @ torch.tensor(values)
    assert abs(o / l - exact) < 1e-5
    parts.append(line(left - 8, floor + 54, left + 6 * step - 4, floor + 54))
    parts.append(text(left + 5 * step + 22, floor + 158, f"o / ℓ = {o / l:.2f}", colour="ink"))
    title = "Six keys, one by one: at the second and the fourth the maximum grows, and all that was summed shrinks"
    return svg(left + 6 * step, floor + 166, title, parts)


def circle(x: float, y: float, lse: Tensor, output: Tensor) -> str:
    """Area: the sum behind an answer. Shade: the answer."""
    radius = 6.2 * float((lse / 2).exp())
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
    paper = f'<circle {place} fill="var(--paper)"/>'
    fill = f'fill="var(--value)" fill-opacity="{float(output):.2f}" stroke="var(--value)"'
    return f"{paper}<circle {place} {fill}/>"


def tree() -> str:
    """Eight keys, merged one after another and in pairs."""
    lses = torch.tensor([0.3, -1.0, 0.9, -0.4, 0.0, 1.1, -0.8, 0.4])
    shades = torch.tensor([0.95, 0.1, 0.25, 0.8, 0.05, 0.6, 0.9, 0.15])
    leaves = [(shades[n].reshape(1, 1), lses[n].reshape(1)) for n in range(8)]
    step, left, rise = 46, 26, 24
    lines: list[str] = []
    parts: list[str] = []
    xs = [left + n * step for n in range(8)]

    floor = 236
    state, place = leaves[0], (xs[0], floor)
    parts.append(circle(*place, state[1], state[0]))
    for n in range(1, 8):
        parts.append(circle(xs[n], floor, leaves[n][1], leaves[n][0]))
        state, new = merge_attention(*state, *leaves[n]), (xs[n], floor - 34 - rise * n)
        lines += [line(*place, *new, "soft"), line(xs[n], floor, *new, "soft")]
        place = new
        parts.append(circle(*place, state[1], state[0]))
    chain = state

    y = floor = 476
    level = [(state, x) for state, x in zip(leaves, xs, strict=True)]
    for state, x in level:
        parts.append(circle(x, y, state[1], state[0]))
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=True))
        level, above = [], y - 58
        for (a, x_a), (b, x_b) in pairs:
            merged, x = merge_attention(*a, *b), (x_a + x_b) / 2
            lines += [line(x_a, y, x, above, "soft"), line(x_b, y, x, above, "soft")]
            parts.append(circle(x, above, merged[1], merged[0]))
            level.append((merged, x))
        y = above
    assert all(torch.allclose(x, y) for x, y in zip(chain, level[0][0], strict=True))
    title = "Eight circles merge into one, above one by one, below in pairs; the last circles are alike"
    return svg(2 * left + 7 * step, floor + 22, title, lines + parts)


def kept() -> str:
    """What is in memory for 1,024 queries and keys of width 64, drawn to scale."""
    t, d, side, top = 1024, 64, 150, 30
    thin = side * d / t
    assert flash_backward_cost(1, 1, t, t, d, d)[1] == t * (d + 1)
    parts = []

    def strips(x: float, y: float, names: dict[str, str]) -> float:
        for name, colour in names.items():
            width = 1.5 if name in ("L", "dL") else thin
            parts.append(rect(x, y, width, side, colour, 0.8, 1))
            parts.append(text(x + width / 2, y - 8, name, colour="ink", size=12))
            x += width + 15
        return x - 15

    def square(x: float, y: float, label: str) -> None:
        parts.append(frame(x, y, side, side, "soft", dashed=True))
        tile = side / 4
        parts.append(rect(x + tile, y + 2 * tile, tile, tile, "weights", 0.85))
        parts.append(text(x + side / 2, y + tile, label, size=12))

    inputs, outputs = {"q": "query", "k": "key", "v": "value"}, {"o": "ink", "L": "ink"}
    back = {**inputs, **outputs, "do": "soft"}, {"dq": "query", "dk": "key", "dv": "value"}
    for row, (label, given, made) in enumerate((("forward", inputs, outputs), ("backward", *back))):
        y = top + row * (side + 62)
        parts.append(text(0, y + side + 18, label, anchor="start", size=12))
        strips(6, y, given)
        x = 176
        parts.append(arrow(x - 20, y + side / 2, 14))
        square(x, y, "a tile at a time")
        parts.append(arrow(x + side + 6, y + side / 2, 14))
        strips(x + side + 30, y, made)
    title = "Forward and backward: the square of weights is dashed, for only one tile of it exists; strips are kept"
    return svg(420, top + 2 * side + 62 + 24, title, parts)


def readers() -> str:
    """Twenty-four keys: read by one, tile after tile, and by four at once."""
    s, n, step, left, gap = 24, 4, 13, 8, 14
    scores = 1.3 * normal(5, s)
    value = torch.rand(s, 1, generator=torch.Generator().manual_seed(6))
    whole = scores.softmax(0).tolist()
    parts: list[str] = []

    def x(j: int) -> float:
        return left + j * step + j // (s // n) * gap

    top, height = 18, 74
    floor = top + height
    for j, weight in enumerate(whole):
        bar = height * weight / max(whole)
        parts.append(rect(x(j), floor - bar, step - 3, bar, "weights", 0.9))
    width = s // n * step - 3
    for k in range(n):
        first = x(k * s // n)
        parts.append(rect(first, floor + 4, width, 7, "key", 0.8))
        parts.append(text(first + width / 2, floor + 28, str(k + 1), colour="ink"))
        if k < n - 1:
            parts.append(arrow(first + width / 2 + 14, floor + 24, width + gap - 28))

    floor += 152
    below = floor + 44
    centre = x(s // 2) - gap / 2
    last = below + 66
    answers, lines = [], []
    for k in range(n):
        part = slice(k * s // n, (k + 1) * s // n)
        output, lse = finish(summary(scores[None, part], value[part]))
        answers.append((output, lse))
        own = scores[part].softmax(0).tolist()
        for j, weight in enumerate(own):
            bar = height * weight / max(own)
            parts.append(rect(x(k * s // n + j), floor - bar, step - 3, bar, "weights", 0.9))
        middle = x(k * s // n) + width / 2
        parts.append(rect(x(k * s // n), floor + 4, width, 7, "key", 0.8))
        lines.append(line(middle, floor + 12, middle, below, "soft"))
        lines.append(line(middle, below, centre, last, "soft"))
        parts.append(circle(middle, below, lse[0] - 1.6, output[0, 0]))
    state = answers[0]
    for answer in answers[1:]:
        state = merge_attention(*state, *answer)
    parts.append(circle(centre, last, state[1][0] - 1.6, state[0][0, 0]))
    title = "Above, one reader goes over four groups of keys; below, four readers work at once and are merged"
    return svg(x(s - 1) + step + left, last + 26, title, lines + parts)


def runs(suffix: str = "") -> Runs:
    return load(Path(__file__).parent / "results" / f"experiment{suffix}.default.json").runs


class Chart:
    """A chart with logarithmic axes, which grows."""

    def __init__(self, left: float, width: float, xs: Sequence[int], ys: Sequence[float]) -> None:
        self.place, self.xs, self.ys = (left, width), xs, ys
        self.parts = [line(left, self.y(y), left + width, self.y(y)) for y in ys]
        self.parts += [text(left - 6, self.y(y) + 4, f"{y:,g}", anchor="end", size=12) for y in ys]
        self.parts += [text(self.x(x), 232, f"{x:,g}", size=12) for x in xs]

    def x(self, value: float) -> float:
        left, width = self.place
        return left + 12 + (width - 24) * math.log(value / self.xs[0], self.xs[-1] / self.xs[0])

    def y(self, value: float) -> float:
        return 212 - 180 * math.log(value / self.ys[0], self.ys[-1] / self.ys[0])

    def curve(self, points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> None:
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        stroke = f'stroke="var(--{colour})" stroke-width="1.5" stroke-dasharray="{dashes}"'
        self.parts.append(f'<path d="M{path}" fill="none" {stroke}/>')


def moved() -> str:
    """Bytes moved by one head of 2,048 tokens: tiles of every size, three fast memories."""
    chart, t = Chart(44, 376, [16, 32, 64, 128, 256, 512], [4, 8, 16, 32, 64, 128, 256]), 2048
    traffic = {u: flash_traffic(t, t, 64, 64, block_q=u) for u in chart.xs}
    for n in range(2):
        chart.curve([(u, numbers[n] / 2**18) for u, numbers in traffic.items()], "soft", "3 3")
    parts = [text(chart.x(16), chart.y(36), "the plain formula", anchor="start", size=12)]
    for fast, colour in ((64, "key"), (192, "query"), (512, "value")):
        points = [(r.settings["block_q"], r.measured) for r in runs().where(kind="tile", fast=fast)]
        chart.curve([(u, found["moved"] / 2**20) for u, found in points], colour)
        for u, found in points:
            fill = f'fill="var(--{colour if found["ratio"] < 1.1 else "paper"})" stroke="var(--{colour})"'
            parts.append(
                f'<circle cx="{chart.x(u):.1f}" cy="{chart.y(found["moved"] / 2**20):.1f}" r="4" {fill}/>'
            )
        y = chart.y(points[-1][1]["moved"] / 2**20) - 9
        parts.append(text(chart.x(512) + 8, y, f"{fast} KiB", anchor="end", colour=colour, size=12))
    parts += [text(8, 16, "MiB moved", anchor="start"), text(232, 252, "queries in a tile")]
    title = "Traffic falls with the size of a tile until it no longer fits, then leaps"
    return svg(430, 260, title, chart.parts + parts)


def exact() -> str:
    """Errors in bf16 over the length, of the output and of the gradient at the keys, with their ranges."""
    ways = {"plain": "mask", "sloppy": "bias", "sdpa": "query", "tiles 64 by 64": "weights"}
    parts: list[str] = []
    for left, result in ((48, "output"), (276, "dk")):
        chart = Chart(left, 170, [256, 1024, 4096], [0.001, 0.002, 0.004, 0.008, 0.016])
        for way, colour in ways.items():
            name, some = f"{way} {result}", runs("_errors").where(dtype="bfloat16", inputs="normal")
            if name in some[0].measured:
                spreads = {t: some.where(t=t).spread(name) for t in chart.xs}
                chart.curve([(t, x.mean) for t, x in spreads.items()], colour)
                for t, x in spreads.items():
                    parts.append(
                        line(chart.x(t), chart.y(x.low) + 2, chart.x(t), chart.y(x.high) - 2, colour, 5)
                    )
                y = chart.y(spreads[1024].mean) + (16 if "tiles" in way else -10)
                parts.append(text(left + 85, y, way.split()[0], colour=colour, size=12))
        parts = [*chart.parts, *parts, text(left + 85, 16, result), text(left + 85, 252, "tokens")]
    return svg(460, 260, "Errors in bf16: tiles are lowest, PyTorch's kernel rises with the length", parts)


def visited() -> str:
    """Which tiles of 8 by 4 a kernel visits, of 48 queries and keys, and which of them it masks."""
    t, u, a, cell, parts = 48, 8, 4, 2.6, []
    documents = spans_of([0, 11, 32, t], torch.empty(1, 1, t, 1), t)
    reaches = (2 * t, 0, None, None), (14, 0, None, None), (2 * t, 0, *documents)
    for n, (name, reach) in enumerate(zip(("causal", "window", "documents"), reaches, strict=True)):
        left, top, side = n * (t * cell + 14) + 1, 24, t * cell
        parts.append(text(left + side / 2, 14, name, size=12))
        parts.append(frame(left - 1, top - 1, side + 1, side + 1, "line"))
        low, high = keys_in_sight(torch.arange(t), t, *reach)
        for i, (lows, highs) in enumerate(zip(low.split(u), high.split(u), strict=True)):
            for j in range(int(lows.min()) // a * a, int(highs.max()), a):
                is_whole = int(lows.max()) <= j and j + a <= int(highs.min())
                x, y = left + j * cell, top + i * u * cell
                parts.append(rect(x, y, a * cell - 1.2, u * cell - 1.2, "weights", 0.9 if is_whole else 0.35))
    title = "Three masks in tiles: tiles that every query sees whole are dark, those at an edge light, all others blank"
    return svg(3 * t * cell + 30, t * cell + 26, title, parts)
