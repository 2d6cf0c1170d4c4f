"""# Exercise: the KV cache

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` new tokens and their queries, `s` keys, `d`
and `e` widths; `g` is the number of key and value heads.
Only `torch` is needed, nothing has a gradient, and a task may use what was written for those before it.
Write the attention out: `torch.nn.functional.scaled_dot_product_attention` would hide where things stand.

Check your work as often as you like: `attn check kv_cache` says what is wrong and where, and
`attn check kv_cache --hint` gives one hint at a time.
"""

import torch
from torch import Tensor


def cache_bytes(
    n_layers: int,
    n_kv_heads: int,
    d: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Task 1: how many bytes.

    A token leaves one key and one value in each head of each layer; both are `d` wide. `batch` texts of
    `length` tokens have each their own. `dtype.itemsize` is the number of bytes of a number.

    Two layers, three heads of width 5, bfloat16, by hand: a token leaves 2 · 3 · (5 + 5) = 60 numbers,
    and a number has 2 bytes. One text of 7 tokens takes 840.

    **Returns** the bytes, a whole number.
    """
    ### BEGIN SOLUTION
    return 2 * n_layers * n_kv_heads * d * length * batch * dtype.itemsize
    ### END SOLUTION


def longest_text(
    memory: int,
    n_parameters: int,
    n_layers: int,
    n_kv_heads: int,
    d: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Task 1, second part: how long a text.

    `memory` bytes hold the model's `n_parameters` numbers, once for all texts, and the caches of `batch`
    texts of the same length. All numbers have the same `dtype`.

    The model above with 100 parameters and 1000 bytes, by hand: the weights take 200, a token takes 120.
    One text may have 6 tokens (720 of 800 bytes), each of two texts 3.

    **Returns** the largest length for which everything fits; 0 if there is no room for a single token
    of each text.
    """
    ### BEGIN SOLUTION
    token = cache_bytes(n_layers, n_kv_heads, d, 1, batch=batch, dtype=dtype)
    return max(memory - n_parameters * dtype.itemsize, 0) // token
    ### END SOLUTION


def cache_mask(positions: Tensor, t: int) -> Tensor:
    """Task 2: who sees whom.

    A cache has just taken in `t` new tokens of each text. `positions` says where all of its keys stand
    now, those of the new tokens included. A slot may be without a key: then it says -1. The keys are in
    any order, for some caches overwrite old ones.

    The queries are those of the new tokens, in the order in which they came. The last of them is the
    token that stands furthest back in its text, and no position is missing before it. A query sees the
    keys that stand where it stands or before.

    Two texts and two new tokens each, by hand. The positions are 0, 1, 2, 3 and 0, 1, -1, -1, so the new
    tokens of the first text stand at 2 and 3, those of the second at 0 and 1. Of the first text, they see

        True  True  True  False         and of the second         True  False  False  False
        True  True  True  True                                    True  True   False  False

    **Shapes.** `positions` is `b s`, whole numbers. The result is `b 1 t s`, True where a query sees a
    key; the axis of size 1 is for the heads, which share it.
    """
    ### BEGIN SOLUTION
    i = positions.amax(dim=-1, keepdim=True) + torch.arange(1 - t, 1)
    j = positions[:, None, :]
    return ((j >= 0) & (j <= i[:, :, None]))[:, None]
    ### END SOLUTION


class KVCache:
    """Task 3: the cache.

    The keys and values of one layer, with room for `capacity` tokens of each text. All texts of a batch
    are equally long here.

    - `update(key, value)` takes in the newest, behind the others, and returns all that are held now, as a
      tuple (key, value): as many positions as tokens came, whatever the capacity.
    - `keys` and `values` are attributes: the memory, `b g capacity d` and `b g capacity e`. It is taken at
      the first update, in the dtype of what comes, and stays where it is: later updates write into it and
      move nothing of what it holds.
    - `positions` says where the held keys stand: `b s`, in each row 0, 1, 2, ...

    A capacity of 3, by hand: two tokens come, then one. The second update returns three keys, the last of
    which is new, and `positions` is 0, 1, 2. A fourth token would be an error.
    """

    def __init__(self, capacity: int):
        ### BEGIN SOLUTION
        self.capacity, self.length = capacity, 0
        self.keys = self.values = None
        ### END SOLUTION

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`key` is `b g t d`, `value` is `b g t e`; the results are `b g s d` and `b g s e`.

        **Raises** `ValueError` if there is no room for all of them. The cache is then as it was before.
        """
        ### BEGIN SOLUTION
        start, end = self.length, self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(f"{start} of {self.capacity} tokens are held, {key.shape[2]} more came")
        if self.keys is None:
            b, g = key.shape[:2]
            self.keys = key.new_zeros(b, g, self.capacity, key.shape[3])
            self.values = value.new_zeros(b, g, self.capacity, value.shape[3])
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]
        ### END SOLUTION

    @property
    def positions(self) -> Tensor:
        """`b s`: where the keys stand that the last update returned."""
        ### BEGIN SOLUTION
        return torch.arange(self.length).expand(len(self.keys), -1)
        ### END SOLUTION


def cached_attention(query: Tensor, key: Tensor, value: Tensor, cache) -> Tensor:
    """Task 4: reading in pieces.

    `query`, `key` and `value` are those of the newest `t` tokens. `cache` takes in the keys and values.
    It has `update` and `positions` as in task 3, but need not be that cache: this function is to work
    with any that has the two. Attention is causal, scaled by 1/√d, as you know it.

    A text may then be read in any pieces: all at once, token by token, or some now and some later. The
    outputs are the same.

    **Shapes.** `query` is `b h t d`, `key` is `b h t d`, `value` is `b h t e`; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    key, value = cache.update(key, value)
    mask = cache_mask(cache.positions, query.shape[2])
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("b h t s, b h s e -> b h t e", weights, value)
    ### END SOLUTION


class RaggedCache:
    """Task 5: texts of different lengths.

    Three prompts of 5, 2 and 4 tokens are read together: the shorter ones are padded *on the right*, so
    that 5 come for each, and `truncate([5, 2, 4])` then forgets the padding. From there each text goes
    on behind its own last token.

    - `update(key, value)` takes in t tokens for each text, behind those that this text holds. Slot n is
      position n of a text. It returns as many slots as the longest text holds tokens.
    - `positions`, `b s`, has -1 for the slots of a text that hold no token of it.
    - `lengths`, `b`, is how many tokens each text holds.
    - `truncate(lengths)` keeps the first `lengths[n]` tokens of text n, as if the others had never come. A
      text cut to 0 makes room for a new one in its row.

    Slots without a token hold zeros, whatever was in them. A mask cannot do without that: it gives a
    weight of 0, and 0 · NaN is NaN.

    By hand: 3 tokens come for each of two texts, then `truncate([3, 1])`, then 1 token for each. The
    lengths are 4 and 2, the positions are 0, 1, 2, 3 and 0, 1, -1, -1.
    """

    def __init__(self, capacity: int):
        ### BEGIN SOLUTION
        self.capacity = capacity
        self.keys = self.values = None
        self.lengths = torch.zeros(1, dtype=torch.long)
        ### END SOLUTION

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`key` is `b g t d`, `value` is `b g t e`; the results are `b g s d` and `b g s e`.

        **Raises** `ValueError` if a text would hold more than `capacity` tokens; nothing is changed then.
        """
        ### BEGIN SOLUTION
        b, g, t, _ = key.shape
        longest = int(self.lengths.max()) + t
        if longest > self.capacity:
            raise ValueError(f"lengths are {self.lengths.tolist()} of {self.capacity}, {t} more came")
        if self.keys is None:
            self.lengths = torch.zeros(b, dtype=torch.long)
            self.keys = key.new_zeros(b, g, self.capacity, key.shape[3])
            self.values = value.new_zeros(b, g, self.capacity, value.shape[3])
        row = torch.arange(b)[:, None]
        slot = self.lengths[:, None] + torch.arange(t)
        # Two index tensors around a slice: their axes come first.
        self.keys[row, :, slot] = key.transpose(1, 2)
        self.values[row, :, slot] = value.transpose(1, 2)
        self.lengths = self.lengths + t
        return self.keys[:, :, :longest], self.values[:, :, :longest]
        ### END SOLUTION

    @property
    def positions(self) -> Tensor:
        """`b s`: where the keys stand that `update` returns; -1 where there is none."""
        ### BEGIN SOLUTION
        slot = torch.arange(int(self.lengths.max()))
        return torch.where(slot < self.lengths[:, None], slot, -1)
        ### END SOLUTION

    def truncate(self, lengths: Tensor) -> None:
        """`lengths` is `b`, whole numbers.

        **Raises** `ValueError` if one is negative or more than its text holds; nothing is changed then.
        """
        ### BEGIN SOLUTION
        if (lengths < 0).any() or (lengths > self.lengths).any():
            raise ValueError(f"lengths is {lengths.tolist()}, {self.lengths.tolist()} are held")
        self.lengths = lengths
        empty = (torch.arange(self.capacity) >= lengths[:, None])[:, None, :, None]
        self.keys.masked_fill_(empty, 0.0)
        self.values.masked_fill_(empty, 0.0)
        ### END SOLUTION


class PagedCache:
    """Task 6: pages.

    Until now every text had a row of its own, as long as the longest text that may come. Here the memory
    is cut into pages of a few tokens. A text takes a page when its next token finds no place in those it
    has, and a table says which pages are its own, in order; they may lie anywhere. Several texts can begin
    alike, several answers to one question for instance: then they *share* pages. (vLLM does both.)

    - `PagedCache(keys, values)` is given its memory: `p n g d` and `p n g e`, which are p pages of n
      tokens. Anything may be in it. Both stay attributes, and they are all that holds keys and values.
    - `append(text, key, value)` takes in t tokens behind those of `text`. A text is known by a number; one
      that is not known yet begins. `key` is `g t d`, `value` is `g t e`.
    - `read(text)` returns (key, value) of all its tokens, `g s d` and `g s e`.
    - `fork(text, new)` makes `new` a text that begins as `text` is now. No token is copied by it.
    - `drop(text)` forgets a text.
    - `n_free` is the number of pages that no text uses.

    One thing needs care. If the last page of a text has room left and another text uses it too, the next
    token must not be written into it: the text first gets a copy of that page for itself. Nothing else
    is ever copied, and no page is taken before it is needed.

    Four pages of 2 tokens, by hand. Text 0 gets 3 tokens: 2 pages are free. Text 1 is forked from it: still
    2. Text 1 gets a token: its page with the third token is copied, 1 is free. Text 0 gets a token: it
    alone uses that page now, so the token goes there, and 1 is free. Text 0 is dropped: its second page
    is free again, its first is still used by text 1, and 2 are free.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        ### BEGIN SOLUTION
        self.keys, self.values = keys, values
        # Of each text: its pages in order, and how many tokens it has.
        self.tables, self.lengths = {}, {}
        ### END SOLUTION

    @property
    def n_free(self) -> int:
        """How many pages no text uses."""
        ### BEGIN SOLUTION
        return len(self.keys) - len({page for table in self.tables.values() for page in table})
        ### END SOLUTION

    def append(self, text: int, key: Tensor, value: Tensor) -> None:
        """**Raises** `ValueError` if more pages are needed than are free; nothing is changed then."""
        ### BEGIN SOLUTION
        n, old = self.keys.shape[1], self.lengths.get(text, 0)
        new, table = old + key.shape[1], list(self.tables.get(text, []))
        others = {page for name, pages in self.tables.items() if name != text for page in pages}
        free = [page for page in range(len(self.keys)) if page not in others and page not in table]
        copy = old % n > 0 and table[-1] in others
        needed = -(-new // n) - len(table) + copy
        if needed > len(free):
            raise ValueError(f"{needed} pages are needed, {len(free)} are free")
        if copy:
            shared, table[-1] = table[-1], free.pop()
            self.keys[table[-1]], self.values[table[-1]] = self.keys[shared], self.values[shared]
        while len(table) * n < new:
            table.append(free.pop())
        place = torch.arange(old, new)
        page = torch.tensor(table)[place // n]
        self.keys[page, place % n] = key.transpose(0, 1)
        self.values[page, place % n] = value.transpose(0, 1)
        self.tables[text], self.lengths[text] = table, new
        ### END SOLUTION

    def read(self, text: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a text, in order."""
        ### BEGIN SOLUTION
        table, length = self.tables[text], self.lengths[text]
        key, value = (memory[table].flatten(0, 1)[:length] for memory in (self.keys, self.values))
        return key.transpose(0, 1), value.transpose(0, 1)
        ### END SOLUTION

    def fork(self, text: int, new: int) -> None:
        """A second text with the same beginning."""
        ### BEGIN SOLUTION
        self.tables[new], self.lengths[new] = list(self.tables[text]), self.lengths[text]
        ### END SOLUTION

    def drop(self, text: int) -> None:
        """Forget a text; its pages are free again, unless another uses them."""
        ### BEGIN SOLUTION
        del self.tables[text], self.lengths[text]
        ### END SOLUTION
