r"""# Everybody the same work

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | `n_ranks` | scalar | ranks in the ring |
| $r$ | `rank` | scalar | one of them, from 0 |
| $r'$ | `source` | scalar | where the keys at hand came from |
| $t$ | `t` | scalar | tokens that a rank holds, of $n\,t$ |
"""

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["seen_by", "zigzag_positions", "zigzag_shard", "zigzag_unshard"]


def zigzag_positions(
    t: int,
    rank: int,
    n_ranks: int,
) -> Int[Tensor, "t"]:
    r"""## Where a rank's tokens stand

    The positions in the text of the $t$ tokens of a rank.
    """
    half = t // 2
    first = torch.arange(half)
    return torch.cat([first + rank * half, first + (2 * n_ranks - 1 - rank) * half])


def zigzag_shard(x: Tensor, rank: int, n_ranks: int, dim: int = 2) -> Tensor:
    r"""## The cut

    The share of a rank.
    """
    if x.shape[dim] % (2 * n_ranks):
        came = f"x has {x.shape[dim]} tokens in dim {dim}"
        raise ValueError(f"{came}: a multiple of 2 n_ranks = {2 * n_ranks} is wanted")
    pieces = x.tensor_split(2 * n_ranks, dim)
    return torch.cat([pieces[rank], pieces[2 * n_ranks - 1 - rank]], dim)


def zigzag_unshard(shards: list[Tensor], dim: int = 2) -> Tensor:
    r"""## And back

    The text, of the shares of all ranks in order.
    """
    halves = [x.tensor_split(2, dim) for x in shards]
    first, last = (list(x) for x in zip(*halves, strict=True))
    return torch.cat(first + last[::-1], dim)


def seen_by(rank: int, source: int, t: int, is_causal: bool) -> tuple[slice, slice]:
    r"""## What a rank sees of another's keys

    Which of its $t$ queries meet which of the other's $t$ keys. The diagonal of its own keys is left to the tiles.
    """
    everything, half = slice(None), t // 2
    if not is_causal or source == rank:
        return everything, everything
    if source < rank:
        return everything, slice(half)
    return slice(half, None), everything


def example(axes: dict[str, int]) -> None:
    """A text of six pieces on three ranks: the shapes beside the code are read off this run."""
