"""The figures of the grouped-query page, drawn from the mechanism itself. Each function returns one SVG."""

import torch

from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.scaled_dot_product import attention_weights


def text(
    x: float, y: float, content: str, *, anchor: str = "middle", colour: str = "soft", size: int = 13
) -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text class="fig-text" {place} fill="var(--{colour})">{content}</text>'


def rect(
    x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0, rx: float = 2.0
) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:.2f}" height="{height:.2f}" rx="{rx:g}"'
    return f'<rect {place} fill="var(--{colour})" fill-opacity="{opacity:.3f}"/>'


def path(points: str, colour: str = "soft", width: float = 1.0) -> str:
    return f'<path d="{points}" fill="none" stroke="var(--{colour})" stroke-width="{width:g}"/>'


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}"><title>{title}</title>{"".join(parts)}</svg>'


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
