r"""# Grouped-query attention

A decoder writes one token at a time, and for each one every head reads all its keys and values again.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $r$ | `r` | scalar | query heads that share a key head |
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from annotated_attention.language_model import (
    Attend,
    Cache,
    SelfAttention,
    causal_attention,
    causal_mask,
    placed,
)
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import attention_weights, check_inputs

__all__ = [
    "GroupedQueryAttention",
    "causal_grouped_attention",
    "decode_cost",
    "grouped_query_attention",
    "mean_pool_kv_heads",
]


def grouped_query_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## The function

    A group of $r$ heads that share keys is one head with $r\,t$ queries.
    """
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa=True)
    (h, t), (g, s) = query.shape[1:3], key.shape[1:3]
    r = h // g

    if is_causal:
        attn_mask = query.new_ones(t, s, dtype=torch.bool).tril()
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)]
        heads = r if attn_mask.shape[1] == 1 else h
        attn_mask = attn_mask.expand(-1, heads, t, -1)
        attn_mask = rearrange(attn_mask, "b (g r) t s -> b g (r t) s", r=r)

    wide = torch.promote_types(query.dtype, torch.float32)
    q = rearrange(query.to(wide), "b (g r) t d -> b g (r t) d", r=r)
    k, v = key.to(wide), value.to(wide)
    weights = attention_weights(q, k, attn_mask, scale=scale)
    output = torch.einsum("b g n s, b g s e -> b g n e", weights, v)
    return rearrange(output, "b g (r t) e -> b (g r) t e", r=r).to(query.dtype)


def causal_grouped_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""What the slot of lesson 3 wants: queries at positions $i$ see keys at positions $j \le i$."""
    return grouped_query_attention(query, key, value, causal_mask(i, j))


class GroupedQueryAttention(nn.Module):
    r"""## The layer"""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        *,
        attend: Attend = causal_grouped_attention,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            came = f"n_heads is {n_heads}, n_kv_heads is {n_kv_heads}"
            raise ValueError(f"{came}: a multiple of n_kv_heads is wanted")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.attend = attend
        d_kv = d_model // n_heads * n_kv_heads
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_kv, bias=False)
        self.w_v = nn.Linear(d_model, d_kv, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        query = split_heads(self.w_q(x), self.n_heads)
        key = split_heads(self.w_k(x), self.n_kv_heads)
        value = split_heads(self.w_v(x), self.n_kv_heads)
        i, j, key, value = placed(key, value, positions, cache)
        return self.w_o(merge_heads(self.attend(query, key, value, i, j)))

    @classmethod
    def from_multi_head(
        cls, source: SelfAttention, n_kv_heads: int, *, attend: Attend | None = None
    ) -> "GroupedQueryAttention":
        r"""## Converting a checkpoint"""
        if attend is None:
            if source.attend is not causal_attention:
                raise ValueError("source attends in its own way: its grouped form is wanted as attend")
            attend = causal_grouped_attention
        n_heads, d_model = source.n_heads, source.w_q.in_features
        copy = cls(d_model, n_heads, n_kv_heads, attend=attend).to(source.w_q.weight)
        with torch.no_grad():
            copy.w_q.weight.copy_(source.w_q.weight)
            copy.w_k.weight.copy_(mean_pool_kv_heads(source.w_k.weight, n_heads, n_kv_heads))
            copy.w_v.weight.copy_(mean_pool_kv_heads(source.w_v.weight, n_heads, n_kv_heads))
            copy.w_o.weight.copy_(source.w_o.weight)
        return copy.train(source.training)


def mean_pool_kv_heads(
    weight: Float[Tensor, "..."], n_heads: int, n_kv_heads: int
) -> Float[Tensor, "..."]:
    r"""## Mean pooling"""
    if n_kv_heads < 1 or n_heads < 1 or n_heads % n_kv_heads:
        came = f"n_heads is {n_heads}, n_kv_heads is {n_kv_heads}"
        raise ValueError(f"{came}: a multiple of n_kv_heads is wanted")
    if weight.ndim not in (1, 2) or weight.shape[0] % n_heads:
        came = f"weight has shape {tuple(weight.shape)}"
        raise ValueError(f"{came}: h*d m or h*d is wanted, with h = n_heads = {n_heads}")
    r = n_heads // n_kv_heads
    return reduce(weight, "(g r d) ... -> (g d) ...", "mean", g=n_kv_heads, r=r)


def decode_cost(b: int, h: int, g: int, s: int, d: int, itemsize: int = 2) -> tuple[int, int]:
    r"""## What it costs, and when it fails"""
    return 4 * b * h * s * d, 2 * b * g * s * d * itemsize


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query, key, value = (torch.randn(b, n, w, x) for n, w, x in ((g * r, t, d), (g, s, d), (g, s, e)))
    grouped_query_attention(query, key, value, is_causal=True)
    GroupedQueryAttention(g * r * d, g * r, g)(torch.randn(b, t, g * r * d))
    GroupedQueryAttention.from_multi_head(SelfAttention(g * r * d, g * r), g)
    mean_pool_kv_heads(torch.randn(g * r * d, g * r * d), g * r, g)
    decode_cost(b, g * r, g, s, d)
