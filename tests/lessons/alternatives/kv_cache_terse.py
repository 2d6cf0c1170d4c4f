"""A correct solution in few lines: PyTorch's attention, one cache for both kinds, pages as flat slots."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange


def cache_bytes(n_layers, n_kv_heads, d, length, *, batch=1, dtype=torch.bfloat16):
    return math.prod((2, n_layers, n_kv_heads, d, length, batch, torch.finfo(dtype).bits)) // 8


def longest_text(memory, n_parameters, *model, batch=1, dtype=torch.bfloat16):
    numbers = memory // dtype.itemsize - n_parameters
    return max(0, numbers // (cache_bytes(*model, 1, batch=batch, dtype=dtype) // dtype.itemsize))


def cache_mask(positions, t):
    # How far a key stands before the newest one; query n is t - 1 - n before it.
    back = positions.max(1, keepdim=True).values - positions
    allowed = rearrange(back, "b s -> b 1 1 s") >= torch.arange(t).flip(0)[:, None]
    return allowed & rearrange(positions != -1, "b s -> b 1 1 s")


class RaggedCache:
    """Each slot is computed: the new token that belongs there, or what it held."""

    def __init__(self, capacity):
        self.room, self.pair = torch.arange(capacity), ()
        self.lengths = torch.zeros(1, dtype=torch.int64)

    def update(self, *new):
        b, g, t, _ = new[0].shape
        if self.lengths.max() + t > len(self.room):
            raise ValueError
        shape = b, g, len(self.room)
        self.pair = self.pair or tuple(torch.zeros(*shape, x.shape[3], dtype=x.dtype) for x in new)
        slots = rearrange(self.lengths.expand(b)[:, None] + self.room[:t], "b t -> b 1 t 1")
        for memory, x in zip(self.pair, new, strict=True):
            memory.scatter_(2, slots.expand_as(x), x)
        self.keys, self.values = self.pair
        self.lengths = self.lengths.expand(b) + t
        return tuple(x.narrow(2, 0, self.lengths.max()) for x in self.pair)

    @property
    def positions(self):
        seats = self.room[: self.lengths.max()].repeat(len(self.lengths), 1)
        return seats.masked_fill_(seats >= self.lengths.unsqueeze(1), -1)

    def truncate(self, lengths):
        if not ((lengths >= 0) & (lengths <= self.lengths)).all():
            raise ValueError
        self.lengths = lengths
        for memory in self.pair:
            memory.transpose(1, 2)[self.room >= lengths.unsqueeze(1)] = 0


class KVCache(RaggedCache):
    pass


def cached_attention(query, key, value, cache):
    held = cache.update(key, value)
    return F.scaled_dot_product_attention(query, *held, attn_mask=cache_mask(cache.positions, query.size(2)))


class PagedCache:
    """Of each text only the slots of its tokens, page * size + place."""

    def __init__(self, keys, values):
        self.keys, self.values, self.slots = keys, values, {}

    def pages(self, *but):
        size = self.keys.shape[1]
        return {slot // size for name, slots in self.slots.items() if name not in but for slot in slots}

    n_free = property(lambda self: self.keys.shape[0] - len(self.pages()))

    def append(self, text, key, value):
        size, slots = self.keys.shape[1], list(self.slots.get(text, []))
        tail = len(slots) % size
        # Those that must be written: new tokens, and old ones whose page has another reader.
        if tail and slots[-1] // size in self.pages(text):
            held = self.read(text)
            key, value = (torch.cat((x[:, -tail:], y), 1) for x, y in zip(held, (key, value), strict=True))
            slots = slots[:-tail]
        free = iter(sorted(set(range(len(self.keys))) - self.pages()))
        for _ in range(key.shape[1]):
            page = slots[-1] // size if len(slots) % size else next(free, None)
            if page is None:
                raise ValueError
            slots.append(page * size + len(slots) % size)
        new = torch.tensor(slots[-key.shape[1] :])
        self.keys.flatten(0, 1)[new] = key.mT.permute(2, 0, 1)
        self.values.flatten(0, 1)[new] = value.mT.permute(2, 0, 1)
        self.slots[text] = slots

    def read(self, text):
        return tuple(x.flatten(0, 1)[self.slots[text]].swapaxes(0, 1) for x in (self.keys, self.values))

    def fork(self, text, new):
        self.slots[new] = self.slots[text]

    def drop(self, text):
        self.slots.pop(text)
