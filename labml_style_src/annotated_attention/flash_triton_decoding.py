r"""# Many readers on a GPU

An H100 has 132 multiprocessors, and a text of Llama-3-8B that is being written has 8 key heads. With one program
a head, 124 of 132 stand idle [check:test_what_splitting_wins_and_costs|8 of 132] while 8 read a cache of 32,768
keys, and the device's memory could have served them all. So the keys of each head are dealt out, 1,024 a program
here, and 256 programs are at work.

That would win nothing if decoding waited for arithmetic. It waits for bytes. A key and a value are $d + e$ numbers,
and each of the $r\,t$ queries that share them does $2(d + e)$ operations with them. With $u$ bytes a number that is

$$\frac{2\,(d + e)\, r\, t}{(d + e)\, u} = \frac{2\,r\,t}{u}$$

operations for each byte of cache: 4 for Llama-3-8B in bf16, where 4 query heads share a key head and $t = 1$. An
H100 could do 295 while it reads a byte (lesson 7). Even the 16 rows that a tensor core takes at least are 16
[check:test_what_splitting_wins_and_costs|4 and 16]: filling up a tile with padding costs nothing that is scarce,
and reading a key once for each query head, four times in all, would cost four times the time.

This page has what one calls: attention of the newest queries to a cache, contiguous or in pages, with what models
add to scores. [The kernels](flash_triton_decoding_kernels.md) have a page of their own.

## What came before

The idea, its formula and its history are on the page of [many readers](flash_decoding.md), in PyTorch, where the
readers come one after another. Flash-Decoding (2023) is two kernels, as here: one for the parts, one for the merge.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | the newest tokens: one, or some that were drafted |
| $\mathbf{k}_j$ | `key` | `b g s d` | the cache, or `key_pages`, `p g n d` |
| $\mathbf{v}_j$ | `value` | `b g s e` | the cache, or `value_pages`, `p g n e` |
| $s_b$ | `lengths` | `b` | how many keys each text has |
| $i$ | `i` | `b t` | where queries stand: $s_b - t, \dots, s_b - 1$ |
| $j$ | `j` | `s` | where keys stand |
| $r$ | `r` | scalar | query heads to a key head, $h/g$ |
| $n$ | `n_splits` | scalar | parts of each text |
| $w$ | `window` | scalar | query $i$ sees the keys with $0 \le i - j < w$ |
| $c$ | `soft_cap` | scalar | scores become $c \tanh(S/c)$ |
| $z_h$ | `sink_logits` | `h` | lesson 10's score of nothing, not scaled |
| $m_h$ | `alibi_slopes` | `h` | lesson 6's price of a step |
| $L_i$ | `lse` | `b h t` | logarithm of the sum, with the sink's share if there is one |

**Source.** As for [many readers](flash_decoding.md); pages: Kwon et al. (2023), arXiv:2309.06180. The numbers of an
H100 (SXM): 132 multiprocessors, 989 TFLOP/s in bf16, 3.35 TB/s.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Tensor

from annotated_attention.flash_merge import finish, merge_attention, summary
from annotated_attention.flash_paged import gather_pages
from annotated_attention.flash_triton import check_options, has_kernels
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["decode", "decode_plainly", "decoding_cost", "flash_decoding_triton"]
__all__ += ["number_of_parts", "paged_attention_triton"]


def flash_decoding_triton(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *,
    lengths: Integer[Tensor, "b"] | None = None,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Float[Tensor, "h"] | None = None,
    sink_logits: Float[Tensor, "h"] | None = None,
    soft_cap: float | None = None,
    n_splits: int | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## With a contiguous cache

    The queries are the newest tokens of their texts: of a text of $s_b$ tokens, query $i$ stands at $s_b - t + i$ and
    sees the keys up to its own. That is aligned at the *end*, as flash-attn's `causal=True`, and not top-left as
    the course's `is_causal`: for $t = 1$ it is no mask at all, and several queries are drafted tokens that are
    checked at once as if they had been written one by one [check:test_drafted_tokens_are_steps_taken_at_once].

    It is the plain formula with every option, alone and together [check:test_agrees_with_the_plain_formula], for any
    number of parts [check:test_any_number_of_parts_is_one]; without options, it is PyTorch's attention over the
    text so far [check:test_a_step_is_sdpa_over_the_text_so_far]. The scale comes first, then the soft cap, then
    ALiBi's bias.

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, of any strides
    [check:test_strides_may_be_any]; `lengths` is `b`, $s$ unless given. What lies behind a text may be anything
    [check:test_what_lies_behind_a_text_moves_nothing]. The results are `b h t e` and `b h t`. A query that stands
    before its text's first key, as in a text shorter than $t$, gets 0 and $-\infty$, or $z_h$ if there is a sink.

    **Raises.** `ValueError` if something does not fit [check:test_wrong_input_is_refused] or wants a gradient
    [check:test_a_gradient_is_refused]: who decodes does not train, and a graph that silently lacks an edge is worse
    than none. Lengths are looked at where that is free, on a CPU. On a GPU it would make Python wait for the device
    in every step; there the kernel takes a length above $s$ for $s$.
    """
    check_inputs(query, key, value, None, False, enable_gqa=True)
    if lengths is None:
        lengths = query.new_full((len(key),), key.shape[2], dtype=torch.int32)
    options = scale, window, alibi_slopes, sink_logits, soft_cap, n_splits
    check_decoding(query, key, value, key.shape[2], lengths, *options)
    return decode(query, key, value, None, lengths, *options)


