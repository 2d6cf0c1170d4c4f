"""Wrong variants of the exercise on the KV cache: each is a mistake, with what a tutor would say to it.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch


def cache_bytes__keys_only(n_layers, n_kv_heads, d, length, *, batch=1, dtype=torch.bfloat16):
    """Your number is half of what is needed. You have counted what a token is found by: what is taken from
    it, once it is found?"""
    return n_layers * n_kv_heads * d * length * batch * dtype.itemsize


def cache_bytes__one_layer(n_layers, n_kv_heads, d, length, *, batch=1, dtype=torch.bfloat16):
    """Your number is that of a single layer. Are the keys of two layers ever the same?"""
    return 2 * n_kv_heads * d * length * batch * dtype.itemsize


def cache_bytes__numbers(n_layers, n_kv_heads, d, length, *, batch=1, dtype=torch.bfloat16):
    """You have counted numbers. How many bytes is one of them, in this dtype?"""
    return 2 * n_layers * n_kv_heads * d * length * batch


def cache_bytes__bits(n_layers, n_kv_heads, d, length, *, batch=1, dtype=torch.bfloat16):
    """Your number is eight times too large. bfloat16 has 16 bits: how many bytes are that?"""
    return 8 * cache_bytes(n_layers, n_kv_heads, d, length, batch=batch, dtype=dtype)


def cache_bytes__always_four(n_layers, n_kv_heads, d, length, *, batch=1, dtype=torch.bfloat16):
    """Your numbers have four bytes, whatever the dtype. Who would store a cache in bfloat16 then?"""
    return cache_bytes(n_layers, n_kv_heads, d, length, batch=batch, dtype=torch.float32)


def longest_text__parameters_are_bytes(memory, n_parameters, *model, batch=1, dtype=torch.bfloat16):
    """You subtract the number of parameters from a number of bytes. How many bytes are the weights?"""
    memory += n_parameters * (dtype.itemsize - 1)
    return longest_text(memory, n_parameters, *model, batch=batch, dtype=dtype)


def longest_text__weights_forgotten(memory, n_parameters, *model, **options):
    """You give all of the memory to the caches. Where are the weights?"""
    return longest_text(memory, 0, *model, **options)


def longest_text__a_model_for_each_text(memory, n_parameters, *model, batch=1, dtype=torch.bfloat16):
    """You divide the memory among the texts first, and load the weights once for each. What of all this
    can texts share, and what must each have for itself?"""
    return longest_text(memory // batch, n_parameters, *model, dtype=dtype)


def longest_text__below_zero(memory, n_parameters, *model, batch=1, dtype=torch.bfloat16):
    """Where the weights alone are too many, you return a text of a negative length. How long can it be?"""
    token = cache_bytes(*model, 1, batch=batch, dtype=dtype)
    return (memory - n_parameters * dtype.itemsize) // token


def _mask(positions, t, *, last=None, j=None, shift=0):
    """The mask, where the last query stands and the keys' positions may be given."""
    last = positions.amax(dim=-1, keepdim=True) if last is None else last
    j = positions if j is None else j
    i = last + torch.arange(1 - t, 1)
    return ((j >= 0)[:, None] & (j[:, None] <= i[:, :, None] + shift))[:, None]


def cache_mask__top_left(positions, t):
    """Your new tokens stand at 0, 1, 2, ..., as if they began the text: the newest token of a long text sees
    its first word and nothing else. `is_causal=True` of PyTorch does the same when there are more keys than
    queries. Which of your keys is the newest?"""
    return _mask(positions, t, last=torch.full((len(positions), 1), t - 1))


def cache_mask__newest_first(positions, t):
    """Your queries are in the wrong order: the first row is that of the newest token. If the last of t
    tokens stands at position n, where does the first stand?"""
    return _mask(positions, t).flip(2)


def cache_mask__blind_to_itself(positions, t):
    """No query sees the key of its own token: your comparison leaves out what stands at the same place. What
    would be left for the first token of a text?"""
    return _mask(positions, t, shift=-1)


def cache_mask__sees_empty_slots(positions, t):
    """Your queries see slots without a key. Such a slot says -1, and to `<=` that is a position like any
    other, earlier than all. What must be asked besides?"""
    return _mask(positions.clamp(min=0), t, last=positions.amax(dim=-1, keepdim=True))


def cache_mask__slots_for_positions(positions, t):
    """You compare with the number of the slot, not with the position that is written for it. A cache that
    overwrites old keys has the newest one anywhere: where does `positions` say that it stands?"""
    slots = torch.arange(positions.shape[1]).expand_as(positions)
    return _mask(positions, t, j=torch.where(positions < 0, -1, slots))


