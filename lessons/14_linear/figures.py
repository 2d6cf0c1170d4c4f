"""The figures of the pages, drawn from the mechanisms themselves. Each function returns one SVG."""

import math

import torch

from annotated_attention.linear import elu_plus_one, linear_attention


def text(
    x: float, y: float, content: str, *, anchor: str = "middle", colour: str = "soft", size: int = 13
) -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text class="fig-text" {place} fill="var(--{colour})">{content}</text>'


def rect(
    x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0, rx: float = 1.5
) -> str:
    place = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" rx="{rx:g}"'
    return f'<rect {place} fill="var(--{colour})" fill-opacity="{opacity:.3f}"/>'


def frame(x: float, y: float, width: float, height: float, colour: str) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
    return f'<rect {place} fill="none" stroke="var(--{colour})" stroke-width="1.5"/>'


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str = "line", width: float = 1.0, opacity: float = 1.0
) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="var(--{colour})" stroke-width="{width:g}" stroke-opacity="{opacity:.2f}"/>'


def curve(points: list[tuple[float, float]], colour: str, width: float = 2.5, opacity: float = 1.0) -> str:
    marks = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    stroke = f'stroke="var(--{colour})" stroke-width="{width:g}" stroke-opacity="{opacity:g}"'
    return f'<polyline points="{marks}" fill="none" {stroke} stroke-linejoin="round"/>'


def svg(width: float, height: float, title: str, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}"><title>{title}</title>{"".join(parts)}</svg>'


def weights() -> str:
    """The weights of linear attention and of softmax, for the same queries and keys."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 1, 3, 8, generator=generator), torch.randn(1, 1, 5, 8, generator=generator)
    rows = linear_attention(query, key, torch.eye(5)[None, None], is_causal=False)[0, 0].tolist()
    assert math.isclose(sum(rows[0]), 1, rel_tol=1e-5)
    assert elu_plus_one(query).min() > 0
    parts = [
        rect(40 * j + 20 - side / 2, 40 * i + 20 - side / 2, side, side, "weights")
        for i, row in enumerate(rows)
        for j, weight in enumerate(row)
        for side in [36 * weight**0.5]
    ]
    return svg(200, 120, "Three rows of five squares: the weight of each key, as an area", parts)
