"""The figures of the pages about the language model, drawn from the model itself. Each function returns one
SVG."""

import builtins
import keyword
import math
from collections import Counter

import torch
import torch.nn.functional as F

from annotated_attention.language_model import causal_mask
from annotated_attention.language_model_training import crops as draw_crops
from annotated_attention.language_model_training import rate_factor
from coursekit.drawing import circle, line, path, rect, svg, text


def stream() -> str:
    """Six bytes through two layers: attention carries from the past, the MLP stays, each adds to a stream."""
    word, step, left, top, floor = "return", 58, 40, 78, 372
    columns = [left + n * step for n in range(len(word))]
    levels = [(330, "attention"), (272, "mlp"), (204, "attention"), (146, "mlp")]
    sees = causal_mask(torch.arange(6), torch.arange(6))
    parts = []
    for n, x in enumerate(columns):
        parts.append(line(x, floor - 16, x, top + 6, "ink", 2))
        parts.append(text(x, floor, word[n], colour="ink", size=15, mono=True))
    for y, kind in levels:
        if kind == "mlp":
            for x in columns:
                parts.append(path(f"M{x} {y + 15}c16 0 16 -26 2 -26", "bias", 1.5))
                parts.append(circle(x, y - 11, 3.2, "bias"))
            continue
        for i, x in enumerate(columns):
            for j in sees[i].nonzero()[:, 0].tolist():
                if j < i:
                    start = columns[j]
                    parts.append(
                        path(
                            f"M{start} {y + 18}C{start} {y - 6} {x - 20} {y - 14} {x} {y - 14}",
                            "weights",
                            1.2,
                            0.75 if i == 5 else 0.25,
                        )
                    )
            parts.append(circle(x, y - 14, 3.2, "weights"))
    # What comes next in Python's words that begin so: after `r` an a, e or o, after `retu` an r.
    words = {*keyword.kwlist, *(name for name in dir(builtins) if name.islower())}
    for n, x in enumerate(columns):
        begun = [f"{w} "[n + 1] for w in words if w.startswith(word[: n + 1])]
        for k, (_, count) in enumerate(Counter(sorted(begun)).most_common(5)):
            bar = 46 * count / len(begun)
            parts.append(rect(x - 17 + 7 * k, top - 8 - bar, 5.5, bar + 1, "value", 0.8))
        parts.append(line(x - 18, top - 6, x + 18, top - 6))
    side = columns[-1] + 34
    for y, name, colour in (
        (312, "attention", "weights"),
        (268, "MLP", "bias"),
        (186, "attention", "weights"),
        (142, "MLP", "bias"),
        (60, "next byte", "value"),
    ):
        parts.append(text(side, y, name, anchor="start", colour=colour))
    title = "Streams of six bytes; attention adds what earlier bytes have, the MLP what a byte makes of it"
    return svg(side + 68, floor + 8, title, parts)


def shares() -> str:
    """The shares of 24 additions in the variance of the stream, normalised before and after."""
    n, left, step, height = 24, 2, 15.6, 84
    before = [1 / (1 + n)] * (1 + n)
    after = [0.5**n, *(0.5 ** (n - k) for k in range(n))]
    parts = []
    for name, values, floor in (("before: pre-norm", before, 42), ("after: post-norm", after, 146)):
        label = floor - 24 if values is before else floor - height + 12
        parts.append(text(left, label, name, anchor="start", colour="ink"))
        for k, share in enumerate(values):
            bar = max(share * height / 0.5, 0.6)
            colour = "query" if k == 0 else "weights"
            parts.append(rect(left + k * step, floor - bar, step - 3, bar, colour, 0.85))
        parts.append(line(left, floor + 0.5, left + (n + 1) * step, floor + 0.5))
    base = 146
    parts.append(text(left, base + 18, "the token", anchor="start", colour="query"))
    parts.append(text(left + (n + 1) * step, base + 18, "addition 24", anchor="end"))
    title = "Pre-norm keeps all additions alike; post-norm leaves the last few"
    return svg(left + (n + 1) * step + 4, base + 26, title, parts)


def places() -> str:
    """Keys in memory and the query behind them: where they stand, and whom the query sees."""
    rows = [
        ("a text", [0, 1, 2, 3, 4, 5], 6),
        ("oldest overwritten", [6, 7, 8, 3, 4, 5], 9),
        ("a shorter text", [-1, -1, 0, 1, 2, 3], 4),
    ]
    cell, left, top, gap = 44, 4, 24, 30
    parts = []
    for row, (name, keys, query) in enumerate(rows):
        y = top + row * (cell + gap)
        sees = causal_mask(torch.tensor([query]), torch.tensor(keys))[0].tolist()
        parts.append(text(left, y - 7, name, anchor="start", colour="ink"))
        for k, (j, is_seen) in enumerate(zip(keys, sees, strict=True)):
            x = left + k * cell
            shade = 0.15 + 0.6 * math.exp(-0.35 * (query - 1 - j)) if is_seen else 0.0
            parts.append(rect(x + 1, y, cell - 3, cell - 8, "key" if is_seen else "mask", shade, 4))
            if not is_seen:
                parts.append(path(f"M{x + 8} {y + 8}l{cell - 18} {cell - 24}", "mask", 1, 0.5))
            label = str(j).replace("-", "−")
            parts.append(text(x + cell / 2 - 1, y + 23, label, colour="ink" if is_seen else "soft", size=15))
        x = left + 6 * cell + 26
        parts.append(rect(x, y, cell - 3, cell - 8, "query", 0.25, 4))
        parts.append(text(x + cell / 2 - 1, y + 23, str(query), colour="query", size=15))
    parts.append(text(left + 3 * cell, top + 3 * (cell + gap) - 16, "keys j", colour="key"))
    parts.append(
        text(left + 6 * cell + 26 + cell / 2, top + 3 * (cell + gap) - 16, "query i", colour="query")
    )
    title = "The numbers of keys tell their order, wherever they lie in memory"
    return svg(left + 7 * cell + 30, top + 3 * (cell + gap) - 6, title, parts)


