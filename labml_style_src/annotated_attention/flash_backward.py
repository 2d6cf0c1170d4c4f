r"""# Back through the tiles

The backward pass wants the weights.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $L_i$ | `lse` | `b h t` | logarithm of the sum |
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

__all__ = ["flash_backward"]


def flash_backward(
    grad_output: Float[Tensor, "b h t e"],
    grad_lse: Float[Tensor, "b h t"],
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    output: Float[Tensor, "b h t e"],
    lse: Float[Tensor, "b h t"],
    is_causal: bool,
    scale: float,
    block_q: int,
    block_k: int,
) -> tuple[
    Float[Tensor, "b h t d"],
    Float[Tensor, "b g s d"],
    Float[Tensor, "b g s e"],
]:
    r"""## The gradient"""
    (b, h, t, _), (g, s) = query.shape, key.shape[1:3]
    wide, r = lse.dtype, h // g

    # $D_i - dL_i$, one number for each query.
    shift = (grad_output.to(wide) * output.to(wide)).sum(dim=-1) - grad_lse

    def fold(x: Tensor) -> Tensor:
        return rearrange(x.to(wide), "b (g r) t d -> (b g) r t d", g=g)

    rows = [fold(x) for x in (query, grad_output, lse[..., None], shift[..., None])]
    keys, values = key.to(wide).flatten(0, 1), value.to(wide).flatten(0, 1)
    dq = torch.empty_like(rows[0])
    dk, dv = torch.zeros_like(keys), torch.zeros_like(values)

    for i in range(0, t, block_q):
        u = min(block_q, t - i)
        q, do, l, c = (x[:, :, i : i + u].flatten(1, 2) for x in rows)
        stop = min(i + u, s) if is_causal else s
        dq_tile = torch.zeros_like(q)
        for j in range(0, stop, block_k):
            tile = slice(j, min(j + block_k, stop))
            k, v = keys[:, tile], values[:, tile]

            # $P_{ij} = e^{\lambda\,\mathbf{q}_i^\top\mathbf{k}_j - L_i}$.
            weights = torch.baddbmm(-l, q, k.mT, alpha=scale).exp_()
            if is_causal and tile.stop - 1 > i:
                weights.unflatten(1, (r, u)).tril_(i - j)

            # $dS = P \circ (dO\,V^\top - D + dL)$.
            ds = torch.baddbmm(-c, do, v.mT).mul_(weights)
            dv[:, tile].baddbmm_(weights.mT, do)
            dk[:, tile].baddbmm_(ds.mT, q, alpha=scale)
            dq_tile.baddbmm_(ds, k, alpha=scale)
        dq[:, :, i : i + u] = dq_tile.unflatten(1, (r, u))
    dq = rearrange(dq, "(b g) r t d -> b (g r) t d", g=g)
    dk, dv = dk.unflatten(0, (b, g)), dv.unflatten(0, (b, g))
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


def example(axes: dict[str, int]) -> None:
    """Run once: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query, key, value = torch.randn(b, g * r, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    output, lse = torch.randn(b, g * r, t, e), torch.randn(b, g * r, t)
    flash_backward(output, lse, query, key, value, output, lse, True, 1.0, 2, 3)
