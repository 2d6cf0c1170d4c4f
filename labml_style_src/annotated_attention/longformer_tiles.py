r"""# Longformer in tiles

A mask that forbids seven of eight scores saves nothing, if all eight are computed first. What has to be
linear in the length of a text is the work and the memory, of the forward pass and of the backward pass; and
the window is only half of it. Global tokens stand anywhere, in each text of a batch in other places, and in
other numbers.

## What came before

Beltagy et al. had three ways (arXiv:2004.05150, section 3.2 and appendix A). A loop over the diagonals keeps
nothing that is not needed, and is "unusably slow". A kernel in CUDA does the same in less time. *Chunks*, the
way that Transformers has kept, cut queries and keys into overlapping blocks and multiply those; they need twice
the memory that the pattern does, and cannot be dilated.

The [tiles of lesson 9](../sliding_window_tiles/index.md) waste less: a block of $u$ queries meets the
$u + 2(w - 1)$ keys that any of them sees. Global tokens and dilation are added to them here, each by moving
tokens to where that code can do the work.

![One tile: the keys of 6 queries with a window of 4, and two global tokens before them. One of these lies in
the window, and is hidden there. Its own row will be written over.](figure:tile)

## What is computed

Let the $G$ global tokens come first, as [CLS] and a question do. Their rows and columns are $2tG - G^2$
pairs. The rest is a text of $t - G$ tokens with a window, cut at both ends. Together, for $t - G \ge w$,

$$\begin{aligned} N = {}& \underbrace{(t - G)(2w - 1) - w(w - 1)}_{\text{window}} \\
&+ \underbrace{2tG - G^2}_{\text{global}} \end{aligned}$$

pairs [check:test_pairs_are_counted]. For 4,096 tokens, $w = 257$ and [CLS] these are 2,043,134 of
16,777,216, an eighth [check:test_pairs_are_counted|12.2%]. The tiles compute a few more, since each query
of a block meets all keys that one of them sees:

$$C \le t\,\big(G + u + 2(w - 1)\big) + G\,t ,$$

less at the ends of the text. The last term is for the global queries. In the example, $C = 1.24\,N$
[check:test_pairs_are_counted|1.24]. Both are linear in $t$. So are the operations
[check:test_work_is_linear], the largest tensor, and all that is ever allocated, forward and backward
[check:test_memory_is_linear].

**Where it loses.** Full attention computes $t^2$ scores. With $w = 257$, [CLS] and $u = 128$ that is less up
to 387 tokens, and for the 512 that BERT reads, the tiles spare an eighth
[check:test_short_texts_are_cheaper_dense|387, an eighth]: there, Longformer is a detour. And what it saves is
time. The memory of full attention is linear as well if its kernel is fused (lesson 13).

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $t$ | `t` | scalar | tokens of a text |
| $w$ | `window` | scalar | keys to one side, the query's own included |
| $\delta$ | `dilation` | scalar | steps from one key of the window to the next |
| $G$ | `n_global` | scalar | global tokens, in the text that has most |
| $u$ | `u` | scalar | queries in a tile: 128, or $w/4$ if that is more |
| $N$ | `seen` | scalar | pairs of a query and a key that it sees |
| $C$ | `computed` | scalar | scores that are computed |
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from annotated_attention.sliding_window import window_tiles
from annotated_attention.sliding_window_tiles import (
    Tile,
    attend_in_tiles,
    fused,
)

__all__ = ["longformer_scores", "pack", "strands", "window_and_global"]


def pack(
    x: Float[Tensor, "b h t d"],
    is_global: Bool[Tensor, "b t"],
    found: Bool[Tensor, "b n_global"],
) -> Float[Tensor, "b h n_global d"]:
    r"""## Packing

    Global tokens are brought together, $G$ places for each text. Where a text has fewer, places stay empty,
    and `found` says which are taken.

    `is_global` and `found` are True equally often in each row, and a boolean index reads both in one order.
    So the line that packs also unpacks, with its sides exchanged [check:test_packing_and_back].
    """
    b, g, _, d = x.shape
    packed = x.new_zeros(b, found.shape[1], g, d)
    packed[found] = x.transpose(1, 2)[is_global]
    return packed.transpose(1, 2)


def strands(
    x: Shaped[Tensor, "b h t d"],
    dilation: int,
) -> Shaped[Tensor, "strands h n d"]:
    r"""## Strands

    Token $\delta n + c$ becomes token $n$ of strand $c$, as the [derivation](../longformer/index.md#dilation)
    has it. Strands go into the batch, where nothing meets.
    """
    if dilation == 1:
        return x
    short = -x.shape[2] % dilation
    padded = F.pad(x, (0, 0, 0, short))
    unbraid = "b h (n dilation) d -> (b dilation) h n d"
    return rearrange(padded, unbraid, dilation=dilation)


def window_and_global(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t e"],
    window: int,
    is_global: Bool[Tensor, "b t"],
    real: Bool[Tensor, "b t"],
    found: Bool[Tensor, "b n_global"],
    dilation: int = 1,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## One softmax over two kinds of keys

    Lesson 9's tiles, with the global keys put in front of each span. The softmax is one, over all of them.
    Two, added up, would give global tokens and window equal shares, whatever they say
    [check:test_one_softmax_not_two].

    The answers for global tokens and for padding mean nothing, and the caller writes over them.
    """
    length = query.shape[2]
    is_local = (real & ~is_global)[:, None, :, None]

    # A global key is in every tile of every strand, and its gradient a sum over all of them. In bfloat16 that
    # would be too long a sum, so it is taken in float32 [check:test_gradients_are_summed_wide].
    wide = torch.promote_types(key.dtype, torch.float32)
    global_key = pack(key, is_global, found).to(wide)
    global_value = pack(value, is_global, found).to(wide)

    # Every strand of a text has all of its global tokens. From $t$ on, all dilations are alike: each token is
    # a strand of its own.
    dilation = max(1, min(dilation, length))
    found = found.repeat_interleave(dilation, dim=0)
    global_key = global_key.repeat_interleave(dilation, dim=0)
    global_value = global_value.repeat_interleave(dilation, dim=0)
    query = strands(query, dilation)
    key = strands(key, dilation)
    value = strands(value, dilation)
    is_local = strands(is_local, dilation)
    t = query.shape[2]
    i = torch.arange(t, device=query.device)
    device = query.device

    # A global token in the window stands in front already. It must be hidden here, or it counts twice
    # [check:test_global_tokens_count_once]. So must padding, and what fills up a strand. Every local query
    # sees itself. The others are shown themselves as well, because on a row with no key at all kernels
    # differ: there is none [check:test_no_row_is_left_empty].
    def tiles() -> Iterator[Tile]:
        band = window_tiles(t, t, window, is_causal=False, device=device)
        for rows, (run,), mask in band:
            own = i[rows, None] == i[run]
            near = (is_local[:, None, :, run, 0] & mask) | own
            far = found[:, None, None, :].expand(-1, 1, len(own), -1)
            yield rows, [run], torch.cat([far, near], dim=3)

    # Global keys and values are the same in all tiles.
    def attend(q, k, v, mask, global_k, global_v):
        k = torch.cat([global_k.to(k.dtype), k], dim=2)
        v = torch.cat([global_v.to(v.dtype), v], dim=2)
        return fused(q, k, v, mask, scale=scale)

    shared = global_key, global_value
    output = attend_in_tiles(attend, tiles, query, key, value, *shared)
    braid = "(b dilation) h n e -> b h (n dilation) e"
    return rearrange(output, braid, dilation=dilation)[:, :, :length]


def longformer_scores(t: int, window: int, n_global: int) -> tuple[int, int]:
    r"""## Counting

    Returns $N$ and $C$ for one head and one text whose first tokens are global. A window cannot be wider than
    the text is.
    """
    local = t - n_global
    w = min(window, local)
    seen = local * (2 * w - 1) - w * (w - 1)
    seen += 2 * t * n_global - n_global**2
    computed = n_global * t
    tiles = window_tiles(t, t, window, is_causal=False)
    for rows, (run,), _ in tiles:
        u, near = rows.stop - rows.start, run.stop - run.start
        computed += u * (n_global + near)
    return seen, computed


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, d, e, x = (axes[name] for name in "bgrdex")
    t = axes["t"] + x
    query, key = torch.randn(b, g * r, t, d), torch.randn(b, g, t, d)
    value = torch.randn(b, g, t, e)
    is_global = torch.arange(t).expand(b, t) < x
    real = torch.ones_like(is_global)
    found = torch.ones(b, x, dtype=torch.bool)
    pack(key, is_global, found)
    strands(query, 2)
    window_and_global(query, key, value, 1, is_global, real, found)
    longformer_scores(t, 2, x)