def crops() -> str:
    """Two crops of a line of Python: inputs above, the bytes that are asked for below."""
    source, length, cell, left = "for x in range(n): pass", 9, 30, 92
    tokens = torch.tensor([*source.encode()])
    torch.manual_seed(7)
    parts, y = [], 18
    small = cell * (length + 1) / len(source)
    for k, letter in enumerate(source.replace(" ", "␣")):
        parts.append(text(left + (k + 0.5) * small, y, letter, colour="ink", size=13, mono=True))
    parts.append(text(left - 14, y, "text", anchor="end"))
    for crop in draw_crops(tokens, 2, length).tolist():
        y += 46
        for row, (name, part, colour) in enumerate(
            (("input", crop[:-1], "query"), ("asked for", crop[1:], "value"))
        ):
            parts.append(text(left - 14, y + 20 + row * 32, name, anchor="end", colour=colour))
            for k, token in enumerate(part):
                x = left + k * cell
                letter = "0" if token == 0 else chr(token).replace(" ", "␣")
                parts.append(rect(x + 1, y + row * 32, cell - 3, 28, colour, 0.3 if token == 0 else 0.12, 3))
                parts.append(text(x + cell / 2, y + 19 + row * 32, letter, colour="ink", size=14, mono=True))
        y += 40
    title = "Each crop begins with token 0, and the targets are the inputs moved by one"
    return svg(left + cell * (length + 1), y + 32, title, parts)


def rate() -> str:
    """The rate of a run of 200 steps, 20 of them warm-up."""
    left, width, height = 2, 380, 96
    points = [(left + width * n / 199, 14 + height * (1 - rate_factor(n, 200, 20))) for n in range(200)]
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    floor = 14 + height
    parts = [line(left, floor + 0.5, left + width, floor + 0.5), path(d, "weights", 2)]
    w = left + width * 20 / 199
    parts += [line(w, 14, w, floor), text(w, floor + 18, "w"), text(left, floor + 18, "0", anchor="start")]
    parts += [
        text(left + width, floor + 18, "S", anchor="end"),
        text(w - 10, 20, "η", anchor="end", colour="weights"),
    ]
    return svg(left + width + 4, floor + 26, "The rate rises in a line and falls in half a cosine", parts)


def nucleus() -> str:
    """A distribution at three temperatures, and how much of it a top-p of 0.9 keeps."""
    logits = torch.tensor([3.1, 2.4, 1.9, 1.2, 0.9, 0.4, 0.1, -0.2, -0.5, -0.7, -0.9, -1.2])
    step, height, left, panel = 10.4, 84, 2, 140
    parts = []
    for n, temperature in enumerate((0.5, 1.0, 1.5)):
        shares = F.softmax(logits / temperature, dim=0)
        kept = shares.cumsum(0) - shares < 0.9
        x = left + n * panel
        parts.append(text(x, 14, f"τ = {temperature:g}", anchor="start", colour="ink"))
        for k, (share, is_kept) in enumerate(zip(shares.tolist(), kept.tolist(), strict=True)):
            bar = max(share * height / 0.75, 0.8)
            colour, opacity = ("value", 0.85) if is_kept else ("mask", 0.5)
            parts.append(rect(x + k * step, 108 - bar, step - 2.4, bar, colour, opacity))
        parts.append(line(x, 108.5, x + 12 * step, 108.5))
        parts.append(text(x, 126, f"{int(kept.sum())} of 12 kept", anchor="start", colour="value"))
    return svg(left + 3 * panel - 8, 134, "A lower temperature sharpens, and top-p cuts the tail", parts)


def bits() -> str:
    """What a byte of the held-out files costs: the page says with which Python, and how to measure it."""
    costs = {
        "nothing known": 8.0,
        "bytes counted": 4.47,
        "pairs counted": 3.45,
        "zlib": 2.01,
        "lzma": 1.71,
        "bz2": 1.68,
        "the model": 1.89,
    }
    left, width, row = 116, 260, 27
    parts = []
    for n, (name, cost) in enumerate(costs.items()):
        y = 6 + n * row
        colour = "value" if name == "the model" else "weights" if n > 2 else "mask"
        parts.append(text(left - 10, y + 15, name, anchor="end", colour="ink"))
        parts.append(rect(left, y, width * cost / 8, row - 7, colour, 0.75, 2))
        parts.append(
            text(left + width * cost / 8 + 8, y + 15, f"{cost:.2f}".rstrip("0").rstrip("."), anchor="start")
        )
    return svg(left + width + 26, 6 + len(costs) * row, "Bits that a byte costs, by who guesses", parts)
