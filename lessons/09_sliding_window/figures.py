"""The figures of the pages, drawn from the mechanism itself and from what was measured. Each function returns one
SVG."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.sliding_window import (
    RollingKVCache,
    receptive_field,
    sliding_window_attention,
    sliding_window_cost,
    sliding_window_mask,
    window_tiles,
)
from annotated_attention.sliding_window_cache import rolling_kv_cache_bytes
from annotated_attention.sliding_window_tiles import backward_in_tiles
from coursekit.drawing import circle, line, rect, svg, text


def frame(x: float, y: float, width: float, height: float, colour: str) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
    return f'<rect {place} fill="none" stroke="var(--{colour})" stroke-width="1.5"/>'


def band() -> str:
    """All pairs of a text of 24 tokens, and those of a window of six."""
    t, cell, gap, top = 24, 8, 36, 26
    parts = []
    for panel, window in enumerate((t, 6)):
        left = panel * (t * cell + gap)
        mask = sliding_window_mask(t, t, window)
        count = sliding_window_cost(t, window, 1)[0]
        assert mask.sum() == count
        parts.append(text(left + t * cell / 2, 14, f"{count} scores"))
        for i in range(t):
            for j in range(i + 1):
                seen = bool(mask[i, j])
                x, y = left + j * cell, top + i * cell
                parts.append(rect(x, y, cell - 1.5, cell - 1.5, "weights", 0.85 if seen else 0.08))
    title = "Two triangles of pairs: on the left all are scored, on the right only a band along the diagonal"
    return svg(2 * t * cell + gap, top + t * cell + 4, title, parts)


def tiles() -> str:
    """The band cut into blocks of eight queries: what each tile wants, and what it computes as well."""
    t, window, u, cell, top, left = 24, 6, 8, 12, 30, 24
    before = window - 1
    a = before + u
    mask = sliding_window_mask(u, a, window, offset=before)
    computed = sliding_window_cost(t, window, u)[1]
    assert computed == 3 * mask.numel() - before * u  # no keys before the text
    parts = [text(left + (before + t / 2) * cell, 16, "keys")]
    for n in range(t // u):
        x, y = left + n * u * cell, top + n * u * cell
        for r in range(u):
            for c in range(a):
                exists = n * u + c >= before
                opacity = (0.85 if mask[r, c] else 0.2) if exists else 0.06
                parts.append(rect(x + c * cell, y + r * cell, cell - 2, cell - 2, "weights", opacity))
        parts.append(frame(x - 2.5, y - 2.5, a * cell + 3, u * cell + 3, "ink"))
    edge = left + before * cell - 1
    parts.append(line(edge, top - 8, edge, top + t * cell + 6, "soft"))
    middle = top + t * cell / 2
    parts.append(
        f'<text class="fig-text" transform="translate(14 {middle:g}) rotate(-90)" text-anchor="middle" '
        'font-size="13" fill="var(--soft)">queries</text>'
    )
    bottom = top + t * cell + 20
    parts.append(text(left, bottom, "before the text", anchor="start", size=12))
    last = left + 2 * u * cell
    parts.append(text(last + a * cell / 2, bottom, f"a = {window} − 1 + {u} = {a}", colour="ink"))
    parts.append(
        text(last + a * cell + 8, top + 2.5 * u * cell + 4, f"u = {u}", anchor="start", colour="ink")
    )
    title = "A band cut into three tiles of 8 queries and 13 keys; in each, two triangles are not wanted"
    return svg(last + a * cell + 56, bottom + 8, title, parts)


def sent_back() -> str:
    """Tiles of six queries and a window of ten in a text of 22 tokens, and how many add to each gradient."""
    t, window, u, cell, left, top = 22, 10, 6, 13.5, 44, 8
    tiles = list(window_tiles(t, t, window, block_size=u))

    def ones(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Every number has a gradient of 1, so sums of gradients count the tiles that add to them."""
        return (query.sum() + key.sum() + value.sum()) * query.new_ones(query.shape) / query.shape[2]

    zeros = torch.zeros(1, 1, t, 1)
    dq, dk, _ = (
        x.flatten().round().int().tolist() for x in backward_in_tiles(ones, tiles, zeros + 1, *[zeros] * 3)
    )

    # A little room between the tiles, and nothing outside of the text.
    deep = t * cell + 4 * (len(tiles) - 1)
    parts = [rect(left - 4, top - 4, t * cell + 6, deep + 6, "line", 0.3, rx=3)]
    for n, (rows, (run,), mask) in enumerate(tiles):
        assert mask is not None
        for i, seen in enumerate(mask.tolist(), start=rows.start):
            y = top + i * cell + 4 * n
            for j, wanted in enumerate(seen, start=run.start):
                x = left + j * cell
                parts.append(rect(x, y, cell - 2, cell - 2, "weights", 0.85 if wanted else 0.2))
            parts += [rect(left - 20 - 9 * k, y, 7, cell - 2, "query", 0.8) for k in range(dq[i])]
        size = (run.stop - run.start) * cell + 1, (rows.stop - rows.start) * cell + 1
        parts.append(
            frame(left + run.start * cell - 1.5, top + rows.start * cell + 4 * n - 1.5, *size, "ink")
        )
    foot = top + deep + 11
    for j, count in enumerate(dk):
        parts += [rect(left + j * cell, foot + 9 * k, cell - 2, 7, "key", 0.8) for k in range(count)]
    parts.append(text(0, top + deep / 2 + 4.5, "dq", anchor="start", colour="query"))
    parts.append(text(left + t * cell / 2, foot + 9 * max(dk) + 13, "dk", colour="key"))
    title = (
        "Four tiles along a band: each query is in one of them, a key in up to three, whose gradients pile up"
    )
    return svg(left + t * cell + 3, foot + 9 * max(dk) + 19, title, parts)


