"""A correct solution in as few lines as possible: gates instead of sinks, complex turns, a list of ranks."""

import torch
import torch.nn.functional as F

INF = float("inf")


def turn(x, positions):
    pairs = torch.complex(*x.double().chunk(2, -1))
    speeds = 1e4 ** -torch.linspace(0, 1, pairs.shape[-1] + 1, dtype=torch.float64)[:-1]
    pairs = pairs * torch.exp(1j * positions.double().outer(speeds))
    return torch.cat([pairs.real, pairs.imag], -1).to(x)


def softmax_off_by_one(scores):
    return F.pad(scores, (1, 0)).softmax(-1)[..., 1:]


def sink_attention(query, key, value, sink_logits, attn_mask=None, scale=None):
    """Plain attention times the share of the keys. Rows without a key get one that weighs nothing."""
    scores = query @ key.mT * (scale or query.shape[-1] ** -0.5)
    seen = torch.ones_like(scores, dtype=torch.bool) if attn_mask is None else attn_mask.expand_as(scores)
    some = seen.any(-1, keepdim=True)
    scores = scores.where(seen | ~some, -INF)
    gate = torch.sigmoid(scores.logsumexp(-1) - sink_logits[:, None])[..., None]
    return (scores.softmax(-1) @ value) * gate.where(some, 0.0)


def kept(n_read, n_sinks, window):
    return torch.cat((torch.arange(min(n_sinks, n_read)), torch.arange(n_read)[n_sinks:][-window:]))


def inside(n_read, n_sinks, window):
    held = torch.isin(torch.arange(n_read), kept(n_read, n_sinks, window))
    return held.cumsum(0).sub(1).where(held, -1)


class SinkCache:
    """Sinks at the end, the ring in front of them, filled from the back."""

    def __init__(self, n_sinks, window):
        self.n_sinks, self.window, self.slots = n_sinks, window, []

    def update(self, key, value):
        if not self.slots:
            shape = [self.n_sinks + self.window, 1]
            self.keys, self.values = (torch.zeros_like(x).repeat(1, 1, *shape) for x in (key, value))
        full = len(self.slots) == self.n_sinks + self.window
        slot = self.slots.pop(self.n_sinks) if full else len(self.slots)
        self.slots.append(slot)  # the slots in the order of the text
        self.keys[:, :, [slot]], self.values[:, :, [slot]] = key, value
        return self.keys[:, :, : len(self.slots)], self.values[:, :, : len(self.slots)]

    @property
    def positions(self):
        return torch.tensor(self.slots).argsort()


def next_token(query, key, value, cache):
    keys, values = cache.update(key, value)
    keys = turn(keys, cache.positions - cache.positions.max())
    return (query @ keys.mT * query.shape[-1] ** -0.5).softmax(-1) @ values


def distances(t, n_sinks, window):
    rows = (F.pad(inside(i + 1, n_sinks, window), (0, t - i - 1), value=-1) for i in range(t))
    place = torch.stack(list(rows))
    return (place.diagonal()[:, None] - place).where(place >= 0, -1)


def all_at_once(query, key, value, n_sinks, window):
    """Every pair is turned by its own distance."""
    (b, h, t, d), distance = query.shape, distances(query.shape[2], n_sinks, window)
    pairs = query[:, :, :, None].expand(b, h, t, t, d).reshape(b, h, t * t, d)
    turned = turn(pairs, distance.flatten()).view(b, h, t, t, d)
    scores = torch.einsum("bhtsd,bhsd->bhts", turned, key) / d**0.5
    return scores.where(distance >= 0, -INF).softmax(-1) @ value


def with_sink(query, key, value, sink_logits, attn_mask=None):
    """The logit stands in the queries, for each head has its own; its key is 1 there."""
    scale = query.shape[-1] ** -0.5
    logit = (sink_logits.clamp(min=-1e300) / scale)[:, None, None]
    query = torch.cat([query, logit.expand(*query.shape[:3], 1)], -1)
    key, value = F.pad(key, (0, 1, 0, 1)), F.pad(value, (0, 0, 0, 1))
    key[:, :, -1, -1] = 1
    return query, key, value, None if attn_mask is None else F.pad(attn_mask, (0, 1), value=True), scale


def merged(outputs, lses, sink_logits):
    shares = (lses - torch.logaddexp(lses.logsumexp(0), sink_logits[:, None])).exp().nan_to_num(0)
    return (shares[..., None] * outputs).sum(0)
