"""The figures of the cross-attention page, drawn from the mechanism itself. Each function returns one SVG."""

import torch
from torch import Tensor

from annotated_attention.cross_attention import CrossAttention, DecoderBlock, insert_features
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.multi_head import split_heads
from annotated_attention.scaled_dot_product import attention_weights
from coursekit.drawing import circle, rect, svg, text

# What each word means, as shares of six meanings: article, Europe, economy, area, being, signing.
ENGLISH = {"the": [1, 0, 0, 0, 0, 0], "European": [0, 1, 0, 0, 0, 0], "Economic": [0, 0, 1, 0, 0, 0]}
ENGLISH |= {"Area": [0, 0, 0, 1, 0, 0], "was": [0, 0, 0, 0, 1, 0], "signed": [0, 0, 0, 0, 0, 1]}
FRENCH = {"la": [0.8, 0, 0, 0.25, 0, 0], "zone": [0.1, 0, 0, 1, 0, 0], "économique": [0, 0.1, 1, 0, 0, 0]}
FRENCH |= {"européenne": [0, 1, 0.1, 0, 0, 0], "a": [0.1, 0, 0, 0, 0.9, 0.3]}
FRENCH |= {"été": [0, 0, 0, 0, 0.9, 0.4], "signée": [0, 0, 0, 0, 0.2, 1]}


def alignment() -> str:
    """Strokes between the words of two sentences, as strong as the weights of one head."""
    layer = CrossAttention(6, 6, 1)
    for projection in (layer.w_q, layer.w_k):
        projection.weight.data = 3.2 * torch.eye(6)
    context, x = (torch.tensor([list(words.values())]).float() for words in (ENGLISH, FRENCH))
    key, _ = layer.project(context)
    weights = attention_weights(split_heads(layer.w_q(x), 1), key)[0, 0]

    width, top, bottom = 424, 18, 176

    def centres(words: dict[str, list[float]]) -> list[float]:
        """The middle of each word when the line is set as wide as the picture."""
        lengths = [7.4 * len(word) for word in words]
        gap, left, middles = (width - sum(lengths)) / (len(words) - 1), 0.0, []
        for length in lengths:
            middles.append(left + length / 2)
            left += length + gap
        return middles

    above, below = centres(ENGLISH), centres(FRENCH)
    parts = []
    for i, row in enumerate(weights.tolist()):
        for j, weight in enumerate(row):
            start, end, middle = (
                f"{below[i]:.1f} {bottom - 19}",
                f"{above[j]:.1f} {top + 9}",
                (top + bottom) / 2,
            )
            curve = f"M{start}C{below[i]:.1f} {middle:g} {above[j]:.1f} {middle:g} {end}"
            stroke = f'stroke-width="{0.5 + 5 * weight:.2f}" stroke-opacity="{0.06 + 0.7 * weight:.3f}"'
            parts.append(f'<path d="{curve}" fill="none" stroke="var(--weights)" {stroke}/>')
    for words, middles, y, colour in ((ENGLISH, above, top, "key"), (FRENCH, below, bottom, "query")):
        parts += [text(x, y, word, colour=colour, size=14) for word, x in zip(words, middles, strict=True)]
    title = (
        "The noun and its adjectives stand in opposite orders, and the strokes between the sentences cross"
    )
    return svg(width, bottom + 8, title, parts)


def seen(output: Tensor, *inputs: Tensor) -> Tensor:
    """Which input vectors (columns) each output vector (row) depends on, by its gradients."""
    rows = []
    for i in range(output.shape[1]):
        gradients = torch.autograd.grad(output[0, i].sum(), inputs, retain_graph=True)
        rows.append(torch.cat([gradient[0].abs().sum(-1) > 0 for gradient in gradients]))
    return torch.stack(rows)


def who_sees_whom() -> str:
    """What a token depends on after one layer: beside a context, and with the context among the tokens."""
    t, s, m, first = 5, 4, 12, 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, context = torch.randn(1, t, m, requires_grad=True), torch.randn(1, s, m, requires_grad=True)
        beside = seen(DecoderBlock(m, m, 3)(x, context), context, x)
        block = LanguageModel(LanguageModelConfig(d_model=m, n_heads=3, n_layers=1)).blocks[0]
        places = torch.arange(t + s)[None]
        is_image = (places >= first) & (places < first + s)
        padded = torch.cat([x[:, :first], torch.zeros(1, s, m), x[:, first:]], 1)
        inserted = insert_features(padded, context, is_image).detach().requires_grad_()
        among = seen(block(inserted), inserted)

    cell, left, top, gap = 19, 34, 24, 26
    words, image = [f"{n + 1}" for n in range(t)], list("abcd")
    panels = [("cross-attention", beside, image + words, words)]
    mixed = words[:first] + image + words[first:]
    panels.append(("inserted", among, mixed, mixed))
    parts, height = [], 0
    for title, matrix, columns, rows in panels:
        parts.append(text(left + len(columns) * cell / 2, 13, title, colour="ink"))
        for i, row in enumerate(rows):
            y = top + i * cell
            parts.append(text(left - 9, y + 14, row, colour="key" if row in image else "query", size=12))
            for j, column in enumerate(columns):
                x0, colour = left + j * cell, "key" if column in image else "query"
                if matrix[i, j]:
                    parts.append(rect(x0 + 1, y + 1, cell - 2, cell - 2, colour, 0.62, rx=3))
                else:
                    parts.append(circle(x0 + cell / 2, y + cell / 2, 1.2, "mask"))
        base = top + len(rows) * cell + 14
        for j, column in enumerate(columns):
            colour = "key" if column in image else "query"
            parts.append(text(left + (j + 0.5) * cell, base, column, colour=colour, size=12))
        height, left = max(height, base), left + len(columns) * cell + gap + 10
    title = "Beside a context each token sees all of it; among the tokens the context obeys the causal mask"
    return svg(left - gap - 8, height + 6, title, parts)
