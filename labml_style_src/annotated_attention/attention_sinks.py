r"""# Attention sinks

A window forgets the first token, and the model breaks.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | `n_sinks` | scalar | tokens that are kept for ever |
| $w$ | `window` | scalar | newest tokens that are kept |
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from annotated_attention.attention_sinks_full import (
    alibi_by_position,
    streaming_alibi,
    streaming_mask,
    streaming_rotary,
)
from annotated_attention.attention_sinks_logits import (
    LearnableSink,
    SinkLogits,
    sink_attention,
)
from annotated_attention.kv_cache import check_update
from annotated_attention.language_model import LanguageModel

__all__ = ["LearnableSink", "SinkKVCache", "SinkLogits", "alibi_by_position", "read_stream", "sink_attention"]
__all__ += ["streaming_alibi", "streaming_mask", "streaming_rotary"]


class SinkKVCache:
    r"""## The cache of one layer"""

    def __init__(self, n_sinks: int, window: int) -> None:
        if n_sinks < 0 or window < 1:
            came = f"n_sinks is {n_sinks}, window is {window}"
            raise ValueError(f"{came}: at least 0 and at least 1 are wanted")
        self.n_sinks, self.window = n_sinks, window
        self.keys = self.values = torch.empty(1, 0, n_sinks + window, 0)
        self.seen = 0

    @property
    def capacity(self) -> int:
        return self.n_sinks + self.window

    @property
    def held(self) -> int:
        return min(self.seen, self.capacity)

    def update(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s e"]]:
        r"""Takes in the newest and returns all that are held."""
        keys, values = self.keys, self.values
        if self.seen == 0:
            if key.ndim != 4 or value.ndim != 4:
                came = f"key is {tuple(key.shape)}, value is {tuple(value.shape)}"
                raise ValueError(f"{came}: b g t d and b g t e are wanted")
            (b, g, _, d), e = key.shape, value.shape[3]
            keys = key.new_zeros(b, g, self.capacity, d)
            values = key.new_zeros(b, g, self.capacity, e)
        check_update(key, value, keys, values)

        t = key.shape[2]
        if t > 1 and self.seen + t > self.capacity:
            held = f"cache holds {self.held} of {self.capacity} tokens, {t} more came"
            raise ValueError(f"{held}: beyond the capacity, one at a time is wanted (read_stream)")

        slot = self.seen
        if slot >= self.n_sinks:
            slot = self.n_sinks + (slot - self.n_sinks) % self.window
        keys[:, :, slot : slot + t] = key
        values[:, :, slot : slot + t] = value
        self.keys, self.values, self.seen = keys, values, self.seen + t
        return keys[:, :, : self.held], values[:, :, : self.held]

    @property
    def positions(self) -> Int[Tensor, "s"]:
        """Where those keys stand in the cache."""
        slots = torch.arange(self.held, device=self.keys.device)
        if self.seen <= self.capacity:
            return slots
        n, w = self.n_sinks, self.window
        age = (slots - self.seen) % w
        return torch.where(slots < n, slots, n + age)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@torch.no_grad()
def read_stream(
    model: LanguageModel,
    tokens: Integer[Tensor, "b t"],
    caches: Sequence[SinkKVCache],
) -> Float[Tensor, "b t v"]:
    r"""## Reading a long text"""
    room = min(cache.capacity - cache.held for cache in caches)
    first, rest = tokens[:, :room], tokens[:, room:]
    pieces = [x for x in (first, *rest.split(1, dim=1)) if x.shape[1]]
    training = model.training
    try:
        model.eval()
        return torch.cat([model(x, caches=caches) for x in pieces], dim=1)
    finally:
        model.train(training)


def example(axes: dict[str, int]) -> None:
    """A stream that outgrows the cache: the shapes beside the code are read off this run."""
    b, g, t, d, e = (axes[letter] for letter in "bgtde")
    cache = SinkKVCache(1, t - 1)
    cache.update(torch.randn(b, g, t, d), torch.randn(b, g, t, e))
    cache.update(torch.randn(b, g, 1, d), torch.randn(b, g, 1, e))
