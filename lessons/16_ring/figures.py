"""The figures of the ring pages, drawn from the mechanism itself. Each function returns one SVG."""

import torch
from torch import Tensor

from annotated_attention.ring_costs import least_tokens
from annotated_attention.ring_zigzag import keys_seen, seen_by, zigzag_positions
from coursekit.drawing import line, path, rect, svg, text

# One colour a rank.
COLOURS = ["query", "key", "value", "weights"]
N = len(COLOURS)


def ring() -> str:
    """Who computes with whose keys, in each of four steps, and what is under way."""
    column, row, height, left, top = 84, 62, 30, 60, 34
    parts = [text(left + rank * column + 33, 18, f"rank {rank}", colour="ink") for rank in range(N)]
    for step in range(N):
        y = top + step * row
        parts.append(text(0, y + 20, f"step {step}", anchor="start"))
        for rank in range(N):
            x, source = left + rank * column, (rank - step) % N
            # Its own queries on the left, where they stay; on the right the keys at hand.
            parts.append(rect(x, y, 18, height, COLOURS[rank], 0.9, rx=3))
            parts.append(rect(x + 22, y, 44, height, COLOURS[source], 0.35, rx=3))
            parts.append(text(x + 44, y + 20, f"k, v {source}", colour="ink", size=12))
            if step == N - 1:
                continue
            start, end = f"M{x + 48} {y + height + 3}", y + row - 3
            if rank < N - 1:
                to, way = x + column + 36, f"L{x + column + 36} {end - 2}"
            else:
                to, way = left + 44, f"v9H{left + 44}V{end - 2}"
            parts.append(path(start + way, COLOURS[source], 1.5))
            parts.append(path(f"M{to - 4} {end - 5}L{to} {end}L{to + 4} {end - 5}", COLOURS[source], 1.5))
    bottom = top + N * row - 10
    words = "Full colour: queries, which stay. Pale: keys and values, which go on."
    parts.append(text(0, bottom, words, anchor="start", size=12))
    title = "Four ranks, four steps: in each step the keys and values of every rank move on by one"
    return svg(left + N * column - 12, bottom + 6, title, parts)


def cuts() -> str:
    """The causal rows of 24 tokens in the colours of their ranks, cut in three ways; and the work of each rank."""
    t, cell, top, gap = 6, 5.4, 22, 22
    side = N * t * cell
    text_order = torch.arange(N * t)
    ways: dict[str, Tensor] = {
        "straight": text_order.view(N, t),
        "in stripes": text_order.view(t, N).T,
        "folded": torch.stack([zigzag_positions(t, rank, N) for rank in range(N)]),
    }
    parts = []
    for number, (name, positions) in enumerate(ways.items()):
        left, floor = number * (side + gap), top + side + 14
        parts.append(text(left + side / 2, 13, name, colour="ink"))
        for rank, rows in enumerate(positions.tolist()):
            colour = COLOURS[rank]
            parts += [
                rect(left, top + i * cell, (i + 1) * cell, cell - 0.8, colour, 0.8, rx=0.5) for i in rows
            ]
        seen = keys_seen(positions)
        scale = (side - 28) / 129
        mean = left + seen.double().mean().item() * scale
        for rank, pairs in enumerate(seen.tolist()):
            y = floor + rank * 16
            parts.append(rect(left, y, pairs * scale, 12, COLOURS[rank], 0.8, rx=2))
            parts.append(text(left + side, y + 10.5, str(pairs), anchor="end", size=12))
        parts.append(line(mean, floor - 4, mean, floor + N * 16, "ink", 1.2))
    title = (
        "24 causal rows dealt to four ranks in three ways; folded, all ranks have 75 pairs of query and key"
    )
    return svg(3 * side + 2 * gap, top + side + 18 + N * 16, title, parts)


def plan() -> str:
    """Two rows of pieces belong to rank 1. Which step computes which of their squares, and with whose keys."""
    rank, cell, left, top = 1, 31, 96, 30
    side = 2 * N * cell
    mine = rank, 2 * N - 1 - rank
    parts = [text(left + side / 2, 14, "pieces of keys, in the colours of their ranks")]
    owner = [piece if piece < N else 2 * N - 1 - piece for piece in range(2 * N)]
    for piece in range(2 * N):
        x, y = left + piece * cell, top + 12 + piece * cell
        parts.append(rect(x, top, cell - 3, 7, COLOURS[owner[piece]], 0.9))
        parts.append(rect(left - 11, y, 7, cell - 3, COLOURS[owner[piece]], 0.9 if piece in mine else 0.2))
        if piece not in mine:
            squares = (left + other * cell for other in range(piece + 1))
            parts += [rect(square, y, cell - 3, cell - 3, "mask", 0.1) for square in squares]
    for step in range(N):
        source = (rank - step) % N
        rows, columns = seen_by(rank, source, 2, True)
        theirs = source, 2 * N - 1 - source
        for p in mine[rows]:
            for q in theirs[columns]:
                x, y, size = left + q * cell, top + 12 + p * cell, cell - 3
                if p == q:
                    half = f"M{x} {y}L{x} {y + size}L{x + size} {y + size}Z"
                    parts.append(f'<path d="{half}" fill="var(--{COLOURS[source]})" fill-opacity="0.6"/>')
                    parts.append(text(x + 10, y + size - 5, str(step), colour="ink", size=12))
                elif p > q:
                    parts.append(rect(x, y, size, size, COLOURS[source], 0.6))
                    parts.append(text(x + size / 2, y + size / 2 + 4.5, str(step), colour="ink", size=12))
    for p in mine:
        parts.append(text(left - 18, top + 12 + p * cell + 21, f"piece {p}", anchor="end", size=12))
    title = "The two rows of rank 1 in a triangle of eight by eight pieces: each step after the first is two squares"
    return svg(left + side + 76, top + side + 12, title, parts)


def overlap() -> str:
    """Four steps of two rings, to scale: shares of twice and of half the length that hides the sending."""
    width, lane, left = 420, 20, 66
    flops, bandwidth, h, g, d = 989e12, 450e9, 32, 8, 128
    least = least_tokens(flops, bandwidth, h, g, d, d)[0]
    parts, top = [], 20
    for name, t in (("shares twice as long as needed", 2 * least), ("half as long as needed", least / 2)):
        computing = 2 * h * t * t * 2 * d / flops
        sending = g * t * 2 * d * 2 / bandwidth
        step = max(computing, sending)
        scale = (width - left) / ((N - 1) * step + computing)
        parts.append(text(0, top - 7, name, anchor="start", colour="ink"))
        parts.append(text(0, top + 15, "computes", anchor="start", size=12))
        parts.append(text(0, top + lane + 19, "sends", anchor="start", size=12))
        for k in range(N):
            x = left + k * step * scale
            parts.append(rect(x, top, computing * scale - 1.5, lane, "weights", 0.8, rx=2))
            if k < N - 1:
                parts.append(rect(x, top + lane + 4, sending * scale - 1.5, lane, "key", 0.7, rx=2))
        top += 2 * lane + 40
    title = "Computing and sending in four steps: shares that are too short leave gaps between the steps"
    return svg(width, top - 32, title, parts)
