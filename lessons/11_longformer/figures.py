"""The figures of the pages, drawn from the mechanism itself and from what lesson 12 measured. Each function returns
one SVG."""

import json
from pathlib import Path

import torch
from torch import Tensor

from annotated_attention.longformer import longformer_attention, longformer_mask_mod
from annotated_attention.longformer_tiles import strands as braided
from annotated_attention.sliding_window import sliding_window_mask
from coursekit.drawing import rect, svg, text


def dot(x: float, y: float, radius: float = 1.0) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="var(--mask)"/>'


def marked(t: int, *places: int) -> Tensor:
    """The mask of global tokens of one text."""
    global_mask = torch.zeros(1, t, dtype=torch.bool)
    global_mask[0, list(places)] = True
    return global_mask


def seen(t: int, window: int, global_mask: Tensor, dilation: int = 1) -> Tensor:
    i, zero = torch.arange(t), torch.tensor(0)
    return longformer_mask_mod(window, global_mask, dilation=dilation)(zero, zero, i[:, None], i)


def patterns() -> str:
    """Four panels of 20 by 20 pairs, as in the paper's figure 2."""
    t, cell, gap, top = 20, 9.6, 24, 22
    panels = [
        ("full", t, (), 1),
        ("window", 3, (), 1),
        ("dilated", 3, (), 3),
        ("window and global", 3, (0, 7), 1),
    ]
    size, parts = t * cell, []
    for n, (name, window, places, dilation) in enumerate(panels):
        left, upper = n % 2 * (size + gap) + 2, top + n // 2 * (size + gap + 12)
        parts.append(text(left + size / 2, upper - 8, name, colour="ink"))
        parts.append(rect(left, upper, size, size, "line", 0.35, 0))
        for i, row in enumerate(seen(t, window, marked(t, *places), dilation).tolist()):
            for j in (j for j, pair in enumerate(row) if pair):
                colour = "query" if i in places else "key" if j in places else "weights"
                parts.append(rect(left + j * cell + 0.5, upper + i * cell + 0.5, cell - 1, cell - 1, colour))
    title = (
        "A full square; a band around the diagonal; a comb; a band with two full rows and two full columns"
    )
    return svg(2 * size + gap + 4, top + 2 * size + gap + 14, title, parts)


