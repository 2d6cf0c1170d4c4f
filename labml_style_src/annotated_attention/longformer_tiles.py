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

The tiles of lesson 9 waste less: a block of $u$ queries meets the $u + 2(w - 1)$ keys that any of them sees.
Global tokens and dilation are added to them here, each by moving tokens to where that code can do the work.

![One tile: the keys of 6 queries with a window of 4, and two global tokens before them. One of these lies in
the window, and is hidden there. Its own row will be written over.](figure:tile)

## What is computed

Let the $G$ global tokens come first, as [CLS] and a question do. Their rows and columns are $2tG - G^2$
pairs. The rest is a text of $t - G$ tokens with a window, cut at both ends. Together, for $t - G \ge w$,

$$\begin{aligned} N = {}& \underbrace{(t - G)(2w - 1) - w(w - 1)}_{\text{window}} \\
&+ \underbrace{2tG - G^2}_{\text{global}} \end{aligned}$$

pairs [check:test_pairs_are_counted]. For 4,096 tokens, $w = 257$ and [CLS] these are 2,043,134 of
16,777,216, an eighth [check:test_pairs_are_counted|12.2%]. The tiles compute a few more, since each query
of a block meets all keys of its span:

$$C = t\,\big(G + u + 2(w - 1)\big) + G\,t ,$$

the last term for the global queries. In the example, $C = 1.29\,N$ [check:test_pairs_are_counted|1.29]. Both
are linear in $t$. So are the operations [check:test_work_is_linear], the largest tensor, and all that is ever
allocated, forward and backward [check:test_memory_is_linear].

**Where it loses.** Full attention computes $t^2$ scores, which is less until $t = 2G + u + 2(w - 1)$. With
$w = 257$, [CLS] and $u = 128$ that is 642 tokens [check:test_short_texts_are_cheaper_dense]: for the texts
that BERT reads, Longformer is a detour. And what it saves is time. The memory of full attention is linear as
well if its kernel is fused (lesson 13), which keeps each key once for the backward pass; here each is kept in
every span where it stands, $1 + 2(w - 1)/u$ times: five for $w = 257$, and nine for wide windows, whose blocks
have $u = w/4$ queries [check:test_spans_are_kept_for_the_backward_pass].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $t$ | `t` | scalar | tokens of a text |
| $w$ | `window` | scalar | keys to one side, the query's own included |
| $\delta$ | `dilation` | scalar | steps from one key of the window to the next |
| $G$ | `n_global` | scalar | global tokens, in the text that has most |
| $u$ | `block_size` | scalar | queries in a tile: 128, or $w/4$ if that is more |
| $N$ | `seen` | scalar | pairs of a query and a key that it sees |
| $C$ | `computed` | scalar | scores that are computed |
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from annotated_attention.sliding_window import spans

__all__ = ["longformer_scores", "pack", "strands", "window_and_global"]

BLOCK_SIZE = 128


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

    # A global key is in every tile, and its gradient a sum over all of them. In bfloat16 that would be too
    # long a sum, so it is taken in float32 [check:test_gradients_are_summed_wide].
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
    t = max(query.shape[2], 1)
    window = min(window, t)
    block_size = min(max(BLOCK_SIZE, window // 4), t)
    reach = window - 1

    # Views of one padded copy, listed once: a slice for each tile would leave a gradient of full length for
    # each, and the backward pass would be quadratic.
    shape = (-(-t // block_size), block_size, reach, reach)
    tiles = zip(
        query.split(block_size, dim=2),
        spans(key, *shape).unbind(2),
        spans(value, *shape).unbind(2),
        spans(is_local, *shape).unbind(2),
        strict=True,
    )

    # One band for all tiles: a span begins `reach` places before its block.
    i = torch.arange(block_size, device=query.device)
    j = torch.arange(-reach, block_size + reach, device=query.device)
    steps = (i[:, None] - j).abs()
    band, own = steps <= reach, steps == 0

    outputs = []
    for q, near_k, near_v, local in tiles:
        rows = q.shape[2]
        k = torch.cat([global_key.to(q.dtype), near_k], dim=2)
        v = torch.cat([global_value.to(q.dtype), near_v], dim=2)

        # A global token in the window stands in front already. It must be hidden here, or it counts twice
        # [check:test_global_tokens_count_once]. So must padding, and places outside of the text. Every local
        # query sees itself. The others are shown themselves as well, because on a row with no key at all
        # kernels differ: there is none [check:test_no_row_is_left_empty].
        near = (band[:rows] & local[:, 0, None, :, 0]) | own[:rows]
        far = found[:, None, :].expand(-1, rows, -1)
        mask = torch.cat([far, near], dim=2)[:, None]
        attend = F.scaled_dot_product_attention
        output = attend(q, k, v, mask, scale=scale, enable_gqa=True)
        outputs.append(output)

    braid = "(b dilation) h n e -> b h (n dilation) e"
    output = torch.cat(outputs, dim=2)
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
    w = min(window, t)
    block_size = min(max(BLOCK_SIZE, w // 4), t)
    computed = t * (n_global + block_size + 2 * (w - 1)) + n_global * t
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
