r"""# The same work for all

A causal text, cut straight into $n$ shares. The first rank's queries see next to nothing, the last rank's
nearly all. One rank does $2 - \frac1n$ times the mean, and the others wait for it
[check:test_a_straight_cut_waits]: with many ranks, half of all time. A ring makes it no better when the work
is counted step by step: from the second step on, the keys at hand lie before all queries of some rank, and
behind all queries of another.

Early queries are cheap and late ones dear, and they add up: position $i$ and position $T - 1 - i$ see $T + 1$
keys together. So give each rank both. Cut the text into $2n$ pieces, and fold it in the middle: rank $r$
holds pieces $r$ and $2n - 1 - r$. Along the text the ranks go up and down again: a *zigzag*.

![Which rank has which queries, and what they see, for four ranks. Beside it, the work of each. Cut straight,
cut in stripes, folded.](figure:cuts)

## What came before

Brandon et al. (2023, arXiv:2311.09431) saw it first: causality won nothing in Ring Attention, as in every
step some rank has a full block. Their *stripes*, token $i$ to rank $i \bmod n$, made training up to 1.45
times as fast at 256,000 tokens, and 1.65 times at 786,000 on 16 TPUv4. Folding is in
`zigzag_ring_flash_attn`, in Megatron's context parallelism, in PyTorch's, whose head-and-tail balancer cuts
this way [check:test_pytorch_cuts_so_too], and in Llama 3's training.

## Why folding is exact

Number the pieces in the order of the text. A query sees all of every piece before its own, nothing of those
behind, and its own piece as far as itself. Rank $r$ has $r$ and $2n - 1 - r$. Let keys come from rank $r'$;
of the four pieces, in the order of the text,

$$\begin{aligned} r' < r: &\quad r' < r < 2n - 1 - r < 2n - 1 - r', \\
r' > r: &\quad r < r' < 2n - 1 - r' < 2n - 1 - r . \end{aligned}$$

In the first case one piece of keys is before all queries and one behind them: all queries see the first half
of the keys. In the second both lie in between: the second half of the queries sees all keys. Either way two
of four squares are left, whole, without a mask: half of $t^2$ for every rank in every step
[check:test_every_step_is_half_a_square]. Only the own keys are cut by the diagonal; there the two pieces lie
in the order of the text, so the causal mask of the share is the right one
[check:test_own_keys_need_no_other_mask]. That makes $2n - 1$ full squares and two triangles for every rank
[check:test_squares_and_triangles].

![What rank 1 of four computes, piece by piece, and in which step. From step 1 on it is two squares. The
colour says whose keys they are.](figure:plan)

Stripes are nearly as even, but there every step has a diagonal. Tiles on it are computed in full and half of
that is thrown away; with folding they are met once a round, not $n$ times
[check:test_stripes_cross_more_tiles].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | `n_ranks` | scalar | ranks |
| $r$ | `rank` | scalar | the one that has the queries |
| $r'$ | `source` | scalar | the one that its keys came from |
| $t$ | `t` | scalar | tokens of one rank; the text has $T = n\,t$ |

**Source.** Brandon et al. (2023), section 3; its *workload* is the count here. `zigzag_ring_flash_attn.py` in
github.com/zhuzilin/ring-flash-attention.
"""

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["check_share", "keys_seen", "seen_by", "zigzag_positions"]
__all__ += ["zigzag_shard", "zigzag_unshard"]


def zigzag_positions(
    t: int,
    rank: int,
    n_ranks: int,
) -> Int[Tensor, "t"]:
    r"""## Where a rank's tokens stand

    Their positions in the text, for rotary angles and labels.
    """
    half = t // 2
    first = torch.arange(half)
    last = 2 * n_ranks - 1 - rank
    return torch.cat([rank * half + first, last * half + first])


def zigzag_shard(
    x: Tensor,
    rank: int,
    n_ranks: int,
    dim: int = 2,
) -> Tensor:
    r"""## The cut

    The share of a rank, of anything that has the text along `dim`: token ids `b t` are cut with `dim=1`, and
    all that is computed from them is cut already.

    **Raises.** `ValueError` if the text is not $2n$ pieces of one length, or there is no such rank
    [check:test_wrong_cuts_are_refused].
    """
    tokens = x.shape[dim]
    if tokens % (2 * n_ranks):
        wanted = f"a multiple of 2 n_ranks = {2 * n_ranks} is wanted"
        raise ValueError(f"x has {tokens} tokens in dim {dim}: {wanted}")
    if not 0 <= rank < n_ranks:
        wanted = f"0 to {n_ranks - 1} is wanted"
        raise ValueError(f"rank is {rank} of n_ranks {n_ranks}: {wanted}")
    pieces = x.tensor_split(2 * n_ranks, dim)
    last = 2 * n_ranks - 1 - rank
    return torch.cat([pieces[rank], pieces[last]], dim)


def zigzag_unshard(shards: list[Tensor], dim: int = 2) -> Tensor:
    r"""### And back

    The text, from the shares of all ranks in their order [check:test_there_and_back]: first halves forwards,
    second halves backwards.
    """
    halves = [x.tensor_split(2, dim) for x in shards]
    first = [half for half, _ in halves]
    last = [half for _, half in halves]
    return torch.cat(first + last[::-1], dim)


def seen_by(
    rank: int,
    source: int,
    t: int,
    is_causal: bool,
) -> tuple[slice, slice]:
    r"""## The plan of a step

    Which queries of `rank` see which keys of `source`. What is left out would have been masked
    [check:test_nothing_masked_is_computed].
    """
    everything, half = slice(0, t), t // 2
    if not is_causal or source == rank:
        return everything, slice(None)
    if source < rank:
        return everything, slice(0, half)
    return slice(half, t), slice(None)


def check_share(t: int, s: int, is_causal: bool) -> None:
    r"""## What cannot be cut

    Under causality, a share is two pieces of one length, of queries as of keys
    [check:test_what_cannot_be_shared_is_refused].
    """
    if is_causal and (s != t or t % 2):
        came = f"with is_causal, query has {t} tokens and key {s}"
        wanted = "an even number, the same for both,"
        raise ValueError(f"{came}: {wanted} is wanted")


def keys_seen(
    positions: Int[Tensor, "n t"],
) -> Int[Tensor, "n"]:
    r"""## What it costs, and when it fails

    Pairs of query and key that each rank has to compute if its queries stand at these positions: one at $i$
    sees $i + 1$ keys. Folded, all ranks have $t\,(T + 1)/2$ [check:test_folding_is_exact].

    - *Only a causal triangle folds so.* Under a window, every position but the first few costs the same, and
      a straight cut is even; it also lets a rank skip all keys but its neighbours'. Documents packed into one
      text are many triangles, and each would have to be folded by itself.
    - *Pairs are not seconds.* A rank with a slower device is late with the same work.
    - *A text must have $2n$ pieces.* Pad it at the end: what comes last is seen by nobody before it.
    """
    return (positions + 1).sum(dim=1)


def example(axes: dict[str, int]) -> None:
    """Three ranks: the shapes beside the code are read off this run."""
    b, g, t, d = (axes[letter] for letter in "bgtd")
    text = torch.randn(b, g, 6 * t, d)
    shards = [zigzag_shard(text, rank, 3) for rank in range(3)]
    zigzag_unshard(shards)
    positions = [zigzag_positions(2 * t, rank, 3) for rank in range(3)]
    keys_seen(torch.stack(positions))
    seen_by(1, 0, 2 * t, True)
