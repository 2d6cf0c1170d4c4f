r"""# Longformer

Draft: the public names work; the page is being written.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
"""

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["LongformerSelfAttention", "longformer_attention"]

BLOCK = 128


def longformer_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t e"],
    window: int,
    global_mask: Bool[Tensor, "b t"],
    *,
    global_qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    padding_mask: Bool[Tensor, "b t"] | None = None,
    dilation: int = 1,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## The function"""
    t = query.shape[2]
    real = torch.ones_like(global_mask) if padding_mask is None else padding_mask
    is_global = global_mask & real
    counts = is_global.sum(dim=1)
    n_global = max(counts.tolist(), default=0)
    found = torch.arange(n_global, device=query.device) < counts[:, None]

    def classes(x: Tensor) -> Tensor:
        short = -x.shape[2] % dilation
        x = F.pad(x, (0, 0, 0, short))
        return rearrange(
            x, "b h (n dilation) d -> (b dilation) h n d", dilation=dilation
        )

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(dilation, dim=0)

    local = classes((real & ~is_global)[:, None, :, None])[:, 0, :, 0]
    near = tiles(
        classes(query),
        classes(key),
        classes(value),
        window,
        local,
        repeated(pack(key, is_global, found)),
        repeated(pack(value, is_global, found)),
        repeated(found),
        scale,
    )
    near = rearrange(
        near, "(b dilation) h n e -> b h (n dilation) e", dilation=dilation
    )
    output = near[:, :, :t].masked_fill(~real[:, None, :, None], 0.0)

    q, k, v = (query, key, value) if global_qkv is None else global_qkv
    seen = None if padding_mask is None else (real[:, None] | ~found[..., None])[:, None]
    far = F.scaled_dot_product_attention(
        pack(q, is_global, found), k, v, seen, scale=scale, enable_gqa=True
    )
    output.transpose(1, 2)[is_global] = far.transpose(1, 2)[found]
    return output


def pack(x: Tensor, is_global: Tensor, found: Tensor) -> Tensor:
    """b g t d -> b g n_global d."""
    packed = x.new_zeros(*found.shape, x.shape[1], x.shape[3])
    packed[found] = x.transpose(1, 2)[is_global]
    return packed.transpose(1, 2)


def tiles(query, key, value, window, local, global_key, global_value, found, scale):
    b, _, t, _ = query.shape
    if t == 0:
        return query.new_zeros(*query.shape[:3], value.shape[3])
    window = min(window, t)
    size = min(BLOCK, t)
    n = -(-t // size)
    q = F.pad(query, (0, 0, 0, n * size - t)).unflatten(2, (n, size))
    k = spans(key, size, n, window - 1)
    v = spans(value, size, n, window - 1)
    seen = spans(local[:, None, :, None], size, n, window - 1)[:, 0, :, :, 0]
    u = torch.arange(size, device=query.device)[:, None]
    a = torch.arange(1 - window, size + window - 1, device=query.device)
    band = (u - a).abs() < window
    outputs = []
    for qn, kn, vn, sn in zip(q.unbind(2), k.unbind(2), v.unbind(2), seen.unbind(1), strict=True):
        near = (band & sn[:, None]) | (u == a)
        mask = torch.cat([found[:, None].expand(-1, size, -1), near], dim=2)
        outputs.append(
            F.scaled_dot_product_attention(
                qn,
                torch.cat([global_key, kn], dim=2),
                torch.cat([global_value, vn], dim=2),
                mask[:, None],
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(outputs, dim=2)[:, :, :t]


def spans(x: Tensor, size: int, n: int, reach: int) -> Tensor:
    """b g t d -> b g n a d, a view of the padded keys."""
    after = n * size - x.shape[2] + reach
    x = F.pad(x, (0, 0, reach, after))
    return x.unfold(2, size + 2 * reach, size).mT


class LongformerSelfAttention(nn.Module):
    r"""## The layer"""

    def __init__(self, d_model: int, n_heads: int, window: int) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        self.n_heads, self.window = n_heads, window
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)
        self.w_qg = copy.deepcopy(self.w_q)
        self.w_kg = copy.deepcopy(self.w_k)
        self.w_vg = copy.deepcopy(self.w_v)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        global_mask: Bool[Tensor, "b t"] | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t m"]:
        if global_mask is None:
            global_mask = x.new_zeros(x.shape[:2], dtype=torch.bool)
        qkv = [split_heads(w(x), self.n_heads) for w in (self.w_q, self.w_k, self.w_v)]
        global_qkv = tuple(split_heads(w(x), self.n_heads) for w in (self.w_qg, self.w_kg, self.w_vg))
        heads = longformer_attention(
            *qkv, self.window, global_mask, global_qkv=global_qkv, padding_mask=padding_mask
        )
        return self.w_o(merge_heads(heads))


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, d, e = (axes[name] for name in "bhtde")
    query, key = torch.randn(b, h, t, d), torch.randn(b, h, t, d)
    is_global = torch.arange(t).expand(b, t) < 1
    longformer_attention(query, key, torch.randn(b, h, t, e), 2, is_global)
    LongformerSelfAttention(h * d, h, 2)(torch.randn(b, t, h * d), is_global)
