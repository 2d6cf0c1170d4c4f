r"""# Feature maps

Under construction: the public names work.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{x}$ | `x` | `... d` | a query or a key |

**Source.** Choromanski et al. (2020), arXiv:2009.14794; Arora et al. (2024), arXiv:2402.18668.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FeatureMap", "elu_plus_one", "positive_random_features"]
__all__ += ["relu_features", "taylor_features"]

FeatureMap = Callable[[Tensor], Tensor]


def elu_plus_one(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    r"""## A map that is positive

    $\varphi(x) = \operatorname{elu}(x) + 1$, number by number: $x + 1$ above 0 and $e^x$ below. Not negative,
    so that the weights are not; and not flat below 0, as $\operatorname{ReLU}$ is, so that a feature that is
    small can still learn (section 3.2.1 of the paper).

    Computed as it is written, most of the small features are lost: elu comes close to $-1$, where float32
    has steps of $6 \cdot 10^{-8}$, and at $x = -20$ the sum is 0. Below, it is $e^{-20}$
    [check:test_small_features_are_not_rounded_away].

    There is no `scale`. A factor in front of $\mathbf{q}_i^\top \mathbf{k}_j$ made the softmax sharper or
    flatter. Here it is part of the map, `lambda x: elu_plus_one(x / 2)`; and of a map such as ReLU, for which
    $\varphi(cx) = c\,\varphi(x)$, it cancels in the ratio [check:test_a_scale_belongs_to_the_map].
    """
    return x.clamp(max=0).exp() + x.relu()


def relu_features(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    r"""## Zero, or as it is"""
    return x.relu()


def taylor_features(x: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
    r"""## The beginning of the series"""
    squares = torch.einsum("... d, ... m -> ... d m", x, x).flatten(-2)
    ones = torch.ones_like(x[..., :1])
    return torch.cat([ones, x, squares * 2**-0.5], dim=-1)


def positive_random_features(
    d: int,
    n_features: int,
    *,
    generator: torch.Generator | None = None,
) -> Callable[[Float[Tensor, "... d"]], Float[Tensor, "... f"]]:
    r"""## Random features"""
    if min(d, n_features) < 1:
        came = f"d is {d}, n_features is {n_features}"
        raise ValueError(f"{came}: at least 1 is wanted")
    blocks = -(-n_features // d)
    normal = torch.randn(blocks, d, d, generator=generator, dtype=torch.float64)
    lengths = normal.norm(dim=-1, keepdim=True)
    directions = torch.linalg.qr(normal.mT).Q.mT
    w = (lengths * directions).flatten(0, 1)[:n_features]

    def features(x: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
        projected = torch.einsum("... d, f d -> ... f", x, w.to(x))
        size = x.square().sum(-1, keepdim=True) / 2
        return (projected - size).exp() * n_features**-0.5

    return features


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, d, f = (axes[name] for name in "bhtdf")
    x = torch.randn(b, h, t, d)
    relu_features(x)
    taylor_features(x)
    positive_random_features(d, f)(x)
