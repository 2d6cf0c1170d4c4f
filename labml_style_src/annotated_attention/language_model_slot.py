r"""# The slot for attention

Every lesson to come changes what happens between queries and keys: where position enters, how many heads
share a key, how far back a query looks, which keys are kept. A course with a model for each would have a
dozen models, and the difference between two of them would prove nothing.

So the model stays, and what differs is one function:

```python
def attend(query, key, value, i, j): ...
```

The last two say *where* queries and keys stand: $i$ and $j$ number the tokens of a text. Shapes cannot tell.
One query and six keys may be the next token and its past, or the first token and its future; keys may have
been thrown away, or lie in another order than they came.

![Six keys in memory, and the query that follows. Above: a text. Then a cache that has overwritten its oldest
places. Below: a shorter text beside a longer one, with two places that hold no key.](figure:places)

## What came before

PyTorch's `is_causal` goes by shape: it aligns the mask top-left, and with a cache in front of one query that
shows it the oldest key alone (lesson 1). flash-attn aligns bottom-right, which is right for a cache that only
grows. Transformers builds a mask from `cache_position` and `position_ids`, two numberings, one for the memory
and one for the text. FlexAttention passes indices to a function of the user's. Numbers that belong to the
*tokens* are the one form that survives all caches of this course.

## What it costs, and when it fails

A mask made of positions is a matrix, $t\,s$ booleans for each layer and each pass: 64 MiB for 8,192 tokens.
And PyTorch's FlashAttention on a GPU takes no mask at all, so another of its kernels runs. A model that only
ever trained would pass `is_causal=True`.

A filling may look at less than it is told. The ALiBi below reads the place of the first query, one for all
rows, and takes the keys to lie at $0, 1, 2, \dots$: right for a text and for a cache that only grows, wrong
for a cache that overwrites, and an error where the rows begin at different places. Lessons 5 and 8 have
fillings that read all of $i$ and $j$.

**In production** the slot is a class or a name: vLLM's models hold an `Attention` layer, behind which it
chooses a kernel; Transformers looks up `attn_implementation` in a table, to which one's own function can be
added (`AttentionInterface.register`).

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $i$ | `i` | `... t` | where the queries stand |
| $j$ | `j` | `... s` | where the keys stand; a negative one is no key |

They are `t` and `s`, or `b t` and `b s` if the rows of a batch differ.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from annotated_attention.multi_head import merge_heads, split_heads

__all__ = ["Attend", "Cache", "SelfAttention", "causal_attention"]
__all__ += ["causal_mask", "placed"]

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def causal_mask(
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Bool[Tensor, "... t s"]:
    r"""## Who may look where

    Query $i$ may look at key $j$ if $0 \le j \le i$ [check:test_mask_is_by_position], in whatever order the
    keys are stored [check:test_order_in_memory_does_not_matter]. A query that stands before every key, as
    padding does, sees nothing and gets 0 [check:test_padding_sees_nothing_and_moves_nothing].

    **Shapes.** The result is `t s`, or `b 1 t s` if either has a batch: then heads share it.
    """
    i, j = i[..., :, None], j[..., None, :]
    mask = (j >= 0) & (j <= i)
    return mask if mask.ndim == 2 else mask[:, None]


def causal_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""## The plain filling

    It knows order from the mask alone. PyTorch's fused kernel stands here. Lesson 1's function gives the same
    [check:test_lesson_1_fits_and_agrees], but keeps the weights of all heads for the backward pass, and a
    step of training takes almost twice as long on a CPU (`benchmarks/bench_language_model.py`).
    """
    mask = causal_mask(i, j)
    return F.scaled_dot_product_attention(query, key, value, mask)


@runtime_checkable
class Cache(Protocol):
    r"""## A place for memory

    While a model writes, the keys and values of old tokens stay what they were. Any object with these three
    can hold those of one layer. Lesson 7 builds the first, lessons 9 and 10 others.

    Keys go in as they were projected. Positions enter in `attend`, each time anew, so that a cache is free
    to number its keys otherwise than they came.
    """

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the newest `b g t d` and `b g t e`; returns all that their queries may need, these included. A
        ring that reads a piece of a text returns more than it goes on to hold."""
        ...

    @property
    def positions(self) -> Tensor:
        """Where they stand, in the order of `update`'s answer: `s` or `b s`. Negative is no key."""
        ...

    @property
    def nbytes(self) -> int: ...


class SelfAttention(nn.Module):
    r"""## Projections

    Those of lesson 2, without biases. A lesson goes in with a line, here ALiBi
    [check:test_alibi_fits]:

    ```python
    def alibi(query, key, value, i, j):
        first = int(i[..., 0].unique())
        return alibi_attention(query, key, value, offset=first)

    SelfAttention(128, 4, attend=alibi)
    ```

    If `attend` is a module, its parameters are trained with the rest
    [check:test_attend_may_have_parameters]. A model takes any layer that is called as this one is, lesson 2's
    for one, and a different one in each place [check:test_every_layer_may_have_an_attention_of_its_own].

    **Raises.** `ValueError` if `d_model` is no multiple of `n_heads`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        attend: Attend = causal_attention,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        self.n_heads, self.attend = n_heads, attend
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        query = split_heads(self.w_q(x), self.n_heads)
        key = split_heads(self.w_k(x), self.n_heads)
        value = split_heads(self.w_v(x), self.n_heads)
        i, j, key, value = placed(key, value, positions, cache)
        return self.w_o(merge_heads(self.attend(query, key, value, i, j)))


def placed(
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t e"],
    positions: Int[Tensor, "... t"] | None,
    cache: Cache | None,
) -> tuple[
    Int[Tensor, "... t"],
    Int[Tensor, "... s"],
    Float[Tensor, "b g s d"],
    Float[Tensor, "b g s e"],
]:
    r"""## Where everything stands

    $i$, $j$, and the keys and values that the queries meet: their own, and those of the cache.
    """
    t = key.shape[2]
    if cache is None:
        i = positions
        if i is None:
            i = torch.arange(t, device=key.device)
        return i, i, key, value
    key, value = cache.update(key, value)
    j = cache.positions

    # The newest key is that of the last query, and has the largest number. So $i$ follows from $j$: when a
    # text is read in pieces [check:test_reading_in_pieces_is_reading_at_once], when each text of a batch has
    # a length of its own [check:test_rows_of_different_lengths], when new keys overwrite the oldest, one by
    # one [check:test_a_ring_is_a_window] or in pieces [check:test_a_ring_reads_in_pieces], and when those
    # that are left are counted anew [check:test_a_window_counted_anew].
    if positions is None:
        back = torch.arange(1 - t, 1, device=key.device)
        positions = j.amax(dim=-1, keepdim=True) + back
    return positions, j, key, value


def example(axes: dict[str, int]) -> None:
    """Self-attention over one text: the shapes beside the code are read off this run."""
    b, h, t, s, d, e = (axes[letter] for letter in "bhtsde")
    i, j = torch.arange(t) + s - t, torch.arange(s)
    query, key = torch.randn(b, h, t, d), torch.randn(b, h, s, d)
    value = torch.randn(b, h, s, e)
    causal_attention(query, key, value, i, j)
    causal_mask(i.expand(b, t), j)
    SelfAttention(h * d, h)(torch.randn(b, t, h * d))
    placed(key, value, None, None)
