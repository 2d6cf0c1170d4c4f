r"""# Flash

Lesson 1's formula writes a matrix of scores to memory, reads it, writes weights, and reads them.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g s e` | what position $j$ gives |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |

**Source.** Dao et al. (2022), arXiv:2205.14135.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from annotated_attention.flash_backward import flash_backward
from annotated_attention.flash_merge import merge_attention
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["FlashAttention", "flash_attention", "flash_forward"]
__all__ += ["flash_traffic", "merge_attention", "online_softmax"]


def online_softmax(scores: Float[Tensor, "... s"]) -> Float[Tensor, "... s"]:
    r"""## Two lines"""
    m = scores.new_full(scores.shape[:-1], torch.finfo(scores.dtype).min)
    l = torch.zeros_like(m)
    for score in scores.unbind(dim=-1):
        larger = torch.maximum(m, score)
        l = l * torch.exp(m - larger) + torch.exp(score - larger)
        m = larger
    return torch.exp(scores - m[..., None]) / l.clamp(min=1.0)[..., None]


def flash_forward(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    is_causal: bool,
    scale: float,
    block_q: int,
    block_k: int,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Tile by tile"""
    (b, h, t, _), (g, s), e = query.shape, key.shape[1:3], value.shape[3]
    wide, r = torch.promote_types(query.dtype, torch.float32), h // g
    queries = rearrange(query.to(wide), "b (g r) t d -> (b g) r t d", g=g)
    keys, values = key.to(wide).flatten(0, 1), value.to(wide).flatten(0, 1)
    output = query.new_empty(b * g, r, t, e)
    lse = queries.new_empty(b * g, r, t)

    for i in range(0, t, block_q):
        u = min(block_q, t - i)
        q = queries[:, :, i : i + u].flatten(1, 2)
        m = q.new_full((b * g, r * u, 1), -torch.inf)
        l, o = torch.zeros_like(m), q.new_zeros(b * g, r * u, e)

        stop = min(i + u, s) if is_causal else s
        for j in range(0, stop, block_k):
            tile = slice(j, min(j + block_k, stop))
            k, v = keys[:, tile], values[:, tile]
            scores = torch.bmm(q, k.mT).mul_(scale)
            if is_causal and tile.stop - 1 > i:
                a = tile.stop - j
                future = torch.ones(u, a, dtype=torch.bool, device=q.device)
                future = future.triu_(i - j + 1)
                scores.unflatten(1, (r, u)).masked_fill_(future, -torch.inf)

            larger = torch.maximum(m, scores.amax(dim=-1, keepdim=True))
            shrink, weights = torch.exp(m - larger), scores.sub_(larger).exp_()
            l = l * shrink + weights.sum(dim=-1, keepdim=True)
            o = torch.baddbmm(o * shrink, weights, v)
            m = larger

        o = o / l.clamp(min=1.0)
        output[:, :, i : i + u] = o.unflatten(1, (r, u))
        lse[:, :, i : i + u] = (m + l.log()).view(b * g, r, u)
    output = rearrange(output, "(b g) r t e -> b (g r) t e", g=g)
    return output, rearrange(lse, "(b g) r t -> b (g r) t", g=g)


class FlashAttention(torch.autograd.Function):
    r"""## What is kept"""

    @staticmethod
    def forward(ctx, query, key, value, *options):
        output, lse = flash_forward(query, key, value, *options)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.options = options
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, grad_lse):
        grads = (grad_output, grad_lse)
        gradients = flash_backward(*grads, *ctx.saved_tensors, *ctx.options)
        return *gradients, None, None, None, None


def flash_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    block_q: int = 256,
    block_k: int = 512,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## The function"""
    check_inputs(query, key, value, None, is_causal, enable_gqa=True)
    if min(block_q, block_k) < 1:
        came = f"block_q is {block_q}, block_k is {block_k}"
        raise ValueError(f"{came}: at least 1 is wanted")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options = (is_causal, scale, block_q, block_k)
    return FlashAttention.apply(query, key, value, *options)


def flash_traffic(
    t: int,
    s: int,
    d: int,
    e: int,
    *,
    is_causal: bool = False,
    block_q: int = 256,
) -> tuple[int, int]:
    r"""## What it costs"""
    naive = 4 * t * s + (t + s) * (d + e)
    seen = [min(i + block_q, s) if is_causal else s for i in range(0, t, block_q)]
    return naive, t * (d + e + 1) + sum(seen) * (d + e)


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query, key, value = torch.randn(b, g * r, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    online_softmax(torch.randn(b, t, s))
    flash_attention(query, key, value, is_causal=True, block_q=2, block_k=3)
    flash_traffic(t, s, d, e)
