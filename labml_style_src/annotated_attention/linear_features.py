r"""# Feature maps

Linear attention needs weights of the form $\varphi(\mathbf{q})^\top \varphi(\mathbf{k})$. Softmax has
$e^{\mathbf{q}^\top \mathbf{k}}$, which is sharp: a score that is 5 higher counts 148 times as much. Which map
comes close?

None, with finitely many features. A map with $f$ of them makes a matrix of weights of rank $f$ at most. But
take any $n$ different numbers: the matrix of $e^{x_i x_j}$ has rank $n$
[check:test_the_exponential_has_no_finite_map]. So there are three ways on. Give up the exponential, and be
content with weights that are positive. Cut its series off. Or draw features at random, and be right on
average:

$$\mathrm{E}\big[\varphi(\mathbf{q})^\top \varphi(\mathbf{k})\big] = e^{\mathbf{q}^\top \mathbf{k}} .$$

![The weight of a pair over the product of query and key, on a logarithmic axis where the exponential is a
line. Left: elu + 1. Centre: the series. Right: 256 random features.](figure:maps)

## What came before

Rahimi and Recht (2007) drew random waves whose products average to a Gaussian kernel, and so made kernel
machines linear in the number of examples. Performers (2020) made such features positive, for attention.
Katharopoulos et al. (2020) left the exponential alone. Based (2024) came back to it with the first three
terms of its series, beside a window of softmax for what is near. Hedgehog (2024, arXiv:2402.04347) trains the
map until its weights look like the softmax's.

## Why random features are right on average

For $\mathbf{w} \sim \mathcal{N}(0, I)$ and any vector $\mathbf{x}$, $\mathrm{E}[e^{\mathbf{w}^\top
\mathbf{x}}] = e^{|\mathbf{x}|^2/2}$. Put $\mathbf{x} = \mathbf{q} + \mathbf{k}$, and use $|\mathbf{q} +
\mathbf{k}|^2 = |\mathbf{q}|^2 + |\mathbf{k}|^2 + 2\,\mathbf{q}^\top \mathbf{k}$:

$$\mathrm{E}\Big[e^{\mathbf{w}^\top \mathbf{q} - |\mathbf{q}|^2/2}\; e^{\mathbf{w}^\top \mathbf{k} -
|\mathbf{k}|^2/2}\Big] = e^{\mathbf{q}^\top \mathbf{k}},$$

a product of a feature of $\mathbf{q}$ and one of $\mathbf{k}$ [check:test_random_features_are_unbiased]. Its
second moment follows in the same way from $2\mathbf{x}$. So the mean over $f$ independent $\mathbf{w}$ is off
by

$$\sqrt{\frac{e^{|\mathbf{q} + \mathbf{k}|^2} - 1}{f}}$$

of its value, a standard deviation [check:test_the_error_is_as_derived]. It falls with the root of $f$, and
rises steeply with the length of the vectors. Queries and keys of 64 normal numbers, each divided by
$64^{1/4}$ to have scores of variance 1, have $|\mathbf{q} + \mathbf{k}|^2 = 16$ in the mean: 8.9 million
features until the error is no larger than the weight [check:test_millions_of_features].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}$ | – | `d` | a query |
| $\mathbf{k}$ | – | `d` | a key |
| $\mathbf{x}$ | `x` | `... d` | either |
| $\varphi$ | `features` | – | from $d$ numbers to $f$ features |
| $f$ | `n_features` | scalar | how many |
| $\mathbf{w}$ | `w` | `f d` | a random direction for each feature |

**Source.** Choromanski et al. (2020), arXiv:2009.14794, lemmas 1 and 2; their $m$ is our $f$. Arora et al.
(2024), arXiv:2402.18668, section 4. Katharopoulos et al. (2020), arXiv:2006.16236, equation 7.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FeatureMap", "elu_plus_one", "positive_random_features"]
__all__ += ["relu_features", "taylor_features"]

FeatureMap = Callable[[Tensor], Tensor]


def elu_plus_one(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    r"""## elu + 1

    Each number for itself: $x + 1$ above 0, $e^x$ below. Never negative, so that weights are not, and never
    flat, so that a feature which is small can still learn.

    Computed as it is written, most small features are lost: elu comes close to $-1$, where float32 has steps
    of $6 \cdot 10^{-8}$, and from $x = -17.4$ on the sum is 0. Below, it is $e^x$
    [check:test_small_features_are_not_rounded_away].

    The slope is 1 above 0 and $e^x$ below, that is $\min(\varphi(x), 1)$. So the way back needs nothing but the
    features, which are kept in any case; left to itself, autograd would keep two more tensors of their size
    [check:test_the_slope_needs_only_the_features].
    """
    return EluPlusOne.apply(x)


class EluPlusOne(torch.autograd.Function):
    """And that is all."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clamp(max=0).exp() + x.relu()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, *grad_outputs):
        (features,) = ctx.saved_tensors
        return grad_outputs[0] * features.clamp(max=1)


