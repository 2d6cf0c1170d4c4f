r"""# Sliding window

In a text of 100,000 tokens there are five billion pairs of a token and one before it
[check:test_cost_of_long_texts|5 billion]. Every head of every layer scores all of them, to find in most that
there is nothing to find: what a token needs mostly stands close by.

So let it look at the last $w$ tokens only, itself included, and at nothing else:

$$\mathbf{o}_i = \sum_{0 \le i-j < w} \operatorname{softmax}_j\big(\lambda\, \mathbf{q}_i^\top
\mathbf{k}_j\big)\,\mathbf{v}_j$$

A text twice as long now costs twice as much, not four times. And nothing older than $w$ tokens will be asked
for again: the cache stops growing. One such layer is short-sighted. A stack of them is not, for the token
$w - 1$ places back has itself read what stands before it.

![Who looks at whom, in a text of 24 tokens: all that came before, and the last six.](figure:band)

## What came before

Luong et al. (2015, arXiv:1508.04025, section 3.2) let a translator look at $2D + 1$ words around one place
in the source. The Image Transformer (2018, arXiv:1802.05751) cut an image into blocks of queries, each with a
piece of memory of its own. Sparse Transformers (2019, arXiv:1904.10509) gave one head the last $l$ tokens and
another every $l$-th. Longformer (2020) took the band, wrote a kernel for it and let global tokens look
further (lesson 11); Mistral 7B (2023) took the band alone.

## A band is a row of tiles

A mask makes nothing faster: the scores are computed, then thrown away [check:test_a_mask_saves_nothing]. What
saves work is not to ask. Cut the queries into blocks of $u$. Together, those at $nu, \dots, nu + u - 1$ see
the keys from $nu - (w-1)$ to $nu + u - 1$, which is one run of

$$a = (w - 1) + u$$

keys. So a block is plain attention of $u$ queries over $a$ keys, under a mask that is the same for every
block, since it only knows differences $i - j$.

![The same band in tiles, $w = 6$ and $u = 8$. Strong: scores that are wanted. Pale: those that a tile
computes as well.](figure:tiles)

Of each row, $w$ scores are wanted and $u - 1$ are not: two triangles, a share of

$$\frac{u - 1}{w + u - 1}$$

of the work [check:test_cost_counts_scores]. Small blocks waste little, but there are many of them, and each
call has its price. With $u = w/4$, a fifth is wasted. Looking both ways, $|i-j| < w$, there are $w - 1$ keys
more behind each block, and as much waste: $u - 1$ scores of $2(w-1) + u$.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g s e` | what position $j$ gives |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $w$ | `window` | scalar | keys that a query sees, its own included |
| $u$ | `block_size` | scalar | queries in a block |
| $n$ | – | scalar | a block, counted from 0 to `n_blocks` $-\,1$ |
| $a$ | `reach` | scalar | keys in sight of a block: `before` $+\;u\;+$ `after` |
| $o$ | `offset` | scalar | position of the first query; the first key stands at 0 |
| $L$ | `n_layers` | scalar | layers of a stack |

**Source.** Beltagy, Peters, Cohan (2020), arXiv:2004.05150, section 3.1; their $w$ counts both sides and is
our $2(w-1)$. Jiang et al. (2023), arXiv:2310.06825, section 2; their $W$ is our $w$. The text there lets $i$
see the positions *between* $i - W$ *and* $i$, which would be $W + 1$ of them; figure 1 and the released
models have $W$.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from annotated_attention.language_model import causal_mask
from annotated_attention.scaled_dot_product import check_inputs
from annotated_attention.sliding_window_cache import RollingKVCache
from annotated_attention.sliding_window_tiles import attend_in_tiles, fused

__all__ = ["RollingKVCache", "causal_window_attention", "receptive_field"]
__all__ += ["sliding_window_attention", "sliding_window_cost"]
__all__ += ["sliding_window_mask", "window_tiles"]

BLOCK_SIZE = 128


def sliding_window_mask(
    t: int,
    s: int,
    window: int,
    *,
    is_causal: bool = True,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "t s"]:
    r"""## The mask, and what others call it

    Query $i$ sees key $j$ if $0 \le i - j < w$; looking both ways, if $|i - j| < w$
    [check:test_mask_is_the_inequality]. Row $r$ stands at $i = o + r$, column $j$ at $j$.

    Others count otherwise, and one key too many is hard to see [check:test_others_count_otherwise]:

    | for our $w$ | write |
    |---|---|
    | Transformers, vLLM | `sliding_window=w` |
    | flash-attn | `window_size=(w - 1, 0)`, both ways `(w - 1, w - 1)` |
    | ONNX (Runtime) | `local_window_size=w`; on a CPU before September 2025, `w - 1` |
    | Transformers' Longformer | `attention_window=2 * (w - 1)` |

    **Shapes.** The result is `t s`, True where a query may look.

    **Raises.** `ValueError` if $t$ or $s$ is negative, or the window below 1.
    """
    if min(t, s, window - 1) < 0:
        came = f"t is {t}, s is {s}, window is {window}"
        raise ValueError(f"{came}: t, s >= 0 and window >= 1 are wanted")
    i = torch.arange(offset, offset + t, device=device)
    j = torch.arange(s, device=device)
    distance = i[:, None] - j
    nearest = 0 if is_causal else 1 - window
    return (nearest <= distance) & (distance < window)


def window_tiles(
    t: int,
    s: int,
    window: int,
    *,
    is_causal: bool = True,
    offset: int = 0,
    block_size: int | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[slice, list[slice], Bool[Tensor, "u a"]]]:
    r"""## What a block has in sight

    Block $n$ has the positions from $o + nu - {}$`before` to $o + nu + u - 1 + {}$`after` in sight, and of
    those the ones that the text has [check:test_tiles_hold_what_is_in_sight].
    """
    u = max(BLOCK_SIZE, window // 4) if block_size is None else block_size

    # No two tokens are further apart than this, so a larger window sees nothing more.
    furthest = max(offset + t - 1, 0 if is_causal else s - 1 - offset, 0)
    window, u = min(window, furthest + 1), min(u, max(t, 1))

    # Its first query has `before` keys on its left, wherever the block stands: one mask for all. At the ends
    # of the text it is cut to the keys that there are.
    before, after = window - 1, 0 if is_causal else window - 1
    reach = before + u + after
    where = {"is_causal": is_causal, "offset": before, "device": device}
    band = sliding_window_mask(u, reach, window, **where)
    for i in range(0, t, u):
        rows = slice(i, min(i + u, t))
        first = offset + i - before
        low, stop = (min(max(j, 0), s) for j in (first, first + reach))
        mask = band[: rows.stop - i, low - first : stop - first]
        yield rows, [slice(low, stop)], mask


def sliding_window_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    window: int,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    offset: int = 0,
    block_size: int | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## Attention, tile by tile

    It agrees with PyTorch's under `sliding_window_mask`, in outputs and gradients, whatever $t$, $s$ and $w$
    [check:test_agrees_with_pytorch] [check:test_gradcheck]. What is outside of the window moves nothing
    [check:test_only_the_window_moves_a_query], and where the cuts are cannot be seen
    [check:test_block_size_is_irrelevant].

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, with $h$ a multiple of $g$.
    Queries and keys begin together, at the top left; `offset` moves the queries on. The result is `b h t e`,
    and 0 where no key is in sight, with a gradient of 0 [check:test_rows_without_a_key_are_zero].

    **Raises.** `ValueError` if shapes, window or block do not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal, enable_gqa=True)
    if window < 1 or (block_size is not None and block_size < 1):
        came = f"window is {window}, block_size is {block_size}"
        raise ValueError(f"{came}: at least 1 is wanted")
    tiles = partial(
        window_tiles,
        query.shape[2],
        key.shape[2],
        window,
        is_causal=is_causal,
        offset=offset,
        block_size=block_size,
        device=key.device,
    )

    # Lesson 1 would give the same in each tile. But it takes more than twice as long
    # (`benchmarks/bench_sliding_window.py`), so PyTorch's fused kernel stands here. How the answers are put
    # together, and how gradients come back in linear time and memory, is on
    # [a page of its own](../sliding_window_tiles/index.md).
    attend = partial(fused, scale=scale)
    return attend_in_tiles(attend, tiles, query, key, value)


def causal_window_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    window: int,
) -> Float[Tensor, "b h t e"]:
    r"""## In a model

    The same for lesson 3's slot, where positions say what stands where: $i$ sees $j$ if $0 \le i - j < w$ and
    $j \ge 0$ [check:test_slot_is_by_position]. Mistral 7B's attention is
    [check:test_mistral_streams_in_constant_memory]

    ```python
    attend = partial(causal_window_attention, window=4096)
    attend = partial(rotary_attention, attend=attend)
    GroupedQueryAttention(4096, 32, 8, attend=attend)
    ```
    """
    if window < 1:
        raise ValueError(f"window is {window}: it must be at least 1")

    # A text, or a piece of one behind what a cache holds, has no gaps: it is a band, if an offset one. So
    # training and reading are linear [check:test_training_is_linear]. (On a GPU, Python waits for it.)
    if query.shape[2] > 1 and is_run(i) and is_run(j):
        attend, offset = sliding_window_attention, int(i[0] - j[0])
        return attend(query, key, value, window, offset=offset)

    # One new query in front of a cache; keys in the order of a ring; rows of their own positions.
    mask = causal_mask(i, j)
    near = i[..., :, None] - j[..., None, :] < window
    mask = mask & near.view(mask.shape)
    attend = F.scaled_dot_product_attention
    return attend(query, key, value, mask, enable_gqa=True)


def is_run(positions: Int[Tensor, "... n"]) -> bool:
    """Whether they follow one another without a gap, from 0 or later on, and are the same for all texts."""
    if positions.ndim != 1 or not len(positions):
        return False
    return bool((positions[0] >= 0) & (positions.diff() == 1).all())


def receptive_field(
    n_layers: int,
    window: int,
    *,
    is_causal: bool = True,
) -> int:
    r"""## How far a stack sees

    A layer looks $w - 1$ tokens back. There, in the layer below, somebody looked $w - 1$ tokens back. So from
    the last token, $L$ layers reach

    $$L\,(w - 1) + 1$$

    tokens, and looking both ways $2L\,(w-1) + 1$. In a stack with residual streams and MLPs, exactly as many
    tokens have a gradient that is not 0 [check:test_receptive_field_by_gradients]. Mistral's 32 layers of
    4,096 reach 131,041 tokens; the paper's *approximately 131K* is $32 \cdot 4096$, each layer counting again
    the token where the last one arrived [check:test_receptive_field_of_mistral].

    **To reach is not to read.** Let every layer look equally at all its $w$ keys. How much of token $i - r$
    is in $i$ after $L$ layers? As much as there are ways: the probability that $L$ throws of a die marked
    $0, \dots, w - 1$ sum to $r$. That is a bell, with

    $$\text{mean } \frac{L(w-1)}2, \qquad \text{deviation } \sqrt{\frac{L\,(w^2 - 1)}{12}},$$

    and for its last token there is one way in $w^L$ [check:test_influence_is_a_sum_of_dice]. In Mistral's
    sizes: 65,520 give or take 6,689, and at the end $2^{-384}$, which float32 rounds to 0. The residual
    stream, which goes straight up, pulls the bell nearer. And whoever passes something on must have picked it
    up before anyone asked. Small models learn it: see [a planted fact](../sliding_window_recall/index.md).

    ![Above: what the last token sees through three layers, and one path. Below: how much of each token
    arrives, if all layers look equally at all they see.](figure:reach)
    """
    if n_layers < 0 or window < 1:
        came = f"n_layers is {n_layers}, window is {window}"
        raise ValueError(f"{came}: n_layers >= 0 and window >= 1 are wanted")
    sides = 1 if is_causal else 2
    return sides * n_layers * (window - 1) + 1


def sliding_window_cost(
    t: int,
    window: int,
    block_size: int,
    *,
    is_causal: bool = True,
) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns the scores that one head wants of a text, and those that its tiles compute
    [check:test_cost_counts_scores]. Both grow like $t\,w$, forward and backward [check:test_work_is_linear].
    What is made beside the results, output and gradients, is one tile at a time [check:test_memory_is_linear].

    - *A fact further back than $w$* is out of reach for one layer, however well it is remembered elsewhere.
      Gemma 2 lets every second layer see all, Gemma 3 every sixth; Mistral 7B v0.2 gave the window up.
    - *Trained without a window*, a model breaks. In a window of 1,024, Llama-2-13B has a perplexity of 5,158,
      and of 5.40 if the first four tokens stay (arXiv:2309.17453, table 1); lesson 10 says why.
    - *A short text* gains nothing: if $t \le w$, all is seen [check:test_a_wide_window_is_causal_attention].

    **In production.** **SDPA** has no window: with a mask it is right, and quadratic
    [check:test_a_mask_saves_nothing]. **FlexAttention** skips the blocks that a `mask_mod` never enters:
    `create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < w), ...)` [check:test_flex_attention_agrees].
    **flash-attn** starts each block of queries at the first key of its window, as we do, in one kernel; vLLM
    hands it `(w - 1, 0)`. **Transformers** reads `sliding_window` and `layer_types` from the configuration.
    """
    n = min(window, t)
    wanted = t * n - n * (n - 1) // 2
    if not is_causal:
        wanted = 2 * wanted - t
    computed, after = 0, 0 if is_causal else n - 1
    for i in range(0, t, block_size):
        u = min(block_size, t - i)
        sight = min(i + u + after, t) - max(i - (n - 1), 0)
        computed += u * sight
    return wanted, computed


def example(axes: dict[str, int]) -> None:
    """Blocks of `u`, as many as `n`: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e, n, u, w = (axes[x] for x in "bgrtsdenuw")
    query, key = torch.randn(b, g * r, n * u, d), torch.randn(b, g, s, d)
    value, i, j = torch.randn(b, g, s, e), torch.arange(t), torch.arange(s)
    sliding_window_mask(t, s, w)
    list(window_tiles(t, s, w))
    sliding_window_attention(query, key, value, w, block_size=u)
    causal_window_attention(query[:, :, :t], key, value, i, j, window=w)
    causal_window_attention(query[:, :, :t], key, value, i, j.flip(0), window=w)
    receptive_field(2, w)
    sliding_window_cost(t, w, u)
