r"""# A stream in one pass

A cache with sinks answers one query at a time, and it has to: every query counts the sinks from its own
place. But to train a model for streaming, to score a long text, or to know that the cache is right, all
queries are wanted at once.

Then the counting has to happen in the scores. Seen from a key of the window, query $i$ stands at $i$. Seen
from a sink, it stands no further than at the end of the cache:

$$\begin{aligned} p_{ij} &= \begin{cases} \min(i,\; n + w - 1) & j < n, \\ i & \text{else,} \end{cases} \\
S_{ij} &= f(\mathbf{q}_i, \mathbf{k}_j,\; p_{ij} - j), \end{aligned}$$

where $f$ may be any score that knows the two vectors and a distance: rotary, ALiBi, T5's.

![The distance at which each query, a row, sees each key, a column, with two sinks and a window of four. The
distance to a sink stops growing.](figure:distances)

## Why this is what the cache does

Let the cache be full: $i \ge n + w - 1$. It holds the sinks at $0, \dots, n - 1$, and token $j$ of the window
at $n + j - (i - w + 1)$. The query is the newest token, at $n + w - 1$. Its distance to token $j$ is

$$(n + w - 1) - (n + j - i + w - 1) = i - j,$$

and to sink $j$ it is $n + w - 1 - j$: both are $p_{ij} - j$. Before the cache is full its places are those of
the text, and $p_{ij} = i$. In deeper layers keys and values are made of what the layer below gave, and that
was the same: so the two agree through any number of layers
[check:test_three_layers_equal_the_cache].

## What came before

StreamingLLM has the step alone: its authors train with full attention and evaluate token by token. Models
with a window and some global tokens (lessons 11 and 12) give each token its place in the text, and no text
may be longer than their table of places.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ offers |
| $i$ | `i` | `... t` | where the queries stand in the text |
| $j$ | `j` | `... s` | where the keys stand in the text |
| $n$ | `n_sinks` | scalar | how many of the first tokens stay |
| $w$ | `window` | scalar | how many of the newest are seen, the query's own included |
| $\hat\imath$ | `capped` | `... t` | where they stand, seen from a sink: $\min(i,\; n + w - 1)$ |
| $p_{ij}$ | `place` | `... t s` | where query $i$ stands, seen from key $j$ |
| $R_i$ | `apply_rotary` | – | lesson 5's turn by the angles of position $i$ |
| $m_h$ | `slopes` | `h` | lesson 6's price of one step of distance |

**Source.** Xiao et al. (2023), arXiv:2309.17453, section 3.2, which says this for one query. The form for all
of them is this page's.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from annotated_attention.alibi import alibi_slopes
from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.language_model import causal_mask
from annotated_attention.rotary import apply_rotary, rotary_angles
from annotated_attention.sliding_window import is_run, window_tiles
from annotated_attention.sliding_window_tiles import attend_in_tiles, fused

__all__ = ["alibi_by_position", "streaming_alibi"]
__all__ += ["streaming_mask", "streaming_rotary", "streaming_tiles"]


def streaming_mask(
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    n_sinks: int,
    window: int,
) -> Bool[Tensor, "... t s"]:
    r"""## Who is still there

    The past, as far as it is a sink or in the window: $0 \le j \le i$, and $j < n$ or $i - j < w$
    [check:test_mask_keeps_sinks_and_window]. With lesson 3's `causal_attention` in place of positions, this
    alone is the whole pass.

    **Shapes.** As lesson 3's `causal_mask`: `t s`, or `b 1 t s` if either has a batch.
    """
    near = i[..., :, None] - j[..., None, :] < window
    kept = near | (j < n_sinks)[..., None, :]
    return causal_mask(i, j) & (kept if kept.ndim == 2 else kept[:, None])


def streaming_rotary(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    n_sinks: int,
    window: int,
    base: float = 10000.0,
) -> Float[Tensor, "b h t e"]:
    r"""## Rotary: the query is turned twice

    A sink is to meet the query turned to one place, a key of the window the query turned to another. Put both
    side by side, and let each key be silent in the half that is not meant for it:

    $$\begin{pmatrix} R_i\,\mathbf{q}_i \\ R_{\hat\imath}\,\mathbf{q}_i \end{pmatrix}^{\!\top}
    \begin{pmatrix} R_j\,\mathbf{k}_j \\ \mathbf{0} \end{pmatrix} \quad\text{or}\quad
    \begin{pmatrix} R_i\,\mathbf{q}_i \\ R_{\hat\imath}\,\mathbf{q}_i \end{pmatrix}^{\!\top}
    \begin{pmatrix} \mathbf{0} \\ R_j\,\mathbf{k}_j \end{pmatrix}$$

    Vectors twice as wide, and any attention does the rest: the trick by which lesson 6 made a bias a
    coordinate. It is the formula above [check:test_rotary_agrees_with_the_plain_formula]
    [check:test_gradcheck].

    It fits the slot, as `partial(streaming_rotary, n_sinks=4, window=1020)`, and a model trained with it
    streams as it is. In a `SinkKVCache` no query stands beyond the end of the cache and no key is out
    of sight, so there it is lesson 5's `rotary_attention` [check:test_in_the_cache_nothing_changes].
    """
    d = query.shape[-1]
    angles = partial(rotary_angles, d=d, base=base)
    capped = i.clamp(max=n_sinks + window - 1)
    query = torch.cat(
        [apply_rotary(query, angles(i)), apply_rotary(query, angles(capped))],
        dim=-1,
    )

    # Which half is meant for a key does not depend on the query: a query that has a sink in its window stands
    # at $i = \hat\imath$, and for it the halves agree.
    is_sink = (j < n_sinks)[..., None, :, None]
    key = apply_rotary(key, angles(j))
    key = torch.cat(
        [key.masked_fill(is_sink, 0.0), key.masked_fill(~is_sink, 0.0)],
        dim=-1,
    )

    # The scale remains that of $d$ numbers, for half of the $2d$ are zeros
    # [check:test_rotary_scale_is_that_of_d].
    attend = partial(attend_to_wider_keys, scale=d**-0.5)
    if query.shape[2] > 1 and is_run(i) and is_run(j):
        tiles = partial(streaming_tiles, i, j, n_sinks, window)
        return attend_in_tiles(attend, tiles, query, key, value)
    mask = streaming_mask(i, j, n_sinks, window)
    return attend(query, key, value, mask)


def streaming_tiles(
    i: Int[Tensor, "t"],
    j: Int[Tensor, "s"],
    n_sinks: int,
    window: int,
) -> Iterator[tuple[slice, list[slice], Tensor]]:
    r"""### Only what is in sight

    A text without gaps needs no $t\,s$ scores. A block of $u$ queries has the window in sight that
    [lesson 9](../sliding_window/index.md) gives it, and the sinks in front. So time and memory grow with
    $t\,(n + w + u)$ [check:test_time_and_memory_are_linear], and where the cuts are cannot be seen
    [check:test_tiles_are_the_whole].
    """
    given = len(i), len(j), window
    bands = window_tiles(*given, offset=int(i[0] - j[0]), device=j.device)
    for rows, (run,), _ in bands:
        # Sinks that the window still holds are not in front a second time.
        kept = min(int((j < n_sinks).sum()), run.start)
        columns = [slice(0, kept), run] if kept else [run]
        places = torch.cat([j[part] for part in columns])
        mask = streaming_mask(i[rows], places, n_sinks, window)
        yield rows, columns, mask


def attend_to_wider_keys(
    query: Float[Tensor, "b h u d"],
    key: Float[Tensor, "b g a d"],
    value: Float[Tensor, "b g a e"],
    mask: Bool[Tensor, "... u a"],
    scale: float,
) -> Float[Tensor, "b h u e"]:
    r"""PyTorch's kernel for a CPU is fused only if values are as wide as keys. So they get zeros, and the zeros
    that come of them are left out.
    """
    e = value.shape[-1]
    value = F.pad(value, (0, max(0, key.shape[-1] - e)))
    return fused(query, key, value, mask, scale=scale)[..., :e]


def streaming_alibi(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    n_sinks: int,
    window: int,
) -> Float[Tensor, "b h t e"]:
    r"""## ALiBi: the distance is cut

    Where only a distance is asked for, $p_{ij}$ can be written down:

    $$S_{ij} = \tfrac{1}{\sqrt d}\,\mathbf{q}_i^\top \mathbf{k}_j - m_h\,(p_{ij} - j)$$

    [check:test_alibi_agrees_with_the_plain_formula]. In the cache this too is the plain one, which follows
    [check:test_in_the_cache_nothing_changes].
    """
    capped = i.clamp(max=n_sinks + window - 1)
    is_sink = (j < n_sinks)[..., None, :]
    place = torch.where(is_sink, capped[..., :, None], i[..., :, None])
    distance = place - j[..., None, :]
    mask = streaming_mask(i, j, n_sinks, window)
    return attend_by_distance(query, key, value, distance, mask)


def alibi_by_position(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""## ALiBi in the slot

    Lesson 6's `alibi_attention` takes keys to lie at $0, 1, 2, \dots$ A ring holds them in another order, and
    a batch may hold texts of several lengths; so here the bias is $-m_h\,|i - j|$ for the positions that are
    given [check:test_order_in_memory_does_not_matter] [check:test_each_text_may_have_its_positions]. For a
    text from its beginning it is lesson 6 [check:test_alibi_by_position_is_lesson_6], and as there distances
    are float32 at least [check:test_distances_are_never_rounded].
    """
    distance = i[..., :, None] - j[..., None, :]
    return attend_by_distance(query, key, value, distance, causal_mask(i, j))


