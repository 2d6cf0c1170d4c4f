r"""# Sliding window

Every query looks at the last $w$ keys, its own included:

$$\mathbf{o}_i = \sum_{0 \le i-j < w} \operatorname{softmax}_j\big(\lambda\,\mathbf{q}_i^\top
\mathbf{k}_j\big)\,\mathbf{v}_j.$$

![The band.](figure:weights)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g s e` | what position $j$ gives |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $w$ | `window` | scalar | how many keys a query sees |
| $u$ | `block_size` | scalar | queries in a block |
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from annotated_attention.language_model import causal_mask
from annotated_attention.scaled_dot_product import check_inputs
from annotated_attention.sliding_window_cache import RollingKVCache

__all__ = ["RollingKVCache", "causal_window_attention", "receptive_field"]
__all__ += ["sliding_window_attention", "sliding_window_mask", "spans"]


def sliding_window_mask(
    t: int,
    s: int,
    window: int,
    *,
    is_causal: bool = True,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "t s"]:
    r"""## The mask

    $0 \le i - j < w$, or $|i - j| < w$. Row $r$ stands at `offset + r`, keys at $0, \dots, s - 1$.
    """
    if min(t, s) < 0 or window < 1:
        came = f"t is {t}, s is {s}, window is {window}"
        raise ValueError(f"{came}: t, s >= 0 and window >= 1 are wanted")
    i = torch.arange(offset, offset + t, device=device)
    j = torch.arange(s, device=device)
    back = i[:, None] - j
    nearest = 0 if is_causal else 1 - window
    return (nearest <= back) & (back < window)


def spans(
    x: Shaped[Tensor, "b g s d"],
    n_blocks: int,
    block_size: int,
    before: int,
    after: int,
) -> Shaped[Tensor, "b g n a d"]:
    r"""## What each block can see

    Block $n$ covers the positions from $n u$ to $n u + u - 1$; its span has `before` positions more in front
    and `after` more behind, $a$ in all. Places outside of the text hold 0 (False). A view of one padded copy.
    """
    first, stop = -before, n_blocks * block_size + after
    inside = x[:, :, max(first, 0) : max(stop, 0)]
    left = min(max(before, 0), stop - first)
    right = stop - first - left - inside.shape[2]
    padded = F.pad(inside, (0, 0, left, right))
    return padded.unfold(2, before + block_size + after, block_size).mT


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
    r"""## Attention in tiles"""
    check_inputs(query, key, value, None, is_causal, enable_gqa=True)
    (h, t), (g, s) = query.shape[1:3], key.shape[1:3]
    if window < 1:
        raise ValueError(f"window is {window}: at least 1 is wanted")
    furthest = max(offset + t, 1 if is_causal else s - offset, 1)
    window = min(window, furthest)
    u = min(128, max(32, window)) if block_size is None else block_size
    if u < 1:
        raise ValueError(f"block_size is {u}: at least 1 is wanted")
    u = min(u, max(t, 1))
    n_blocks = max(1, -(-t // u))
    before, after = window - 1, 0 if is_causal else window - 1

    reach = (n_blocks, u, before - offset, after + offset)
    real = key.new_ones(1, 1, s, 1, dtype=torch.bool)
    real = spans(real, *reach)[0, 0, :, :, 0]
    band = sliding_window_mask(
        u,
        before + u + after,
        window,
        is_causal=is_causal,
        offset=before,
        device=query.device,
    )
    tiles = zip(
        query.split(u, dim=2),
        spans(key, *reach).unbind(2),
        spans(value, *reach).unbind(2),
        real,
        strict=True,
    )
    outputs = []
    for q, k, v, here in tiles:
        mask = (band[: q.shape[2]] & here).repeat(h // g, 1)
        q = rearrange(q, "b (g r) u d -> b g (r u) d", g=g)
        output = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
        outputs.append(rearrange(output, "b g (r u) e -> b (g r) u e", g=g, r=h // g))
    return torch.cat(outputs, dim=2)


def causal_window_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    window: int,
) -> Float[Tensor, "b h t e"]:
    r"""## The slot"""
    if query.shape[2] > 1 and is_run(i) and is_run(j):
        offset = int(i[0] - j[0])
        return sliding_window_attention(query, key, value, window, offset=offset)
    back = i[..., :, None] - j[..., None, :]
    near = back < window
    mask = causal_mask(i, j) & (near if near.ndim == 2 else near[:, None])
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)


def is_run(positions: Tensor) -> bool:
    """Whether they are consecutive and none is negative."""
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

    $L(w - 1) + 1$, two-sided $2L(w-1) + 1$.
    """
    if n_layers < 0 or window < 1:
        came = f"n_layers is {n_layers}, window is {window}"
        raise ValueError(f"{came}: n_layers >= 0 and window >= 1 are wanted")
    sides = 1 if is_causal else 2
    return sides * n_layers * (window - 1) + 1


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query, key = torch.randn(b, g * r, t, d), torch.randn(b, g, s, d)
    value = torch.randn(b, g, s, e)
    sliding_window_mask(t, s, 2)
    sliding_window_attention(query, key, value, 2)
    causal_window_attention(query, key, value, torch.arange(t) + s - t, torch.arange(s), window=2)
    receptive_field(2, 2)
