"""The figures of the ring pages, drawn from the mechanism itself. Each function returns one SVG."""

import torch

from annotated_attention.ring_costs import least_tokens
from annotated_attention.ring_zigzag import keys_seen, zigzag_positions
from coursekit.drawing import line, path, rect, svg, text

# One colour a rank.
COLOURS = ["query", "key", "value", "weights"]


def ring() -> str:
    """Who computes with whose keys, in each of four steps, and what is under way."""
    n, cell, height, left, top = 4, 84, 30, 62, 42
    parts = [text(left + rank * cell + 33, 20, f"rank {rank}", colour="ink") for rank in range(n)]
    for step in range(n):
        y = top + step * 62
        parts.append(text(0, y + 20, f"step {step}", anchor="start"))
        for rank in range(n):
            x, source = left + rank * cell, (rank - step) % n
            # Its own queries on the left, where they stay; the keys at hand on the right.
            parts.append(rect(x, y, 18, height, COLOURS[rank], 0.9, rx=3))
            parts.append(rect(x + 22, y, 44, height, COLOURS[source], 0.4, rx=3))
            parts.append(text(x + 44, y + 20, f"k, v {source}", colour="ink", size=12))
            if step < n - 1:
                below = y + 62
                if rank < n - 1:
                    parts.append(
                        path(f"M{x + 48} {y + height + 3}L{x + cell + 36} {below - 5}", COLOURS[source], 1.5)
                    )
                    parts.append(_tip(x + cell + 36, below - 3, COLOURS[source]))
                else:
                    parts.append(
                        path(
                            f"M{x + 48} {y + height + 3}v9H{left + 44}v{62 - height - 16}",
                            COLOURS[source],
                            1.5,
                        )
                    )
                    parts.append(_tip(left + 44, below - 3, COLOURS[source]))
    bottom = top + n * 62 - 16
    parts.append(
        text(
            left,
            bottom,
            "filled: queries, which stay. Pale: keys and values, which go on.",
            anchor="start",
            size=12,
        )
    )
    title = (
        "Four ranks in a row, four steps: the keys and values of each rank move on by one rank in each step"
    )
    return svg(left + n * cell - 12, bottom + 6, title, parts)


def _tip(x: float, y: float, colour: str) -> str:
    return path(f"M{x - 4} {y - 5}L{x} {y}L{x + 4} {y - 5}", colour, 1.5)


def _cuts(t: int, n: int) -> dict[str, torch.Tensor]:
    return {
        "straight": torch.arange(n * t).view(n, t),
        "striped": torch.arange(n * t).view(t, n).T,
        "folded": torch.stack([zigzag_positions(t, rank, n) for rank in range(n)]),
    }


def cuts() -> str:
    """The causal triangle of 24 tokens, its rows in the colours of the ranks, for three cuts; and the work of each."""
    n, t, cell, top, gap = 4, 6, 6.5, 24, 28
    side = n * t * cell
    parts = []
    for number, (name, positions) in enumerate(_cuts(t, n).items()):
        left = number * (side + gap)
        parts.append(text(left + side / 2, 14, name, colour="ink"))
        for rank, rows in enumerate(positions.tolist()):
            for i in rows:
                parts.append(
                    rect(left, top + i * cell, (i + 1) * cell, cell - 1, COLOURS[rank], 0.75, rx=0.5)
                )
        seen = keys_seen(positions)
        scale, floor = (side - 40) / (n * t * (n * t + 1) / 2 * 0.45), top + side + 16
        for rank, pairs in enumerate(seen.tolist()):
            y = floor + rank * 17
            parts.append(rect(left, y, pairs * scale, 12, COLOURS[rank], 0.75, rx=2))
            parts.append(text(left + pairs * scale + 5, y + 10.5, str(pairs), anchor="start", size=12))
        mean = seen.double().mean().item() * scale
        parts.append(line(left + mean, floor - 5, left + mean, floor + n * 17, "ink", 1.2))
    title = "Three ways to deal 24 causal rows to four ranks; the bars below show that only folding gives all the same"
    return svg(3 * side + 2 * gap, top + side + 16 + n * 17 + 4, title, parts)


def overlap() -> str:
    """Four steps of two rings, to scale: shares of twice and of half the length that hides the sending."""
    width, lane, n = 420, 20, 4
    flops, bandwidth, h, g, d = 989e12, 450e9, 32, 8, 128
    least = least_tokens(flops, bandwidth, h, g, d, d)[0]
    parts, top = [], 22
    for name, t in (("shares twice as long as needed", 2 * least), ("half as long as needed", least / 2)):
        computing = 2 * h * t * t * 2 * d / flops
        sending = g * t * 2 * d * 2 / bandwidth
        step = max(computing, sending)
        scale = (width - 74) / ((n - 1) * step + computing)
        parts.append(text(0, top - 7, name, anchor="start", colour="ink"))
        parts += [
            text(0, top + 15, "computes", anchor="start", size=12),
            text(0, top + lane + 19, "sends", anchor="start", size=12),
        ]
        for k in range(n):
            x = 66 + k * step * scale
            parts.append(rect(x, top, computing * scale - 1.5, lane, "weights", 0.8, rx=2))
            if k < n - 1:
                parts.append(rect(x, top + lane + 4, sending * scale - 1.5, lane, "key", 0.7, rx=2))
        top += 2 * lane + 42
    title = "Computing and sending of four steps: with long shares there is no gap between the steps, with short ones there is"
    return svg(width, top - 30, title, parts)
