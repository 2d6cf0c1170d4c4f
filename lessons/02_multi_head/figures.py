"""The figures of the multi-head attention page, drawn from the mechanism. Each function returns one SVG."""

import torch
from torch import Tensor

from annotated_attention.multi_head import MultiHeadAttention, split_heads
from coursekit.drawing import rect, svg, text


def cells(x: float, y: float, numbers: Tensor, size: float, colour: str) -> list[str]:
    """A row of numbers as squares, the darker the larger."""
    shades = (0.12 + 0.45 * numbers.detach().abs()).clamp(max=0.95).tolist()
    return [rect(x + n * size, y, size - 2, size - 2, colour, shade) for n, shade in enumerate(shades)]


def heads() -> str:
    """One query of twelve numbers on its way through three heads, over six keys."""
    h, d, s, size, pitch, left = 3, 4, 6, 16, 128, 54
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layer, text_so_far = MultiHeadAttention(h * d, h).eval(), torch.randn(1, s, h * d)
    # An untrained layer hardly prefers any key: make its choices as firm as a trained one's.
    for projection in (layer.w_q, layer.w_k):
        projection.weight.data *= 2.6
    output, weights = layer(text_so_far[:, -1:], text_so_far, text_so_far)
    q = split_heads(layer.w_q(text_so_far[:, -1:]), h)[0, :, 0]
    k, v = (split_heads(w(text_so_far), h)[0] for w in (layer.w_k, layer.w_v))

    keys_y, found_y, output_y = 48, 48 + s * size + 26, 48 + s * size + 26 + 74
    width = left + (h - 1) * pitch + d * size + 50
    parts = [
        text(0, 21, "query", anchor="start", colour="query"),
        text(0, keys_y + 12, "keys", anchor="start", colour="key"),
    ]
    parts += [
        text(0, found_y + 12, "found", anchor="start", colour="value"),
        text(0, output_y + 12, "output", anchor="start"),
    ]
    start = left + (width - left - h * d * size) / 2
    for n in range(h):
        x = left + n * pitch
        parts += cells(x, 8, q[n], size, "query")
        for j in range(s):
            parts += cells(x, keys_y + j * size, k[n, j] / 2, size, "key")
            bar = 44 * weights[0, n, 0, j].item()
            parts.append(rect(x + d * size + 4, keys_y + j * size, max(bar, 1), size - 2, "weights", 0.85))
        parts += cells(x, found_y, 2 * (weights[0, n, 0] @ v[n]), size, "value")
        # Every head writes to the whole width of the output.
        upper, lower = (x - 1, x + d * size - 1), (start + h * d * size - 1, start - 1)
        corners = [f"{edge:g},{found_y + size + 2:g}" for edge in upper]
        corners += [f"{edge:g},{output_y - 4:g}" for edge in lower]
        parts.append(f'<polygon points="{" ".join(corners)}" fill="var(--value)" fill-opacity="0.1"/>')
    parts += cells(start, output_y, 2 * output[0, 0], size, "ink")
    title = "A query is cut into three parts; each weighs six keys of its own; what they find is summed"
    return svg(width, output_y + size + 4, title, parts)


def cut() -> str:
    """Which head each number of four tokens goes to: by `rearrange`, and by the `view` that looks right."""
    tokens, h, d, size, top = 4, 3, 2, 27, 26
    order = torch.arange(tokens * h * d)
    right = split_heads(order.double().reshape(1, tokens, h * d), h)[0].long()
    wrong = order.reshape(h, tokens, d)
    parts = []
    for panel, (title, by_head) in enumerate([("b t (h d) → b h t d", right), ("view(b, h, t, d)", wrong)]):
        left = 62 + panel * (h * d * size + 46)
        parts.append(text(left + h * d * size / 2, 13, title, colour="ink"))
        for n in range(h):
            for place in by_head[n].flatten().tolist():
                x, y = left + place % (h * d) * size, top + place // (h * d) * size
                parts.append(rect(x, y, size - 2, size - 2, "query", (0.12, 0.38, 0.72)[n]))
                shade = "paper" if n == 2 else "ink"
                parts.append(text(x + size / 2 - 1, y + size / 2 + 4, f"{n + 1}", colour=shade, size=12))
    for row in range(tokens):
        parts.append(text(50, top + row * size + size / 2 + 4, f"token {row + 1}", anchor="end", size=12))
    title = "Split by rearrange, each head gets its columns of every token; by view, whole tokens"
    return svg(62 + 2 * h * d * size + 46, top + tokens * size + 4, title, parts)
