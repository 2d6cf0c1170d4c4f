"""# Exercise: sliding windows

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `g` heads of keys and values, `t` queries, `s` keys,
`d` and `e` widths; `n` blocks of `u` positions, each with `a` keys in sight. You need `torch` only. Write
the attention out: `scaled_dot_product_attention` would leave nothing to learn. A task may use the functions
of the tasks before it.

Check your work as often as you like: `attn check sliding_window` says what is wrong and where, and
`attn check sliding_window --hint` gives one hint at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sliding_window_mask(t: int, s: int, window: int, *, is_causal: bool = True, offset: int = 0) -> Tensor:
    """Task 1: the mask.

    A window counts keys, the query's own included. If `is_causal`, query i sees itself and the
    `window - 1` keys before it. If not, it sees `window - 1` keys on either side as well.

    Query i stands at position `i + offset`, for in the middle of a text the new queries do not begin at
    0. The keys always begin at 0.

    A window of 2, three queries, three keys, by hand; causal, then two-sided, then causal at offset 2:

        1 0 0        1 1 0        0 1 1
        1 1 0        1 1 1        0 0 1
        0 1 1        0 1 1        0 0 0

    In the last, the queries stand at 2, 3 and 4, and the third looks for keys 3 and 4, which are not there.

    **Returns** a boolean tensor `t s`: True where a query sees a key.
    """
    ### BEGIN SOLUTION
    distance = torch.arange(t)[:, None] + offset - torch.arange(s)
    seen = distance.abs() < window
    return seen & (distance >= 0) if is_causal else seen
    ### END SOLUTION


def key_spans(x: Tensor, window: int, block_size: int, *, is_causal: bool = True) -> tuple[Tensor, Tensor]:
    """Task 2: what a block can see.

    Most of that mask is False, and to score a pair only to hide it is a waste. So cut the queries into
    blocks of `block_size`: 0, 1, ... u - 1 are the first block, the last may be only partly filled. All the
    keys that any query of a block sees lie side by side. Gather this *span* for each block.

    The spans are all of one length, as short as can be: when a block is full and no end of the text is
    near, each of its keys is seen by some query of the block. Where a span reaches beyond the text, it is
    filled up with zeros.

    Five keys k0 to k4, a window of 3, blocks of 2, causal, by hand. The blocks are the queries 0 1, 2 3 and
    4 alone. The first of a block looks 2 back. So the spans and where their keys stand are

        0  0  k0 k1        -1 -1  0  1
        k0 k1 k2 k3         0  1  2  3
        k2 k3 k4 0          2  3  4 -1

    **Shapes.** `x` is keys or values, `b g s d`, and there are as many queries as keys.

    **Returns** the spans, `b g n a d`, and where their keys stand, whole numbers `n a`, -1 where there is
    none.
    """
    ### BEGIN SOLUTION
    s = x.shape[2]
    n = -(-s // block_size)
    before, after = window - 1, 0 if is_causal else window - 1
    padded = F.pad(x, (0, 0, before, n * block_size + after - s))
    # Each span begins `block_size` places behind the one before it, and overlaps it: views, no copies.
    spans = padded.unfold(2, before + block_size + after, block_size).mT
    j = torch.arange(n)[:, None] * block_size + torch.arange(-before, block_size + after)
    return spans, torch.where((j >= 0) & (j < s), j, -1)
    ### END SOLUTION


def sliding_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    *,
    block_size: int = 64,
    is_causal: bool = True,
) -> Tensor:
    """Task 3: the attention.

    Each query takes the mean of the values in its window, with the weights softmax(query keyᵀ / √d).
    Compute it block by block, on the spans of task 2. The result does not depend on the block size; the
    work does: no block may read what lies outside its span, so that a NaN there does not reach it. A
    `t t` matrix of scores, masked, reads everything.

    Gradients are asked for, too, with a last block that is only partly filled.

    One head, zeros for queries, the values 1, 2, 3, 4, a window of 2, by hand. All scores are 0, so each
    query takes a plain mean: 1, 1.5, 2.5, 3.5, and two-sided 1.5, 2, 3, 3.5.

    **Shapes.** `query` and `key` are `b h t d`, `value` is `b h t e`; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    t, d = query.shape[2:]
    keys, j = key_spans(key, window, block_size, is_causal=is_causal)
    values, _ = key_spans(value, window, block_size, is_causal=is_causal)
    i = torch.arange(len(j) * block_size).view(len(j), block_size)
    queries = F.pad(query, (0, 0, 0, i.numel() - t)).unflatten(2, i.shape)
    distance = i[:, :, None] - j[:, None, :]
    seen = (distance.abs() < window) & (j >= 0)[:, None]
    if is_causal:
        seen &= distance >= 0
    scores = torch.einsum("b h n u d, b h n a d -> b h n u a", queries, keys) * d**-0.5
    # What fills up the last block may see nothing: 0 / 0, cut off, but NaN in the gradient of every key.
    scores = scores.masked_fill(~seen & seen.any(dim=-1, keepdim=True), float("-inf"))
    weights = scores.softmax(dim=-1)
    return torch.einsum("b h n u a, b h n a e -> b h n u e", weights, values).flatten(2, 3)[:, :, :t]
    ### END SOLUTION