def reach(n_layers: int, window: int, global_mask: Tensor) -> list[bool]:
    """The inputs that move the output of the last token."""
    t = global_mask.shape[1]
    x = torch.randn(1, 1, t, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = x
    for _ in range(n_layers):
        y = longformer_attention(y, y, y, window, global_mask)
    (gradient,) = torch.autograd.grad(y[0, 0, -1].sum(), x)
    return (gradient[0, 0] != 0).any(-1).tolist()


def hops() -> str:
    """What the last token has heard of after one, two and three layers."""
    t, cell, row, left = 24, 14, 20, 66
    parts, y = [], 0.0
    for name, places in (("a window of 4", ()), ("and a global token", (0,))):
        y += 18
        parts.append(text(left, y, name, anchor="start", colour="ink"))
        y += 8
        for n_layers in (1, 2, 3):
            parts.append(text(left - 10, y + 11, f"{n_layers} layer{'s' * (n_layers > 1)}", anchor="end"))
            for j, moved in enumerate(reach(n_layers, 4, marked(t, *places))):
                colour = "key" if j in places else "weights"
                parts.append(
                    rect(left + j * cell + 1, y, cell - 2, cell, *((colour,) if moved else ("line", 0.5)))
                )
            y += row
        y += 6
    parts.append(text(left, y + 10, "first token", anchor="start"))
    parts.append(text(left + t * cell, y + 10, "last", anchor="end"))
    title = "Windows reach three tokens further with each layer; one global token reaches all in two"
    return svg(left + t * cell + 2, y + 16, title, parts)


def strands() -> str:
    """Twelve tokens in one row, and the same in three rows."""
    t, dilation, window, asked, cell, left = 12, 3, 2, 6, 32, 4
    colours = ["query", "key", "value"]
    sees = seen(t, window, marked(t), dilation)[asked].tolist()
    parts = []

    def token(j: int, x: float, y: float) -> None:
        parts.append(rect(x + 2, y, cell - 4, 26, colours[j % dilation], 0.85 if sees[j] else 0.18, 4))
        parts.append(text(x + cell / 2, y + 18, str(j), colour="ink"))
        if j == asked:
            parts.append(rect(x + 6, y + 29, cell - 12, 3, "ink", 1, 1))

    for j in range(t):
        token(j, left + j * cell, 4)
    rows = braided(torch.arange(t)[None, None, :, None], dilation)[:, 0, :, 0].tolist()
    for c, row in enumerate(rows):
        for n, j in enumerate(row):
            token(j, left + 4 * cell + n * cell, 56 + c * 38)
        parts.append(text(left + 4 * cell - 12, 74 + c * 38, f"strand {c}", anchor="end"))
    title = "Token 6 sees 3, 6 and 9: its neighbours in a strand of every third token"
    return svg(2 * left + t * cell, 56 + 3 * 38, title, parts)


def tile() -> str:
    """The mask of one tile: two global keys, then the span of six queries."""
    first, size, window, places, cell, left, top = 6, 6, 4, (0, 8), 24, 40, 40
    span = range(first - window + 1, first + size + window - 1)
    band = sliding_window_mask(size, len(span), window, is_causal=False, offset=window - 1)
    parts = [text(left + cell, 14, "global", colour="key")]
    start = left + 2 * cell + 18
    parts.append(text(start + len(span) * cell / 2, 14, "span", colour="weights"))
    for n, j in enumerate(places):
        parts.append(text(left + (n + 0.5) * cell, 32, str(j), colour="key", size=12))
    for a, j in enumerate(span):
        colour = "key" if j in places else "soft"
        parts.append(text(start + (a + 0.5) * cell, 32, str(j), colour=colour, size=12))
    for u in range(size):
        y = top + u * cell
        name = "key" if first + u in places else "soft"
        parts.append(text(left - 10, y + 16, str(first + u), anchor="end", colour=name, size=12))
        for n in range(2):
            parts.append(rect(left + n * cell + 1, y + 1, cell - 2, cell - 2, "key", 0.8, 3))
        for a, j in enumerate(span):
            if band[u, a] and j not in places:
                parts.append(rect(start + a * cell + 1, y + 1, cell - 2, cell - 2, "weights", 0.8, 3))
            else:
                parts.append(dot(start + (a + 0.5) * cell, y + cell / 2, 2 if band[u, a] else 1))
    title = "Six queries see two global keys and a band of the span; key 8 is global and hidden in the band"
    return svg(start + len(span) * cell + 6, top + size * cell + 6, title, parts)


def recall() -> str:
    """Two layers, by distance in blocks of four tokens: a window, and with a global token, for one fact and eight."""
    file = Path(__file__).parents[1] / "12_bigbird" / "results" / "experiment.default.json"
    runs = json.loads(file.read_text("utf-8"))["runs"]
    left, width, height, top = 46, 330, 130, 22
    lines = (("window", 1, "mask"), ("longformer", 8, "query"), ("longformer", 1, "key"))
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + height * (1 - share)
        parts.append(
            f'<line x1="{left}" y1="{y:g}" x2="{left + width}" y2="{y:g}" stroke="var(--line)" stroke-width="1"/>'
        )
        parts.append(text(left - 8, y + 4, f"{share:.0%}", anchor="end", size=12))
    for pattern, facts, colour in lines:
        wanted = {"pattern": pattern, "layers": 2, "facts": facts}
        seeds = [run["measured"] for run in runs if wanted.items() <= run["settings"].items()]
        shares = list(zip(*(run["right_by_distance"] for run in seeds), strict=True))
        points = [
            [
                (left + width * r / (len(shares) - 1), top + height * (1 - share))
                for r, share in enumerate(curve)
            ]
            for curve in ([sum(x) / len(x) for x in shares], list(map(min, shares)), list(map(max, shares)))
        ]
        middle, low, high = (" ".join(f"{x:.1f},{y:.1f}" for x, y in curve) for curve in points)
        back = " ".join(high.split()[::-1])
        parts.append(f'<polygon points="{low} {back}" fill="var(--{colour})" fill-opacity="0.2"/>')
        line = f'fill="none" stroke="var(--{colour})" stroke-width="2.5"'
        parts.append(f'<polyline points="{middle}" {line}/>')
        kind = "window" if pattern == "window" else "and a global token, "
        kind += "" if pattern == "window" else "one fact" if facts == 1 else "eight facts"
        y = points[0][9][1] + (17 if pattern == "window" else -8)
        parts.append(text(left + width * 9 / 14, y, kind, colour=colour, size=12))
    for r in (0, 5, 10):
        parts.append(text(left + width * r / 14, top + height + 18, f"{r}", size=12))
    parts.append(
        text(left + width, top + height + 36, "blocks between fact and question", anchor="end", size=12)
    )
    title = "With a window alone answers end at a cliff; a global token brings one fact anywhere, and less of eight"
    return svg(left + width + 18, top + height + 42, title, parts)
