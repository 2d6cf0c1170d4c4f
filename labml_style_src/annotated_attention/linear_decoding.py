r"""# The state as a memory

Under construction: the public names work.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $S$ | `state` | – | the matrix and the normaliser |

**Source.** Katharopoulos et al. (2020), arXiv:2006.16236, section 3.4.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from annotated_attention.linear import (
    LinearState,
    linear_attention_piece,
    merge_states,
)
from annotated_attention.linear_features import FeatureMap, elu_plus_one
from annotated_attention.multi_head import merge_heads, split_heads

__all__ = ["LinearCache", "LinearSelfAttention", "linear_attention_piece"]
__all__ += ["linear_state_bytes", "merge_states"]


class LinearCache:
    r"""## The cache of one layer"""

    def __init__(self) -> None:
        self.state: LinearState | None = None
        self.positions = torch.arange(0)

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        came = f"key has {key.shape[2]} tokens"
        raise ValueError(f"{came}: a LinearCache keeps none, LinearSelfAttention is wanted")

    @property
    def nbytes(self) -> int:
        return 0 if self.state is None else self.state.nbytes


class LinearSelfAttention(nn.Module):
    r"""## In a model"""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        feature_map: FeatureMap = elu_plus_one,
        chunk_size: int = 64,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        self.n_heads, self.feature_map, self.chunk_size = n_heads, feature_map, chunk_size
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        cache: LinearCache | None = None,
    ) -> Float[Tensor, "b t m"]:
        query = split_heads(self.w_q(x), self.n_heads)
        key = split_heads(self.w_k(x), self.n_heads)
        value = split_heads(self.w_v(x), self.n_heads)
        state = None if cache is None else cache.state
        output, state = linear_attention_piece(
            query,
            key,
            value,
            state,
            feature_map=self.feature_map,
            chunk_size=self.chunk_size,
        )
        if cache is not None:
            last = int(cache.positions[-1]) if len(cache.positions) else -1
            cache.state = state
            cache.positions = torch.tensor([last + x.shape[1]], device=x.device)
        return self.w_o(merge_heads(output))


def linear_state_bytes(
    n_layers: int,
    n_heads: int,
    f: int,
    e: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    r"""## What it costs"""
    return n_layers * n_heads * f * (e + 1) * dtype.itemsize * batch


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, d = (axes[name] for name in "bhtd")
    layer, cache = LinearSelfAttention(h * d, h), LinearCache()
    layer(torch.randn(b, t, h * d), cache=cache)
    layer(torch.randn(b, 1, h * d), cache=cache)
