r"""# BigBird

Two tokens far apart, and a window between them: to reach one from the other takes as many layers as there are
windows on the way. Longformer cuts the way short through a few global tokens, which somebody must choose.

BigBird asks what any graph would need to be a good stand-in for the complete one, and adds edges at random.

![A plan.](figure:plan)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g t d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g t e` | what position $j$ gives |
| $n$ | `n_blocks` | scalar | blocks of the sequence |
| $u$ | `block_size` | scalar | positions in a block |

**Source.** Zaheer et al. (2020), arXiv:2007.14062, section 2.
"""

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["BigBirdPlan", "bigbird_attention", "bigbird_plan", "plan_mask"]

Blocks = tuple[int, ...]


@dataclass(frozen=True, repr=False)
class BigBirdPlan:
    r"""## The plan

    For each query block, in three lists that share no block, the key blocks that it sees. A global row has
    all blocks in `global_blocks[i]`; another row has the first `n_global` there. `print(plan)` draws it.
    """

    n_blocks: int
    n_window: int
    n_global: int
    n_random: int
    seed: int
    window_blocks: tuple[Blocks, ...]
    global_blocks: tuple[Blocks, ...]
    random_blocks: tuple[Blocks, ...]

    def row(self, i: int) -> Blocks:
        """All key blocks that query block `i` sees, in order."""
        return tuple(sorted(self.window_blocks[i] + self.global_blocks[i] + self.random_blocks[i]))

    def __repr__(self) -> str:
        sizes = f"n_window={self.n_window}, n_global={self.n_global}, n_random={self.n_random}"
        return f"bigbird_plan({self.n_blocks}, {sizes}, seed={self.seed})"

    def __str__(self) -> str:
        lines = []
        for i in range(self.n_blocks):
            line = ["·"] * self.n_blocks
            kinds = {"g": self.global_blocks, "w": self.window_blocks, "r": self.random_blocks}
            for letter, blocks in kinds.items():
                for j in blocks[i]:
                    line[j] = letter
            lines.append(" ".join(line))
        return "\n".join([repr(self), *lines])


def bigbird_plan(
    n_blocks: int,
    *,
    n_window: int,
    n_global: int,
    n_random: int,
    seed: int,
) -> BigBirdPlan:
    r"""## Drawing a plan"""
    if n_blocks < 1 or n_window < 1 or n_window % 2 == 0:
        came = f"n_blocks is {n_blocks}, n_window is {n_window}"
        raise ValueError(f"{came}: at least 1 block and an odd window are wanted")
    if min(n_global, n_random, seed) < 0:
        came = f"n_global is {n_global}, n_random is {n_random}, seed is {seed}"
        raise ValueError(f"{came}: none may be negative")
    first = min(n_global, n_blocks)
    reach = n_window // 2
    everything = tuple(range(n_blocks))
    window: list[Blocks] = [()] * first
    others: list[Blocks] = [everything] * first
    drawn: list[Blocks] = [()] * first

    # `random()` is the one stream that Python promises never to change; `sample` may.
    uniform = Random(seed).random
    for i in range(first, n_blocks):
        low, high = max(first, i - reach), min(i + reach + 1, n_blocks)
        left = [*range(first, low), *range(high, n_blocks)]
        chosen = []
        for _ in range(min(n_random, len(left))):
            chosen.append(left.pop(int(uniform() * len(left))))
        window.append(everything[low:high])
        others.append(everything[:first])
        drawn.append(tuple(sorted(chosen)))
    return BigBirdPlan(
        n_blocks, n_window, n_global, n_random, seed, tuple(window), tuple(others), tuple(drawn)
    )


def plan_mask(plan: BigBirdPlan) -> Bool[Tensor, "n n"]:
    r"""## The plan as a mask

    True where query block $i$ sees key block $j$.
    """
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
    r"""## Attention by the plan"""
    check_inputs(query, key, value, None, False, enable_gqa=True)
    check_plan(query.shape[2], key.shape[2], block_size, plan, n_extra)
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = query.to(wide), key.to(wide), value.to(wide)

    # Extra tokens and global blocks come first and see everything.
    first = len(plan.window_blocks) - sum(map(bool, plan.window_blocks))
    n_dense = min(n_extra + first * block_size, q.shape[2])
    outputs = [fused(q[:, :, :n_dense], k, v, scale)]

    # Views: nothing is copied yet, and their gradients are put together once.
    shared_k, shared_v = k[:, :, :n_dense], v[:, :, :n_dense]
    blocks_k = k[:, :, n_extra:].split(block_size, dim=2)
    blocks_v = v[:, :, n_extra:].split(block_size, dim=2)
    tiles = q[:, :, n_extra:].split(block_size, dim=2)
    for i in range(first, plan.n_blocks):
        own = plan.window_blocks[i] + plan.random_blocks[i]
        near_k = torch.cat([shared_k, *(blocks_k[j] for j in own)], dim=2)
        near_v = torch.cat([shared_v, *(blocks_v[j] for j in own)], dim=2)
        outputs.append(fused(tiles[i], near_k, near_v, scale))
    return torch.cat(outputs, dim=2).to(query.dtype)


def fused(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    scale: float | None,
) -> Float[Tensor, "b h t e"]:
    """Grouped attention without a mask, in PyTorch's fused kernel: the group is folded into time."""
    r = query.shape[1] // key.shape[1]
    folded = rearrange(query, "b (g r) t d -> b g (r t) d", r=r)
    output = F.scaled_dot_product_attention(folded, key, value, scale=scale)
    return rearrange(output, "b g (r t) e -> b (g r) t e", r=r)


def check_plan(t: int, s: int, block_size: int, plan: BigBirdPlan, n_extra: int) -> None:
    """What is refused."""
    if s != t:
        raise ValueError(f"key has {s} positions, query has {t}: as many are wanted")
    if block_size < 1 or not 0 <= n_extra < t:
        came = f"block_size is {block_size}, n_extra is {n_extra}"
        raise ValueError(f"{came}: at least 1, and from 0 to {t - 1}, are wanted")
    wanted = -(-(t - n_extra) // block_size)
    if plan.n_blocks != wanted:
        rest = f"{t - n_extra} positions in blocks of {block_size}"
        raise ValueError(f"plan has {plan.n_blocks} blocks: {wanted} are wanted for {rest}")


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, d, e = (axes[name] for name in "bgrtde")
    query, key, value = torch.randn(b, g * r, t, d), torch.randn(b, g, t, d), torch.randn(b, g, t, e)
    plan = bigbird_plan(-(-(t - 1) // 2), n_window=1, n_global=1, n_random=1, seed=0)
    plan_mask(plan)
    bigbird_attention(query, key, value, 2, plan, n_extra=1)
