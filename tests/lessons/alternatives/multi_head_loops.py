"""A correct solution with a loop over heads and explicit slices, without einops or einsum."""

import math

import torch
from torch import nn


def split_heads(x, n_heads):
    return torch.stack(x.split(x.shape[-1] // n_heads, dim=-1), dim=1)


def merge_heads(x):
    return torch.cat([x[:, head] for head in range(x.shape[1])], dim=-1)


def one_row(q, keys, extra, allowed):
    """The weights of one query, `d`, over the keys, `s d`."""
    places = torch.nonzero(allowed).flatten()
    weights = q.new_zeros(len(keys))
    if len(places) == 0:
        return weights + 0 * q.sum()
    scores = (keys[places] * q).sum(dim=1) / math.sqrt(len(q)) + extra[places]
    powers = torch.exp(scores - scores.max())
    return weights.index_put((places,), powers / powers.sum())


def attention_weights(q, k, attn_mask=None, is_causal=False):
    b, h, t, _ = q.shape
    s = k.shape[2]
    if is_causal and attn_mask is not None:
        raise ValueError("one mask, please")
    allowed, extra = torch.ones(b, h, t, s, dtype=torch.bool), torch.zeros(b, h, t, s, dtype=q.dtype)
    if is_causal:
        allowed = allowed.tril()
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = attn_mask.expand(b, h, t, s)
    elif attn_mask is not None:
        extra = attn_mask.expand(b, h, t, s)
        allowed = extra != -math.inf
    rows = [
        one_row(q[text, head, i], k[text, head], extra[text, head, i], allowed[text, head, i])
        for text in range(b)
        for head in range(h)
        for i in range(t)
    ]
    return torch.stack(rows).view(b, h, t, s)


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, dropout=0.0):
        super().__init__()
        self.n_heads, self.p = n_heads, dropout
        for name in ("w_q", "w_k", "w_v", "w_o"):
            setattr(self, name, nn.Linear(d_model, d_model))

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        q, k, v = (split_heads(x, self.n_heads) for x in (self.w_q(query), self.w_k(key), self.w_v(value)))
        weights = attention_weights(q, k, attn_mask, is_causal)
        used = weights
        if self.training and self.p > 0:
            used = weights * (torch.rand(weights.shape) >= self.p) / (1 - self.p)
        return self.w_o(merge_heads(used @ v)), weights


def weights_from_torch(state):
    m = state["out_proj.bias"].shape[0]
    renamed = {}
    for part in ("weight", "bias"):
        packed = state["in_proj_" + part]
        renamed["w_q." + part] = packed[:m]
        renamed["w_k." + part] = packed[m : 2 * m]
        renamed["w_v." + part] = packed[2 * m :]
        renamed["w_o." + part] = state["out_proj." + part]
    return renamed


def mask_from_torch(attn_mask, key_padding_mask):
    if attn_mask is None and key_padding_mask is None:
        return None
    if key_padding_mask is None:
        return attn_mask.logical_not()
    seen = key_padding_mask.logical_not().unsqueeze(1).unsqueeze(1)
    return seen if attn_mask is None else torch.logical_and(seen, attn_mask.logical_not())


def remove_heads(state, n_heads, removed, average):
    d = state["w_o.weight"].shape[0] // n_heads
    kept = [place for place in range(n_heads * d) if place // d not in removed]
    gone = [place for place in range(n_heads * d) if place // d in removed]
    smaller = {name: part[kept] for name, part in state.items() if not name.startswith("w_o")}
    smaller["w_o.weight"] = state["w_o.weight"][:, kept]
    smaller["w_o.bias"] = state["w_o.bias"] + state["w_o.weight"][:, gone] @ average.flatten()[gone]
    return smaller
