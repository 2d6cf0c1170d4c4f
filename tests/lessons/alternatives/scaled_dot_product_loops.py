"""A correct solution written with loops, one row at a time, as a careful beginner might."""

import math

import numpy as np
import torch


def softmax(scores):
    rows = scores.reshape(-1, scores.shape[-1])
    weights = np.zeros_like(rows)
    for row, weight in zip(rows, weights, strict=True):
        seen = np.isfinite(row)
        if seen.any():
            shifted = row[seen] - row[seen].max()
            weight[seen] = np.exp(shifted - np.log(np.exp(shifted).sum()))
    return weights.reshape(scores.shape)


def attention_weights(query, key, attn_mask=None):
    b, h, t, d = query.shape
    s = key.shape[2]
    mask = np.broadcast_to(True if attn_mask is None else attn_mask, (b, h, t, s))
    scores = np.full((b, h, t, s), -np.inf)
    for place in np.ndindex(b, h, t, s):
        if mask[place]:
            i, j = place[:3], (*place[:2], place[3])
            scores[place] = query[i].dot(key[j]) / math.sqrt(d)
    return softmax(scores)


def attention(query, key, value, attn_mask=None, is_causal=False):
    t, s = query.shape[2], key.shape[2]
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other")
        attn_mask = np.array([[j <= i for j in range(s)] for i in range(t)])
    return np.matmul(attention_weights(query, key, attn_mask), value)


def attention_backward(grad_output, query, key, value, attn_mask=None):
    weights = attention_weights(query, key, attn_mask)
    dq, dk, dv = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    scale = 1 / math.sqrt(query.shape[-1])
    for b, h, i in np.ndindex(query.shape[:3]):
        p, grad = weights[b, h, i], grad_output[b, h, i]
        jacobian = np.diag(p) - np.outer(p, p)
        d_scores = jacobian @ (value[b, h] @ grad) * scale
        dq[b, h, i] = d_scores @ key[b, h]
        dk[b, h] += np.outer(d_scores, query[b, h, i])
        dv[b, h] += np.outer(p, grad)
    return dq, dk, dv


def sdpa(query, key, value, attn_mask=None, is_causal=False, scale=None):
    (h, t, d), (g, s) = query.shape[1:], key.shape[1:3]
    if h // g * g != h:
        raise ValueError("key heads must divide query heads")
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask and is_causal exclude each other")
    bias = torch.zeros(t, s, dtype=query.dtype)
    if is_causal:
        bias[torch.triu(torch.ones(t, s), diagonal=1).bool()] = -math.inf
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        bias = torch.zeros(attn_mask.shape, dtype=query.dtype).masked_fill(attn_mask.logical_not(), -math.inf)
    elif attn_mask is not None:
        bias = attn_mask
    bias = bias.expand(query.shape[0], h, t, s)
    heads = []
    for head in range(h):
        k, v = key[:, head // (h // g)], value[:, head // (h // g)]
        scores = query[:, head] @ k.transpose(1, 2) * (d**-0.5 if scale is None else scale) + bias[:, head]
        # The limits matter only in a row of -inf, which becomes 0 with a gradient of 0.
        top = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
        weights = torch.exp(scores - top)
        heads.append(weights / weights.sum(dim=-1, keepdim=True).clamp(min=1.0) @ v)
    return torch.stack(heads, dim=1)


class RunningAttention:
    """One accumulator for each query."""

    def __init__(self, query, e, state=None):
        self.query = query
        if state is None:
            state = (np.array([[-np.inf, 0.0, *[0.0] * e] for _ in query]),)
        (rows,) = state
        self.rows = rows.copy()

    @property
    def state(self):
        return (self.rows.copy(),)

    def update(self, key, value):
        for q, row in zip(self.query, self.rows, strict=True):
            score = sum(x * y for x, y in zip(q, key, strict=True)) / math.sqrt(len(key))
            if score > row[0]:
                row[1:] *= math.exp(row[0] - score)
                row[0] = score
            row[1:] += math.exp(score - row[0]) * np.array([1.0, *value])

    def read(self):
        return np.array([row[2:] / row[1] if row[1] else row[2:] for row in self.rows])
