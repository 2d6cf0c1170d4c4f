"""# Exercise: attention sinks

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` and `e` widths.
Only `torch` is needed. Write the attention out: `torch.nn.functional.scaled_dot_product_attention`
would leave nothing to learn. A task may use what was written for the tasks before it.

Check your work as often as you like: `attn check attention_sinks` says what is wrong and where, and
`attn check attention_sinks --hint` gives one hint at a time.
"""

import torch
from torch import Tensor


def softmax_off_by_one(scores: Tensor) -> Tensor:
    """Task 1: one more in the denominator.

    A softmax cannot say no: its weights sum to one, however low the scores are. With

        weight j = exp(score j) / (1 + Σₖ exp(score k))

    they may sum to anything between 0 and 1. Scores may be 10,000 or -10,000, and a key that is masked
    has the score -∞. Where all are, all weights are 0. There is never a NaN.

    Scores 0 and 0, by hand: 1/3 and 1/3. Scores ln 2 and 0: 2/4 and 1/4.

    **Returns** the weights, in the shape and dtype of `scores`, `... s`.
    """
    ### BEGIN SOLUTION
    # The 1 is a key with the score 0: it takes part in the largest.
    top = scores.amax(dim=-1, keepdim=True).clamp(min=0.0)
    shares = torch.exp(scores - top)
    return shares / (shares.sum(dim=-1, keepdim=True) + torch.exp(-top))
    ### END SOLUTION