def reach() -> str:
    """What the last token sees through three layers of window 4, and how much of each token arrives."""
    n_layers, window, t, step, height, top, left = 3, 4, 14, 26, 52, 22, 62
    far = receptive_field(n_layers, window)

    def place(token: int, layer: int) -> tuple[float, float]:
        return left + token * step, top + (n_layers - layer) * height

    parts = []
    seen = [receptive_field(n_layers - layer, window) for layer in range(n_layers + 1)]
    for layer in range(1, n_layers + 1):
        for i in range(t - seen[layer], t):
            for j in range(max(0, i - window + 1), i + 1):
                parts.append(line(*place(i, layer), *place(j, layer - 1), "weights", 1.2, 0.3))
    path = [t - 1, t - 4, t - 6, t - 9]
    for layer, (j, i) in enumerate(zip(path[::-1], path[::-1][1:], strict=False), 1):
        parts.append(line(*place(i, layer), *place(j, layer - 1), "query", 2.5))
    for layer in range(n_layers + 1):
        for i in range(t):
            inside = i >= t - seen[layer]
            colour = "query" if path[n_layers - layer] == i else "ink" if inside else "mask"
            parts.append(circle(*place(i, layer), 4.5 if inside else 2.5, colour))
        name = f"layer {layer}" if layer else "text"
        parts.append(text(0, place(0, layer)[1] + 4, name, anchor="start", size=12))

    zeros, arrived = torch.zeros(1, 1, 64, 1), torch.eye(64)[None, None]
    for _ in range(n_layers):
        arrived = sliding_window_attention(zeros, zeros, arrived, window)
    share = arrived[0, 0, -1].tolist()[-t:]
    assert sum(x > 0 for x in share) == far
    floor = top + n_layers * height + 92
    parts.append(line(left - 10, floor + 0.5, left + (t - 1) * step + 10, floor + 0.5))
    for i, x in enumerate(share):
        if x:
            bar = 58 * x / max(share)
            parts.append(rect(left + i * step - 8, floor - bar, 16, bar, "weights", 0.85))
            parts.append(text(left + i * step, floor - bar - 5, f"{100 * x:.0f}", size=12))
    parts.append(text(0, floor - 2, "arrives, %", anchor="start", size=12))
    title = (
        f"Three layers that look at four tokens reach {far} of them, but most comes from the middle of these"
    )
    return svg(left + t * step - 8, floor + 10, title, parts)


