r"""# BigBird

A window sees what is near. In blocks of 64 tokens, with a window of three blocks, a word at the start of
4,096 tokens is heard at their end after 63 layers [check:test_a_window_needs_63_layers|63 layers], and
BERT-base has 12. Longformer shortens the way by global tokens. But somebody must choose them, anew for each
task, and all that travels far goes through them.

BigBird takes attention for a graph: an arc from each query to each key that it looks at. Which arcs of the
complete graph can be spared? Graph theory has a surprising answer: nearly all, if those that stay are drawn
at random. So a *plan* is drawn, once, before any text is read. It cuts the text into blocks of $u$ tokens,
and a query in block $I$ sees the keys of those blocks $J$ for which $A_{IJ}$ is true:

$$\begin{aligned} \mathbf{o}_i &= \sum_{j : A_{IJ}} \operatorname{softmax}_j\big(\lambda\,\mathbf{q}_i^\top
\mathbf{k}_j\big)\,\mathbf{v}_j, \\ I &= \lfloor i/u \rfloor, \quad J = \lfloor j/u \rfloor . \end{aligned}$$

![A plan for 16 blocks. A row is a block of queries, a column a block of keys: the window, two global blocks,
and two drawn at random in each row.](figure:plan)

## What came before

Sparse Transformers (Child et al. 2019, arXiv:1904.10509) keep near arcs and every $\sqrt t$-th, Longformer
(lesson 11) a window and chosen global tokens, ETC (Ainslie et al. 2020, arXiv:2004.08483) a window and global
tokens that are added to the text. BigBird adds chance, and a theory of what such models can compute.

## Three kinds of arcs

- *Window.* $n_w$ blocks, the query's own in their midst. Most of what a word needs stands beside it.
- *Global.* The first $n_g$ blocks see all and are seen by all. Any block is two steps from any other.
- *Random.* $n_r$ more blocks for each row, drawn from those that are left. They are the short cuts between
  distant blocks that need no hub; [the graph of a plan](../bigbird_graph/index.md) measures them.

The paper has two forms of the second. *ITC* (internal transformer construction) makes existing tokens global,
as above. *ETC* (extended) puts $n_x$ extra tokens, all of them global, in front of the text; then
$I = \lfloor (i - n_x)/u \rfloor$. Both may be combined [check:test_agrees_with_the_masked_formula].

## Why blocks

Memory is read in lines of many bytes, and matrix units multiply tiles: a random key alone costs as much as
many that lie together (appendix D). So a query block puts its key blocks side by side, into one short strip,
and what follows is dense attention, without a mask.

![Row 9 of the plan: its blocks of keys lie scattered, and are put side by side in a strip.](figure:strip)

## A block counted twice

The strip is a list, and a list can name a block twice. Nothing fails: the weights still sum to one. But a key
that stands $c$ times in the denominator and in the sum has $c$ times its weight, as if its score were higher
by $\log c$ [check:test_a_block_counted_c_times]:

$$\frac{c\, e^{z_j}}{\dots + c\, e^{z_j} + \dots} = \frac{e^{z_j + \log c}}{\dots + e^{z_j + \log c} + \dots}$$

It happens. Since 2023, Transformers' BigBird draws nothing in `.eval()` (pull request 23056), and leaves its
table of random blocks at zero. Block 0 is global and in the strip already. By default a row has eight places,
of which it then fills four: with equal scores it takes half of the weight, in training an eighth
[check:test_block_0_takes_half_in_eval|half]. A plan, unlike dropout, is part of the model.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g t d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g t e` | what position $j$ gives |
| $\mathbf{o}_i$ | – | `b h t e` | what position $i$ finds |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $u$ | `block_size` | scalar | tokens in a block |
| $n$ | `n_blocks` | scalar | blocks in the text |
| $I$, $J$ | `i`, `j` | scalar | a block of queries, a block of keys |
| $A$ | `mask` | `n n` | which block sees which |
| $n_w$ | `n_window` | scalar | blocks in the window, the query's own included |
| $n_g$ | `n_global` | scalar | global blocks, the first of the text |
| $n_r$ | `n_random` | scalar | random blocks in a row |
| $n_x$ | `n_extra` | scalar | extra global tokens in front |

## What was measured

| at 512 tokens (table 1) | MLM | SQuAD | MNLI |
|---|---|---|---|
| BERT-base, all arcs | 64.2 | 88.5 | 83.4 |
| random | 60.1 | 83.0 | 80.2 |
| window | 58.3 | 76.4 | 73.1 |
| both | 62.7 | 85.1 | 80.5 |

Random arcs alone do better than a window alone, the two together better still, and not as well as all: hence
the global tokens. With them, at 4,096 tokens, both forms predict masked words better (ITC with 1.678 bits a
character, ETC with 1.611) than RoBERTa at 512 (1.846; table 10). But ITC has $n_r = 3$, and ETC, the better
one, has **no random blocks** (table 8). Where tokens are global, chance adds at most room; see the graph.

**Source.** Zaheer et al. (2020), arXiv:2007.14062, section 2 (its $A$ is ours for single tokens, its $n$ our
$t$) and appendix D (blocks; its $b$ is our $u$, and its $w, g, r$ are our $n_w, n_g, n_r$).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from annotated_attention.scaled_dot_product import check_inputs
from annotated_attention.sliding_window_tiles import (
    Tile,
    attend_in_tiles,
    fused,
)

__all__ = ["BigBirdPlan", "bigbird_attention", "bigbird_cost"]
__all__ += ["bigbird_mask_mod", "bigbird_plan", "plan_mask"]

Blocks = tuple[int, ...]


@dataclass(frozen=True)
class BigBirdPlan:
    r"""## The plan

    For each block of queries, three lists of key blocks that share none. A global row has all blocks in its
    `global_blocks`; every other row has the first $n_g$ there. `print(plan)` draws it.

    A plan is data. Google's code and Transformers make the first and the *last* block global; such a plan can
    be written by hand, and `bigbird_attention` runs it [check:test_a_plan_made_by_hand].
    """

    n_blocks: int
    n_window: int
    n_global: int
    n_random: int
    seed: int
    window_blocks: tuple[Blocks, ...] = field(repr=False)
    global_blocks: tuple[Blocks, ...] = field(repr=False)
    random_blocks: tuple[Blocks, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """What is not there is refused [check:test_wrong_plans_are_refused]; a block named twice is not."""
        for name in ("window_blocks", "global_blocks", "random_blocks"):
            rows, n = getattr(self, name), self.n_blocks
            named = set().union(*rows)
            if len(rows) != n or not named <= set(range(n)):
                came = f"{name} has {len(rows)} rows of {sorted(named)}"
                raise ValueError(f"{came}: {n}, of blocks below {n}, are wanted")

    def row(self, i: int) -> Blocks:
        """All key blocks that query block `i` sees, in order."""
        kinds = self.window_blocks, self.global_blocks, self.random_blocks
        return tuple(sorted(j for blocks in kinds for j in blocks[i]))

    def __str__(self) -> str:
        rows = [["·"] * self.n_blocks for _ in range(self.n_blocks)]
        for i, row in enumerate(rows):
            for j in self.row(i):
                is_global = j in self.global_blocks[i]
                is_random = j in self.random_blocks[i]
                row[j] = "g" if is_global else "r" if is_random else "w"
        return "\n".join(map(" ".join, rows))


def bigbird_plan(
    n_blocks: int,
    *,
    n_window: int,
    n_global: int,
    n_random: int,
    seed: int,
) -> BigBirdPlan:
    r"""## Drawing lots

    Windows are cut at the ends of the text, and a row draws fewer blocks if fewer are left. None is in a row
    twice [check:test_no_block_is_seen_twice]. All heads share the plan (in Transformers, each has its own).

    **Raises.** `ValueError` if a number is too small or a window even [check:test_wrong_plans_are_refused].
    """
    if n_blocks < 1 or n_window < 1 or n_window % 2 == 0:
        came = f"n_blocks is {n_blocks}, n_window is {n_window}"
        raise ValueError(f"{came}: a block and an odd window are wanted")
    if min(n_global, n_random, seed) < 0:
        came = f"n_global is {n_global}, n_random is {n_random}"
        raise ValueError(f"{came}, seed is {seed}: 0 or more are wanted")
    everything = tuple(range(n_blocks))
    first, reach = min(n_global, n_blocks), n_window // 2
    window: list[Blocks] = [()] * first
    others: list[Blocks] = [everything] * first
    lots: list[Blocks] = [()] * first

    # A checkpoint is of no use without its plan, so a seed must give the same plan in ten years. Python
    # promises that for `random()`, not for `sample` [check:test_plans_never_change].
    uniform = Random(seed).random
    for i in range(first, n_blocks):
        low, high = max(first, i - reach), min(i + reach + 1, n_blocks)
        left = [*range(first, low), *range(high, n_blocks)]

        # Whoever is drawn leaves the hat: $n_r$ different blocks, every set of them equally likely
        # [check:test_lots_are_fair].
        draws = range(min(n_random, len(left)))
        drawn = [left.pop(int(uniform() * len(left))) for _ in draws]
        window.append(everything[low:high])
        others.append(everything[:first])
        lots.append(tuple(sorted(drawn)))
    kinds = tuple(window), tuple(others), tuple(lots)
    return BigBirdPlan(n_blocks, n_window, n_global, n_random, seed, *kinds)


def plan_mask(plan: BigBirdPlan) -> Bool[Tensor, "n n"]:
    r"""The plan as the matrix $A$: true where query block $I$ sees key block $J$."""
    mask = torch.zeros(plan.n_blocks, plan.n_blocks, dtype=torch.bool)
    for i in range(plan.n_blocks):
        mask[i, list(plan.row(i))] = True
    return mask


def bigbird_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t e"],
    block_size: int,
    plan: BigBirdPlan,
    *,
    n_extra: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## Attention by the plan

    It agrees with the plain formula under the mask $A$, blown up to tokens
    [check:test_agrees_with_the_masked_formula] [check:test_gradcheck], and what a query's row does not name
    moves nothing [check:test_unseen_blocks_move_nothing].

    **Shapes.** `query` is `b h t d`, `key` is `b g t d`, `value` is `b g t e`, with $h$ a multiple of $g$;
    the result is `b h t e`. The last block may be shorter, $n = \lceil (t - n_x)/u \rceil$. It looks both
    ways, and takes no mask. In a drawn plan a query sees its own block, so no row is empty. A plan for
    another number of blocks is a `ValueError` [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, False, enable_gqa=True)
    check_plan(query.shape[2], key.shape[2], block_size, plan, n_extra)
    # The extra tokens look at everything, and stand at the head of every strip. Blocks that are neighbours in the
    # text come as one run: fewer pieces to copy, and where all may be looked at, none.
    t, u = query.shape[2], block_size
    blocks = [slice(i, min(i + u, t)) for i in range(n_extra, t, u)]

    def tiles() -> Iterator[Tile]:
        yield slice(0, n_extra), [slice(0, t)], None
        for i, rows in enumerate(blocks):
            strip = [slice(0, n_extra)]
            for block in (blocks[j] for j in plan.row(i)):
                if block.start == strip[-1].stop:
                    block = slice(strip.pop().start, block.stop)
                strip.append(block)
            yield rows, strip, None

    # One strip at a time: on a CPU that is faster than to gather all with one `index_select`, and holds a
    # fraction of the memory (`benchmarks/bench_bigbird.py`). How gradients come back is told in
    # [lesson 9](../sliding_window_tiles/index.md); a global key has a share in every strip
    # [check:test_gradients_are_summed_wide].
    attend = partial(fused, scale=scale)
    return attend_in_tiles(attend, tiles, query, key, value)


def check_plan(t, s, block_size, plan, n_extra) -> None:
    """A plan for another length would leave tokens out, or name blocks that are not there."""
    if s != t:
        raise ValueError(f"key has {s} positions, query {t}: as many are wanted")
    sizes = f"block_size is {block_size}, n_extra is {n_extra}"
    if block_size < 1 or n_extra < 0:
        raise ValueError(f"{sizes}: at least 1 and at least 0 are wanted")
    wanted = -(-(t - n_extra) // block_size)
    if plan.n_blocks != wanted:
        came = f"plan has {plan.n_blocks} blocks, t is {t}, {sizes}"
        raise ValueError(f"{came}: {wanted} blocks are wanted")


def bigbird_cost(
    t: int,
    block_size: int,
    plan: BigBirdPlan,
    *,
    n_extra: int = 0,
) -> int:
    r"""## What it costs, and when it fails

    Returns the number of scores of a head, which is what is computed, to the last one
    [check:test_scores_are_counted]. Rows of the plan have at most $n_g + n_w + n_r$ blocks, but for the $n_g$
    that have $n$: with whole blocks and no extra tokens,

    $$\text{scores} \;\le\; u\,t\,(2\,n_g + n_w + n_r),$$

    which is linear in $t$ [check:test_cost_is_linear_in_length]. With the paper's settings (blocks of 64, 2
    global, 3 in the window, 3 random) a text of 4,096 tokens needs 15.2% of all scores, and one of 32,768
    needs 1.9% [check:test_share_of_all_scores|15.2%, 1.9%]. Memory is linear as well
    [check:test_memory_is_linear_in_length]: one strip is there at a time. Then:

    - *It is blind.* What may meet is settled before the text is read: of the far blocks, a share of about
      $n_r/n$. The rest waits for another layer, or for a hub to pass it on.
    - *Some tasks need all pairs.* The graph page has one, and a theorem.
    - *It looks both ways.* The summarisers have a sparse encoder and a full decoder (section 4.1).
    - *Dense became cheap.* FlashAttention's memory is linear too. ModernBERT
      (arXiv:2412.13663) has full attention in every third layer. Native Sparse Attention (arXiv:2502.11089)
      keeps blocks, but lets the query choose them.
    """
    sizes = [min(block_size, t - i) for i in range(n_extra, t, block_size)]
    count = n_extra * t
    for i, size in enumerate(sizes):
        count += size * (n_extra + sum(sizes[j] for j in plan.row(i)))
    return count


def bigbird_mask_mod(
    plan: BigBirdPlan,
    block_size: int,
    *,
    n_extra: int = 0,
    device: torch.device | str | None = None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    r"""## In production

    - **FlexAttention** takes this function as `mask_mod` [check:test_flex_attention_agrees]. Its `BlockMask`
      of the same block size (128 by default), without extra tokens, *is* the plan, each block full or absent
      [check:test_block_mask_is_the_plan]; its kernels skip what is absent.
    - **SDPA** takes the mask of tokens, which has $t^2$ entries, and computes all scores.
    - **Transformers** (`BigBirdModel`): `attention_type="block_sparse"`, `block_size=64`,
      `num_random_blocks=3`; window 3 and the two global blocks are fixed. Up to $(5 + 2 n_r)\,u = 704$ tokens
      it falls back to full attention. Like Google's code, it draws from the start of the text alone (see the
      graph page), and in evaluation not at all (see above).
    """
    mask = plan_mask(plan).to(device)

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = (i - n_extra).clamp(min=0) // block_size
        column = (j - n_extra).clamp(min=0) // block_size
        return (i < n_extra) | (j < n_extra) | mask[row, column]

    return mask_mod


def example(axes: dict[str, int]) -> None:
    """Each block sees itself and `x` extra tokens: the shapes beside the code are read off this run."""
    b, g, r, d, e, n, u, x = (axes[letter] for letter in "bgrdenux")
    plan, t = bigbird_plan(n, n_window=1, n_global=0, n_random=0, seed=0), x + n * u
    query, key, value = (torch.randn(b, *w) for w in ((g * r, t, d), (g, t, d), (g, t, e)))
    bigbird_attention(query, key, value, u, plan, n_extra=x)
    bigbird_cost(t, u, plan, n_extra=x)
    bigbird_mask_mod(plan, u)