def attend_by_distance(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    distance: Int[Tensor, "... t s"],
    mask: Bool[Tensor, "... t s"],
) -> Float[Tensor, "b h t e"]:
    r"""### The two have this in common

    **Cost.** With a bias $t\,s$ scores are made, of which $t\,(n + w)$ are kept. That is right for an oracle
    and for texts of some windows. Rotary goes tile by tile, and pays for its turn with vectors twice as wide.
    Lesson 13 has another way: window and sinks are two readers, whose answers can be merged.

    **When it fails.** The mask must count as the cache does. A pass with true distances to the sinks is
    another function, by more than a rounding as soon as the cache is full
    [check:test_true_distances_are_another_function].

    **In production.** FlexAttention takes the rule as it stands: `streaming_mask` as `mask_mod`, so that
    blocks nobody sees are skipped, and for ALiBi the cut distance as `score_mod`
    [check:test_flex_attention_agrees]. Rotary needs the vectors that are twice as wide, there and in SDPA:
    a kernel gets queries already turned, and they can be turned to one place only.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    slopes = alibi_slopes(query.shape[1], dtype=wide, device=query.device)
    distance = distance.abs().to(wide)
    bias = -torch.einsum("h, ... t s -> ... h t s", slopes, distance)
    bias = bias.masked_fill(~mask, -torch.inf)
    return grouped_query_attention(query, key, value, bias)


def example(axes: dict[str, int]) -> None:
    """The end of a text: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query = torch.randn(b, g * r, t, 2 * d)
    key, value = torch.randn(b, g, s, 2 * d), torch.randn(b, g, s, e)
    i, j = torch.arange(t) + s - t, torch.arange(s)
    streaming_mask(i, j, 2, 3)
    streaming_rotary(query, key, value, i, j, n_sinks=2, window=3)
    list(streaming_tiles(i, j, 2, 3))
    streaming_alibi(query, key, value, i, j, n_sinks=2, window=3)
    alibi_by_position(query, key, value, i, j)
