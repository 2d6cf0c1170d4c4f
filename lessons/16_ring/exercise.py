"""# Exercise: ring

What there is to write, and what may be used. Axes are named as everywhere here: `b` batch, `h` heads,
`t` queries, `s` keys, `d` and `e` widths.

Check your work as often as you like: `attn check ring` says what is wrong and where, and
`attn check ring --hint` gives one hint at a time.
"""

import torch
from torch import Tensor


def ring_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Task 1: the attention.

    It is softmax(query keyᵀ / sqrt(d)) value.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * query.shape[-1] ** -0.5
    return torch.einsum("b h t s, b h s e -> b h t e", scores.softmax(dim=-1), value)
    ### END SOLUTION
