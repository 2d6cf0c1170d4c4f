r"""# Sink logits

A head that finds nothing must take something all the same.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $z_h$ | `sink_logits` | `h` | the score of nothing |
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from annotated_attention.language_model import causal_mask
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["LearnableSink", "SinkLogits", "sink_attention"]


def sink_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    sink_logits: Float[Tensor, "h"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## One more score, and no value"""
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa=True)
    (b, h, t, d), (g, s) = query.shape, key.shape[1:3]
    if sink_logits.shape != (h,) or not sink_logits.is_floating_point():
        came = f"sink_logits is {sink_logits.dtype} of shape {tuple(sink_logits.shape)}"
        raise ValueError(f"{came}: {h} floating numbers, one a head, are wanted")

    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.to(wide).repeat_interleave(h // g, dim=1)
    value = value.to(wide).repeat_interleave(h // g, dim=1)
    scores = torch.einsum("b h t d, b h s d -> b h t s", query.to(wide), key)
    scores = scores * (d**-0.5 if scale is None else scale)
    if is_causal:
        attn_mask = scores.new_ones(t, s, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.to(wide)

    nothing = sink_logits.to(wide)[:, None, None].expand(b, h, t, 1)
    scores = torch.cat([nothing, scores], dim=-1)
    empty = (scores == -torch.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1)
    weights = weights.masked_fill(empty, 0.0)[..., 1:]
    output = torch.einsum("b h t s, b h s e -> b h t e", weights, value)
    return output.to(query.dtype)


class SinkLogits(nn.Module):
    r"""## Learned, one a head"""

    def __init__(
        self,
        n_heads: int,
        *,
        around: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sink_logits = nn.Parameter(torch.zeros(n_heads))
        self.around = around

    def forward(
        self,
        query: Float[Tensor, "b h t d"],
        key: Float[Tensor, "b g s d"],
        value: Float[Tensor, "b g s e"],
        i: Int[Tensor, "... t"],
        j: Int[Tensor, "... s"],
    ) -> Float[Tensor, "b h t e"]:
        if self.around is None:
            return self.attend(query, key, value, i, j)
        return self.around(query, key, value, i, j, attend=self.attend)

    def attend(self, query, key, value, i, j):
        mask = causal_mask(i, j)
        return sink_attention(query, key, value, self.sink_logits, mask)


class LearnableSink(nn.Module):
    r"""## A token that means nothing"""

    def __init__(self, d_model: int, n_sinks: int = 1) -> None:
        super().__init__()
        if d_model < 1 or n_sinks < 1:
            came = f"d_model is {d_model}, n_sinks is {n_sinks}"
            raise ValueError(f"{came}: at least 1 is wanted")
        self.sinks = nn.Parameter(torch.empty(n_sinks, d_model))
        nn.init.normal_(self.sinks, std=0.02)

    def forward(self, x: Float[Tensor, "b t m"]) -> Float[Tensor, "b n m"]:
        sinks = self.sinks.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([sinks, x], dim=1)


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    h = g * r
    query, key, value = torch.randn(b, h, t, 2 * d), torch.randn(b, g, s, 2 * d), torch.randn(b, g, s, e)
    sink_attention(query, key, value, torch.zeros(h))
    SinkLogits(h)(query, key, value, torch.arange(t), torch.arange(s))
    LearnableSink(h * d, 1)(torch.randn(b, t, h * d))
