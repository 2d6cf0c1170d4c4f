"""A correct solution in many small steps, one query at a time, as somebody new to tensors might write it."""

import math

import torch

NOTHING = -math.inf


def add_block(m, l, o, scores, value):
    """One key at a time: a block is just several of them."""
    for j in range(scores.shape[-1]):
        score = scores[..., j]
        higher = torch.where(score > m, score, m)
        old = torch.where(m == NOTHING, torch.zeros_like(m), torch.exp(m - higher))
        new = torch.where(score == NOTHING, torch.zeros_like(m), torch.exp(score - higher))
        l = l * old + new
        o = o * old[..., None] + new[..., None] * value[..., j : j + 1, :]
        m = higher
    return m, l, o


def finish(m, l, o):
    seen = l > 0
    divisor = torch.where(seen, l, torch.ones_like(l))
    return o / divisor[..., None], torch.where(seen, m + torch.log(divisor), torch.full_like(m, NOTHING))


def merge_attention(output_a, lse_a, output_b, lse_b):
    """The share of a is the logistic function of the difference, which never overflows."""
    empty_a, empty_b = lse_a == NOTHING, lse_b == NOTHING
    a = torch.where(empty_a, torch.zeros_like(lse_a), lse_a)
    b = torch.where(empty_b, torch.zeros_like(lse_b), lse_b)
    share = torch.sigmoid(a - b)
    output = output_b + share[..., None] * (output_a - output_b)
    lse = torch.logaddexp(a, b)
    # Where only one side saw something, the result is that side's.
    for empty, other_output, other_lse in ((empty_a, output_b, lse_b), (empty_b, output_a, lse_a)):
        output = torch.where(empty[..., None], other_output, output)
        lse = torch.where(empty, other_lse, lse)
    neither = empty_a & empty_b
    output = torch.where(neither[..., None], torch.zeros_like(output), output)
    return output, torch.where(neither, torch.full_like(lse, NOTHING), lse)


def tile_plan(t, s, block_q, block_k, *, is_causal=False):
    rows = []
    for i in range(0, t, block_q):
        queries, row = range(t)[i : i + block_q], []
        for j in range(0, s, block_k):
            keys = range(s)[j : j + block_k]
            seen = sum(1 for query in queries for key in keys if key <= query or not is_causal)
            row.append(0 if seen == 0 else 2 if seen == len(queries) * len(keys) else 1)
        rows.append(row)
    return torch.tensor(rows)


def last_seen(i, s, is_causal):
    return min(i + 1, s) if is_causal else s


def flash_attention(query, key, value, *, is_causal=False, block_q=32, block_k=64):
    dtype = query.dtype
    if dtype != torch.float64:
        query, key, value = query.float(), key.float(), value.float()
    (b, h, t, d), s = query.shape, key.shape[2]
    output, lse = query.new_zeros(b, h, t, value.shape[3]), query.new_zeros(b, h, t)
    for i in range(t):
        m, l, o = query.new_full((b, h), NOTHING), query.new_zeros(b, h), output[:, :, i]
        stop = last_seen(i, s, is_causal)
        for j in range(0, stop, block_k):
            k, v = key[:, :, j : min(j + block_k, stop)], value[:, :, j : min(j + block_k, stop)]
            scores = (query[:, :, i : i + 1] * k).sum(dim=-1) / math.sqrt(d)
            higher = torch.maximum(m, scores.max(dim=-1).values)
            shares = torch.exp(scores - higher[..., None])
            old = torch.exp(m - higher)
            l = l * old + shares.sum(dim=-1)
            o = o * old[..., None] + (shares[..., None] * v).sum(dim=2)
            m = higher
        output[:, :, i], lse[:, :, i] = finish(m, l, o)
    return output.to(dtype), lse


def flash_backward(query, key, value, output, lse, grad_output, *, is_causal=False, block_q=32, block_k=64):
    """Key by key, as one head of one text after another."""
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    t, d = query.shape[2:]
    for j in range(key.shape[2]):
        first = j if is_causal else 0
        if first >= t:
            break
        q, g = query[:, :, first:], grad_output[:, :, first:]
        k, v = key[:, :, j : j + 1], value[:, :, j : j + 1]
        weight = torch.exp((q * k).sum(dim=-1, keepdim=True) / math.sqrt(d) - lse[:, :, first:, None])
        # dP - D in one: how much better this value is than what came out.
        slope = weight * (g * (v - output[:, :, first:])).sum(dim=-1, keepdim=True) / math.sqrt(d)
        dq[:, :, first:] += slope * k
        dk[:, :, j] = (slope * q).sum(dim=2)
        dv[:, :, j] = (weight * g).sum(dim=2)
    return dq, dk, dv


def leave_one_out(outputs, lses):
    """All others, merged anew for each."""
    results = []
    for left_out in range(len(lses)):
        result = torch.zeros_like(outputs[0]), torch.full_like(lses[0], NOTHING)
        for k in range(len(lses)):
            if k != left_out:
                result = merge_attention(*result, outputs[k], lses[k])
        results.append(result)
    return torch.stack([r[0] for r in results]), torch.stack([r[1] for r in results])
