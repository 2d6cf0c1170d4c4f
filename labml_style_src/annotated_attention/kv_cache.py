r"""# The KV cache

A model that has written a thousand tokens reads all thousand again to write the next.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{k}_j$ | `key` | `b g t d` | the keys of the newest tokens |
| $\mathbf{v}_j$ | `value` | `b g t e` | the values of the newest tokens |
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from annotated_attention.language_model import LanguageModel, sample

__all__ = ["KVCache", "decode_cost", "generate_batch", "kv_cache_bytes", "make_caches", "prefill"]


class KVCache:
    r"""## The cache

    One layer's keys and values, for several texts at once.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: room for at least 1 token is wanted")
        self.capacity = capacity
        self.keys = self.values = torch.empty(0, 0, capacity, 0)
        self.lengths = torch.empty(0, dtype=torch.long)
        self.longest = 0

    @torch.no_grad()
    def update(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s e"]]:
        r"""### Writing"""
        keys, values, lengths = self.keys, self.values, self.lengths
        if not self.longest:
            b, g, _, d = key.shape
            keys = key.new_zeros(b, g, self.capacity, d)
            values = key.new_zeros(b, g, self.capacity, value.shape[-1])
            lengths = torch.zeros(b, dtype=torch.long, device=key.device)
        check_update(key, value, keys, values)

        t, longest = key.shape[2], self.longest + key.shape[2]
        if longest > self.capacity:
            came = f"cache holds {self.longest} of {self.capacity} tokens, {t} more came"
            raise ValueError(f"{came}: a capacity of at least {longest} is wanted")

        rows = torch.arange(len(key), device=key.device)[:, None]
        slots = lengths[:, None] + torch.arange(t, device=key.device)
        keys[rows, :, slots] = key.transpose(1, 2)
        values[rows, :, slots] = value.transpose(1, 2)
        self.keys, self.values, self.lengths, self.longest = keys, values, lengths + t, longest
        return keys[:, :, :longest], values[:, :, :longest]

    @property
    def positions(self) -> Int[Tensor, "b s"]:
        slots = torch.arange(self.longest, device=self.lengths.device)
        return torch.where(slots < self.lengths[:, None], slots, -1)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def truncate(self, lengths: Sequence[int] | Int[Tensor, "b"]) -> None:
        kept, held = [int(n) for n in lengths], self.lengths.tolist()
        if len(kept) != len(held) or any(not 0 <= n <= m for n, m in zip(kept, held, strict=True)):
            raise ValueError(f"lengths is {kept}: for each row at most what it holds, {held}, is wanted")
        shortest, longest = min(kept, default=0), self.longest
        self.lengths = torch.tensor(kept, dtype=torch.long, device=self.lengths.device)
        self.longest = max(kept, default=0)

        slots = torch.arange(shortest, longest, device=self.lengths.device)
        forgotten = (slots >= self.lengths[:, None])[:, None, :, None]
        self.keys[:, :, shortest:longest].masked_fill_(forgotten, 0.0)
        self.values[:, :, shortest:longest].masked_fill_(forgotten, 0.0)


def check_update(key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
    t = key.shape[2]
    for name, new, held in (("key", key, keys), ("value", value, values)):
        wanted = (*held.shape[:2], t, held.shape[3])
        if new.shape != wanted or new.dtype != held.dtype or new.device != held.device:
            came = f"{name} is {new.dtype} of shape {tuple(new.shape)} on {new.device}"
            raise ValueError(f"{came}: {held.dtype} of shape {wanted} on {held.device} is wanted")


def kv_cache_bytes(
    n_layers: int,
    n_kv_heads: int,
    d: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    e: int | None = None,
) -> int:
    r"""## How many bytes"""
    numbers = n_kv_heads * (d + (d if e is None else e))
    return n_layers * numbers * dtype.itemsize * length * batch


def make_caches(model: LanguageModel, capacity: int) -> list[KVCache]:
    return [KVCache(capacity) for _ in model.blocks]


@torch.no_grad()
def prefill(
    model: LanguageModel,
    prompts: Sequence[Int[Tensor, "_"]],
    caches: Sequence[KVCache],
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, "b v"]:
    r"""## Prefill"""
    tokens = pad_sequence(list(prompts), batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)
    chunks = tokens.split(chunk_size or tokens.shape[1], dim=1)
    logits = torch.cat([model(chunk, caches=caches) for chunk in chunks], dim=1)

    for cache in caches:
        cache.truncate(lengths)
    return logits[torch.arange(len(prompts)), lengths - 1]


@torch.no_grad()
def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Int[Tensor, "_"]],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    r"""## Decode"""
    caches = make_caches(model, max(map(len, prompts)) + n_tokens)
    logits = prefill(model, prompts, caches, chunk_size=chunk_size)
    written = []
    for _ in range(n_tokens):
        written.append(sample(logits, temperature=temperature, top_p=top_p, generator=generator))
        logits = model(written[-1][:, None], caches=caches)[:, -1]
    return [torch.cat([prompt, new]) for prompt, new in zip(prompts, torch.stack(written, 1), strict=True)]


def decode_cost(
    n_parameters: int,
    n_layers: int,
    n_heads: int,
    d: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[int, int]:
    r"""## What it costs"""
    operations = 2 * n_parameters * batch + 4 * n_layers * n_heads * d * length * batch
    cache = kv_cache_bytes(n_layers, n_heads, d, length, batch=batch, dtype=dtype)
    return operations, n_parameters * dtype.itemsize + cache


def example(axes: dict[str, int]) -> None:
    """Prefill, then one step of decoding: the shapes beside the code are read off this run."""
    b, g, t, s, d, e = (axes[letter] for letter in "bgtsde")
    cache = KVCache(t + s)
    cache.update(torch.randn(b, g, t, d), torch.randn(b, g, t, e))
    cache.truncate([t - 1] * b)
    cache.update(torch.randn(b, g, 1, d), torch.randn(b, g, 1, e))