def cache_mask__one_place_for_all_texts(positions, t):
    """All your texts write at the same position, that of the longest. Each has a newest token of its own:
    along which axis is the largest position to be taken?"""
    return _mask(positions, t, last=positions.max().expand(len(positions), 1))


def cache_mask__the_whole_chunk(positions, t):
    """All new tokens see each other, and so the earlier ones see what comes after them. With one new token
    this is right. With several, does the first of them stand where the last does?"""
    return _mask(positions, 1).expand(-1, -1, t, -1)


class KVCache__grows_by_concatenation(KVCache):
    """You join the new to the old, which makes a new tensor and copies all that is held: a text of n tokens
    copies n²/2 of them. The capacity is known from the beginning. What can be made once?"""

    def update(self, key, value):
        if self.length + key.shape[2] > self.capacity:
            raise ValueError("no room")
        if self.length:
            key, value = torch.cat([self.keys, key], dim=2), torch.cat([self.values, value], dim=2)
        self.keys, self.values, self.length = key, value, key.shape[2]
        return key, value


class KVCache__new_memory_each_time(KVCache):
    """Your memory has the right size, but after each token it is another one, and all that it held was
    copied there. Which way of writing changes a tensor, and which makes a new one?"""

    def update(self, key, value):
        answer = super().update(key, value)
        self.keys, self.values = self.keys.clone(), self.values.clone()
        return answer


class KVCache__returns_the_capacity(KVCache):
    """You return all slots, those without a token too. A key of zeros scores 0, which is a score like any
    other. How many slots were written so far?"""

    def update(self, key, value):
        super().update(key, value)
        return self.keys, self.values


class KVCache__wraps_around(KVCache):
    """When the memory is full, you begin anew at slot 0, and the start of the text is gone without a word. A
    cache may do that if it says so (lesson 9). What was to happen here?"""

    def update(self, key, value):
        if self.keys is None:
            super().update(key[:, :, :0], value[:, :, :0])
        slots = torch.arange(self.length, self.length + key.shape[2]) % self.capacity
        self.keys[:, :, slots], self.values[:, :, slots] = key, value
        self.length = min(self.length + key.shape[2], self.capacity)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KVCache__no_look_at_the_room(KVCache):
    """You write without a look at the room. PyTorch does not always complain: into a slice with no slot left,
    one token is written without an error, and lost. What can be known before the writing?"""

    def update(self, key, value):
        start, end = self.length, self.length + key.shape[2]
        if self.keys is None:
            super().update(key[:, :, :0], value[:, :, :0])
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache__counts_before_it_looks(KVCache):
    """Your error comes too late: the tokens that had no room are counted as held. Whoever catches the error
    has a broken cache. In which order do looking and changing belong?"""

    def update(self, key, value):
        try:
            return super().update(key, value)
        except ValueError:
            self.length += key.shape[2]
            raise


class KVCache__default_dtype(KVCache):
    """Your memory is float32, whatever comes. What float64 had more is lost when it is written, and bfloat16
    would take twice the bytes. What does `torch.zeros` make if it is not told a dtype?"""

    def update(self, key, value):
        return super().update(key.float(), value.float())


def _attend(query, key, value, mask):
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value


def cached_attention__only_the_new(query, key, value, cache):
    """Your tokens see the new keys only: what was read before is kept, and not used. What does `update`
    return?"""
    cache.update(key, value)
    t = query.shape[2]
    return _attend(query, key, value, torch.ones(t, t, dtype=torch.bool).tril())


def cached_attention__no_mask(query, key, value, cache):
    """You use no mask. For a single new token that is right, since everything held is past. What of the
    first token of a prompt?"""
    key, value = cache.update(key, value)
    return _attend(query, key, value, torch.ones(1, dtype=torch.bool))


def cached_attention__top_left(query, key, value, cache):
    """Your first query sees key 0 only, however much is in the cache: that is the causal mask of a whole
    text (and what `is_causal=True` does). Where does the first of the new tokens stand?"""
    key, value = cache.update(key, value)
    return _attend(query, key, value, torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril())


class RaggedCache__behind_the_longest(RaggedCache):
    """You write all texts behind the longest one. In the others there is a gap then, and their next token
    stands too far back. Which slot is the next of each?"""

    def update(self, key, value):
        self.lengths = self.lengths.max().expand_as(self.lengths)
        return super().update(key, value)