def paged_attention_triton(
    query: Float[Tensor, "b h t d"],
    key_pages: Float[Tensor, "p g n d"],
    value_pages: Float[Tensor, "p g n e"],
    block_table: Integer[Tensor, "b x"],
    lengths: Integer[Tensor, "b"],
    *,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Float[Tensor, "h"] | None = None,
    sink_logits: Float[Tensor, "h"] | None = None,
    soft_cap: float | None = None,
    n_splits: int | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## With a cache in pages

    Pages are `p g n d`: each is a small cache of $n$ slots in the course's layout, so a head's keys of one page lie
    together, and `PagedKVCache` is full of them. The table is `b x`: key $j$ of text $b$ is in page
    `block_table[b, j // n]`, slot `j % n`.

    Pages may come in any order, and what no text has reached is never read, neither slots nor entries of the table:
    the result is that of the contiguous cache, to the last bit [check:test_pages_are_the_text]. Texts may name the
    same page [check:test_texts_may_share_pages].

    **Raises.** As above, and if the table names a page that does not exist, which again only a CPU finds out.
    """
    # A page is a small cache, of no text in particular.
    check_inputs(query[:0], key_pages[:0], value_pages[:0], None, False, enable_gqa=True)
    p, n, b = len(key_pages), key_pages.shape[2], len(query)
    if len(value_pages) != p or n < 1:
        came = f"key_pages is {tuple(key_pages.shape)}"
        came = f"{came}, value_pages {tuple(value_pages.shape)}"
        raise ValueError(f"{came}: as many pages, of at least one token, are wanted")
    if block_table.shape[:-1] != (b,) or block_table.is_floating_point():
        came = f"block_table is {block_table.dtype} of shape {tuple(block_table.shape)}"
        raise ValueError(f"{came}: integers, ({b}, x), are wanted")

    options = scale, window, alibi_slopes, sink_logits, soft_cap, n_splits
    s = n * block_table.shape[1]
    check_decoding(query, key_pages, value_pages, s, lengths, *options)

    # Of the table, what no text has reached may be anything.
    if block_table.device.type == "cpu":
        stretches = torch.arange(block_table.shape[1])
        pages = block_table[stretches * n < lengths[:, None]].tolist()
        if pages and not 0 <= min(pages) <= max(pages) < p:
            came = f"block_table has pages {min(pages)} to {max(pages)}"
            raise ValueError(f"{came}: of {p} pages, 0 to {p - 1} are wanted")
    return decode(query, key_pages, value_pages, block_table, lengths, *options)


def decode(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "p g n d"],
    value: Float[Tensor, "p g n e"],
    table: Integer[Tensor, "b x"] | None,
    lengths: Integer[Tensor, "b"],
    scale: float | None,
    window: int | None,
    alibi_slopes: Float[Tensor, "h"] | None,
    sink_logits: Float[Tensor, "h"] | None,
    soft_cap: float | None,
    n_splits: int | None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Both

    The parts, and their merge. Nothing here asks the device for a number, so that Python runs ahead of it and a
    step can be recorded in a CUDA graph. That is why the number of parts goes by the size of the cache or of the
    table, not by the lengths: a short text in a large cache is cut into shorter parts, and some may be empty.
    """
    (b, h, t, d), g, n = query.shape, *key.shape[1:3]
    s = n if table is None else n * table.shape[1]
    scale = float(d**-0.5) if scale is None else scale

    fits = query.numel() > 0 and max(d, value.shape[3]) <= 256
    if not (fits and has_kernels(query)):
        if table is not None:
            key = gather_pages(key, table, lengths)
            value = gather_pages(value, table, lengths)
        options = window, alibi_slopes, sink_logits, soft_cap
        return decode_plainly(query, key, value, lengths, scale, *options)

    from annotated_attention import flash_triton_decoding_kernels as kernels

    r, e = h // g, value.shape[3]
    u, a = kernels.tile_sizes(r * t, max(d, e), query.dtype)
    if n_splits is None:
        longest = s if window is None else min(s, window + t - 1)
        programs = b * g * -(-r * t // u)
        n_splits = number_of_parts(programs, longest, a, processors(query))
    with torch.cuda.device_of(query):
        outputs, lses = kernels.attend_to_parts(
            query, key, value, table, lengths, alibi_slopes, n_splits, window, scale, soft_cap
        )
        return kernels.merge_parts(outputs, lses, sink_logits, query.dtype)


def number_of_parts(programs: int, longest: int, a: int, n_processors: int) -> int:
    r"""### How many parts

    As many as give every multiprocessor two programs, one to load while the other computes, but no part of less
    than four tiles, or the merge and the start of a program cost more than a part. Rounded so that no part of the
    longest text is empty [check:test_parts_fill_the_device_and_are_not_too_short].
    """
    tiles = -(-longest // a)
    n = min(2 * n_processors // programs, tiles // 4)
    part = -(-tiles // max(n, 1))
    return max(-(-tiles // max(part, 1)), 1)


def processors(query: Tensor) -> int:
    """Of a GPU, its multiprocessors. On a CPU the interpreter runs programs one after another: 8, to have parts."""
    if not query.is_cuda:
        return 8
    return torch.cuda.get_device_properties(query.device).multi_processor_count


def decode_plainly(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    lengths: Integer[Tensor, "b"],
    scale: float,
    window: int | None,
    alibi_slopes: Float[Tensor, "h"] | None,
    sink_logits: Float[Tensor, "h"] | None,
    soft_cap: float | None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Where there is no kernel

    Without a GPU or Triton, in float64, and for heads wider than 256, the formula is computed by PyTorch, with the
    same results [check:test_falls_back_without_a_kernel] [check:test_wide_heads_fall_back]. All $t\,s$ scores of a
    head at once are no more than a few rows as long as the cache. A cache in pages is gathered first.
    """
    (h, t), (g, s) = query.shape[1:3], key.shape[1:3]
    r = h // g
    wide = torch.promote_types(query.dtype, torch.float32)
    j = torch.arange(s, device=query.device)
    i = lengths[:, None] + torch.arange(-t, 0, device=query.device)
    distance = rearrange(i, "b t -> b 1 t 1") - j
    seen = (distance >= 0) & (distance < (s + t if window is None else window))

    q = rearrange(query.to(wide), "b (g r) t d -> b g (r t) d", r=r)
    scores = torch.einsum("b g n d, b g s d -> b g n s", q, key.to(wide)) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = rearrange(scores, "b g (r t) s -> b (g r) t s", r=r, t=t)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.to(wide)[:, None, None] * distance
    scores = scores.masked_fill(~seen, -torch.inf)

    # What lies behind a text may be NaN, and $0 \cdot \text{NaN}$ is NaN.
    held = rearrange(j < lengths[:, None], "b s -> b 1 s 1")
    value = value.to(wide).masked_fill(~held, 0.0)
    scores = rearrange(scores, "b (g r) t s -> b g (r t) s", r=r)
    output, lse = finish(summary(scores, value))
    output = rearrange(output, "b g (r t) e -> b (g r) t e", r=r, t=t)
    lse = rearrange(lse, "b g (r t) -> b (g r) t", r=r, t=t)
    if sink_logits is not None:
        z = sink_logits.to(wide)[:, None].expand_as(lse)
        output, lse = merge_attention(output, lse, torch.zeros_like(output), z)
    return output.to(query.dtype), lse


def check_decoding(query, key, value, s, lengths, *options) -> None:
    """### What is refused"""
    _, window, alibi_slopes, sink_logits, soft_cap, n_splits = options
    check_options(query, key, window, alibi_slopes, sink_logits, soft_cap)
    b = len(query)
    if lengths.shape != (b,) or lengths.is_floating_point():
        came = f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)}"
        raise ValueError(f"{came}: integers, ({b},), are wanted")
    held = lengths.tolist() if lengths.device.type == "cpu" else []
    if not all(0 <= n <= s for n in held):
        raise ValueError(f"lengths is {held}: 0 to {s} are wanted")
    if n_splits is not None and n_splits < 1:
        raise ValueError(f"n_splits is {n_splits}: at least 1 is wanted")

    inputs = {"query": query, "key": key, "value": value}
    inputs |= {"alibi_slopes": alibi_slopes, "sink_logits": sink_logits}
    for name, x in inputs.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} wants a gradient: torch.no_grad() is wanted")


def decoding_cost(
    b: int, g: int, r: int, t: int, s: int, d: int, e: int, n: int, *, dtype: torch.dtype = torch.bfloat16
) -> tuple[int, int, int]:
    r"""## What it costs, and when it fails

    Returns the operations of one call, the bytes of cache that it reads, and the bytes of partial results that it
    writes and reads again:

    $$2\,b\,g\,r\,t\,s\,(d + e), \qquad b\,g\,s\,(d + e)\,u, \qquad 2 \cdot 4\,n\,b\,g\,r\,t\,(e + 1).$$

    With 32,768 keys, 32 parts add 0.8% to the bytes. With 2,048 keys there are 8 parts of 256 keys, and they add
    3.1% [check:test_what_splitting_wins_and_costs|0.8 and 3.1%]: the shorter the part, the dearer.

    - *A batch may fill the device by itself.* From $b\,g = 133$ on, on an H100, there is one part, and the merge
      only rounds.
    - *Many rows* are more arithmetic. At 295 operations a byte, $r\,t$ may be 295 in bf16 before it limits. A tile
      has 64 rows at most; with more, the keys are read once for each tile, mostly from the cache of the chip.
    - *Bits depend on* $n$, and $n$ on the batch and the device: see the page on many readers.
    - *Prompts* belong to the kernels for training, which cut them into tiles of queries.

    **In production.** **flash-attn** does all of this but sinks, with the new keys' writing and their rotation in the same
    kernel: `flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=..., block_table=..., num_splits=0)`,
    where 0 lets it choose and pages are of a multiple of 256 tokens. **vLLM** has Triton kernels of this kind in
    `triton_decode_attention` (two stages, `num_kv_splits`, pages of any size). **SGLang** runs FlashInfer, FA3 and a
    Triton backend on a pool of tokens. **FlexAttention** splits too when there are few queries.
    """
    return (
        2 * b * g * r * t * s * (d + e),
        b * g * s * (d + e) * dtype.itemsize,
        2 * n * b * g * r * t * (e + 1) * torch.float32.itemsize,
    )


def example(axes: dict[str, int]) -> None:
    """One cache, in one piece and in pages: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e, p, n, x = (axes[letter] for letter in "bgrtsdepnx")
    query = torch.randn(b, g * r, t, d)
    flash_decoding_triton(query, torch.randn(b, g, s, d), torch.randn(b, g, s, e))
    pages = torch.randn(p, g, n, d), torch.randn(p, g, n, e)
    table = torch.zeros(b, x, dtype=torch.int32)
    paged_attention_triton(query, *pages, table, torch.full((b,), n))
