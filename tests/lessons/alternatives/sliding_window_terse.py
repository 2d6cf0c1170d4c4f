"""A correct solution in as few lines as possible: diagonals, gathered indices, a ring that counts down."""

import math

import numpy as np
import torch


def sliding_window_mask(t, s, window, *, is_causal=True, offset=0):
    ones = torch.ones(t, s, dtype=torch.bool)
    return ones.tril(offset if is_causal else offset + window - 1).triu(offset - window + 1)


def key_spans(x, window, block_size, *, is_causal=True):
    s = x.size(2)
    stop = block_size if is_causal else block_size + window - 1
    places = np.add.outer(np.arange(0, s, block_size), np.arange(1 - window, stop))
    places[(places < 0) | (places >= s)] = -1
    # Index -1 reads one more key, of zeros, behind the last.
    return torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2)[:, :, places], places


def sliding_window_attention(query, key, value, window, *, block_size=64, is_causal=True):
    outputs = []
    for first, q in zip(range(0, key.size(2), block_size), query.split(block_size, dim=2), strict=True):
        low = max(first - window + 1, 0)
        high = first + q.size(2) + (0 if is_causal else window - 1)
        k, v = key[:, :, low:high], value[:, :, low:high]
        mask = sliding_window_mask(q.size(2), k.size(2), window, is_causal=is_causal, offset=first - low)
        scores = (q @ k.mT / math.sqrt(q.size(3))).where(mask, torch.tensor(-math.inf).to(q))
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, 2)


class RewindableKVCache:
    """Slots are counted from the end, to show that any order will do. Unwritten, they hold the worst."""

    def __init__(self, window, draft):
        self.window, self.draft = window, draft
        self.positions = torch.full((window + draft - 1,), -1)
        self.count = self.most = 0

    def update(self, key, value):
        if key.size(2) > self.draft:
            raise ValueError
        size = len(self.positions)
        if not self.most:
            self.keys, self.values = (
                x.new_full((*x.shape[:2], size, x.size(3)), math.nan) for x in (key, value)
            )
        new = self.count + torch.arange(key.size(2))
        slots = -new % size
        self.keys[:, :, slots], self.values[:, :, slots] = key, value
        self.positions = self.positions.index_copy(0, slots, new)
        self.count += key.size(2)
        self.most = max(self.most, self.count)
        return self.keys, self.values

    def rewind(self, n):
        left, room = self.count - n, len(self.positions)
        if left < 0 or (self.most > room and self.most - left > room - self.window + 1):
            raise ValueError
        self.count, self.positions = left, self.positions.where(self.positions < left, -1)


class RollingKVCache(RewindableKVCache):
    """A ring that never goes back."""

    def __init__(self, window):
        super().__init__(window, 1)


def receptive_field(windows, length, i, *, is_causal=True):
    reach = sum((window or length + 1) - 1 for window in windows)
    return max(0, i - reach), min(length - 1, i + reach * (not is_causal))


def layers_needed(window, distance):
    try:
        return math.ceil(distance / (window - 1))
    except ZeroDivisionError:
        raise ValueError from None
