r"""# Rotary positions

A query and a key are turned, pair by pair, through angles that grow with their positions. The product of the
two then depends on the difference of the angles alone.

$$\mathbf{q}_i \mapsto R_i\,\mathbf{q}_i, \qquad \mathbf{k}_j \mapsto R_j\,\mathbf{k}_j, \qquad
(R_i\,\mathbf{q}_i)^\top (R_j\,\mathbf{k}_j) = \mathbf{q}_i^\top R_{j-i}\,\mathbf{k}_j.$$

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\theta_k$ | `frequencies` | `r` | radians by which pair $k$ turns from one position to the next |

**Source.** Su et al. (2021), arXiv:2104.09864.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, Int64, Real
from torch import Tensor

from annotated_attention.language_model import Attend, causal_attention

__all__ = [
    "apply_rotary",
    "half_split_order",
    "ntk_base",
    "rotary_angles",
    "rotary_attention",
    "rotary_frequencies",
    "yarn_frequencies",
    "yarn_scale",
]


def rotary_frequencies(
    d: int,
    *,
    base: float = 10000.0,
    device: torch.device | str | None = None,
) -> Float64[Tensor, "r"]:
    r"""## Frequencies

    $\theta_k = \beta^{-2k/d}$, $k = 0, \dots, d/2 - 1$.
    """
    if d < 2 or d % 2:
        raise ValueError(f"d is {d}: an even number, at least 2, is wanted")
    k = torch.arange(d // 2, dtype=torch.float64, device=device)
    return base ** (-2 * k / d)


def rotary_angles(
    positions: Real[Tensor, "... t"],
    d: int,
    *,
    base: float = 10000.0,
    frequencies: Float[Tensor, "r"] | None = None,
) -> Float64[Tensor, "... t r"]:
    r"""## Angles

    $i\,\theta_k$, in float64.
    """
    if frequencies is None:
        frequencies = rotary_frequencies(d, base=base, device=positions.device)
    if 2 * len(frequencies) != d:
        raise ValueError(f"frequencies has {len(frequencies)} numbers: d / 2 is wanted, d is {d}")
    return positions.double()[..., None] * frequencies.double()


def apply_rotary(
    x: Float[Tensor, "b h t d"],
    angles: Float[Tensor, "... t r"],
    *,
    interleaved: bool = False,
) -> Float[Tensor, "b h t d"]:
    r"""## The turn

    Half-split unless `interleaved`; the first $2r$ dimensions turn, the rest pass.
    """
    b, _, t, d = x.shape
    r = angles.shape[-1]
    if angles.shape not in {(t, r), (1, t, r), (b, t, r)}:
        came = f"angles has shape {tuple(angles.shape)}, x {tuple(x.shape)}"
        raise ValueError(f"{came}: t r or b t r is wanted")
    if 2 * r > d:
        raise ValueError(f"angles has {r} pairs, x has width {d}: at most d / 2 pairs are wanted")
    if angles.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(f"angles is {angles.dtype}: float32 or wider is wanted")
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (f(angles).to(wide).unsqueeze(-3) for f in (torch.cos, torch.sin))
    layout = "b h t (r two)" if interleaved else "b h t (two r)"
    first, second = rearrange(x[..., : 2 * r].to(wide), f"{layout} -> two b h t r", two=2)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos])
    turned = rearrange(turned, f"two b h t r -> {layout}")
    return torch.cat([turned.to(x.dtype), x[..., 2 * r :]], dim=-1)


def half_split_order(d: int, *, device: torch.device | str | None = None) -> Int64[Tensor, "d"]:
    r"""## Two layouts

    `x[..., half_split_order(d)]` brings an interleaved vector into the half-split layout: the even places
    first, then the odd ones.
    """
    if d < 2 or d % 2:
        raise ValueError(f"d is {d}: an even number, at least 2, is wanted")
    return torch.arange(d, device=device).view(-1, 2).T.reshape(-1)


def rotary_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    base: float = 10000.0,
    frequencies: Float[Tensor, "r"] | None = None,
    attend: Attend = causal_attention,
) -> Float[Tensor, "b h t e"]:
    r"""## Attention

    Queries are turned by where they stand, keys by where they stand, values not at all.
    """
    d = query.shape[-1] if frequencies is None else 2 * len(frequencies)
    query = apply_rotary(query, rotary_angles(i, d, base=base, frequencies=frequencies))
    key = apply_rotary(key, rotary_angles(j, d, base=base, frequencies=frequencies))
    return attend(query, key, value, i, j)


def ntk_base(base: float, factor: float, d: int) -> float:
    r"""## NTK

    $\beta' = \beta\, f^{d/(d-2)}$: the slowest pair is slowed by exactly $f$, the fastest not at all.
    """
    if d < 4 or d % 2:
        raise ValueError(f"d is {d}: an even number, at least 4, is wanted")
    return base * factor ** (d / (d - 2))


def yarn_frequencies(
    d: int,
    factor: float,
    original_length: int,
    *,
    base: float = 10000.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    device: torch.device | str | None = None,
) -> Float64[Tensor, "r"]:
    r"""## YaRN

    Pairs that make more than `beta_fast` turns within the original length stay, those that make fewer than
    `beta_slow` are slowed by `factor`, and between them is a ramp, linear in the index of the pair.
    """
    frequencies = rotary_frequencies(d, base=base, device=device)

    def pair_of(turns: float) -> float:
        return d / 2 * math.log(original_length / (2 * math.pi * turns), base)

    low = max(math.floor(pair_of(beta_fast)), 0)
    high = min(math.ceil(pair_of(beta_slow)), d - 1)
    k = torch.arange(d // 2, device=device)
    ramp = ((k - low) / max(high - low, 0.001)).clamp(0, 1)
    return (1 - ramp) * frequencies + ramp * frequencies / factor


def yarn_scale(factor: float) -> float:
    r"""## Temperature

    $\sqrt{1/t} = 0.1 \ln f + 1$: what queries and keys are both multiplied by, so that scores are multiplied
    by its square.
    """
    return 0.1 * math.log(factor) + 1.0


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, s, r, e = (axes[letter] for letter in "bhtsre")
    d = 2 * r
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, h, s, d), torch.randn(b, h, s, e)
    rotary_attention(query, key, value, torch.arange(s - t, s), torch.arange(s))
    apply_rotary(query, rotary_angles(torch.arange(t), d), interleaved=True)
    half_split_order(d)
    ntk_base(10000.0, 8.0, d)
    yarn_frequencies(d, 8.0, 64)
    yarn_scale(8.0)