class RaggedCache__padding_has_positions(RaggedCache):
    """Your `positions` are 0, 1, 2, ... for every text, up to the longest. How is a query of a short text to
    know which of these slots are not its own?"""

    @property
    def positions(self):
        longest = int(self.lengths.max())
        return torch.arange(longest).expand(len(self.lengths), -1)


class RaggedCache__leftovers(RaggedCache):
    """What you forgot is still in its slot. It has no position, so its weight is 0, and that is enough until
    it is NaN or infinite: 0 times that is NaN. What should a slot without a token hold?"""

    def truncate(self, lengths):
        keys, values = self.keys.clone(), self.values.clone()
        super().truncate(lengths)
        self.keys, self.values = keys, values


class RaggedCache__cut_to_the_longest(RaggedCache):
    """You cut all texts to the same length, the largest of those given. Then the padding of the shorter
    prompts stays, and is read as if it had been said. How many counts does a batch need?"""

    def truncate(self, lengths):
        super().truncate(torch.minimum(lengths.max().expand_as(lengths), self.lengths))


class RaggedCache__truncate_lengthens(RaggedCache):
    """`truncate` takes any length, even more than a text holds. The tokens that it then claims were never
    written: what would attention read there?"""

    def truncate(self, lengths):
        if (lengths > self.lengths).any():
            self.lengths = lengths
        super().truncate(lengths)


class PagedCache__fork_copies(PagedCache):
    """Your `fork` copies the tokens to pages of their own. Ten answers to one long question then hold it ten
    times. Who says which pages belong to a text, and what would it take to say it of two?"""

    def fork(self, text, new):
        self.append(new, *self.read(text))


class PagedCache__writes_into_shared_pages(PagedCache):
    """A text of yours writes into a page that another one uses: what one says, the other has read. Only the
    tokens before the fork are common. When is the last moment to part?"""

    def append(self, text, key, value):
        tables, own = self.tables, self.tables.get(text, [])
        others = {page for table in tables.values() for page in table} - set(own)
        self.tables = {text: own, "others": list(others)}
        super().append(text, key, value)
        self.tables = tables | {text: self.tables[text]}


class PagedCache__copies_full_pages(PagedCache):
    """You copy the last page of a text whenever it is shared, even if it is full. Will the next token be
    written into it?"""

    def append(self, text, key, value):
        n, table = self.keys.shape[1], self.tables.get(text, [])
        shared = any(name != text and table and table[-1] in self.tables[name] for name in self.tables)
        if shared and self.lengths[text] % n == 0:
            self.lengths[text] -= n
            tail = [memory[table[-1]].transpose(0, 1) for memory in (self.keys, self.values)]
            self.tables[text] = table[:-1]
            key, value = torch.cat([tail[0], key], dim=1), torch.cat([tail[1], value], dim=1)
        super().append(text, key, value)


class PagedCache__copies_when_it_is_alone(PagedCache):
    """You copy a page that was shared once, though by now the text is the only one that uses it. When the
    other text took its copy, what changed for the one who stayed?"""

    def append(self, text, key, value):
        table, before = self.tables.get(text, []), self.lengths.get(text, 0)
        super().append(text, key, value)
        if before % self.keys.shape[1] and table[-1] != self.tables[text][len(table) - 1]:
            self.tables["still", table[-1]] = [table[-1]]


class PagedCache__takes_pages_early(PagedCache):
    """When a page is full, you take the next one at once. The text may end here, and of many texts each would
    hold a page for nothing. When does a token need it?"""

    def append(self, text, key, value):
        super().append(text, key, value)
        if self.lengths[text] % self.keys.shape[1] == 0 and self.n_free:
            self.tables[text].append(max(set(range(len(self.keys))).difference(*self.tables.values())))


class PagedCache__drop_frees_shared_pages(PagedCache):
    """Your `drop` frees all pages of a text, those that another one still reads as well: whoever takes them
    next will write into its past. When is a page free?"""

    def __init__(self, keys, values):
        super().__init__(keys, values)
        self.freed = 0

    @property
    def n_free(self):
        return super().n_free + self.freed

    def drop(self, text):
        table = self.tables[text]
        super().drop(text)
        self.freed += len(set(table).intersection(*self.tables.values())) if self.tables else 0


class PagedCache__error_after_taking(PagedCache):
    """You take pages one after the other until there are none, and only then raise: the free pages are lost
    to a text that got nothing. How many are needed, before the first is taken?"""

    def append(self, text, key, value):
        try:
            super().append(text, key, value)
        except ValueError:
            free = set(range(len(self.keys))).difference(*self.tables.values())
            self.tables[text] = [*self.tables.get(text, []), *free]
            raise
