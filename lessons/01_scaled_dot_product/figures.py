"""The figures of the chapter, drawn from the mechanism itself. Each function returns one SVG."""

import torch
from torch import Tensor

from annotated_attention.scaled_dot_product import attention_weights, scaled_dot_product_attention
from coursekit.drawing import line, rect, svg, text


def signed_bars(x: float, y: float, vector: Tensor, colour: str) -> str:
    """A vector as bars above and below its own zero line."""
    bars = [
        rect(x + 12 * n, y - max(8 * v, 0) - 0.5, 9, abs(8 * v) + 1, colour)
        for n, v in enumerate(vector.tolist())
    ]
    return "".join(bars)


def area(x: float, low: Tensor, high: Tensor, colour: str, opacity: float, step: float = 3.5) -> str:
    """The area between two curves, given in pixels, with a hairline of paper around it."""
    forth = [f"{x + step * n:.1f},{y:.1f}" for n, y in enumerate(high.tolist())]
    back = [f"{x + step * n:.1f},{y:.1f}" for n, y in reversed(list(enumerate(low.tolist())))]
    style = f'fill="var(--{colour})" fill-opacity="{opacity:.2f}" stroke="var(--paper)" stroke-width="0.75"'
    return f'<path d="M{" ".join(forth + back)}Z" {style}/>'


def blend() -> str:
    """One query against six keys: the closer the match, the more of that key's value is in the output."""
    generator = torch.Generator().manual_seed(4)
    s, d, e, step = 6, 8, 33, 3.5
    query = torch.randn(d, generator=generator)
    query *= 3.1 / query.norm()
    # Keys as long as the query, at chosen angles to it: only the direction decides.
    cosine = torch.tensor([-0.5, 0.92, 0.0, 0.5, 0.75, -0.25])[:, None]
    other = torch.randn(s, d, generator=generator)
    other -= (other @ query)[:, None] * query / query.norm() ** 2
    other *= query.norm() / other.norm(dim=1, keepdim=True)
    key = cosine * query + (1 - cosine**2).sqrt() * other
    # Each value is one bump, so that the blend shows whose it is.
    centres = torch.tensor([0.5, 0.3, 0.2, 0.82, 0.62, 0.4])[:, None]
    value = torch.exp(-(((torch.linspace(0, 1, e) - centres) / 0.1) ** 2))
    inputs = (query[None, None, None], key[None, None], value[None, None])
    weights = attention_weights(*inputs[:2])[0, 0, 0]
    output = scaled_dot_product_attention(*inputs)[0, 0, 0]
    shares, opacities = weights.tolist(), (0.15 + 0.8 * weights / weights.max()).tolist()

    left, middle, right, top, pitch = 0, 124, 282, 124, 37
    base, end = top + pitch * s, 394
    parts = [text(left, 14, "query", anchor="start", colour="query"), signed_bars(left, 43, query, "query")]
    parts += [line(left, 72.5, end, 72.5), line(right, base - 13.5, end, base - 13.5)]
    parts += [
        text(left, 92, "keys", anchor="start", colour="key"),
        text(middle, 92, "weights", anchor="start", colour="weights"),
    ]
    parts.append(text(right, 92, "values", anchor="start", colour="value"))
    for j in range(s):
        y = top + pitch * j
        floor = torch.full((e,), y + 11.0)
        parts.append(signed_bars(left, y, key[j], "key"))
        parts.append(rect(middle, y - 5, 128 * shares[j] / max(shares), 10, "weights"))
        parts.append(area(right, floor, floor - 22 * value[j], "value", opacities[j], step))

    # The blend, layer upon layer: their sum is the output.
    floor, height = torch.full((e,), base + 48.0), torch.zeros(e)
    for j in range(s):
        layer = 110 * weights[j] * value[j]
        parts.append(area(right, floor - height, floor - height - layer, "value", opacities[j], step))
        height = height + layer
    assert torch.allclose(height, 110 * output, atol=1e-3)
    parts.append(text(right - 14, base + 46, "output", anchor="end", colour="value"))
    return svg(end, base + 54, "A query, six keys, their weights, and the blend of six values", parts)


def saturation() -> str:
    """The sorted weights of a query over 24 keys, averaged over 1000 queries, without and with the root."""
    generator = torch.Generator().manual_seed(0)
    s, bar, unit = 24, 5, 100
    rows = [("unscaled", 1.0, 134), ("scaled", None, 196)]
    parts = [text(0, floor, label, anchor="start", colour="soft") for label, _, floor in rows]
    for column, d in enumerate((4, 16, 64, 256)):
        left = 78 + column * 142
        query, key = (torch.randn(1000, 1, n, d, generator=generator) for n in (1, s))
        parts.append(text(left, 14, f"d = {d}", anchor="start", colour="soft"))
        for _, scale, floor in rows:
            weights = attention_weights(query, key, scale=scale)
            mean = weights.sort(descending=True).values.mean((0, 1, 2)).tolist()
            parts.append(line(left, floor + 0.5, left + bar * s, floor + 0.5))
            heights = [(n, unit * weight) for n, weight in enumerate(mean) if unit * weight > 0.1]
            parts += [rect(left + bar * n, floor - height, 3.8, height, "weights") for n, height in heights]
            parts.append(
                text(left, floor - unit * mean[0] - 6, f"{mean[0]:.2f}", anchor="start", colour="weights")
            )
    return svg(624, 200, "Sorted weights at four widths: unscaled they collapse, scaled they stay", parts)
