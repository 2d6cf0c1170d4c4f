r"""# A rolling cache

A query of a sliding window never looks further back than $w$ keys.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $w$ | `window` | scalar | tokens that are held |
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from annotated_attention.kv_cache import check_update

__all__ = ["RollingKVCache"]


class RollingKVCache:
    r"""## The ring

    Holds the last `window` tokens, in memory that never grows.
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}: it must be at least 1")
        self.window, self.length = window, 0
        self.keys = self.values = torch.empty(1, 0, window, 0)
        self.where = torch.arange(0)

    def update(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s e"]]:
        r"""Takes in the newest, returns all that their queries may need."""
        keys, values = self.keys, self.values
        if not self.length:
            if key.ndim != 4 or value.ndim != 4:
                came = f"key is {tuple(key.shape)}, value is {tuple(value.shape)}"
                raise ValueError(f"{came}: b g t d and b g t e are wanted")
            b, g, w = *key.shape[:2], self.window
            keys = key.new_zeros(b, g, w, key.shape[3])
            values = key.new_zeros(b, g, w, value.shape[3])
        check_update(key, value, keys, values)
        w, t, device = self.window, key.shape[2], key.device
        new = torch.arange(self.length, self.length + t, device=device)
        if t == 1:
            slot = self.length % w
            keys[:, :, slot] = key[:, :, 0]
            values[:, :, slot] = value[:, :, 0]
            slots = torch.arange(min(self.length + 1, w), device=device)
            where = self.length - (self.length - slots) % w
            seen = keys[:, :, : len(slots)], values[:, :, : len(slots)]
        else:
            first = max(0, self.length - w + 1)
            old = torch.arange(first, self.length, device=device)
            where = torch.cat([old, new])
            seen = (
                torch.cat([keys[:, :, old % w], key], dim=2),
                torch.cat([values[:, :, old % w], value], dim=2),
            )
            slots = new[-w:] % w
            keys[:, :, slots] = key[:, :, -w:]
            values[:, :, slots] = value[:, :, -w:]
        self.keys, self.values = keys, values
        self.length, self.where = self.length + t, where
        return seen

    @property
    def positions(self) -> Int[Tensor, "s"]:
        """Where the keys stand that `update` last returned."""
        return self.where

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def example(axes: dict[str, int]) -> None:
    """A piece, then a token: the shapes beside the code are read off this run."""
    b, g, t, d, e = (axes[letter] for letter in "bgtde")
    cache = RollingKVCache(t)
    for n in (t + 1, 1):
        cache.update(torch.randn(b, g, n, d), torch.randn(b, g, n, e))