def ring() -> str:
    """Six slots after 4, 8 and 15 tokens."""
    window, radius, size, step = 6, 43, 32, 142
    cache, parts, read = RollingKVCache(window), [], 0
    for column, length in enumerate((4, 8, 15)):
        while read < length:
            cache.update(torch.full((1, 1, 1, 1), float(read)), torch.zeros(1, 1, 1, 1))
            read += 1
        x0, y0 = 66 + column * step, 64
        held = dict(enumerate(cache.keys[0, 0, :, 0].int().tolist()[: min(read, window)]))
        for slot in range(window):
            angle = 2 * math.pi * slot / window
            x, y = x0 + radius * math.sin(angle), y0 - radius * math.cos(angle)
            if slot not in held:
                parts.append(circle(x, y, 2, "mask"))
                continue
            assert held[slot] == cache.positions[slot]
            age = read - 1 - held[slot]
            parts.append(circle(x, y, size / 2, "key", 0.5 - 0.07 * age))
            if not age:
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size / 2 + 2.5:g}" fill="none" '
                    'stroke="var(--ink)" stroke-width="1.5"/>'
                )
            parts.append(text(x, y + 5, f"{held[slot]}", colour="ink", size=15))
        parts.append(text(x0, 146, f"{length} tokens"))
    title = "A ring of six slots: token 6 overwrites token 0, and after 15 tokens it holds 9 to 14"
    return svg(3 * step - 8, 154, title, parts)


def growth() -> str:
    """Bytes of Mistral 7B's cache for up to 32,768 tokens, with its window and without."""
    left, width, height, top, most = 46, 330, 170, 12, 4 * 2**30

    def place(tokens: int, size: int) -> tuple[float, float]:
        return left + width * tokens / 32_768, top + height * (1 - size / most)

    parts = []
    for gib in range(5):
        y = place(0, gib * 2**30)[1]
        parts.append(line(left, y, left + width, y))
        parts.append(text(left - 8, y + 4, f"{gib} GiB" if gib else "0", anchor="end", size=12))
    for tokens in (0, 4096, 16_384, 32_768):
        parts.append(text(place(tokens, 0)[0], top + height + 18, f"{tokens:,}", size=12))
    whole = [place(n, kv_cache_bytes(32, 8, 128, n)) for n in (0, 32_768)]
    held = [place(n, rolling_kv_cache_bytes(32, 8, 128, 4096, n)) for n in (0, 4096, 32_768)]
    for points, opacity in ((whole, 0.35), (held, 1.0)):
        marks = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{marks}" fill="none" stroke="var(--key)" '
            f'stroke-opacity="{opacity}" stroke-width="3"/>'
        )
    parts.append(text(held[-1][0] - 4, held[-1][1] - 9, "a ring of 4,096", anchor="end", colour="ink"))
    parts.append(text(whole[-1][0] - 92, whole[-1][1] + 32, "all keys", anchor="end", colour="ink"))
    parts.append(text(left + width / 2, top + height + 36, "tokens", size=12))
    title = "Without a window the cache grows to 4 GiB at 32,768 tokens; with one it stops at 512 MiB"
    return svg(left + width + 26, top + height + 42, title, parts)


def measured(**settings: int | str) -> list[dict]:
    """What the experiment measured with these settings, one for each seed."""
    file = Path(__file__).parent / "results" / "experiment.default.json"
    runs = json.loads(file.read_text("utf-8"))["runs"]
    return [run["measured"] for run in runs if settings.items() <= run["settings"].items()]


