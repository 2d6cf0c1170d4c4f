r"""# Ring

The problem, in a sentence that a reader who knows the lessons before this one feels at once.

The idea, in another. For now every query takes a weighted mean of the values, as in the first lesson:

$$P_{ij} = \operatorname{softmax}_j\big(c\,\mathbf{q}_i^\top \mathbf{k}_j\big), \qquad
\mathbf{o}_i = \sum_j P_{ij}\,\mathbf{v}_j.$$

![The weights of three queries over five keys: each row sums to one.](figure:weights)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b h s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b h s e` | what position $j$ gives |
| $c$ | `scale` | scalar | $1/\sqrt d$ unless said otherwise |
| $P_{ij}$ | `weights` | `b h t s` | how much of $\mathbf{v}_j$ query $i$ takes |

**Source.** Authors (year), arXiv:0000.00000, equation 1, and how its symbols map to ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ring_attention"]


def ring_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## The function

    What it computes, and why in this order. It agrees with PyTorch's attention
    [check:test_agrees_with_pytorch].

    **Shapes.** `query` is `b h t d`, `key` is `b h s d` and `value` is `b h s e`; the result is `b h t e`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    # The scale is applied once, to the scores: for normal vectors their variance is then 1, whatever $d$.
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * scale
    weights = scores.softmax(dim=-1)
    return torch.einsum("b h t s, b h s e -> b h t e", weights, value)


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, s, d, e = (axes[name] for name in "bhtsde")
    ring_attention(torch.randn(b, h, t, d), torch.randn(b, h, s, d), torch.randn(b, h, s, e))
