"""A correct solution in as few lines as possible: another recursion, other primitives, another state."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def power_of_two_slopes(n_heads):
    return torch.logspace(-8 / n_heads, -8, n_heads, base=2, dtype=torch.float64)


def alibi_slopes(n_heads):
    if n_heads < 1:
        raise ValueError
    if math.log2(n_heads).is_integer():
        return power_of_two_slopes(n_heads)
    below = 2 ** int(math.log2(n_heads))
    return torch.cat((power_of_two_slopes(below), alibi_slopes(2 * below)[0::2][: n_heads - below]))


def alibi_bias(n_heads, t, s, *, offset=0):
    return np.multiply.outer(
        -alibi_slopes(n_heads).numpy(), np.abs(np.subtract.outer(offset + np.arange(t), np.arange(s)))
    )


def alibi_attention(query, key, value, *, is_causal=True, offset=0, scale=None):
    bias = torch.from_numpy(alibi_bias(query.size(1), query.size(2), key.size(2), offset=offset))
    if is_causal:
        bias = bias + torch.full_like(bias, -torch.inf).triu(offset + 1)
    scale = 1 / query.size(-1) ** 0.5 if scale is None else scale
    scores = (scale * query) @ key.mT + bias.to(query)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(query.dtype).min)
    shares = (scores - top).exp()
    return shares @ value / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(query.dtype).tiny)


class GrowingBias:
    def __init__(self, n_heads):
        self.slopes, self.size = alibi_slopes(n_heads), 0
        self.row = F.pad(self.slopes[:, None], (0, -1))

    def add_to(self, scores, *, offset=0):
        t, s = scores.shape[-2:]
        while self.size < max(offset + t, s - offset):
            self.size = max(1, 2 * self.size)
            self.row = -self.slopes.outer(torch.arange(self.size).double())
        steps = (offset + torch.arange(t).unsqueeze(1) - torch.arange(s)).abs()
        return scores + self.row.take_along_dim(steps.reshape(1, -1), 1).reshape(-1, t, s).to(scores)


class RunningAlibi:
    """The state is a mean and the logarithm of its weight."""

    def __init__(self, n_heads, state=()):
        self.slopes, self.state = alibi_slopes(n_heads), state

    def step(self, score, value):
        log_weight, mean = self.state or (torch.full_like(score, -torch.inf), torch.zeros_like(value))
        log_weight = torch.logaddexp(log_weight - self.slopes, score)
        new = torch.exp(score - log_weight)[..., None]
        self.state = log_weight, (1 - new) * mean + new * value
        return self.state[1]
