"""A correct solution with loops and lists: a list for each text, a count for each page."""

import torch


def cache_bytes(n_layers, n_kv_heads, d, length, *, batch=1, dtype=torch.bfloat16):
    numbers = 0
    for _ in range(n_layers):
        numbers += n_kv_heads * (d + d)
    return numbers * length * batch * torch.empty(0, dtype=dtype).element_size()


def longest_text(memory, n_parameters, n_layers, n_kv_heads, d, *, batch=1, dtype=torch.bfloat16):
    left = memory - cache_bytes(1, 1, 1, n_parameters, dtype=dtype) // 2
    length = 0
    # Doubling steps, then the rest bit by bit.
    step = 1
    while cache_bytes(n_layers, n_kv_heads, d, 2 * step, batch=batch, dtype=dtype) <= left:
        step *= 2
    while step:
        if cache_bytes(n_layers, n_kv_heads, d, length + step, batch=batch, dtype=dtype) <= left:
            length += step
        step //= 2
    return length


def cache_mask(positions, t):
    rows = []
    for row in positions.tolist():
        places = range(max(row) - t + 1, max(row) + 1)
        rows.append([[[0 <= j <= i for j in row] for i in places]])
    return torch.tensor(rows)


class KVCache:
    def __init__(self, capacity):
        self.capacity = capacity
        self.held = []
        self.keys = None
        self.values = None

    def update(self, key, value):
        b, g, t, d = key.shape
        if len(self.held) + t > self.capacity:
            raise ValueError("full")
        if not self.held:
            self.keys = torch.zeros(b, g, self.capacity, d, dtype=key.dtype)
            self.values = torch.zeros(b, g, self.capacity, value.shape[-1], dtype=value.dtype)
        for n in range(t):
            slot = len(self.held)
            self.keys.select(2, slot).copy_(key[:, :, n])
            self.values.select(2, slot).copy_(value[:, :, n])
            self.held.append(slot)
        return self.keys[:, :, self.held], self.values[:, :, self.held]

    @property
    def positions(self):
        return torch.tensor([self.held for _ in range(self.keys.shape[0])])


def cached_attention(query, key, value, cache):
    keys, values = cache.update(key, value)
    positions = cache.positions
    b, h, t, d = query.shape
    output = torch.zeros(b, h, t, value.shape[-1], dtype=query.dtype)
    for text in range(b):
        newest = int(positions[text].max())
        for n in range(t):
            i = newest - t + 1 + n
            seen = [slot for slot, j in enumerate(positions[text].tolist()) if 0 <= j <= i]
            for head in range(h):
                weights = torch.softmax(keys[text, head, seen] @ query[text, head, n] / d**0.5, dim=0)
                output[text, head, n] = weights @ values[text, head, seen]
    return output


class RaggedCache:
    """A list of tokens for each text; the answers are padded anew each time."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.texts = []

    @property
    def lengths(self):
        return torch.tensor([len(text) for text in self.texts])

    def update(self, key, value):
        t = key.shape[2]
        for text in self.texts or [[]]:
            if len(text) + t > self.capacity:
                raise ValueError("full")
        if not self.texts:
            self.texts = [[] for _ in key]
        for n, text in enumerate(self.texts):
            text += [(key[n, :, place], value[n, :, place]) for place in range(t)]
        longest = max(map(len, self.texts))
        answer = []
        for which, new in enumerate((key, value)):
            out = torch.zeros(*new.shape[:2], longest, new.shape[3], dtype=new.dtype)
            for n, text in enumerate(self.texts):
                for place, pair in enumerate(text):
                    out[n, :, place] = pair[which]
            answer.append(out)
        return answer[0], answer[1]

    @property
    def positions(self):
        longest = max(map(len, self.texts))
        return torch.tensor([[*range(len(text)), *[-1] * (longest - len(text))] for text in self.texts])

    def truncate(self, lengths):
        for length, text in zip(lengths.tolist(), self.texts, strict=True):
            if length < 0 or length > len(text):
                raise ValueError("no such length")
        self.texts = [text[:length] for length, text in zip(lengths.tolist(), self.texts, strict=True)]


class PagedCache:
    """Free pages on a stack; each page counts the texts that use it."""

    def __init__(self, keys, values):
        self.keys = keys
        self.values = values
        self.stack = list(range(keys.shape[0]))
        self.users = [0] * keys.shape[0]
        self.texts = {}

    @property
    def n_free(self):
        return len(self.stack)

    def take(self):
        page = self.stack.pop()
        self.users[page] = 1
        return page

    def leave(self, page):
        self.users[page] -= 1
        if self.users[page] == 0:
            self.stack.append(page)

    def append(self, text, key, value):
        size = self.keys.shape[1]
        table, length = self.texts.get(text, ([], 0))
        partly = length % size != 0
        split = partly and self.users[table[-1]] > 1
        room = size - length % size if partly else 0
        beyond = max(key.shape[1] - room, 0)
        if split + (beyond + size - 1) // size > len(self.stack):
            raise ValueError("no page left")
        if split:
            old = table.pop()
            table.append(self.take())
            for memory in (self.keys, self.values):
                memory[table[-1], : length % size] = memory[old, : length % size]
            self.leave(old)
        for n in range(key.shape[1]):
            if length % size == 0:
                table.append(self.take())
            self.keys[table[-1], length % size] = key[:, n]
            self.values[table[-1], length % size] = value[:, n]
            length += 1
        self.texts[text] = table, length

    def read(self, text):
        table, length = self.texts[text]
        places = [divmod(n, self.keys.shape[1]) for n in range(length)]
        return tuple(
            torch.stack([memory[table[page], place] for page, place in places], dim=1)
            for memory in (self.keys, self.values)
        )

    def fork(self, text, new):
        table, length = self.texts[text]
        for page in table:
            self.users[page] += 1
        self.texts[new] = table.copy(), length

    def drop(self, text):
        for page in self.texts.pop(text)[0]:
            self.leave(page)
