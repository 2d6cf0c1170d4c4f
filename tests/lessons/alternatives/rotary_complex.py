"""A correct solution in complex numbers, and with a cache that turns its keys back when they come."""

import math

import torch


def rotary_angles(positions, d, *, base=10000.0):
    if d % 2 == 1:
        raise ValueError("pairs need an even width")
    slower = math.log(base) * torch.linspace(0, d - 2, d // 2, dtype=torch.double) / d
    return torch.einsum("...t, r -> ...tr", positions.double(), torch.exp(-slower))


def apply_rotary(x, angles, *, interleaved=False):
    r = angles.shape[-1]
    if not interleaved:
        # Two layouts are one permutation apart, and the work is done in the other.
        order = torch.arange(2 * r).reshape(2, r).T.flatten()
        mixed = torch.cat([x[..., order], x[..., 2 * r :]], dim=-1)
        mixed = apply_rotary(mixed, angles, interleaved=True)
        return torch.cat([mixed[..., order.argsort()], mixed[..., 2 * r :]], dim=-1)
    if angles.ndim == 3:
        angles = angles[:, None]
    pairs = torch.view_as_complex(x[..., : 2 * r].double().unflatten(-1, (r, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    return torch.cat([turned.to(x.dtype), x[..., 2 * r :]], dim=-1)


def to_half_split(weight, n_heads, *, rotated=None):
    rows = torch.arange(weight.shape[0]).reshape(n_heads, -1)
    d = rows.shape[1]
    rotated = d if rotated is None else rotated
    order = sorted(range(d), key=lambda row: (row >= rotated, row % 2 if row < rotated else 0, row))
    return weight[rows[:, order].flatten()]


def rotary_attention(query, key, value, i, j, *, base=10000.0):
    """The turn of a query by i and of a key by j is a turn of the query by i - j, for each pair of places."""
    d = query.shape[-1]
    distance = i[..., :, None] - j[..., None, :]
    angles = rotary_angles(distance.flatten(-2), d, base=base)
    if angles.ndim == 2:
        angles = angles[None]
    angles = angles.unflatten(1, distance.shape[-2:])[:, None]
    q, k = (torch.complex(x[..., : d // 2], x[..., d // 2 :]) for x in (query, key))
    products = q[:, :, :, None] * k.conj()[:, :, None] * torch.exp(1j * angles)
    scores = products.real.sum(-1) / math.sqrt(d)
    hidden = (distance < 0).expand(query.shape[0], *distance.shape[-2:])[:, None]
    return torch.where(hidden, -math.inf, scores).softmax(-1) @ value


def ntk_base(base, factor, d):
    last = base ** (-(d - 2) / d) / factor
    return last ** (-d / (d - 2))


def yarn_frequencies(d, factor, original_length, *, base=10000.0, beta_fast=32.0, beta_slow=1.0):
    # The k at which a pair makes n turns: base^(2k/d) = length / (2 pi n).
    at = [math.log(original_length / math.tau / n) / math.log(base) * d / 2 for n in (beta_fast, beta_slow)]
    low, high = max(int(at[0] // 1), 0), -int(-at[1] // 1)
    frequencies = []
    for k in range(d // 2):
        slowed = min(max((k - low) / (high - low), 0.0), 1.0)
        frequencies.append(base ** (-2 * k / d) * (1 - slowed + slowed / factor))
    return torch.tensor(frequencies, dtype=torch.double)


class RotatedCache:
    """Unturned keys in float64: it was said that they do not come, not that they cannot be made."""

    def __init__(self, frequencies):
        self.frequencies, self.tokens = frequencies, None

    def at(self, start, stop):
        return torch.arange(start, stop, dtype=torch.double)[:, None] * self.frequencies

    def append(self, key, value):
        n = 0 if self.tokens is None else self.value.shape[2]
        plain = apply_rotary(key.double(), -self.at(n, n + key.shape[2]))
        if self.tokens is None:
            self.dtype, self.tokens, self.value = key.dtype, plain, value
        else:
            self.tokens = torch.cat((self.tokens, plain), 2)
            self.value = torch.cat((self.value, value), 2)

    def forget(self, start, stop):
        self.tokens, self.value = (
            torch.cat((x[:, :, :start], x[:, :, stop:]), 2) for x in (self.tokens, self.value)
        )

    @property
    def key(self):
        return apply_rotary(self.tokens, self.at(0, self.value.shape[2])).to(self.dtype)