def relu_features(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    r"""## ReLU

    Cheaper still, and a query or key may have no feature at all: then it sees nothing, or is not seen. As
    $\varphi(cx) = c\,\varphi(x)$, the length of a query cancels in the ratio, and it cannot choose to look
    more sharply [check:test_relu_does_not_feel_a_scale].
    """
    return x.relu()


def taylor_features(x: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
    r"""## The beginning of the series

    $\varphi(\mathbf{x}) = (1,\ \mathbf{x},\ \mathbf{x}\mathbf{x}^\top / \sqrt 2)$, written in a row. The
    product of two is exact [check:test_taylor_is_the_series]:

    $$\varphi(\mathbf{q})^\top \varphi(\mathbf{k}) = 1 + \mathbf{q}^\top \mathbf{k} + \tfrac12
    (\mathbf{q}^\top \mathbf{k})^2 = \tfrac12 (\mathbf{q}^\top \mathbf{k} + 1)^2 + \tfrac12 .$$

    So a weight is at least a half [check:test_taylor_is_at_least_a_half]: nothing is ever ruled out. And left
    of $-1$ it rises again: a score of $-4$ weighs 5, as much as one of 2
    [check:test_taylor_turns_back]. To stay where the series is good, scores must be small: Based divides
    queries and keys by $d^{1/4}$.

    There are $1 + d + d^2$ features, 4,161 for $d = 64$, and as many rows in the state. Based first projects
    to $d = 16$: 273.
    """
    squares = torch.einsum("... i, ... j -> ... i j", x, x).flatten(-2)
    ones = torch.ones_like(x[..., :1])
    return torch.cat([ones, x, squares * 2**-0.5], dim=-1)


def positive_random_features(
    d: int,
    n_features: int,
    *,
    generator: torch.Generator | None = None,
) -> FeatureMap:
    r"""## Random features

    Makes a map (FAVOR+). What it draws, it keeps: queries and keys must meet the same $\mathbf{w}$, in every
    call and on every machine.

    **Raises.** `ValueError` if `d` or `n_features` is less than 1 [check:test_wrong_input_is_refused].
    """
    if min(d, n_features) < 1:
        came = f"d is {d}, n_features is {n_features}"
        raise ValueError(f"{came}: at least 1 is wanted")

    # Directions that stand at right angles, $d$ at a time, cover space more evenly than independent ones, and
    # the error is smaller [check:test_right_angles_are_better]. Each alone is still normal: uniform in
    # direction, with the length of a normal vector.
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    blocks = -(-n_features // d)
    directions, triangle = torch.linalg.qr(draw(blocks, d, d).mT)
    signs = triangle.diagonal(dim1=-2, dim2=-1).sign()
    directions = directions.mT * signs[..., None]
    lengths = draw(blocks, d, d).norm(dim=-1, keepdim=True)
    w = (lengths * directions).flatten(0, 1)[:n_features]

    def features(x: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
        # Long vectors fall out of float32: at $|\mathbf{x}| = 20$ the exponents are near $-200$, and all
        # features are 0 [check:test_long_vectors_vanish]. Performers subtract the largest exponent, which
        # cancels in the ratio; of keys it must be one number for all, which a stream does not know yet.
        projected = torch.einsum("... d, f d -> ... f", x, w.to(x))
        size = x.square().sum(-1, keepdim=True) / 2
        return (projected - size).exp() * n_features**-0.5

    return features


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, d, f = (axes[name] for name in "bhtdf")
    x = torch.randn(b, h, t, d)
    elu_plus_one(x)
    relu_features(x)
    taylor_features(x)
    positive_random_features(d, f)(x)
