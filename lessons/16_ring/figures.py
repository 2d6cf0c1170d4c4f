"""The figures of the ring pages, drawn from the mechanism itself. Each function returns one SVG."""

from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from unittest.mock import patch

import torch
from torch import Tensor

from annotated_attention import ring as ring_page
from annotated_attention.ring_costs import least_tokens
from annotated_attention.ring_travel import Parcel, Ring
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


def walk(rank: int) -> list[tuple[str, str, int, list[float]]]:
    """What `ring_backward` does on a rank of the ring: computes, sends or receives; which parcel; in which of its
    two rooms; what is in it.

    A key is the number of its rank. Instead of a gradient each rank gives a one in the place of the keys' rank.
    """
    posts = {(to, what): Queue() for to in range(N) for what in ("keys", "gradients")}
    seen: dict[int, list[tuple[str, str, int, list[float]]]] = {n: [] for n in range(N)}

    class Posted(Parcel):
        def __init__(self, ring: Ring, what: str, full: Tensor) -> None:
            super().__init__(ring, what, full)
            self.rooms = [self.full.data_ptr(), self.empty.data_ptr()]

        def note(self, act: str) -> None:
            room = self.rooms.index(self.full.data_ptr())
            seen[self.ring.rank].append((act, self.what, room, self.full.tolist()))

        def send(self) -> None:
            self.note("send")
            posts[(self.ring.rank + 1) % N, self.what].put(self.full.clone())

        def receive(self) -> None:
            self.empty.copy_(posts[self.ring.rank, self.what].get(timeout=5))
            self.full, self.empty = self.empty, self.full
            self.note("receive")

    def gradients(
        _do: Tensor, _dl: Tensor, q: Tensor, k: Tensor, *_: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        source = int(k[0, 0, 0, 0])
        seen[int(q[0, 0, 0, 0])].append(("compute", "", source, []))
        return q * 0, torch.eye(N)[source].expand(k.shape), k[..., :1] * 0

    def go_back(r: int) -> None:
        q, v = torch.full((1, 1, 1, N), float(r)), torch.zeros(1, 1, 1, 1)
        found = ring_page.ring_backward(v, v[..., 0], q, q, v, v, v[..., 0], Ring(r, N, None), False, 1.0)
        seen[r].append(("home", "gradients", 0, found[1].flatten().tolist()))

    with patch.multiple(ring_page, Parcel=Posted, flash_backward=gradients), ThreadPoolExecutor(N) as pool:
        list(pool.map(go_back, range(N)))
    return seen[rank]


def rooms() -> str:
    """The way back on one of four ranks, from left to right: its two rooms of keys, its work, its two rooms of sums."""
    rank, left, column, height, top = N - 1, 70, 61, 25, 20
    lanes = {"keys": top, "": top + 66, "gradients": top + 118, "home": top + 188}
    names = {"keys": "keys", "": "computes", "gradients": "sums", "home": "home"}
    middles = {"keys": height + 2, "": height / 2, "gradients": height + 2, "home": height / 2}
    parts = [
        text(0, lanes[key] + middles[key] + 4, name, anchor="start", colour="ink")
        for key, name in names.items()
    ]

    def empty(y: float, until: float) -> None:
        parts.append(rect(left, y, until * column, height, "line", 0.5, rx=2))

    def block(y: float, since: float, until: float, level: float, source: int, grows: bool = False) -> None:
        """What lies in a room from one time to another, or comes into it."""
        x, width, full = left + since * column + 1, (until - since) * column - 2, height * level
        low = y + height
        if grows:
            wedge = f"M{x:g} {low:g}H{x + width:g}v{-full:g}Z"
            parts.append(f'<path d="{wedge}" fill="var(--{COLOURS[source]})" fill-opacity="0.35"/>')
        else:
            parts.append(rect(x, low - full, width, full, COLOURS[source], 0.8))

    for key, until in (("keys", N), ("gradients", N + 1)):
        for n in range(2):
            empty(lanes[key] + n * (height + 4), until)
    empty(lanes["home"], N + 1.4)

    # A computed pair of shares takes one unit of time, and so does a hop that nothing is computed beside.
    clock, hops, sent, came = 0, {"keys": 0, "gradients": 0}, {}, 0.0
    for act, what, room, numbers in walk(rank):
        if act == "compute":
            block(lanes[what], clock, clock + 1, 1, room)
            label = "r" if room == rank else f"r − {(rank - room) % N}"
            parts.append(text(left + (clock + 0.5) * column, lanes[""] + 17, label, colour="paper", size=12))
            clock += 1
            continue
        level, source = sum(numbers[:N]) / N, max(range(N), key=numbers.__getitem__)
        if what == "keys":
            level, source = 1, int(numbers[0])
        if act == "send":
            sent[what] = clock, room, level, source
        elif act == "receive":
            since, other, was, whose = sent.pop(what)
            clock = max(clock, since + 1)
            y = [lanes[what] + n * (height + 4) for n in range(2)]
            block(y[other], since, clock, was, whose)
            block(y[room], since, clock, level, source, grows=True)
            hops[what], came = hops[what] + 1, level
            parts.append(text(left + (since + clock) / 2 * column, y[0] - 6, f"hop {hops[what]}", size=12))
            if what == "keys" and hops[what] == N - 1:
                block(y[room], clock, clock + 1, level, source)
        else:
            block(lanes["home"], 1, clock, level - came, source)
            block(lanes["home"], clock, clock + 0.4, level, source)
    title = (
        "Keys arrive in one room while those in the other are used and sent; sums follow, and come home full"
    )
    return svg(left + (clock + 0.4) * column + 2, lanes["home"] + height + 4, title, parts)
