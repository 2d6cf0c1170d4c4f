"""Figures of the page on recall: how much a state can tell again. Each function returns one SVG."""

import math
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F

from annotated_attention.linear_recall import delta_rule, recall_accuracy, recall_batch, sum_rule
from coursekit.drawing import curve, line, svg, text
from coursekit.experiments import load


def corrected(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return delta_rule(query, key, value, torch.ones_like(key[..., 0]))


def sharp(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=64.0)


def best(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """With the state that answers all that was written with the least error."""
    return query @ (torch.linalg.pinv(key) @ value)


def shares(left: float, top: float, width: float, height: float) -> list[str]:
    """The lines of 0, 50 and 100%."""
    parts = []
    for percent in (0, 50, 100):
        y = top + height * (1 - percent / 100)
        parts.append(line(left, y, left + width, y))
        parts.append(text(left - 7, y + 4, f"{percent}%", anchor="end", size=12))
    return parts


def recall() -> str:
    """The share of right answers against the number of pairs, for keys and values of width 32."""
    left, top, width, height, d, vocabulary = 44, 12, 366, 190, 32, 1024
    counts = [4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    generator = torch.Generator().manual_seed(0)
    table = F.normalize(torch.randn(vocabulary, d, generator=generator), dim=-1)

    def place(n: int, share: float) -> tuple[float, float]:
        return left + width * math.log2(n / 4) / 6, top + height * (1 - share)

    parts = shares(left, top, width, height)
    for n in counts[::2]:
        parts.append(text(place(n, 0)[0], top + height + 17, f"{n}", size=12))
    x = place(d, 0)[0]
    parts.append(line(x, top, x, top + height, "soft", 1, 0.6))
    batches = [recall_batch(16, n, 3 * n, vocabulary, generator=generator) for n in counts]
    for name, attend, colour, (at, share) in (
        ("softmax", sharp, "weights", (14, 1.02)),
        ("best state", best, "soft", (76, 0.92)),
        ("sum", sum_rule, "key", (58, 0.72)),
        ("delta rule", corrected, "query", (18, 0.6)),
    ):
        found = [recall_accuracy(attend, *batch, table) for batch in batches]
        parts.append(curve([place(n, y) for n, y in zip(counts, found, strict=True)], colour))
        x, y = place(at, share)
        anchor = "end" if name == "delta rule" else "start"
        parts.append(text(x, y - 5 if name == "softmax" else y, name, anchor=anchor, colour=colour))
    parts.append(text(left + width / 2, top + height + 35, "pairs", size=12))
    title = "With a softmax all answers are right; a state of 32 rows fails around 32 pairs, the delta rule before"
    return svg(left + width + 22, top + height + 42, title, parts)


def recency() -> str:
    """After 256 pairs, the share of right answers by the age of a pair."""
    left, top, width, height, d, n, b, shown = 44, 12, 366, 150, 32, 256, 128, 64
    generator = torch.Generator().manual_seed(0)
    key, value = F.normalize(torch.randn(2, b, 1, n, d, generator=generator), dim=-1)
    asked = torch.cat([torch.zeros_like(key), key], dim=2)
    key, values = (F.pad(x, (0, 0, 0, n)) for x in (key, value))

    def place(age: int, share: float) -> tuple[float, float]:
        return left + width * age / shown, top + height * (1 - share)

    parts = shares(left, top, width, height)
    for age in range(0, shown + 1, 16):
        parts.append(text(place(age, 0)[0], top + height + 17, f"{age}", size=12))
    for name, rule, colour, (at, share) in (
        ("softmax", sharp, "weights", (40, 0.9)),
        ("delta rule", corrected, "query", (20, 0.62)),
        ("sum", sum_rule, "key", (46, 0.2)),
    ):
        found = (rule(asked, key, values)[:, 0, n:] @ value[:, 0].mT).argmax(-1)
        right = (found == torch.arange(n)).double().mean(0).flip(0)
        parts.append(curve([place(i, y) for i, y in enumerate(right[: shown + 1].tolist())], colour))
        parts.append(text(*place(at, share), name, anchor="start", colour=colour))
    parts.append(text(left + width / 2, top + height + 35, "pairs written since", size=12))
    title = "The delta rule recalls the newest pairs and loses the old; the sum recalls few, of any age"
    return svg(left + width + 22, top + height + 42, title, parts)


FAMILIES = {
    "query": ("softmax", "window", "sinks"),
    "key": ("elu + 1", "ReLU", "1, x, x²", "random"),
    "value": ("constant decay", "gated decay", "state space"),
    "bias": ("delta rule", "gated delta"),
}


def mark(x: float, y: float, shape: int, colour: str) -> str:
    """A disc, a ring, a square, a triangle."""
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--{colour})" fill-opacity="1.00"/>'
    corners = {
        1: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
        2: "M-3.5,-3.5h7v7h-7z",
        3: "M0,-4.5l4.5,8h-9z",
    }[shape]
    fill = "var(--paper, transparent)" if shape == 1 else f"var(--{colour})"
    ring = f'fill="{fill}" stroke="var(--{colour})" stroke-width="1.5"'
    return f'<path d="{corners}" transform="translate({x:.1f} {y:.1f})" {ring}/>'


def recall_bytes() -> str:
    """Every mechanism of the course: right answers against the bytes that its layer keeps."""
    left, top, width, height, low, octaves = 44, 12, 384, 220, 512, 4.9

    def place(kept: float, share: float, aside: float = 0) -> tuple[float, float]:
        across = 0.04 + math.log2(kept / low) / octaves
        return left + width * across + aside, top + height * (1 - share)

    runs = load(Path(__file__).parent / "results" / "experiment_recall.default.json").runs
    parts = shares(left, top, width, height)
    for kept in (512, 1024, 2048, 4096, 8192):
        parts.append(text(place(kept, 0)[0], top + height + 17, f"{kept:,}", size=12))
    parts.append(text(left + width / 2, top + height + 35, "bytes of state", size=12))
    for column, (colour, names) in enumerate(FAMILIES.items()):
        for shape, name in enumerate(names):
            aside = 3 * (2 * column + shape - 4 if column else shape - 1)
            at = left - 34 + 108 * column, top + height + 58 + 18 * shape
            parts += [
                mark(at[0], at[1] - 4, shape, colour),
                text(at[0] + 10, at[1], name, anchor="start", size=12),
            ]
            found: dict[int, list[float]] = {}
            for run in runs.where(mechanism=name, trained=True):
                found.setdefault(run.measured["bytes"], []).append(run.measured["recall"])
            means = [(kept, statistics.mean(several)) for kept, several in sorted(found.items())]
            parts.append(curve([place(*point, aside) for point in means], colour, 1.2, 0.4))
            for kept, mean in means:
                (x, y0), (_, y1) = (place(kept, of(found[kept]), aside) for of in (min, max))
                parts += [
                    line(x, y0, x, y1, colour, 1.5, 0.7),
                    mark(*place(kept, mean, aside), shape, colour),
                ]
    title = (
        "Marks rise to the right: more bytes, more right answers; states reach the top before a cache does"
    )
    return svg(left + width + 14, top + height + 120, title, parts)
