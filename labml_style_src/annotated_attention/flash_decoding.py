r"""# Many readers

A model that writes has one query, and in front of it a cache of 100,000 keys. There is no second row of tiles
for a second worker: with the loops of this lesson, each head is one worker's job, key after key, and most of
the chip looks on. An A100 has 108 multiprocessors, and FlashAttention, shared out by blocks of queries and
texts of a batch, was found to use less than 1% of it for a single text.

So cut the other way. Deal the *keys* out to $n$ readers, let each attend to its part alone, and merge what
they bring back:

$$\mathbf{o} = \sum_n e^{L_n - L}\,\mathbf{o}_n, \qquad L = \ln \sum_n e^{L_n} .$$

Each brings $e + 1$ numbers, whether its part was long or short. That is next to nothing beside the keys.

![The weights of 24 keys. Above: one reader takes them in turn. Below: four at once. Each knows the weights among
its own keys, and how much it counts: the area of its circle.](figure:readers)

## What came before

To split the sum in a matrix product, *split-K*, is what kernels do when the result is small and the sum is
long. Flash-Decoding (Dao, Haziza, Massa, Sizov, October 2023) is that for attention, and needs the merge
because the parts are not sums but averages. Its authors report up to 8 times the speed of writing for long
texts, and an attention that hardly slows down up to 64,000 tokens.

Hydragen (Juravsky et al. 2024, arXiv:2402.05099) and FlashInfer's cascade (Ye et al. 2024) cut where a shared
beginning ends.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | mostly one a text: $t = 1$ |
| $\mathbf{k}_j$ | `key` | `b g s d` | a cache: its keys, |
| $\mathbf{v}_j$ | `value` | `b g s e` | and its values |
| $n$ | `n_splits` | scalar | readers |
| $\mathbf{o}_n$, $L_n$ | `parts` | `b h t e`, `b h t` | what a reader brings back |
| $p$ | – | scalar | length of a shared beginning, in `prefix_key` and `prefix_value` |
| $i$ | `i` | `... t` | where the queries stand (lesson 3) |
| $j$ | `j` | `... s` | where the keys stand |

**Source.** *Flash-Decoding for long-context inference*, pytorch.org, October 2023: three steps, of which the
second writes *the log-sum-exp of the attention values*, our $L_n$. Juravsky et al., section 3.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from annotated_attention.flash import flash_attention, merge_attention
from annotated_attention.language_model import causal_mask
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["causal_flash_attention", "first_of_run", "flash_behind_a_cache"]
__all__ += ["shared_prefix_attention", "split_attention"]


def split_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    n_splits: int,
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## The keys dealt out

    Attention to all keys, and its logarithm, for any number of readers
    [check:test_any_number_of_readers_is_one] and in any order of merging
    [check:test_readers_may_return_in_any_order]. It is not masked: in decoding, a cache holds nothing but the
    past. Here the readers come one after another, so nothing is won by it; on a GPU they are side by side.

    **Shapes.** As `flash_attention`. There are at most $n$ parts, of $\lceil s/n \rceil$ keys but for the last.

    **Raises.** `ValueError` if `n_splits` is below 1, or shapes do not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, False, enable_gqa=True)
    if n_splits < 1:
        raise ValueError(f"n_splits is {n_splits}: at least 1 is wanted")
    size = -(-key.shape[2] // n_splits)
    keys, values = key.split(size, dim=2), value.split(size, dim=2)

    # What is merged stays in float32 until the last merge, whatever the cache is stored in.
    wide = torch.promote_types(query.dtype, torch.float32)
    parts, q = [], query.to(wide)
    for k, v in zip(keys, values, strict=True):
        k, v = k.to(wide), v.to(wide)
        parts.append(flash_attention(q, k, v, scale=scale))
    output, lse = reduce(lambda a, b: merge_attention(*a, *b), parts)
    return output.to(query.dtype), lse


def shared_prefix_attention(
    query: Float[Tensor, "b h t d"],
    prefix_key: Float[Tensor, "1 g p d"],
    prefix_value: Float[Tensor, "1 g p e"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## A beginning that all share

    A thousand conversations begin with the same instructions. In each step each of them reads their keys
    again: $b\,(p + s)$ keys a head, of which $b\,p$ are the same $p$. But to the beginning, the queries of all
    texts are just so many queries of *one*: it is read once, by a matrix product where there were $b$ products
    of a matrix and a vector. Then each text reads its own, and two answers are merged.

    It is attention to the beginning and what follows, for each text
    [check:test_a_shared_prefix_is_a_longer_text]. `is_causal` holds among the texts' own tokens; the beginning
    lies before all of them. The gradient of the beginning is that of all texts together.

    **Raises.** `ValueError` if shapes do not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal, enable_gqa=True)
    g, d, e, p = *key.shape[1::2], value.shape[3], prefix_key.shape[-2]
    for name, x, n in (("key", prefix_key, d), ("value", prefix_value, e)):
        if x.shape != (1, g, p, n) or x.dtype != query.dtype:
            came = f"prefix_{name} is {x.dtype} of shape {tuple(x.shape)}"
            wanted = f"{(1, g, p, n)} of {query.dtype} is wanted"
            raise ValueError(f"{came}: {wanted}")
    b, t = query.shape[::2]
    wide = torch.promote_types(query.dtype, torch.float32)
    q = query.to(wide)
    k, v = key.to(wide), value.to(wide)
    own = flash_attention(q, k, v, is_causal=is_causal, scale=scale)

    q = rearrange(q, "b h t d -> 1 h (b t) d")
    k, v = prefix_key.to(wide), prefix_value.to(wide)
    output, lse = flash_attention(q, k, v, scale=scale)
    output = rearrange(output, "1 h (b t) e -> b h t e", b=b, t=t)
    lse = rearrange(lse, "1 h (b t) -> b h t", b=b, t=t)
    output, lse = merge_attention(output, lse, *own)
    return output.to(query.dtype), lse


def causal_flash_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""## In a model

    For lesson 3's slot, `SelfAttention(m, h, attend=causal_flash_attention)`: who sees whom is said by
    positions, and the result is that of a mask, wherever queries and keys stand
    [check:test_slot_is_by_position]. A model trains with it, in memory that grows like $t$, and writes the
    same [check:test_a_model_trains_and_writes_the_same] [check:test_training_memory_is_linear].
    """
    first, start = first_of_run(i), first_of_run(j)
    if first is None or start is None or first < start:
        # Keys in the order of a ring, padding, rows of their own positions.
        mask, attend = causal_mask(i, j), F.scaled_dot_product_attention
        return attend(query, key, value, mask, enable_gqa=True)

    # A single query has nothing to mask: all up to itself.
    past = first - start
    if query.shape[2] == 1:
        seen = key[:, :, : past + 1], value[:, :, : past + 1]
        return flash_attention(query, *seen)[0]
    return flash_behind_a_cache(query, key, value, past)[0]


