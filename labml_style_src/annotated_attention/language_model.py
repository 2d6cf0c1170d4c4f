r"""# A language model

A decoder-only transformer around a slot for any attention of the course.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $i$ | `i` | `t` | positions of the queries |
| $j$ | `j` | `s` | positions of the keys |
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from annotated_attention.multi_head import merge_heads, split_heads

__all__ = [
    "Attend",
    "Cache",
    "LanguageModel",
    "LanguageModelConfig",
    "SelfAttention",
    "causal_attention",
    "causal_mask",
    "generate",
    "language_model_cost",
    "sample",
    "sinusoidal",
]

# `attend(query, key, value, i, j)`: what queries at positions `i` take from keys and values at positions `j`.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@runtime_checkable
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
    return F.scaled_dot_product_attention(query, key, value, causal_mask(i, j))


class SelfAttention(nn.Module):
    """Projections around `attend`: lesson 2's, with a place for a cache between projecting and attending."""

    def __init__(self, d_model: int, n_heads: int, *, attend: Attend = causal_attention) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            raise ValueError(f"d_model is {d_model}, n_heads is {n_heads}: a multiple of n_heads is wanted")
        self.n_heads, self.attend = n_heads, attend
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is wanted")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must lie between 0 and 1")
        if self.position_embedding not in ("learned", "sinusoidal", "none"):
            came = f"position_embedding is {self.position_embedding!r}"
            raise ValueError(f"{came}: learned, sinusoidal or none is wanted")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LanguageModelConfig, layer: int) -> None:
        super().__init__()
        m = config.d_model
        self.attention_norm, self.mlp_norm = nn.LayerNorm(m), nn.LayerNorm(m)
        self.attention = config.make_attention(config, layer)
        self.mlp = nn.Sequential(nn.Linear(m, 4 * m), nn.GELU(), nn.Linear(4 * m, m))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        attended = self.attention(self.attention_norm(x), positions=positions, cache=cache)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def sinusoidal(positions: Int[Tensor, "... t"], d_model: int) -> Float[Tensor, "... t m"]:
    n = torch.arange(0, d_model, 2, device=positions.device)
    angles = positions[..., None] * 10000.0 ** (-n / d_model)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return waves[..., :d_model]


class LanguageModel(nn.Module):
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position_embedding == "learned":
            self.position_embedding = nn.Embedding(config.max_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)

        # GPT-2's beginning.
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith((".w_o", ".mlp.2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * config.n_layers) if last else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Integer[Tensor, "b t"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Logits of the next token. `caches` has one cache a layer, and then `tokens` are only the new ones."""
        config = self.config
        if tokens.ndim != 2 or tokens.is_floating_point():
            came = f"tokens is {tokens.dtype} of shape {tuple(tokens.shape)}"
            raise ValueError(f"{came}: integers of shape b t are wanted")
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
            came = f"tokens reach from {tokens.min()} to {tokens.max()}"
            raise ValueError(f"{came}: from 0 to vocab_size - 1 = {config.vocab_size - 1} is wanted")
        if caches is not None and len(caches) != config.n_layers:
            raise ValueError(f"caches has {len(caches)} entries: one for each of {config.n_layers} layers")

        x = self.embedding(tokens.long())
        if config.position_embedding != "none":
            where = positions
            if where is None:
                where = torch.arange(tokens.shape[1], device=tokens.device)
                if caches is not None and caches[0].positions.numel():
                    where = where + caches[0].positions.amax(-1, keepdim=True) + 1
            x = x + self.place(where.clamp(min=0)).to(x.dtype)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, positions, None if caches is None else caches[layer])
        return F.linear(self.norm(x), self.embedding.weight)

    def place(self, where: Int[Tensor, "... t"]) -> Float[Tensor, "... t m"]:
        config = self.config
        if config.position_embedding == "sinusoidal":
            return 0.02 * math.sqrt(2) * sinusoidal(where, config.d_model)
        if where.numel() and where.max() >= config.max_length:
            came = f"tokens reach position {where.max()}"
            raise ValueError(f"{came}: learned positions end at max_length - 1 = {config.max_length - 1}")
        return self.position_embedding(where)


def sample(
    logits: Float[Tensor, "b v"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b"]:
    """One token a row, `b`, from logits `b v`. Temperature 0 takes the likeliest."""
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}: it must not be negative")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: it must lie above 0 and not above 1")
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    ordered, index = probabilities.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    return index.gather(-1, torch.multinomial(ordered, 1, generator=generator))[:, 0]


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Integer[Tensor, "b t"],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    caches: Sequence[Cache] | None = None,
    generator: torch.Generator | None = None,
) -> Integer[Tensor, "b u"]:
    """`tokens` and `n_tokens` more. Without caches the whole text is read again for every token."""
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}: b t with at least one token is wanted")
    training = model.training
    model.eval()
    try:
        read = 0
        for _ in range(n_tokens):
            logits = model(tokens[:, read:], caches=caches)
            read = 0 if caches is None else tokens.shape[1]
            token = sample(logits[:, -1], temperature=temperature, top_p=top_p, generator=generator)
            tokens = torch.cat([tokens, token[:, None].to(tokens.dtype)], dim=1)
    finally:
        model.train(training)
    return tokens


def language_model_cost(config: LanguageModelConfig, t: int) -> tuple[int, int]:
    """Parameters in products, and operations of training on one token of a text of `t`."""
    m = config.d_model
    products = config.n_layers * 12 * m * m + config.vocab_size * m
    return products, 6 * products + 12 * config.n_layers * m * t


def example(axes: dict[str, int]) -> None:
    b, h, t, d = (axes[letter] for letter in "bhtd")
    config = LanguageModelConfig(vocab_size=7, max_length=t, d_model=h * d, n_layers=1, n_heads=h)
    model = LanguageModel(config)
    generate(model, torch.zeros(b, 1, dtype=torch.long), t - 1)
