"""A correct solution with loops and plain Python numbers, as somebody new to tensors might write it."""

import math

import torch


def window_of(i, s, window, is_causal):
    """The keys that the query at position i sees."""
    first = max(i - window + 1, 0)
    last = i if is_causal else i + window - 1
    return range(first, min(last, s - 1) + 1)


def sliding_window_mask(t, s, window, *, is_causal=True, offset=0):
    rows = []
    for i in range(offset, offset + t):
        seen = window_of(i, s, window, is_causal)
        rows.append([j in seen for j in range(s)])
    return torch.tensor(rows)


def key_spans(x, window, block_size, *, is_causal=True):
    s, spans, places = x.shape[2], [], []
    for first in range(0, s, block_size):
        last = first + block_size - 1
        if not is_causal:
            last += window - 1
        span, row = [], []
        for j in range(first - window + 1, last + 1):
            there = 0 <= j < s
            span.append(x[:, :, j] if there else torch.zeros_like(x[:, :, 0]))
            row.append(j if there else -1)
        spans.append(torch.stack(span, dim=2))
        places.append(row)
    return torch.stack(spans, dim=2), torch.tensor(places)


def sliding_window_attention(query, key, value, window, *, block_size=64, is_causal=True):
    """One query at a time reads no more than its own window: blocks are not needed for that."""
    t, d = query.shape[2:]
    outputs = []
    for i in range(t):
        seen = list(window_of(i, t, window, is_causal))
        scores = (query[:, :, i, None] * key[:, :, seen]).sum(dim=-1) / math.sqrt(d)
        shares = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
        shares = shares / shares.sum(dim=-1, keepdim=True)
        outputs.append((shares[..., None] * value[:, :, seen]).sum(dim=2))
    return torch.stack(outputs, dim=2)


class RollingKVCache:
    """Keeps a list of positions beside the memory, and looks for the oldest."""

    def __init__(self, window):
        self.window = window
        self.places = [-1] * window
        self.newest = -1

    @property
    def positions(self):
        return torch.tensor(self.places)

    def update(self, key, value):
        if self.newest < 0:
            self.keys = torch.zeros_like(key).repeat(1, 1, self.window, 1)
            self.values = torch.zeros_like(value).repeat(1, 1, self.window, 1)
        oldest = self.places.index(min(self.places))
        self.newest += 1
        self.places[oldest] = self.newest
        self.keys[:, :, oldest], self.values[:, :, oldest] = key[:, :, 0], value[:, :, 0]
        return self.keys, self.values


def receptive_field(windows, length, i, *, is_causal=True):
    first = last = i
    for window in reversed(windows):
        if window is None:
            window = length
        first = max(first - window + 1, 0)
        if not is_causal:
            last = min(last + window - 1, length - 1)
    return [first, last]


def layers_needed(window, distance):
    if window == 1:
        raise ValueError("a window of one sees nothing else")
    layers = 0
    while distance > 0:
        distance -= window - 1
        layers += 1
    return layers


class RewindableKVCache(RollingKVCache):
    """The same, with more slots. What must still be there after a rewind is looked up, not computed."""

    def __init__(self, window, draft):
        super().__init__(window - 1 + draft)
        self.view, self.draft = window, draft

    def update(self, key, value):
        if key.shape[2] > self.draft:
            raise ValueError("too many drafts")
        for n in range(key.shape[2]):
            answer = super().update(key[:, :, n : n + 1], value[:, :, n : n + 1])
        return answer

    def rewind(self, n):
        newest = self.newest - n
        needed = range(max(newest - self.view + 2, 0), newest + 1)
        if newest < -1 or any(j not in self.places for j in needed):
            raise ValueError("what the next query needs is gone")
        self.places = [-1 if j > newest else j for j in self.places]
        self.newest = newest
