r"""# Cross-attention

A translation is written from another text: each new word needs a few words of the source, and a different few
every time. Self-attention cannot give them, for it looks only at what it is itself writing.

Cross-attention takes its queries from one sequence and its keys and values from another.

$$O = [\,H_1 \cdots H_n\,]\, W_O, \qquad
H_h = \operatorname{softmax}\!\Big(\tfrac{1}{\sqrt d}\, X W_Q^h\, (C\, W_K^h)^\top\Big)\, C\, W_V^h .$$

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $X$ | `x` | `b t m` | the sequence that asks |
| $C$ | `context` | `b s c` | the sequence that is read |
| $Q_h$ | `query` | `b h t d` | what the first asks |
| $K_h$ | `key` | `b h s d` | what the context is found by |
| $V_h$ | `value` | `b h s d` | what the context gives |
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from annotated_attention.language_model import Cache, SelfAttention
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

__all__ = [
    "ContextCost",
    "CrossAttention",
    "DecoderBlock",
    "VisionProjector",
    "cross_attention_cost",
    "insert_features",
    "insertion_cost",
]


class CrossAttention(nn.Module):
    r"""## Two widths"""

    def __init__(self, d_model: int, d_context: int, n_heads: int) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        if d_context < 1:
            raise ValueError(f"d_context is {d_context}: at least 1 is wanted")
        self.d_model, self.d_context, self.n_heads = d_model, d_context, n_heads
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_context, d_model, bias=False)
        self.w_v = nn.Linear(d_context, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)

    def project(
        self, context: Float[Tensor, "b s c"]
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        r"""Keys and values of the context: once a text, whatever is written from it."""
        if context.ndim != 3 or context.shape[2] != self.d_context:
            came = f"context has shape {tuple(context.shape)}"
            raise ValueError(f"{came}: b s c is wanted, with c = {self.d_context}")
        key = split_heads(self.w_k(context), self.n_heads)
        value = split_heads(self.w_v(context), self.n_heads)
        return key, value

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        context: Float[Tensor, "b s c"] | None = None,
        *,
        keys_values: tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]] | None = None,
        padding_mask: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b t m"]:
        r"""The output. Either `context` or what `project` made of it, `keys_values`; `padding_mask` is True
        at the real tokens of the context."""
        if x.ndim != 3 or x.shape[2] != self.d_model:
            came = f"x has shape {tuple(x.shape)}"
            raise ValueError(f"{came}: b t m is wanted, with m = {self.d_model}")
        if (context is None) == (keys_values is None):
            came = "neither" if context is None else "both"
            raise ValueError(f"context and keys_values: one of the two is wanted, {came} came")
        query = split_heads(self.w_q(x), self.n_heads)
        key, value = self.project(context) if keys_values is None else keys_values
        if padding_mask is not None:
            b, s = key.shape[0], key.shape[2]
            if padding_mask.dtype != torch.bool or padding_mask.shape != (b, s):
                came = f"padding_mask is {padding_mask.dtype} of shape {tuple(padding_mask.shape)}"
                raise ValueError(f"{came}: torch.bool of shape {(b, s)} is wanted, True for a real token")
            padding_mask = padding_mask[:, None, None, :]
        heads = scaled_dot_product_attention(query, key, value, padding_mask)
        return self.w_o(merge_heads(heads))


class DecoderBlock(nn.Module):
    r"""## Where it lives"""

    def __init__(self, d_model: int, d_context: int, n_heads: int) -> None:
        super().__init__()
        m = d_model
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(m) for _ in range(3))
        self.self_attention = SelfAttention(m, n_heads)
        self.cross_attention = CrossAttention(m, d_context, n_heads)
        self.mlp = nn.Sequential(nn.Linear(m, 4 * m), nn.GELU(), nn.Linear(4 * m, m))

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        context: Float[Tensor, "b s c"] | None = None,
        *,
        keys_values: tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]] | None = None,
        padding_mask: Bool[Tensor, "b s"] | None = None,
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        x = x + self.self_attention(self.self_norm(x), positions=positions, cache=cache)
        x = x + self.cross_attention(
            self.cross_norm(x),
            context,
            keys_values=keys_values,
            padding_mask=padding_mask,
        )
        return x + self.mlp(self.mlp_norm(x))


class VisionProjector(nn.Module):
    r"""## Or make tokens of it"""

    def __init__(self, d_vision: int, d_model: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(d_vision, d_model), nn.GELU(), nn.Linear(d_model, d_model))

    def forward(self, features: Float[Tensor, "b s c"]) -> Float[Tensor, "b s m"]:
        return self.mlp(features)


def insert_features(
    x: Float[Tensor, "b t m"],
    features: Float[Tensor, "b s m"],
    is_image: Bool[Tensor, "b t"],
) -> Float[Tensor, "b t m"]:
    r"""The embeddings `x`, with those of the `s` placeholders of each text replaced by `features`, in order."""
    s, places = features.shape[1], is_image.sum(dim=1)
    if (places != s).any():
        raise ValueError(f"is_image has {places.tolist()} places, features has {s} for each text")
    return x.masked_scatter(is_image[:, :, None], features)


class ContextCost(NamedTuple):
    parameters: int
    once: int
    token: int
    cache: int


def cross_attention_cost(s: int, c: int, m: int) -> ContextCost:
    r"""What a context of `s` vectors of width `c` costs a layer of width `m`: parameters, operations once a
    context, operations each token written, numbers in the cache."""
    return ContextCost(
        parameters=2 * m * m + 2 * c * m,
        once=4 * s * c * m,
        token=4 * m * m + 4 * s * m,
        cache=2 * s * m,
    )


def insertion_cost(s: int, m: int) -> ContextCost:
    r"""The same for `s` tokens more in a decoder-only layer with 12 m^2 weights."""
    return ContextCost(
        parameters=0,
        once=24 * s * m * m + 4 * s * s * m,
        token=4 * s * m,
        cache=2 * s * m,
    )


def example(axes: dict[str, int]) -> None:
    """Run once, on primes such as `h=3, d=11`: the shapes beside the code are read off this run."""
    b, h, t, s, d, c = (axes[letter] for letter in "bhtsde")
    m = h * d
    x, context = torch.randn(b, t, m), torch.randn(b, s, c)
    layer = CrossAttention(m, c, h)
    layer(x, keys_values=layer.project(context), padding_mask=torch.ones(b, s, dtype=torch.bool))
    DecoderBlock(m, c, h)(x, context)
    features = VisionProjector(c, m)(context)
    is_image = torch.arange(t + s).expand(b, -1) < s
    insert_features(torch.randn(b, t + s, m), features, is_image)
    cross_attention_cost(s, c, m)
    insertion_cost(s, m)
