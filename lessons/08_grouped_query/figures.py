"""The figures of the grouped-query page, drawn from the mechanism itself and from the results of its experiments.
Each function returns one SVG."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.scaled_dot_product import attention_weights
from coursekit.drawing import path, rect, svg, text
from coursekit.experiments import Runs, load


def readers(h: int, g: int) -> list[list[int]]:
    """For each key head, the query heads whose output moves when that head is changed."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, h, 3, 4, generator=generator)
    key, value = torch.randn(2, 1, g, 5, 4, generator=generator)
    before, found = grouped_query_attention(query, key, value), []
    for u in range(g):
        other = key.clone()
        other[:, u] += 1 + torch.rand(5, 4, generator=generator)
        moved = (grouped_query_attention(query, other, value) != before).flatten(2).any(-1)
        found.append(moved[0].nonzero()[:, 0].tolist())
    return found


def heads() -> str:
    """Which query heads read which heads of keys and values: 8, 2 and 1 of them."""
    h, left, step, row = 8, 92, 40, 122
    parts = []
    for n, (g, name) in enumerate([(8, "multi-head"), (2, "grouped-query"), (1, "multi-query")]):
        top = 4 + n * row
        parts.append(text(0, top + 45, name, anchor="start", colour="ink"))
        parts.append(text(0, top + 63, f"g = {g}", anchor="start"))
        for u, group in enumerate(readers(h, g)):
            assert group == list(range(u * h // g, (u + 1) * h // g))
            x = left + (group[0] + group[-1] + 1) * step / 2
            for head in group:
                start = left + (head + 0.5) * step
                curve = f"M{start:g} {top + 26}C{start:g} {top + 48} {x:g} {top + 34} {x:g} {top + 58}"
                parts.append(path(curve))
            parts.append(rect(x - 14, top + 58, 28, 19, "key", 0.85))
            parts.append(rect(x - 14, top + 79, 28, 19, "value", 0.85))
        parts += [rect(left + head * step + 6, top + 4, 28, 22, "query", 0.85) for head in range(h)]
    title = "Eight query heads read eight, two or one head of keys and values"
    return svg(left + h * step, 3 * row - 14, title, parts)


def fold() -> str:
    """The scores of three heads on the same keys, as three heads and as one head with three times the
    queries."""
    r, t, s, d, cell, gap = 3, 2, 6, 3, 15, 10
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(1, r, t, d, generator=generator), torch.randn(1, 1, s, d, generator=generator)
    apart = attention_weights(2 * query, key.repeat_interleave(r, 1))[0]
    together = attention_weights(2 * query.reshape(1, 1, r * t, d), key)[0, 0]
    assert torch.equal(apart.reshape(r * t, s), together)

    def matrix(x: float, y: float, values: torch.Tensor, colour: str) -> list[str]:
        return [
            rect(x + j * cell + 1, y + i * cell + 1, cell - 2, cell - 2, colour, 0.12 + 0.85 * float(value))
            for i, row in enumerate(values)
            for j, value in enumerate(row)
        ]

    parts, strength = [], 0.2 + 0.6 * torch.rand(r * t + s, d, generator=generator)
    top, left, weights_left = 26 + d * cell + gap, 4, 4 + d * cell + gap
    parts.append(text(left + (d + s) * cell / 2, 12, "three heads", colour="ink", size=11))
    for n in range(r):
        y = 26 + n * (d * cell + t * cell + 2 * gap)
        parts += matrix(weights_left, y, strength[r * t :].T, "key")
        y += d * cell + gap / 2
        parts += matrix(left, y, strength[n * t : n * t + t], "query")
        parts += matrix(weights_left, y, apart[n], "weights")
    shift = weights_left + s * cell + 84
    parts.append(text(shift - 44, top + 90, "=", colour="ink", size=22))
    y = 26 + (d * cell + t * cell + 2 * gap) * (r - 1) / 2 - 12
    parts.append(text(shift + (d + s) * cell / 2 + gap, 12, "one head, six queries", colour="ink", size=11))
    parts += matrix(shift + d * cell + gap, y, strength[r * t :].T, "key")
    y += d * cell + gap / 2
    parts += matrix(shift, y, strength[: r * t], "query")
    parts += matrix(shift + d * cell + gap, y, together, "weights")
    title = "Three heads that share their keys are one head with three times as many queries"
    height = 26 + r * (d * cell + t * cell + 2 * gap) - gap
    return svg(int(shift + d * cell + gap + s * cell + 4), height, title, parts)


def cache() -> str:
    """What models keep of one token, and what they would keep with all heads."""
    models = [("Llama-2-7B", 32, 32, 32, 128), ("Llama-2-70B", 80, 64, 8, 128)]
    models += [("Llama-3-8B", 32, 32, 8, 128), ("Falcon-7B", 32, 71, 1, 64)]
    left, row, full = 98, 42, 340
    largest, parts = kv_cache_bytes(80, 64, 128, 1), []
    for n, (name, n_layers, h, g, d) in enumerate(models):
        y = 8 + n * row
        wide, kept = (kv_cache_bytes(n_layers, heads, d, 1) for heads in (h, g))
        parts.append(text(left - 10, y + 19, name, anchor="end", colour="ink"))
        parts.append(rect(left, y, full * wide / largest, 28, "key", 0.18))
        parts.append(rect(left, y, max(full * kept / largest, 1), 28, "key", 0.85))
        label = f"{kept // 1024} KiB" if kept == wide else f"{kept // 1024} of {wide // 1024} KiB"
        inside = wide == largest
        x = left + full * (kept if inside else wide) / largest + 8
        parts.append(text(x, y + 19, label, anchor="start", size=12))
    title = "Bytes kept of a token: what each model keeps, inside what multi-head attention would"
    return svg(left + full + 8, 8 + len(models) * row, title, parts)


def runs(name: str) -> Runs:
    return load(Path(__file__).parent / "results" / f"{name}.default.json").runs


def mark(
    x: float, at: Callable[[float], float], values: Sequence[float], colour: str, shape: str = "dot"
) -> str:
    """The mean over seeds, and a whisker from the least to the greatest."""
    y, low, high = at(sum(values) / len(values)), at(min(values)), at(max(values))
    whisker = path(f"M{x:g} {low:.1f}V{high:.1f}M{x - 3:g} {low:.1f}h6M{x - 3:g} {high:.1f}h6", colour)
    look = f'fill="var(--{colour})"'
    if shape == "ring":
        look = f'fill="none" stroke="var(--{colour})" stroke-width="1.8"'
    if shape == "square":
        return whisker + f'<rect x="{x - 4:g}" y="{y - 4:.1f}" width="8" height="8" {look}/>'
    return whisker + f'<circle cx="{x:g}" cy="{y:.1f}" r="4" {look}/>'


def legend(x: float, y: float, entries: Sequence[Sequence[str]], step: float = 19) -> list[str]:
    parts = []
    for n, (label, colour, shape) in enumerate(entries):
        at = y + n * step
        parts.append(mark(x, lambda _, at=at: at, [0.0], colour, shape))
        parts.append(text(x + 12, at + 4, label, anchor="start", size=12))
    return parts


def ticks(
    left: float, right: float, at: Callable[[float], float], values: Sequence[float], form: str
) -> list[str]:
    parts = []
    for value in values:
        parts.append(path(f"M{left:g} {at(value):.1f}H{right:g}", "line"))
        parts.append(text(left - 8, at(value) + 4, f"{value:{form}}", anchor="end", size=12))
    return parts


def scale(values: Sequence[float], top: float, bottom: float) -> tuple[Callable[[float], float], list[float]]:
    """From a number to a height, and round numbers in between."""
    low, high = min(values), max(values)
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / step <= 6)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    count = round((high - low) / step)
    return (
        lambda value: bottom - (bottom - top) * (value - low) / (high - low),
        [low + n * step for n in range(count + 1)],
    )


def price() -> str:
    """Bits against bytes of the cache, and how much faster a token is, for 8, 4, 2 and 1 heads of keys."""
    of, left, column = runs("experiment"), 52, 88
    loss, groups = of.where(kind="loss"), (8, 4, 2, 1)
    at, levels = scale(loss.values("bits"), 96, 262)
    parts = ticks(left, 416, at, levels, ".2f")
    parts.append(text(left, 14, "bits per byte, of files it has not seen", anchor="start", colour="ink"))
    names = [("shared", "key", "dot", 0), ("widened", "key", "ring", 16)]
    names += [("few", "bias", "square", 32), ("narrow", "weights", "square", 46)]
    labels = (
        "8 query heads share",
        "the same, with a wider MLP",
        "one head, wider MLP",
        "4 narrow heads, wider MLP",
    )
    entries = [(label, *each[1:3]) for label, each in zip(labels, names, strict=True)]
    parts += legend(left + 6, 36, entries[:2]) + legend(left + 202, 36, entries[2:])
    for n, g in enumerate(groups):
        x = left + 26 + n * column
        shared = loss.where(name="shared", kv_heads=g)
        parts.append(mark(x, at, shared.values("bits"), "key"))
        parts.append(text(x, 282, f"{shared.values('cache_bytes')[0]:,}", size=12))
    for name, colour, shape, right in names[1:]:
        x = left + 26 + 3 * column + right
        parts.append(mark(x, at, loss.where(name=name).values("bits"), colour, shape))
    parts.append(text(416, 300, "bytes of the cache, a token", anchor="end", size=12))

    timed = of.where(kind="speed")
    faster = {name: timed.values(f"{name}_faster") for name in ("attention", "whole")}
    highest = max(8.0, *(x for each in faster.values() for one in each for x in one))

    def height(times: float) -> float:
        return 520 - 140 * math.log2(times) / math.log2(highest)

    parts.append(text(left, 332, "times as fast as with 8", anchor="start", colour="ink"))
    parts += ticks(left, 416, height, (1, 2, 4, 8), "g")
    places = [left + 26 + n * column for n in range(4)]
    bound = "L".join(f"{x:g} {height(2**n):.1f}" for n, x in enumerate(places))
    parts.append(f'<path d="M{bound}" fill="none" stroke="var(--soft)" stroke-dasharray="3 4"/>')
    entries = [("attention alone", "query", "dot"), ("the whole model", "ink", "square")]
    parts += legend(left + 6, 356, entries[:1]) + legend(left + 202, 356, entries[1:])
    parts.append(text(places[2] - 6, height(4) - 6, "bytes read", anchor="end", size=12))
    for name, (_, colour, shape) in zip(faster, entries, strict=True):
        for n, x in enumerate(places):
            parts.append(mark(x, height, [one[n] for one in faster[name]], colour, shape))
    parts += [text(x, 542, f"g = {g}", size=12) for g, x in zip(groups, places, strict=True)]
    title = "Loss against bytes of the cache, and speed, for 8, 4, 2 and 1 heads of keys and values"
    return svg(420, 548, title, parts)


def uptraining() -> str:
    """Bits after the conversion, after 5% of the steps, and of a model that had as few heads from the start."""
    of, left, column = runs("experiment_uptraining"), 40, 127
    each, groups = of.where(kind="converted"), (4, 2, 1)
    starts = [("mean", "mean of the heads", "key", "dot"), ("longer", "as long as they were", "key", "ring")]
    starts += [("turned", "turned, then mean", "value", "dot"), ("first", "first head", "query", "square")]
    starts.append(("random", "new heads", "bias", "square"))
    after = [run.measured[f"{name} {g}"] for run in each for name, *_ in starts for g in groups]
    fresh = of.where(kind="scratch").values("bits")
    at, levels = scale([bits for pair in after for bits in pair[:2]] + fresh, 108, 340)
    parts = ticks(left, 418, at, levels, ".1f")
    parts.append(
        text(0, 14, "bits per byte: converted (pale), and trained for 5%", anchor="start", colour="ink")
    )
    entries = [look for _, *look in starts] + [["from the start", "ink", "ring"]]
    parts += legend(10, 38, entries[:3]) + legend(210, 38, entries[3:])
    before = [bits[0] for bits in each.values("all")]
    level = at(sum(before) / len(before))
    parts.append(f'<path d="M{left} {level:.1f}H418" stroke="var(--ink)" stroke-dasharray="3 4"/>')
    parts.append(text(left - 8, level + 4, "g = 8", anchor="end", size=12))
    for n, g in enumerate(groups):
        for m, (name, _, colour, shape) in enumerate(starts):
            x = left + 14 + n * column + 19 * m
            first, then = zip(*(bits[:2] for bits in each.values(f"{name} {g}")), strict=True)
            heights = [at(sum(values) / len(values)) for values in (first, then)]
            parts.append(path(f"M{x:g} {heights[0]:.1f}V{heights[1]:.1f}", "line", 2))
            parts.append(f'<g opacity="0.4">{mark(x, at, first, colour, shape)}</g>')
            parts.append(mark(x, at, then, colour, shape))
        parts.append(text(left + 52 + n * column, 362, f"g = {g}", size=12))
    parts.append(mark(left + 14 + 2 * column + 19 * len(starts), at, fresh, "ink", "ring"))
    title = "Bits per byte after conversion to 4, 2 and 1 heads, at once and after 5% of the steps"
    return svg(420, 368, title, parts)
