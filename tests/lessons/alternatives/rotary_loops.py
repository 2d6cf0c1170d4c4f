"""A correct solution with matrices and loops over pairs and tokens, as somebody new to tensors might write."""

import math

import torch


def rotary_angles(positions, d, *, base=10000.0):
    if d // 2 != d / 2:
        raise ValueError(d)
    columns = []
    frequency, ratio = 1.0, math.pow(base, -2.0 / d)
    for _ in range(d // 2):
        columns.append(positions.to(torch.float64) * frequency)
        frequency *= ratio
    return torch.stack(columns, dim=-1)


def apply_rotary(x, angles, *, interleaved=False):
    r = angles.shape[-1]
    result = list(x.unbind(-1))
    for k in range(r):
        one, two = (2 * k, 2 * k + 1) if interleaved else (k, k + r)
        angle = angles[..., k].unsqueeze(-2)
        c, s = torch.cos(angle), torch.sin(angle)
        matrix = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
        pair = torch.stack([x[..., one], x[..., two]], -1).unsqueeze(-1)
        new = (matrix.to(x.dtype) @ pair).squeeze(-1)
        result[one], result[two] = new[..., 0], new[..., 1]
    return torch.stack(result, -1)


def to_half_split(weight, n_heads, *, rotated=None):
    d = len(weight) // n_heads
    rotated = rotated or d
    new = weight.clone()
    for head in range(n_heads):
        for k in range(rotated // 2):
            new[head * d + k] = weight[head * d + 2 * k]
            new[head * d + rotated // 2 + k] = weight[head * d + 2 * k + 1]
    return new


def rotary_attention(query, key, value, i, j, *, base=10000.0):
    outputs = []
    for text in range(len(query)):
        places = i if i.ndim == 1 else i[text]
        others = j if j.ndim == 1 else j[text]
        turned_keys = apply_rotary(key[text : text + 1], rotary_angles(others, key.shape[3], base=base))[0]
        rows = []
        for n, place in enumerate(places):
            q = query[text : text + 1, :, n : n + 1]
            q = apply_rotary(q, rotary_angles(place[None], q.shape[3], base=base))[0]
            seen = [number for number, other in enumerate(others) if other <= place]
            scores = (q * turned_keys[:, seen]).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])
            shares = torch.exp(scores - scores.amax(1, keepdim=True))
            rows.append((shares * value[text][:, seen]).sum(1) / shares.sum(1))
        outputs.append(torch.stack(rows, dim=1))
    return torch.stack(outputs)


def ntk_base(base, factor, d):
    return base * math.exp(math.log(factor) * (1 + 2 / (d - 2)))


def yarn_frequencies(d, factor, original_length, *, base=10000.0, beta_fast=32.0, beta_slow=1.0):
    def turns(k):
        return original_length / (2 * math.pi * base ** (2 * k / d))

    # The turns fall with k: walk to the last whole k with enough of them, and to the first with too few.
    low = high = 0
    while turns(low + 1) >= beta_fast:
        low += 1
    while turns(high) > beta_slow:
        high += 1
    frequencies = rotary_angles(torch.tensor([1]), d, base=base)[0].clone()
    for k in range(d // 2):
        if k >= high:
            frequencies[k] /= factor
        elif k > low:
            ramp = (k - low) / (high - low)
            frequencies[k] += ramp * (frequencies[k] / factor - frequencies[k])
    return frequencies


class RotatedCache:
    """A list of tokens; each knows how far it has moved since its key was turned."""

    def __init__(self, frequencies):
        self.frequencies = frequencies
        self.tokens = []

    def append(self, key, value):
        for n in range(key.shape[2]):
            self.tokens.append([key[:, :, n : n + 1], value[:, :, n], 0])

    def forget(self, start, stop):
        for token in self.tokens[stop:]:
            token[2] += stop - start
        del self.tokens[start:stop]

    @property
    def key(self):
        back = [apply_rotary(key, -moved * self.frequencies[None]) for key, _, moved in self.tokens]
        return torch.cat(back, dim=2)

    @property
    def value(self):
        return torch.stack([value for _, value, _ in self.tokens], dim=2)
