r"""# Many readers of one text

One new token has one query.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | `n_splits` | scalar | parts |
"""

from functools import reduce

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from annotated_attention.flash import flash_attention, merge_attention
from annotated_attention.language_model import causal_mask
from annotated_attention.sliding_window import is_run

__all__ = ["causal_flash_attention", "shared_prefix_attention", "split_attention"]


def split_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    n_splits: int,
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Split-K"""
    if n_splits < 1:
        raise ValueError(f"n_splits is {n_splits}: at least 1 is wanted")
    size = max(-(-key.shape[2] // n_splits), 1)
    wide = torch.promote_types(query.dtype, torch.float32)
    q = query.to(wide)
    pairs = zip(key.split(size, 2), value.split(size, 2), strict=True)
    parts = [flash_attention(q, k.to(wide), v.to(wide), scale=scale) for k, v in pairs]
    output, lse = reduce(lambda a, b: merge_attention(*a, *b), parts)
    return output.to(query.dtype), lse


def shared_prefix_attention(
    query: Float[Tensor, "b h t d"],
    prefix_key: Float[Tensor, "1 g p d"],
    prefix_value: Float[Tensor, "1 g p e"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## A beginning that all share"""
    b = query.shape[0]
    together = rearrange(query, "b h t d -> 1 h (b t) d")
    output, lse = flash_attention(together, prefix_key, prefix_value, scale=scale)
    shared = (
        rearrange(output, "1 h (b t) e -> b h t e", b=b),
        rearrange(lse, "1 h (b t) -> b h t", b=b),
    )
    own = flash_attention(query, key, value, is_causal=is_causal, scale=scale)
    return merge_attention(*shared, *own)


def causal_flash_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""## In a model"""
    if is_run(i) and is_run(j) and i[0] >= j[0]:
        past = min(int(i[0] - j[0]), key.shape[2])
        old_key, new_key = key.split([past, key.shape[2] - past], dim=2)
        old_value, new_value = value.split([past, key.shape[2] - past], dim=2)
        own = flash_attention(query, new_key, new_value, is_causal=True)
        if not past:
            return own[0]
        return merge_attention(*flash_attention(query, old_key, old_value), *own)[0]
    attend = F.scaled_dot_product_attention
    return attend(query, key, value, causal_mask(i, j), enable_gqa=True)


def example(axes: dict[str, int]) -> None:
    """Run once: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query, key, value = torch.randn(b, g * r, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    split_attention(query, key, value, 2)
    shared_prefix_attention(query, key[:1], value[:1], key, value)
    i, j = torch.arange(t), torch.arange(s)
    causal_flash_attention(query, key, value, i + 1, j)