def sink_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_logits: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Task 2: a sink for every head.

    Now each head h has a number of its own where task 1 has 0: exp(sink_logits[h]) stands in the
    denominator where 1 stood. It is a parameter that was learned as it is, so it is *not* scaled. It takes
    weight and gives nothing: there is no value for it.

    - `scale` multiplies the products of queries and keys; `None` means `d ** -0.5`.
    - `attn_mask` broadcasts to `b h t s`, and is True where a query may attend. A query that sees no key
      finds 0, and has gradients of 0. The sink itself cannot be masked.
    - A logit of -∞ is no sink at all: that head is plain attention. Logits and scores may be large.

    One head, a query of zeros, three keys with the values 3, 6 and 9, by hand. Logit 0: all four weights
    are 1/4, and the output is 18/4 = 4.5. Logit ln 3: 18/6 = 3. Logit -∞: 6, the mean.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`, `sink_logits` is `h`; the
    result is `b h t e`.
    """
    ### BEGIN SOLUTION
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * scale
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    sink = sink_logits[:, None, None].expand(*scores.shape[:3], 1)
    scores = torch.cat([scores, sink], dim=-1)
    # Nothing but -inf would be 0 / 0, in the gradient too.
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    return torch.einsum("b h t s, b h s e -> b h t e", weights[..., :-1], value)
    ### END SOLUTION


def kept(n_read: int, n_sinks: int, window: int) -> Tensor:
    """Task 3: which tokens stay.

    A cache keeps the first `n_sinks` tokens of a text and, beside these, the newest `window`. Both count
    tokens: there is room for n_sinks + window in all. `n_read` tokens were read.

    Two sinks, a window of 3 and 7 tokens, by hand: 0, 1, 4, 5, 6. After 4 tokens: 0, 1, 2, 3.

    **Returns** the positions in the text of those that are held, ascending: whole numbers.
    """
    ### BEGIN SOLUTION
    position = torch.arange(n_read)
    return position[(position < n_sinks) | (position >= n_read - window)]
    ### END SOLUTION


def inside(n_read: int, n_sinks: int, window: int) -> Tensor:
    """Task 3, continued: where they stand.

    In the cache the held tokens are counted anew, 0, 1, 2, ..., in the order of the text and without gaps.

    The first example above, by hand: 0, 1, -1, -1, 2, 3, 4.

    **Returns** for every token of the text, in order, its position inside the cache, or -1 if it is not
    held: `n_read` whole numbers.
    """
    ### BEGIN SOLUTION
    places = torch.full((n_read,), -1)
    held = kept(n_read, n_sinks, window)
    places[held] = torch.arange(len(held))
    return places
    ### END SOLUTION


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Given, for the next two tasks: lesson 5's rotary positions. `x` is `b h n d`, where d is even; token k
    of the n is turned to `positions[k]`. The product of two vectors turned to i and j knows i - j only."""
    half = x.shape[-1] // 2
    speeds = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions[:, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    x_1, x_2 = x[..., :half], x[..., half:]
    return torch.cat([x_1 * cos - x_2 * sin, x_1 * sin + x_2 * cos], dim=-1)


class SinkCache:
    """Task 4: the cache.

    It takes in one token at a time and never holds more than n_sinks + window.

    - `keys` and `values` are attributes: the memory, `b h n_sinks+window d` and `b h n_sinks+window e`.
      It is taken at the first update, in the dtype of what comes. From then on an update writes one slot of
      each, where the token stood that goes, and moves nothing.
    - `update(key, value)` takes in the next token and returns the keys and values held, this one
      included: a tuple of `b h s d` and `b h s e`. Slots without a token are not returned.
    - `positions`, s whole numbers, says where those keys stand *inside the cache* (task 3), in the order in
      which `update` returned them. Which slot a token has is up to you; its position is not.

    One sink and a window of 2, by hand: tokens A B C D come. Say they were written to the slots 0, 1, 2, and
    D to slot 1, where B was. Now the slots hold A D C, and `positions` is 0, 2, 1.
    """

    def __init__(self, n_sinks: int, window: int):
        ### BEGIN SOLUTION
        self.n_sinks, self.window = n_sinks, window
        self.n_read = 0
        self.keys = self.values = None
        ### END SOLUTION

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`key` is `b h 1 d`, `value` is `b h 1 e`; the results are `b h s d` and `b h s e`."""
        ### BEGIN SOLUTION
        if self.keys is None:
            size = self.n_sinks + self.window
            self.keys = key.new_zeros(*key.shape[:2], size, key.shape[3])
            self.values = value.new_zeros(*value.shape[:2], size, value.shape[3])
        slot = self.n_read
        if slot >= self.n_sinks:
            slot = self.n_sinks + (slot - self.n_sinks) % self.window
        self.keys[:, :, slot], self.values[:, :, slot] = key[:, :, 0], value[:, :, 0]
        self.n_read += 1
        held = len(self.positions)
        return self.keys[:, :, :held], self.values[:, :, :held]
        ### END SOLUTION

    @property
    def positions(self) -> Tensor:
        """Where the keys stand that `update` returned."""
        ### BEGIN SOLUTION
        slot = torch.arange(min(self.n_read, self.n_sinks + self.window))
        # The oldest of the window lies where the next token goes.
        oldest = max(self.n_read - self.n_sinks - self.window, 0)
        shifted = self.n_sinks + (slot - self.n_sinks - oldest) % self.window
        return torch.where(slot < self.n_sinks, slot, shifted)
        ### END SOLUTION


def next_token(query: Tensor, key: Tensor, value: Tensor, cache) -> Tensor:
    """Task 4, continued: read it.

    `query`, `key` and `value` are those of one new token, not turned. `cache` takes in the key and the
    value. It has `update` and `positions` as above, but need not be your cache. Turn the query and the held
    keys to their positions *inside the cache*, with `turn`. Then it is attention, without a sink logit.

    **Shapes.** `query` and `key` are `b h 1 d`, `value` is `b h 1 e`; the result is `b h 1 e`.
    """
    ### BEGIN SOLUTION
    keys, values = cache.update(key, value)
    places = cache.positions
    query, keys = turn(query, places.max()[None]), turn(keys, places)
    no_sink = torch.full((query.shape[1],), float("-inf"), dtype=query.dtype)
    return sink_attention(query, keys, values, no_sink)
    ### END SOLUTION


def distances(t: int, n_sinks: int, window: int) -> Tensor:
    """Task 5: the same, all at once.

    To train for the cache, or to test it, a text of `t` tokens is read in one pass. When token i came, the
    cache held some tokens and had counted them anew. How far behind token i did token j stand then?

    One sink, a window of 2 and five tokens, by hand; -1 means that token j is not held, or not yet there:

        0 -1 -1 -1 -1
        1  0 -1 -1 -1
        2  1  0 -1 -1
        2 -1  1  0 -1
        2 -1 -1  1  0

    **Returns** the distances inside the cache: `t t` whole numbers.
    """
    ### BEGIN SOLUTION
    i, j = torch.arange(t)[:, None], torch.arange(t)
    in_window, is_sink = i - j < window, j < n_sinks
    distance = torch.where(is_sink, i.clamp(max=n_sinks + window - 1), i) - j
    return torch.where((j <= i) & (in_window | is_sink), distance, -1)
    ### END SOLUTION


def all_at_once(query: Tensor, key: Tensor, value: Tensor, n_sinks: int, window: int) -> Tensor:
    """Task 5, continued: the forward pass.

    The output at every token of a text, equal to what `next_token` finds there, step by step, with a new
    `SinkCache(n_sinks, window)`. But here is no cache: keys stay where they stand in the text, and nothing
    is computed token by token. How can one query stand at two distances at once? It can be turned twice.

    **Shapes.** `query` and `key` are `b h t d`, `value` is `b h t e`; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    t, d = query.shape[2:]
    i = torch.arange(t)
    near, far = turn(query, i), turn(query, i.clamp(max=n_sinks + window - 1))
    key = turn(key, i)
    scores = torch.where(i < n_sinks, far @ key.mT, near @ key.mT) * d**-0.5
    hidden = distances(t, n_sinks, window) < 0
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value
    ### END SOLUTION


def with_sink(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_logits: Tensor,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float]:
    """Task 6: for a kernel that has no sinks.

    Many attention kernels take queries, keys, values, a mask and a scale, and nothing else. Make five
    such arguments so that

        softmax(scale · query keyᵀ, where attn_mask is True) value

    is `sink_attention` of the arguments that came (with `scale=None`). The kernel takes any number of keys
    and any widths, one scale for all heads, and a mask that says yes or no: no logit can be added by it. The
    mask broadcasts to `b h t s`, or is None, as the one that comes. The output has the width `e` again.

    One query 2, one key 3 with the value 5, a logit of 0.5, and d = 1, by hand: the query becomes (2, 1), the
    keys (3, 0) and (0, 0.5), the values 5 and 0. The scores are 6 and 0.5, and the output is
    5 · exp(6) / (exp(6) + exp(0.5)) = 4.98.

    **Returns** the tuple (query, key, value, attn_mask, scale).
    """
    ### BEGIN SOLUTION
    b, h, t, d = query.shape
    scale = d**-0.5
    # One more dimension, in which every query has a 1 and no key but the sink has anything.
    query = torch.cat([query, query.new_ones(b, h, t, 1)], dim=-1)
    key = torch.cat([key, key.new_zeros(*key.shape[:3], 1)], dim=-1)
    sink = key.new_zeros(b, h, 1, d + 1)
    sink[..., -1] = (sink_logits / scale)[:, None]
    value = torch.cat([value, value.new_zeros(b, h, 1, value.shape[3])], dim=2)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(b, h, t, -1)
        attn_mask = torch.cat([attn_mask, attn_mask.new_ones(b, h, t, 1)], dim=-1)
    return query, torch.cat([key, sink], dim=2), value, attn_mask, scale
    ### END SOLUTION


def merged(outputs: Tensor, lses: Tensor, sink_logits: Tensor) -> Tensor:
    """Task 6, continued: a text in parts.

    A text too long for one device lies on p of them. Each computes plain attention over its own keys, and
    hands in its output and the logarithm of its denominator, ln Σ exp(score). A device whose keys are all
    masked hands in the output 0 and -∞. Put them together to what `sink_attention` over all keys returns.

    Two devices, one key each, both scores 0 and so both logarithms 0, values 3 and 6, logit 0, by hand: all
    three weights are 1/3, and the output is 9/3 = 3.

    **Shapes.** `outputs` is `p b h t e`, `lses` is `p b h t`, `sink_logits` is `h`; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    # It is attention once more: each part is a key with the score `lse`.
    sink = sink_logits[:, None].expand(1, *lses.shape[1:])
    scores = torch.cat([lses, sink])
    empty = (scores == float("-inf")).all(dim=0)
    weights = scores.masked_fill(empty, 0.0).softmax(dim=0)[:-1].masked_fill(empty, 0.0)
    return torch.einsum("p b h t, p b h t e -> b h t e", weights, outputs)
    ### END SOLUTION
