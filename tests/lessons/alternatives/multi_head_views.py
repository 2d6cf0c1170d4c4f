"""A correct solution with views and matrix products, where every mask is a float mask."""

import torch
from torch import nn


def split_heads(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x):
    return x.transpose(1, 2).flatten(start_dim=2)


def attention_weights(q, k, attn_mask=None, is_causal=False):
    if attn_mask is not None and is_causal:
        raise ValueError
    t, s = q.size(-2), k.size(-2)
    if is_causal:
        attn_mask = torch.arange(t)[:, None] >= torch.arange(s)
    bias = torch.zeros(t, s, dtype=q.dtype) if attn_mask is None else attn_mask
    if bias.dtype == torch.bool:
        bias = torch.where(bias, 0.0, -torch.inf).to(q.dtype)
    scores = (q / q.size(-1) ** 0.5).matmul(k.transpose(-2, -1)) + bias.nan_to_num(neginf=0.0)
    scores = scores.masked_fill(bias == -torch.inf, -torch.inf)
    top = scores.detach().amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0)
    powers = torch.exp(scores - top)
    total = powers.sum(dim=-1, keepdim=True)
    return powers / torch.where(total == 0, 1.0, total)


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, dropout=0.0):
        super().__init__()
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Linear(d_model, d_model) for _ in range(4))
        self.n_heads, self.dropout = n_heads, dropout

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        inputs = zip((self.w_q, self.w_k, self.w_v), (query, key, value), strict=True)
        q, k, v = (split_heads(project(x), self.n_heads) for project, x in inputs)
        weights = attention_weights(q, k, attn_mask, is_causal)
        used = torch.dropout(weights, self.dropout, self.training)
        # The output as a sum over heads: each adds what it found times its own columns of w_o.
        parts = self.w_o.weight.unflatten(1, (self.n_heads, -1)).permute(1, 2, 0)
        return (used @ v @ parts).sum(dim=1) + self.w_o.bias, weights


def weights_from_torch(state):
    stacked = {part: state[f"in_proj_{part}"].unflatten(0, (3, -1)) for part in ("weight", "bias")}
    ours = {f"w_{'qkv'[i]}.{part}": stack[i] for part, stack in stacked.items() for i in range(3)}
    return {**ours, "w_o.weight": state["out_proj.weight"], "w_o.bias": state["out_proj.bias"]}


def mask_from_torch(attn_mask, key_padding_mask):
    given = [attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None]]
    forbidden = [mask for mask in given if mask is not None]
    return ~sum(forbidden).bool() if forbidden else None


def remove_heads(state, n_heads, removed, average):
    def cut(part, dim):
        heads = part.unflatten(dim, (n_heads, -1))
        keep = torch.tensor([head for head in range(n_heads) if head not in removed])
        return heads.index_select(dim, keep).flatten(dim, dim + 1)

    fixed = torch.zeros_like(average)
    fixed[removed] = average[removed]
    smaller = {name: cut(part, 0) for name, part in state.items() if name[:3] != "w_o"}
    bias = state["w_o.bias"] + state["w_o.weight"] @ fixed.reshape(-1)
    return smaller | {"w_o.weight": cut(state["w_o.weight"], 1), "w_o.bias": bias}
