"""The figures of the KV cache page, drawn from the mechanism itself. Each function returns one SVG."""

import math

import torch

from annotated_attention.kv_cache import KVCache, kv_cache_bytes
from annotated_attention.language_model import causal_mask
from coursekit.drawing import line, rect, svg, text


def frame(x: float, y: float, width: float, height: float, colour: str, dashed: bool = False) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="none"'
    dash = ' stroke-dasharray="3 2.5"' if dashed else ""
    return f'<rect {place} stroke="var(--{colour})"{dash}/>'


def triangle() -> str:
    """What each step computes without a cache, and with one: keys, values and scores."""
    chunks, cell, left, top, size = (5, 1, 1, 1), 11, 4, 26, 8
    step, band = size * cell + 14, 166
    tokens = torch.zeros(1, 1, size, 1)
    cache = KVCache(size)
    parts = []
    for n, t in enumerate(chunks):
        cache.update(tokens[:, :, :t], tokens[:, :, :t])
        j = cache.positions[0]
        x = left + n * step
        for row, new in enumerate((len(j), t)):
            y = top + row * band
            for strip, colour in enumerate(("key", "value")):
                for slot in j.tolist():
                    opacity = 0.95 if slot >= len(j) - new else 0.25
                    parts.append(
                        rect(x + slot * cell, y + strip * (cell + 1), cell - 1, cell - 1, colour, opacity)
                    )
            seen = causal_mask(j[-new:], j)
            for i, row_of_scores in zip(j[-new:].tolist(), seen.tolist(), strict=True):
                for slot, visible in enumerate(row_of_scores):
                    if visible:
                        parts.append(
                            rect(x + slot * cell, y + 29 + i * cell, cell - 1, cell - 1, "weights", 0.8)
                        )
            if new < len(j):
                for i in range(len(j) - new):
                    end = x + (i + 1) * cell - 1
                    parts.append(line(x, y + 29 + (i + 0.5) * cell, end, y + 29 + (i + 0.5) * cell))
            parts.append(
                text(x + len(j) * cell - 1, y + 29 + len(j) * cell + 14, str(int(seen.sum())), anchor="end")
            )
    for row, name in enumerate(("without a cache", "with a cache")):
        parts.append(text(left, top + row * band - 9, name, anchor="start", colour="ink"))
    parts.append(text(left + 4 * step - 14, top - 9, "keys", anchor="end", colour="key"))
    parts.append(text(left + 4 * step - 52, top - 9, "values", anchor="end", colour="value"))
    parts.append(text(left + 4 * step - 102, top - 9, "scores", anchor="end", colour="weights"))
    title = "Without a cache each step computes all keys, values and scores; with one, a single row of them"
    return svg(left + 4 * step, top + 2 * band - 14, title, parts)


def rows() -> str:
    """Positions of the slots of three rows: prompts read together, padding forgotten, three tokens on."""
    prompts, size, left, gap = (5, 3, 2), 32, 1, 20
    cache = KVCache(8)

    def read(t: int) -> None:
        cache.update(torch.ones(3, 1, t, 1), torch.ones(3, 1, t, 1))

    states = []
    read(max(prompts))
    states.append(("read together", cache.positions))
    cache.truncate(prompts)
    states.append(("padding forgotten", cache.positions))
    read(3)
    states.append(("three tokens later", cache.positions))

    parts, y = [], 2
    for n, (name, positions) in enumerate(states):
        for row, held in enumerate(positions.tolist()):
            for slot in range(cache.capacity):
                x, position = left + slot * size, held[slot] if slot < len(held) else None
                if position is None:
                    parts.append(frame(x, y, size - 3, size - 3, "line"))
                    continue
                is_text = position >= 0 and (n > 0 or slot < prompts[row])
                if is_text:
                    opacity = 0.18 if slot < prompts[row] else 0.45
                    parts.append(rect(x, y, size - 3, size - 3, "key", opacity))
                else:
                    parts.append(frame(x, y, size - 3, size - 3, "mask", dashed=True))
                number, colour = str(position).replace("-", "−"), "ink" if is_text else "mask"
                parts.append(text(x + (size - 3) / 2, y + 19, number, colour=colour, size=14))
            y += size
        parts.append(
            text(left + cache.capacity * size + 8, y - 1.5 * size + 3, name, anchor="start", size=14)
        )
        y += gap if n < 2 else 0
    title = (
        "Slots of three rows and the positions in them: padding is forgotten, then each row grows by itself"
    )
    return svg(412, y, title, parts)


def growth() -> str:
    """Gibibytes of cache over the number of tokens in it, beside the weights of Llama-2-7B."""
    left, top, width, height, most, gib = 34, 26, 350, 190, 32768, 2**30
    weights = 2 * 6_738_415_616 / gib

    def place(tokens: float, size: float) -> tuple[float, float]:
        return left + tokens / most * width, top + height - size / 16 * height

    parts = []
    for size in range(0, 17, 4):
        x, y = place(0, size)
        parts += [line(x, y, x + width, y), text(x - 7, y + 4, str(size), anchor="end", size=12)]
    for tokens in range(0, most + 1, 8192):
        x, y = place(tokens, 0)
        parts.append(text(x, y + 18, f"{tokens:,}", size=12))
    parts.append(text(left - 7, top - 12, "GiB", anchor="end", size=12))
    parts.append(
        text(left + width / 2, top + height + 36, "tokens in the cache, of all texts together", size=12)
    )

    parts.append(line(*place(0, weights), *place(most, weights), "mask", 2))
    parts.append(
        text(left + 8, place(0, weights)[1] - 7, "weights of Llama-2-7B", anchor="start", colour="mask")
    )
    for name, heads, at in (("Llama-2-7B", 32, 15800), ("Llama-3-8B", 8, 24500)):
        end = kv_cache_bytes(32, heads, 128, most) / gib
        parts.append(line(*place(0, 0), *place(most, end), "key", 2))
        x, y = place(at, end * at / most)
        anchor, below = ("end", -10) if heads == 32 else ("middle", 24)
        parts.append(text(x - 8, y + below, name, anchor=anchor, colour="key"))
    crossing = weights * gib / kv_cache_bytes(32, 32, 128, 1)
    x, y = place(crossing, weights)
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--key)"/>')
    parts.append(text(x + 8, y + 18, f"{math.ceil(crossing):,}", anchor="start", colour="ink", size=12))
    title = (
        "The cache of Llama-2-7B is as large as its weights at 25,706 tokens; Llama-3-8B's is a quarter of it"
    )
    return svg(left + width + 28, top + height + 44, title, parts)