class RollingKVCache:
    """Task 4: the ring.

    A model that writes with a window needs no key that is older: a cache of `window` slots is enough. The
    newest token goes where the oldest was.

    - `update(key, value)` takes in one token and returns all that its query sees, the token itself
      included, as a tuple (key, value). They may be in any order.
    - `positions` says where they stand, in the order of that answer: whole numbers, `s`, counted from the
      beginning of the text. If you return slots that hold no token yet, say -1 for them.
    - `keys` and `values` are attributes: the memory, `b g window d` and `b g window e`. It is taken at the
      first update, in the dtype of what comes. From then on nothing that it holds is moved: an update
      writes one slot.

    A window of 3, by hand: after tokens 0, 1, 2 come 3 and 4. One right answer for `positions` is then 0 1 2,
    3 1 2, 3 4 2.
    """

    def __init__(self, window: int):
        ### BEGIN SOLUTION
        self.window, self.count = window, 0
        self.keys = self.values = None
        ### END SOLUTION

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`key` is `b g 1 d`, `value` is `b g 1 e`; the results are `b g s d` and `b g s e`."""
        ### BEGIN SOLUTION
        if self.keys is None:
            b, g, _, d = key.shape
            self.keys = key.new_zeros(b, g, self.window, d)
            self.values = value.new_zeros(b, g, self.window, value.shape[3])
        slot = self.count % self.window
        self.keys[:, :, slot : slot + 1] = key
        self.values[:, :, slot : slot + 1] = value
        self.count += 1
        return self.keys[:, :, : self.count], self.values[:, :, : self.count]
        ### END SOLUTION

    @property
    def positions(self) -> Tensor:
        """`s`: where the keys stand that the last update returned."""
        ### BEGIN SOLUTION
        newest = self.count - 1
        slots = torch.arange(min(self.count, self.window))
        return newest - (newest - slots) % self.window
        ### END SOLUTION


def receptive_field(
    windows: list[int | None], length: int, i: int, *, is_causal: bool = True
) -> tuple[int, int]:
    """Task 5: how far a stack of layers sees.

    A token sees its window. In the next layer it sees its window again, but each token there has seen
    its own. `windows` has an entry for each layer, from the first to the last, and they may differ: many
    models let layers with a window take turns with layers without one, for which `None` is written.

    Which tokens of the input can change what the last layer says at position `i` of a text of `length`
    tokens?

    Windows of 3 and 2, a text of 12, position 10, by hand: the last layer reads what the first one says
    at 9 and 10, and that was made of 7, 8, 9 and of 8, 9, 10. So the answer is 7, 10. Two-sided, the last
    layer reads at 9, 10, 11, and the first from 7 to 13, but the text ends at 11: the answer is 7, 11.

    **Returns** the positions of the first and the last of them.
    """
    ### BEGIN SOLUTION
    reach = sum(length if window is None else window - 1 for window in windows)
    return max(i - reach, 0), i if is_causal else min(i + reach, length - 1)
    ### END SOLUTION


def layers_needed(window: int, distance: int) -> int:
    """Task 5, continued: and back.

    How many causal layers with this window does it take before anything can be known of a token that
    stands `distance` before? `distance` is at least 1.

    A window of 4, by hand: one layer sees 3 back, two see 6. So a distance of 6 takes 2, and 7 takes 3.

    **Raises** `ValueError` if no number of layers is enough.
    """
    ### BEGIN SOLUTION
    if window < 2:
        raise ValueError(f"window is {window}: no layer sees further back than its query")
    return -(-distance // (window - 1))
    ### END SOLUTION


class RewindableKVCache:
    """Task 6: a ring that takes back.

    A small model drafts a few tokens, the large one reads them all in one pass, and from the first with
    which it disagrees they are taken back. A cache that only grows is simply cut. In a ring the drafts
    have overwritten old tokens, and the query that comes after the cut may need those. So the ring gets more
    room, `window - 1 + draft` slots, and no more than that.

    - `update(key, value)` takes in 1 to `draft` tokens and returns (key, value), in any order: all that
      their queries see, at least. A token gives way only when no slot is empty, and then it is the oldest.
    - `rewind(n)` forgets the newest n tokens, as if they had never come; their slots are empty again.
    - `positions` says where the keys stand that `update` returns, -1 in a slot that is empty. It is right
      after a `rewind`, too.
    - `keys` and `values` are the memory, as in task 4: `b g window-1+draft d`, and nothing in it is moved.

    A window of 3 and drafts of 2, by hand: 4 slots. Tokens 0 1, 2 3 and 4 5 come: 2, 3, 4, 5 are held.
    `rewind(2)` leaves 2, 3. The next query stands at 4 and will see 2, 3 and itself: all there. To rewind
    once more is an error: the query at 3 would see 1, which is gone.
    """

    def __init__(self, window: int, draft: int):
        ### BEGIN SOLUTION
        self.window, self.draft = window, draft
        self.keys = self.values = None
        self.positions = torch.full((window - 1 + draft,), -1)
        # How many tokens the text has, and how many of its first are overwritten for good.
        self.count = self.lost = 0
        ### END SOLUTION

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`key` is `b g t d`, `value` is `b g t e`; the results are `b g s d` and `b g s e`.

        **Raises** `ValueError` if more than `draft` tokens come; nothing is changed then.
        """
        ### BEGIN SOLUTION
        (b, g, t, d), size = key.shape, len(self.positions)
        if t > self.draft:
            raise ValueError(f"{t} tokens came, at most {self.draft} are wanted")
        if self.keys is None:
            self.keys = key.new_zeros(b, g, size, d)
            self.values = value.new_zeros(b, g, size, value.shape[3])
        new = torch.arange(self.count, self.count + t)
        slots = new % size
        self.keys[:, :, slots], self.values[:, :, slots] = key, value
        self.positions[slots] = new
        self.count += t
        self.lost = max(self.lost, self.count - size)
        return self.keys, self.values
        ### END SOLUTION

    def rewind(self, n: int) -> None:
        """**Raises** `ValueError` if the text has fewer tokens, or if one that the next query would see has
        been overwritten; nothing is changed then."""
        ### BEGIN SOLUTION
        count = self.count - n
        if count < 0 or max(count - self.window + 1, 0) < self.lost:
            raise ValueError(f"n is {n}: {self.count} tokens came, the first {self.lost} are lost")
        self.positions[self.positions >= count] = -1
        self.count = count
        ### END SOLUTION
