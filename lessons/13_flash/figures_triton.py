"""The figures of the pages on Triton's kernels, drawn from the mechanism itself. Each function returns one SVG."""

from collections.abc import Iterator

import torch
from torch import Tensor

from annotated_attention.flash_triton import keys_in_sight, spans_of
from coursekit.drawing import curve, path, rect, svg, text

# How far a query looks back and ahead, and where the document of each position starts and ends.
Reach = tuple[int, int, Tensor | None, Tensor | None]


def edge(ends: list[int], left: float, top: float, cell: float) -> list[tuple[float, float]]:
    """A staircase of one step a row."""
    corners = [(end, i + k) for i, end in enumerate(ends) for k in (0, 1)]
    return [(left + x * cell, top + y * cell) for x, y in corners]


def intervals() -> str:
    """The keys that each of 24 queries sees, from `low` to `high`, under three masks and under all of them."""
    t, window, cell, top, gap = 24, 9, 7.6, 24, 24
    documents = spans_of([0, 7, 18, t], torch.empty(1, 1, t, 1), t)
    masks: dict[str, Reach] = {
        "causal": (2 * t, 0, None, None),
        "window": (window - 1, window - 1, None, None),
        "documents": (2 * t, 2 * t, *documents),
        "all three": (window - 1, 0, *documents),
    }
    side, asked, parts = t * cell, 12, []
    sights = {name: keys_in_sight(torch.arange(t), t, *reach) for name, reach in masks.items()}
    lows, highs = (torch.stack([sight[n] for sight in list(sights.values())[:3]]) for n in (0, 1))
    assert torch.equal(lows.amax(0), sights["all three"][0])
    assert torch.equal(highs.amin(0), sights["all three"][1])
    for n, (name, sight) in enumerate(sights.items()):
        left, upper = 14 + n % 2 * (side + gap), top + n // 2 * (side + gap + 16)
        low, high = (ends.tolist() for ends in sight)
        parts.append(text(left + side / 2, upper - 9, name, colour="ink"))
        parts.append(rect(left, upper, side, side, "line", 0.25, rx=3))
        for i, (first, stop) in enumerate(zip(low, high, strict=True)):
            place = left + first * cell, upper + i * cell + 0.6
            parts.append(
                rect(*place, (stop - first) * cell, cell - 1.2, "weights", 0.95 if i == asked else 0.3)
            )
        for ends in (low, high):
            parts.append(curve(edge(ends, left, upper, cell), "ink", 1.1))
        parts.append(rect(left - 10, upper + asked * cell + 0.6, 7, cell - 1.2, "query", 1))
        if name == "window":
            parts.append(text(left + 8, upper + side - 24, "low", anchor="start", size=12))
            parts.append(text(left + side - 8, upper + 30, "high", anchor="end", size=12))
    title = (
        "Four masks of 24 queries: a query sees keys from one stair to another, also under all three at once"
    )
    return svg(14 + 2 * side + gap + 4, top + 2 * side + gap + 20, title, parts)


def programs(reach: Reach, t: int, own: int, other: int) -> Iterator[tuple[int, list[tuple[int, bool]]]]:
    """Where each program begins, the tiles that it meets, and whether all of them is seen."""
    low, high = keys_in_sight(torch.arange(t), t, *reach)
    for n, (lows, highs) in enumerate(zip(low.split(own), high.split(own), strict=True)):
        starts = range(int(lows.min()) // other * other, int(highs.max()), other)
        whole = [int(lows.max()) <= x and x + other <= int(highs.min()) for x in starts]
        yield n * own, list(zip(starts, whole, strict=True))


def arrow(x: float, y: float, length: float, is_down: bool, colour: str, width: float) -> str:
    tip = f"v{length:g}m-3.5 -4.5l3.5 4.5l3.5 -4.5" if is_down else f"h{length:g}m-4.5 -3.5l4.5 3.5l-4.5 3.5"
    return path(f"M{x:g} {y:g}{tip}", colour, width)


def walks() -> str:
    """A window of 20 over 48 tokens: programs go down their columns of tiles, others along their rows."""
    t, window, own, other, chosen, cell, top, gap = 48, 20, 8, 4, 2, 3.4, 48, 62
    before, after = window - 1, 0
    side, size, parts = t * cell, own * cell - 3, []

    def strips(left: float, name: str, at: float, **colours: str) -> None:
        """A column of programs, or a row, has tiles of its own: at its head what it reads, at its foot a sum."""
        for k, (symbol, colour) in enumerate(colours.items()):
            for n in range(t // own):
                place, shade = n * own * cell, 1 if n == chosen else 0.35
                if name == "rows":
                    parts.append(rect(left + at, top + place, 7, size, colour, shade))
                else:
                    parts.append(rect(left + place, top + at + 10 * k, size, 7, colour, shade))
            middle = chosen * own * cell + size / 2
            if name == "rows":
                x, anchor = (at - 7, "end") if at < 0 else (at + 13, "start")
                parts.append(text(left + x, top + middle + 4.5, symbol, anchor=anchor, colour=colour))
            else:
                x = left + middle + (11 if k else -11)
                parts.append(text(x, top + at + (33 if at > 0 else -8), symbol, colour=colour))

    # The keys of a query; and by the same function, with the two reaches exchanged, the queries of a key.
    for name, reach in (("columns", (after, before, None, None)), ("rows", (before, after, None, None))):
        is_row = name == "rows"
        left = 2 + is_row * (side + gap)
        for n, (first, tiles) in enumerate(programs(reach, t, own, other)):
            for place, whole in tiles:
                opacity = (0.68 if whole else 0.3) if n == chosen else 0.12
                step = other * cell - 1
                x, y = (place, first) if is_row else (first, place)
                extent = (step, size) if is_row else (size, step)
                parts.append(rect(left + x * cell, top + y * cell, *extent, "weights", opacity))
            middle = first * cell + size / 2
            start, stop = tiles[0][0] * cell + 3, (tiles[-1][0] + other) * cell - 5
            at = (left + start, top + middle) if is_row else (left + middle, top + start)
            ink = ("ink", 1.6) if n == chosen else ("soft", 1.0)
            parts.append(arrow(*at, stop - start, not is_row, *ink))
        if is_row:
            strips(left, name, -14, q="query")
            strips(left, name, side + 6, dq="query")
        else:
            strips(left, name, -24, k="key", v="value")
            strips(left, name, side + 6, dk="key", dv="value")
    title = (
        "Two walks over one band of tiles: down the columns for keys and values, along the rows for queries"
    )
    return svg(2 + 2 * side + gap + 36, top + side + 46, title, parts)
