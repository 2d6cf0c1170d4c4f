"""A correct solution with loops and indices: one head, one query, one row at a time."""

import math

import numpy as np
import torch


def key_heads(n_heads, n_kv_heads):
    if n_kv_heads <= 0 or n_heads % n_kv_heads != 0:
        raise ValueError("the heads do not fit")
    r = n_heads // n_kv_heads
    found = []
    for group in range(n_kv_heads):
        found += [group] * r
    return torch.tensor(found)


def fold_heads(query, n_kv_heads):
    heads = key_heads(query.shape[1], n_kv_heads)
    groups = [[] for _ in range(n_kv_heads)]
    for head, group in enumerate(heads):
        groups[group].append(query[:, head])
    return torch.stack([torch.cat(group, dim=1) for group in groups], dim=1)


def unfold_heads(folded, n_heads):
    r = n_heads // folded.shape[1]
    t = folded.shape[2] // r
    heads = []
    for n in range(n_heads):
        begin = n % r * t
        heads.append(folded[:, n // r, begin : begin + t])
    return torch.stack(heads, dim=1)


def attend_one(query, key, value, added):
    """One query, `d`, on the keys of one text and head, `s d`."""
    seen = [j for j in range(len(key)) if added is None or added[j] > -math.inf]
    if not seen:
        return 0 * (query.sum() + key.sum() + value.sum(dim=0))
    scores = key[seen] @ query / math.sqrt(len(query))
    if added is not None:
        scores = scores + added[seen]
    shares = torch.exp(scores - scores.max())
    return (shares / shares.sum()) @ value[seen]


def grouped_attention(query, key, value, attn_mask=None, is_causal=False):
    (b, h, t, _), s = query.shape, key.shape[2]
    heads = key_heads(h, key.shape[1])
    if is_causal:
        attn_mask = torch.tensor([[j <= i for j in range(s)] for i in range(t)])
    added = [[[None] * t] * h] * b
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
        added = torch.broadcast_to(attn_mask, (b, h, t, s))
    texts = []
    for text in range(b):
        answers = []
        for n, u in enumerate(heads):
            for i in range(t):
                pair = key[text, u], value[text, u]
                answers.append(attend_one(query[text, n, i], *pair, added[text][n][i]))
        texts.append(torch.stack(answers).reshape(h, t, -1))
    return torch.stack(texts)


def cache_bytes(n_tokens, d_model, n_layers, n_heads, n_kv_heads, *, n_devices=1, itemsize=2):
    small, large = sorted([n_kv_heads, n_devices])
    if large % small:
        raise ValueError("the devices do not fit")
    held = 1 if n_devices > n_kv_heads else n_kv_heads // n_devices
    total = 0
    for _ in range(n_layers):
        total += n_tokens * held * (d_model // n_heads) * itemsize  # keys
        total += n_tokens * held * (d_model // n_heads) * itemsize  # values
    return total


class GroupedCache:
    """Takes in one token after the other; `key` and `value` are views of the part of a store that is filled."""

    def __init__(self):
        self.stores = []
        self.size = 0

    @property
    def key(self):
        return self.stores[0][:, :, : self.size]

    @property
    def value(self):
        return self.stores[1][:, :, : self.size]

    def step(self, query, key, value):
        if not self.stores:
            self.stores = [part[:, :, :0] for part in (key, value)]
        answers = []
        for now in range(query.shape[2]):
            if self.size == self.stores[0].shape[2]:
                room = [torch.empty(*s.shape[:2], self.size + 1, s.shape[3]).to(s) for s in self.stores]
                self.stores = [torch.cat(pair, dim=2) for pair in zip(self.stores, room, strict=True)]
            for store, part in zip(self.stores, (key, value), strict=True):
                store[:, :, self.size] = part[:, :, now]
            self.size += 1
            answers.append(grouped_attention(query[:, :, now : now + 1], self.key, self.value))
        return torch.cat(answers, dim=2)


def mean_pool_kv_heads(weight, n_heads, n_kv_heads):
    heads = key_heads(n_heads, n_kv_heads)
    if weight.shape[0] % n_heads:
        raise ValueError("the rows do not fit")
    d = weight.shape[0] // n_heads
    pooled = torch.zeros(n_kv_heads * d, *weight.shape[1:], dtype=weight.dtype)
    for n, u in enumerate(heads.tolist()):
        for row in range(d):
            pooled[u * d + row] += weight[n * d + row] * n_kv_heads / n_heads
    return pooled


def repeat_kv_heads(weight, n_heads, n_kv_heads):
    d = weight.shape[0] // n_kv_heads
    rows = [u * d + row for u in key_heads(n_heads, n_kv_heads).tolist() for row in range(d)]
    return weight[rows]


def shared_head(asks, offers):
    """The directions are the eigenvectors of the sum of the squares, as in principal components."""
    d, m = offers.shape[1:]
    squares = np.zeros((m, m))
    for ask, offer in zip(asks.numpy(), offers.numpy(), strict=True):
        product = ask.T @ offer
        squares += product.T @ product
    _, vectors = np.linalg.eigh(squares)
    shared = torch.from_numpy(vectors[:, m - d :].T.copy())
    return torch.stack([shared @ k.T @ q for q, k in zip(asks, offers, strict=True)]), shared


def share_kv_heads(w_q, w_k, w_v, w_o, n_heads, n_kv_heads):
    r, d = n_heads // n_kv_heads, len(w_q) // n_heads
    new = [[], [], [], []]
    for u in range(n_kv_heads):
        rows = [slice(n * d, n * d + d) for n in range(u * r, u * r + r)]
        asks, key = shared_head(torch.stack([w_q[i] for i in rows]), torch.stack([w_k[i] for i in rows]))
        outs, value = shared_head(
            torch.stack([w_o[:, i].T for i in rows]), torch.stack([w_v[i] for i in rows])
        )
        parts = torch.cat(list(asks)), key, value, torch.cat(list(outs))
        for part, place in zip(parts, new, strict=True):
            place.append(part)
    query, key, value, output = map(torch.cat, new)
    return query, key, value, output.T
