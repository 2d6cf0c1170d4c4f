r"""# The merge

Two people read half of the keys each. Can their two answers be put together to the one that a single reader
of all keys would have given? Each has an average of values, and averages can be merged if it is known how
much stands behind each.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $L$ | `lse` | `... t` | logarithm of the sum |
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["merge_attention", "merge_triples", "summary"]

Triple = tuple[Tensor, Tensor, Tensor]


def summary(
    scores: Float[Tensor, "... t s"],
    value: Float[Tensor, "... s e"],
) -> Triple:
    r"""## What one reader knows

    """
    lowest = torch.finfo(scores.dtype).min
    m = scores.amax(dim=-1, keepdim=True).clamp(min=lowest)
    weights = torch.exp(scores - m)
    return m, weights.sum(dim=-1, keepdim=True), weights @ value


def merge_triples(a: Triple, b: Triple) -> Triple:
    r"""## Two triples are one"""
    (m_a, l_a, o_a), (m_b, l_b, o_b) = a, b
    m = torch.maximum(m_a, m_b)
    x, y = torch.exp(m_a - m), torch.exp(m_b - m)
    return m, x * l_a + y * l_b, x * o_a + y * o_b


def merge_attention(
    output_a: Float[Tensor, "... t e"],
    lse_a: Float[Tensor, "... t"],
    output_b: Float[Tensor, "... t e"],
    lse_b: Float[Tensor, "... t"],
) -> tuple[Float[Tensor, "... t e"], Float[Tensor, "... t"]]:
    r"""## The same in two numbers"""
    pairs = {"a": (output_a, lse_a), "b": (output_b, lse_b)}
    for name, (output, lse) in pairs.items():
        fits = output.shape == output_a.shape == (*lse.shape, output.shape[-1])
        wide = lse.dtype in (torch.float32, torch.float64)
        if not fits or not wide or output.dtype != output_a.dtype:
            came = f"output_{name} is {output.dtype} of shape {tuple(output.shape)}"
            came += f", lse_{name} {lse.dtype} of shape {tuple(lse.shape)}"
            wanted = "outputs ... t e alike and lse ... t, float32 at least,"
            raise ValueError(f"{came}: {wanted} are wanted")

    m = torch.maximum(lse_a, lse_b).detach()
    m = m.masked_fill(m == -torch.inf, 0.0)
    x, y = torch.exp(lse_a - m), torch.exp(lse_b - m)
    total = x + y
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (m + total.log()).masked_fill(empty, -torch.inf)

    share_a, share_b = (x / total)[..., None], (y / total)[..., None]
    output = share_a * output_a + share_b * output_b
    return output.to(output_a.dtype), lse


def example(axes: dict[str, int]) -> None:
    """Two halves: the shapes beside the code are read off this run."""
    b, h, t, s, e = (axes[letter] for letter in "bhtse")
    scores, value = torch.randn(b, h, t, s), torch.randn(b, h, s, e)
    triple = summary(scores, value)
    merge_triples(triple, triple)
    output, lse = torch.randn(b, h, t, e), torch.randn(b, h, t)
    merge_attention(output, lse, output, lse)