def spread(points: list[tuple[float, float, float, float]], colour: str, opacity: float = 1.0) -> str:
    """A mean as a line, and the least and the greatest as a band; points are x, mean, low and high."""
    path = " ".join(f"{x:.1f},{mean:.1f}" for x, mean, _, _ in points)
    edge = [(x, low) for x, _, low, _ in points] + [(x, high) for x, _, _, high in points[::-1]]
    band = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
    return (
        f'<polygon points="{band}" fill="var(--{colour})" fill-opacity="{0.25 * opacity:.2f}"/>'
        f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="2.5" '
        f'stroke-opacity="{opacity:.2f}"/>'
    )


def cliff() -> str:
    """Right answers by distance for two windows and one to four layers, and where each must end."""
    left, width, height, top, gap, most = 46, 356, 84, 46, 64, 66
    parts = []
    for panel, window in enumerate((8, 16)):
        floor = top + panel * (height + gap) + height

        def y(share: float, floor: float = floor) -> float:
            return floor - height * share

        def x(distance: float) -> float:
            return left + width * distance / most

        for share in (0, 0.5, 1):
            parts.append(line(left, y(share), left + width, y(share)))
            parts.append(text(left - 8, y(share) + 4, f"{share:.0%}", anchor="end", size=12))
        parts.append(text(left, y(1) - 24, f"window of {window}", anchor="start", colour="ink"))
        for layers in (4, 3, 2, 1):
            runs = [run["right"] for run in measured(asked="everywhere", window=window, layers=layers)]
            shares = list(zip(*runs, strict=True))[: most - 1]
            points = [
                (x(n), y(sum(each) / len(each)), y(min(each)), y(max(each)))
                for n, each in enumerate(shares, start=1)
            ]
            parts.append(spread(points, "query", 1.15 - 0.2 * layers))
            reach = layers * (window - 1)
            parts.append(line(x(reach + 0.5), y(0) + 4, x(reach + 0.5), y(1) - 4, "bias", 1.2))
            parts.append(text(x(reach), y(1) - 8, f"{layers}", colour="ink", size=12))
            parts.append(text(x(reach), y(0) + 18, f"{reach}", size=12))
    parts.append(text(left + width, top - 24, "layers", anchor="end", size=12))
    parts.append(text(left + width, floor + 36, "tokens back", anchor="end", size=12))
    title = "All answers are right up to the predicted distance, and a guess from the next token on"
    return svg(left + width + 18, floor + 42, title, parts)


def hops() -> str:
    """Steps of training until all within reach is right, asked everywhere or only at the end."""
    shapes = [(8, 1), (8, 2), (8, 3), (8, 4), (15, 2), (29, 1)]
    left, width, row, top, most = 108, 270, 26, 30, 400
    parts, floor = [], top + row * len(shapes)
    for steps in range(0, most + 1, 100):
        x = left + width * steps / most
        parts.append(line(x, top - 10, x, floor))
        parts.append(text(x, floor + 18, f"{steps}", size=12))
    for place, (window, layers) in enumerate(shapes):
        y = top + place * row + 4
        name = f"{layers} layer{'s' * (layers > 1)} of {window}"
        parts.append(text(left - 12, y + 4, name, anchor="end", size=12))
        for shift, colour, asked in ((-4, "key", "everywhere"), (4, "query", "at the end")):
            runs = [run["learned"] for run in measured(asked=asked, window=window, layers=layers)]
            seen = [left + width * steps / most for steps in runs if steps is not None]
            if seen:
                parts.append(line(min(seen), y + shift, max(seen), y + shift, colour, 2))
                parts.append(circle(sum(seen) / len(seen), y + shift, 4, colour))
    parts.append(text(left, 12, "asked everywhere", anchor="start", colour="key", size=12))
    parts.append(text(left + 130, 12, "asked at the end", anchor="start", colour="query", size=12))
    parts.append(
        text(left + width, floor + 36, "steps until all within reach is right", anchor="end", size=12)
    )
    title = "A relay of more hops takes more steps to learn, above all if only the end is asked"
    return svg(left + width + 24, floor + 42, title, parts)
