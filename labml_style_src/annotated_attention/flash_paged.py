r"""# Pages

A cache in one piece has to be given its size before the text is written. It is given the longest that may
come, and most texts end sooner. What a text leaves empty no other can use, and how many texts fit on a device
is decided by what was reserved, not by what was written.

So cut the memory into *pages* of a few tokens, and give a text a new one when its last is full. Then a text
is no longer one piece, and a *table* $T$ says where it lies. Key $j$ of text $b$ is

$$\text{in page } p = T_{b,\,\lfloor j/n \rfloor}, \quad \text{in slot } j \bmod n .$$

Here are *the cat sat on the mat* and *the cat sat down*, in pages of two
[check:test_the_cat_sat_down|the cat]. Page 4 is there once and in both rows of the table.

![The table's two rows point into the pool of pages. Page 4 has two readers, page 0 none.](figure:pages)

## What came before

This is how an operating system gives memory to programs, and it was taken from there: Kwon et al. (2023), who
made vLLM. Of the caches in one piece that they measured, 20.4 to 38.2% of the memory held tokens (section 1),
of those in pages 96.3% (figure 2).

What stays empty is the end of a text's last page, at most $n - 1$ slots, however long the text may become
[check:test_a_text_wastes_less_than_a_page]. Take texts of 1 to 2,048 tokens, each length as often as any
other: with 2,048 slots reserved for each, 50.0% of the slots hold a token; in pages of 16, 99.3%
[check:test_slots_that_hold_a_token|50.0 and 99.3%].

## Two texts, one page

Texts that begin alike, with the same instructions or as several answers to one question, need their common
keys once, and the table may name a page as often as it likes. Each page counts its readers. One that nobody
reads is free. A text that wants to write into a page that others read gets a copy of its own, and not before:
*copy on write* [check:test_a_shared_page_is_copied_before_it_is_written].

![Two texts read page 1, and both go on. One gets a copy, in page 0; for the other, now its only reader, page
1 is as good as its own.](figure:copied)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{k}_j$ | `key` | `b g t d` | what the newest positions offer |
| $\mathbf{v}_j$ | `value` | `b g t e` | what the newest positions give |
| $n$ | `page_size` | scalar | tokens in a page, also `n` |
| $j$ | `j` | `b t` | where the newest tokens stand in their texts |
| $p$ | `page` | `b t` | in which pages they are written, in slots `slot` |
| $T$ | `table` | `b x` | the page of each stretch of $n$ tokens; $-1$ where there is none |
| $s_b$ | `lengths` | `b` | how many tokens text $b$ has |

**Source.** Kwon et al. (2023), arXiv:2309.06180, section 4. Their *blocks* are our pages, their *block table*
is our `table`.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int, Integer
from torch import Tensor

from annotated_attention.kv_cache import check_update

__all__ = ["PagedKVCache", "filled", "gather_pages"]


class PagedKVCache:
    r"""## The cache of one layer

    `n_pages` pages for `n_texts` texts: `key_pages` is `p g n d`, `value_pages` is `p g n e`. Like every
    cache of the course it has `update`, `positions` and `nbytes`, and a model writes with it what it writes
    with lesson 7's [check:test_a_model_writes_the_same]. Whatever is written, forgotten and shared, each text
    reads what it wrote [check:test_texts_are_what_was_written].
    """

    def __init__(
        self,
        n_texts: int,
        n_pages: int,
        page_size: int = 16,
    ) -> None:
        if min(n_texts, n_pages, page_size) < 1:
            came = f"n_texts is {n_texts}, n_pages is {n_pages}"
            came = f"{came}, page_size is {page_size}"
            raise ValueError(f"{came}: at least 1 is wanted")
        self.page_size = page_size
        empty = torch.empty(n_pages, 0, page_size, 0)
        self.key_pages = self.value_pages = empty
        self.pages: list[list[int]] = [[] for _ in range(n_texts)]
        self.lengths = torch.zeros(n_texts, dtype=torch.long)
        self.free, self.readers = list(range(n_pages)), [0] * n_pages

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def table(self) -> Int[Tensor, "b x"]:
        r"""Where the texts lie, for `paged_attention_triton` [check:test_the_kernel_reads_the_cache]."""
        width = max(map(len, self.pages))
        rows = [[*row, *[-1] * (width - len(row))] for row in self.pages]
        device = self.lengths.device
        return torch.tensor(rows, dtype=torch.int32, device=device)

    def append(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> None:
        r"""Every text grows by $t$ tokens. What has no room, is not of the kind that the cache began with, or
        wants a gradient is a `ValueError`, and changes nothing [check:test_what_is_refused_changes_nothing].
        """
        (b, n), t = (len(self.pages), self.page_size), key.shape[2]
        keys, values = self.key_pages, self.value_pages
        if not keys.numel():
            keys = key.new_zeros(len(keys), key.shape[1], n, key.shape[3])
            values = value.new_zeros(*keys.shape[:3], value.shape[3])
        held = [x[:1].expand(b, -1, -1, -1) for x in (keys, values)]
        check_update(key, value, *held)

        # A last page that is not full will be written. Of those who read it, all but one need a copy.
        lengths, pages = self.lengths.tolist(), self.pages
        rows = zip(pages, lengths, strict=True)
        last = Counter(row[-1] for row, m in rows if m % n)
        copies = sum(min(k, self.readers[p] - 1) for p, k in last.items())
        wanted = [-(-(m + t) // n) for m in lengths]
        new = sum(wanted) - sum(map(len, pages)) + (copies if t else 0)
        if new > len(self.free):
            came = f"cache has {len(self.free)} free pages of {n} tokens"
            raise ValueError(f"{came}: {new} are wanted")
        self.key_pages, self.value_pages = keys, values
        for row, m, count in zip(pages, lengths, wanted, strict=True):
            if t and m % n and self.readers[row[-1]] > 1:
                old, row[-1] = row[-1], self.take()
                self.readers[old] -= 1
                keys[row[-1]], values[row[-1]] = keys[old], values[old]
            row += [self.take() for _ in range(count - len(row))]

        # From here on, the table says where a token belongs, as it will say to the kernel.
        self.lengths = self.lengths.to(key.device)
        j = self.lengths[:, None] + torch.arange(t, device=key.device)
        page, slot = self.table.long().gather(1, j // n), j % n
        keys[page, :, slot] = rearrange(key, "b g t d -> b t g d")
        values[page, :, slot] = rearrange(value, "b g t e -> b t g e")
        self.lengths = self.lengths + t

    def take(self) -> int:
        """A free page, with its first reader."""
        page = self.free.pop()
        self.readers[page] = 1
        return page

    def share(self, source: int, target: int, length: int) -> None:
        r"""Text `target`, which is empty, begins with the first tokens of text `source`. No key is copied."""
        held, begun = int(self.lengths[source]), int(self.lengths[target])
        if begun or not 0 <= length <= held:
            came = f"text {target} has {begun} tokens, length is {length}"
            raise ValueError(f"{came}: an empty text and at most {held} are wanted")
        count = -(-length // self.page_size)
        self.pages[target] = self.pages[source][:count]
        self.lengths[target] = length
        for page in self.pages[target]:
            self.readers[page] += 1

    def truncate(self, lengths: Sequence[int] | Int[Tensor, "b"]) -> None:
        r"""Forgets all but the first tokens of each text, as lesson 7's cache. A text cut to 0 makes room
        for another. Pages without a reader are free [check:test_pages_come_back].
        """
        kept, held = [int(m) for m in lengths], self.lengths.tolist()
        fits = [0 <= m <= k for m, k in zip(kept, held, strict=False)]
        if len(kept) != len(held) or not all(fits):
            raise ValueError(f"lengths is {kept}: of each text, at most {held} is wanted")
        for row, m in zip(self.pages, kept, strict=True):
            while len(row) * self.page_size >= m + self.page_size:
                page = row.pop()
                self.readers[page] -= 1
                self.free += [page] * (self.readers[page] == 0)
        self.lengths = self.lengths.new_tensor(kept)

    def update(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s e"]]:
        r"""Takes in the newest and returns all, for attention that wants them in one piece. They are copied
        together for each step, which is what a kernel that reads the table saves.
        """
        self.append(key, value)
        s = self.longest
        keys = gather_pages(self.key_pages, self.table, self.lengths)
        values = gather_pages(self.value_pages, self.table, self.lengths)
        return keys[:, :, :s], values[:, :, :s]

    @property
    def positions(self) -> Int[Tensor, "b s"]:
        """Where those keys stand; -1 where there is none."""
        slots = torch.arange(self.longest, device=self.lengths.device)
        return torch.where(slots < self.lengths[:, None], slots, -1)

    @property
    def nbytes(self) -> int:
        """The bytes taken, by pages in use or free."""
        return self.key_pages.nbytes + self.value_pages.nbytes


def gather_pages(
    pages: Float[Tensor, "p g n d"],
    table: Integer[Tensor, "b x"],
    lengths: Integer[Tensor, "b"],
) -> Float[Tensor, "b g s d"]:
    r"""## In one piece

    The keys of each text copied together, with zeros behind its last one. It is what a kernel that reads the
    table must be equal to.
    """
    n = pages.shape[2]
    stretches = torch.arange(table.shape[1], device=table.device)
    used = stretches * n < lengths[:, None]
    found = pages[table.where(used, 0).long()]
    found = rearrange(found, "b x g n d -> b g (x n) d")
    slots = torch.arange(found.shape[2], device=table.device)
    behind = slots >= lengths[:, None]
    return found.masked_fill(rearrange(behind, "b s -> b 1 s 1"), 0.0)


def filled(lengths: Sequence[int], reserved: int, n: int) -> tuple[float, float]:
    r"""## What it costs, and when it fails

    Returns which share of the slots holds a token, where each text has `reserved` slots to itself and in
    pages of $n$.

    - *A small page* is read in small pieces, for neighbours in a text are strangers in memory. Here each
      head's keys of a page lie together: 16 of width 128 in bf16 are 4 KiB.
    - *A large page* wastes what pages were to save, about $n/2$ slots a text.
    - *The table* is next to nothing: with 8 key heads of that width, 4 bytes for 64 KiB of keys and values.
    - *Memory may be full* in the middle of a text. vLLM then takes the pages of some text, and later reads
      that text again or fetches its pages back from the CPU's memory. This cache only says that it is full.
    - *Sharing saves memory, not reading.* A kernel that takes text by text reads a shared page once for each.
      Once for all is `shared_prefix_attention`, on the page of [many readers](../flash_decoding/index.md).

    **In production.** **vLLM**'s Triton backend keeps `num_blocks, block_size, num_kv_heads, head_size`, with
    a block size that is a multiple of 16. **flash-attn** takes
    `num_blocks, page_block_size, nheads_k, headdim` and a `block_table`, `b x` in int32. **SGLang** keeps the
    texts that it has read in a tree by their tokens, to find the pages of a beginning that comes again
    (RadixAttention). **FlexAttention** has a `PagedAttention` in `torch.nn.attention.experimental`, which
    turns a `BlockMask` of texts into one of pages.
    """
    if not sum(lengths) or min(lengths) < 0 or max(lengths) > reserved or n < 1:
        came = f"lengths is {list(lengths)}, reserved is {reserved}, n is {n}"
        raise ValueError(f"{came}: some tokens, none longer than what is reserved, are wanted")
    held = sum(lengths)
    pages = sum(-(-m // n) for m in lengths)
    return held / (len(lengths) * reserved), held / (pages * n)


def example(axes: dict[str, int]) -> None:
    """Two texts with a common beginning: the shapes beside the code are read off this run."""
    b, g, t, d, e, n = (axes[letter] for letter in "bgtden")
    cache = PagedKVCache(b, b * (t + 1), n)
    cache.update(torch.randn(b, g, t, d), torch.randn(b, g, t, e))
    cache.truncate([t] + [0] * (b - 1))
    cache.share(0, 1, t - 1)
    cache.update(torch.randn(b, g, t, d), torch.randn(b, g, t, e))
    filled([1, 2, 3], 4, 2)