def flash_behind_a_cache(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    past: int,
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""### A piece behind a cache

    PyTorch's `is_causal` cannot express it, being aligned top-left, and two readers can: one for the keys of the
    past, which need no mask, and one for the piece itself, which begins where its queries do
    [check:test_a_piece_is_two_readers].

    **Raises.** `ValueError` if `past` is below 0, or shapes do not fit [check:test_wrong_input_is_refused].
    """
    if past < 0:
        raise ValueError(f"past is {past}: at least 0 is wanted")
    causal = {"is_causal": True, "scale": scale}
    if past == 0:
        return flash_attention(query, key, value, **causal)
    check_inputs(query, key, value, None, False, enable_gqa=True)
    wide = torch.promote_types(query.dtype, torch.float32)
    q = query.to(wide)
    k, v = key.to(wide), value.to(wide)
    old_k, new_k = k.tensor_split([past], dim=2)
    old_v, new_v = v.tensor_split([past], dim=2)
    old = flash_attention(q, old_k, old_v, scale=scale)
    new = flash_attention(q, new_k, new_v, **causal)
    output, lse = merge_attention(*old, *new)
    return output.to(query.dtype), lse


def first_of_run(positions: Int[Tensor, "... n"]) -> int | None:
    r"""## What it costs, and when it fails

    The first position, if they follow one another without a gap and are the same for all texts; else None. (On
    a GPU, Python waits for the answer.)

    - *Every reader has a price.* It writes $e + 1$ numbers a query in float32, and a merge reads them. A short
      cache, or a batch that fills the chip by itself, is better left whole.
    - *Bits depend on $n$* [check:test_bits_depend_on_the_number_of_readers]. Where a kernel chooses $n$ by the
      size of its batch, the same text has other bits in other company, and at a near tie another next token.
    - *The keys are still read, all of them.* Splitting spreads the work, it does not shrink it: that takes
      fewer key heads (lesson 8), a window (9), or a shared beginning.

    **In production.** flash-attn's `flash_attn_with_kvcache` splits, `num_splits=0` lets it choose. PyTorch's
    **FlexAttention** has a kernel of its own for few queries, which splits as well. **FlashInfer** merges levels
    of shared beginnings; **vLLM** calls that *cascade attention*.
    """
    if positions.numel() == 0:
        return None
    rows = positions.reshape(-1, positions.shape[-1])
    first = rows[0, 0]
    run = first + torch.arange(rows.shape[1], device=rows.device)
    return int(first) if bool((first >= 0) & (rows == run).all()) else None


def example(axes: dict[str, int]) -> None:
    """A cache, a beginning, a piece of a text: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e, p = (axes[letter] for letter in "bgrtsdep")
    query, key, value = torch.randn(b, g * r, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    split_attention(query, key, value, 2)
    shared_prefix_attention(query, torch.randn(1, g, p, d), torch.randn(1, g, p, e), key, value)
    key, value = torch.randn(b, g, p + t, d), torch.randn(b, g, p + t, e)
    flash_behind_a_cache(query, key, value, p)
    i, j = torch.arange(t), torch.arange(p + t)
    causal_flash_attention(query, key, value, i + 1, j)
    causal_flash_attention(query, key, value, i.flip(0), j)
