r"""# A language model

A decoder-only transformer around a slot for any attention of the course.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $i$ | `i` | `t` | positions of the queries |
| $j$ | `j` | `s` | positions of the keys |
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

__all__ = [
    "Attend",
    "Cache",
    "LanguageModel",
    "LanguageModelConfig",
    "SelfAttention",
    "causal_attention",
    "causal_mask",
    "generate",
    "sample",
    "train",
]

# `attend(query, key, value, i, j)`: what queries at positions `i` take from keys and values at positions `j`.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Cache(Protocol):
    """The keys and values of one layer that were computed before. Lesson 7 builds the first."""

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the newest `b g t d` and `b g t e`; return all that are held, these included."""
        ...

    @property
    def positions(self) -> Tensor:
        """Where the held keys stand, in the order of `update`'s answer: `s` or `b s`. What is negative is no
        key at all."""
        ...

    @property
    def nbytes(self) -> int: ...


def causal_mask(i: Int[Tensor, "... t"], j: Int[Tensor, "... s"]) -> Bool[Tensor, "... t s"]:
    """Query at `i` may attend to key at `j` if `0 <= j <= i`: `t s`, or `b 1 t s` if either has a batch."""
    i, j = i[..., :, None], j[..., None, :]
    mask = (j >= 0) & (j <= i)
    return mask if mask.ndim == 2 else mask[:, None]


def causal_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    """The slot's plain attention: order is known to the mask alone."""
    return scaled_dot_product_attention(query, key, value, causal_mask(i, j))


class SelfAttention(nn.Module):
    """Projections around `attend`: lesson 2's, with a place for a cache between projecting and attending."""

    def __init__(self, d_model: int, n_heads: int, *, attend: Attend = causal_attention) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            raise ValueError(f"d_model is {d_model}, n_heads is {n_heads}: a multiple of n_heads is wanted")
        self.n_heads, self.attend = n_heads, attend
        self.w_q, self.w_k, self.w_v, self.w_o = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        query, key, value = (split_heads(w(x), self.n_heads) for w in (self.w_q, self.w_k, self.w_v))
        i, j, key, value = placed(key, value, positions, cache)
        return self.w_o(merge_heads(self.attend(query, key, value, i, j)))


def placed(
    key: Tensor, value: Tensor, positions: Tensor | None, cache: Cache | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions of queries and of keys, and all keys and values: with a cache, those that it holds too.

    The newest key is that of the last query: this finds the queries in every cache, also in one that keeps
    keys in another order, holds texts of different lengths, or counts positions anew.
    """
    t = key.shape[2]
    if cache is None:
        j = torch.arange(t, device=key.device) if positions is None else positions
        return j, j, key, value
    key, value = cache.update(key, value)
    j = cache.positions
    if positions is None:
        positions = j.amax(-1, keepdim=True) + torch.arange(1 - t, 1, device=key.device)
    return positions, j, key, value


def self_attention(config: "LanguageModelConfig", layer: int) -> nn.Module:
    return SelfAttention(config.d_model, config.n_heads)


@dataclass(frozen=True)
class LanguageModelConfig:
    vocab_size: int = 256  # bytes
    max_length: int = 256  # tokens of a training text
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    dropout: float = 0.0
    position_embedding: str = "learned"  # or "sinusoidal", or "none" where attention itself tells order
    make_attention: Callable[["LanguageModelConfig", int], nn.Module] = self_attention


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LanguageModelConfig, layer: int) -> None:
        super().__init__()
        m = config.d_model
        self.attention_norm, self.mlp_norm = nn.LayerNorm(m), nn.LayerNorm(m)
        self.attention = config.make_attention(config, layer)
        self.mlp = nn.Sequential(nn.Linear(m, 4 * m), nn.GELU(), nn.Linear(4 * m, m))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x), positions=positions, cache=cache)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class LanguageModel(nn.Module):
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position_embedding == "learned":
            self.position_embedding = nn.Embedding(config.max_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Logits of the next token. `caches` has one cache a layer, and then `tokens` are only the new ones."""
        x = self.embedding(tokens)
        if self.config.position_embedding == "learned":
            where = positions
            if where is None:
                where = torch.arange(tokens.shape[1], device=tokens.device)
                if caches is not None and caches[0].positions.numel():
                    where = where + caches[0].positions.amax(-1, keepdim=True) + 1
            x = x + self.position_embedding(where)
        for layer, block in enumerate(self.blocks):
            x = block(x, positions, None if caches is None else caches[layer])
        return F.linear(self.norm(x), self.embedding.weight)


def sample(logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, generator=None) -> Tensor:
    """One token a row, `b`, from logits `b v`. Temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    ordered, index = probabilities.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    return index.gather(-1, torch.multinomial(ordered, 1, generator=generator))[:, 0]


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Int[Tensor, "b t"],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    caches: Sequence[Cache] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b u"]:
    """`tokens` and `n_tokens` more. Without caches the whole text is read again for every token."""
    read = 0
    for _ in range(n_tokens):
        logits = model(tokens[:, read:], caches=caches)
        read = 0 if caches is None else tokens.shape[1]
        token = sample(logits[:, -1], temperature=temperature, top_p=top_p, generator=generator)
        tokens = torch.cat([tokens, token[:, None]], dim=1)
    return tokens


def train(
    model: LanguageModel,
    text: Tensor,
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[float]:
    """Train on the bytes of `text`; the loss of every step. To be completed by lesson 3's builder."""
    raise NotImplementedError


def example(axes: dict[str, int]) -> None:
    b, h, t, d = (axes[letter] for letter in "bhtd")
    config = LanguageModelConfig(vocab_size=7, max_length=t, d_model=h * d, n_layers=1, n_heads=h)
    model = LanguageModel(config)
    generate(model, torch.zeros(b, 1, dtype=torch.long), t - 1)
