r"""# A stream in one pass

The cache of attention sinks reads one token at a time.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $i$ | `i` | `... t` | where the queries stand in the text |
| $j$ | `j` | `... s` | where the keys stand in the text |
| $n$ | `n_sinks` | scalar | tokens that are kept for ever |
| $w$ | `window` | scalar | newest tokens that are kept |
"""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from annotated_attention.alibi import alibi_slopes
from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.language_model import causal_mask
from annotated_attention.rotary import apply_rotary, rotary_angles

__all__ = ["alibi_by_position", "streaming_alibi", "streaming_mask", "streaming_rotary"]


def streaming_mask(
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    n_sinks: int,
    window: int,
) -> Bool[Tensor, "... t s"]:
    r"""## Who is still there"""
    near = i[..., :, None] - j[..., None, :] < window
    kept = near | (j < n_sinks)[..., None, :]
    return causal_mask(i, j) & (kept if kept.ndim == 2 else kept[:, None])


def streaming_rotary(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    n_sinks: int,
    window: int,
    base: float = 10000.0,
) -> Float[Tensor, "b h t e"]:
    r"""## Turned twice"""
    d = query.shape[-1]
    angles = partial(rotary_angles, d=d, base=base)
    capped = i.clamp(max=n_sinks + window - 1)
    near, far = apply_rotary(query, angles(i)), apply_rotary(query, angles(capped))
    key = apply_rotary(key, angles(j))

    is_sink = (j < n_sinks)[..., None, :, None]
    query = torch.cat([near, far], dim=-1)
    key = torch.cat(
        [key.masked_fill(is_sink, 0.0), key.masked_fill(~is_sink, 0.0)],
        dim=-1,
    )
    mask = streaming_mask(i, j, n_sinks, window)
    return F.scaled_dot_product_attention(
        query, key, value, mask, scale=d**-0.5, enable_gqa=True
    )


def alibi_by_position(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""## ALiBi, wherever keys stand"""
    distance = i[..., :, None] - j[..., None, :]
    return by_distance(query, key, value, distance, causal_mask(i, j))


def streaming_alibi(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    n_sinks: int,
    window: int,
) -> Float[Tensor, "b h t e"]:
    r"""## The same for ALiBi"""
    capped = i.clamp(max=n_sinks + window - 1)
    is_sink = (j < n_sinks)[..., None, :]
    place = torch.where(is_sink, capped[..., :, None], i[..., :, None])
    distance = place - j[..., None, :]
    mask = streaming_mask(i, j, n_sinks, window)
    return by_distance(query, key, value, distance, mask)


def by_distance(query, key, value, distance, mask):
    wide = torch.promote_types(query.dtype, torch.float32)
    slopes = alibi_slopes(query.shape[1], dtype=wide, device=query.device)
    distance = distance.abs().to(wide)
    bias = -torch.einsum("h, ... t s -> ... h t s", slopes, distance)
    bias = bias.masked_fill(~mask, -torch.inf)
    return grouped_query_attention(query, key, value, bias)


def example(axes: dict[str, int]) -> None:
    """A piece of a text: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    h = g * r
    query, key, value = torch.randn(b, h, t, 2 * d), torch.randn(b, g, s, 2 * d), torch.randn(b, g, s, e)
    i, j = torch.arange(t) + s, torch.arange(s)
    streaming_rotary(query, key, value, i, j, n_sinks=1, window=3)
    streaming_alibi(query, key, value, i, j, n_sinks=1, window=3)
    alibi_by_position(query, key, value, i, j)
