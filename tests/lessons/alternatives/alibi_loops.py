"""A correct solution written with loops and plain Python numbers, as somebody new to tensors might."""

import math

import torch


def power_of_two_slopes(n_heads):
    ratio = 2 ** (-8 / n_heads)
    slopes, slope = [], 1.0
    for _ in range(n_heads):
        slope *= ratio
        slopes.append(slope)
    return torch.tensor(slopes, dtype=torch.double)


def alibi_slopes(n_heads):
    if n_heads <= 0:
        raise ValueError("no heads")
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = list(power_of_two_slopes(power))
    between = list(power_of_two_slopes(2 * power))
    place = 0
    while len(slopes) < n_heads:
        slopes.append(between[place])
        place += 2
    return torch.stack(slopes)


def alibi_bias(n_heads, t, s, *, offset=0):
    bias = torch.zeros(n_heads, t, s, dtype=torch.double)
    for head, slope in enumerate(alibi_slopes(n_heads)):
        for i in range(t):
            bias[head, i] = -slope * abs(torch.arange(s) - (i + offset))
    return bias


def alibi_attention(query, key, value, *, is_causal=True, offset=0, scale=None):
    h, t, d = query.shape[1:]
    s = key.shape[2]
    bias = alibi_bias(h, t, s, offset=offset).type_as(query)
    rows = []
    for i in range(t):
        seen = min(s, max(0, i + offset + 1)) if is_causal else s
        if seen == 0:
            rows.append(0 * value.sum(dim=2))
            continue
        product = (query[:, :, i : i + 1] * key[:, :, :seen]).sum(-1)
        scores = product * (1 / math.sqrt(d) if scale is None else scale) + bias[:, i, :seen]
        shares = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
        shares = shares / shares.sum(-1, keepdim=True)
        rows.append((shares[..., None] * value[:, :, :seen]).sum(dim=2))
    return torch.stack(rows, dim=2)


class GrowingBias:
    def __init__(self, n_heads):
        self.slopes = alibi_slopes(n_heads)
        self.size = 0
        self.row = torch.zeros(n_heads, 0, dtype=torch.double)

    def add_to(self, scores, *, offset=0):
        t, s = scores.shape[2:]
        furthest = max(abs(i + offset - j) for i in range(t) for j in (0, s - 1))
        if furthest >= self.size:
            self.size = self.size or 1
            while self.size <= furthest:
                self.size *= 2
            rows = [[-slope.item() * r for r in range(self.size)] for slope in self.slopes]
            self.row = torch.tensor(rows, dtype=torch.double)
        rows = self.row.tolist()
        picked = [[[row[abs(i + offset - j)] for j in range(s)] for i in range(t)] for row in rows]
        return scores + torch.tensor(picked, dtype=scores.dtype)


class RunningAlibi:
    """One list of numbers a head: the largest exponent, the sum of shares, the sums of values."""

    def __init__(self, n_heads, state=None):
        self.slopes = alibi_slopes(n_heads).tolist()
        self.state = state or ()

    def step(self, score, value):
        b, h, e = value.shape
        if not self.state:
            self.state = (torch.tensor([-math.inf] + (1 + e) * [0.0]).repeat(b, h, 1).double(),)
        rows = self.state[0].clone()
        for text in range(b):
            for head in range(h):
                row = rows[text, head]
                row[0] -= self.slopes[head]
                a = score[text, head]
                if a > row[0]:
                    row[1:] *= math.exp(row[0] - a)
                    row[0] = a
                row[1:] += math.exp(a - row[0]) * torch.cat([torch.ones(1), value[text, head]])
        self.state = (rows,)
        return rows[..., 2:] / rows[..., 1:2]
