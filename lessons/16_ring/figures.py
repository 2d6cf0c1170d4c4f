"""The figures of the page, drawn from the mechanism itself. Each function returns one SVG."""

import torch

from annotated_attention.ring import ring_attention


def weights() -> str:
    """The weights of three queries over five keys, as the areas of squares."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 1, 3, 8, generator=generator), torch.randn(1, 1, 5, 8, generator=generator)
    # With one-hot values the result is the weights themselves.
    rows = ring_attention(query, key, torch.eye(5)[None, None])[0, 0].tolist()
    squares = [
        f'<rect x="{40 * j + 20 - side / 2:.1f}" y="{40 * i + 20 - side / 2:.1f}" '
        f'width="{side:.1f}" height="{side:.1f}" fill="var(--weights)"/>'
        for i, row in enumerate(rows)
        for j, weight in enumerate(row)
        for side in [36 * weight**0.5]
    ]
    title = "<title>Three rows of five squares: the weight of each key, as an area</title>"
    return f'<svg viewBox="0 0 200 120">{title}{"".join(squares)}</svg>'
