"""The fixture `draw`: a check's random inputs, the same in every run with the same seed."""

import hashlib
from typing import Any

import torch


def seed_of(seed: int, name: str) -> int:
    """A seed for one check: no two checks draw the same numbers, and none depends on the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


class Draw:
    """Draws tensors from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
        """A tensor of this shape, standard normal times `scale`. It is drawn in float64 and then rounded, so
        that every dtype gets the same numbers."""
        return (scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Any:
        """Whole numbers from `low` up to but not including `high`: an int64 tensor, or one int if no
        shape is given."""
        numbers = torch.randint(low, high, shape, generator=self.generator)
        return numbers if shape else int(numbers)

    def fork(self) -> "Draw":
        """Another one that will draw what this one will draw next."""
        other = Draw(0)
        other.generator.set_state(self.generator.get_state())
        return other
