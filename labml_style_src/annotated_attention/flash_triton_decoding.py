r"""# Many readers on a GPU

An H100 has 132 multiprocessors, and a model like Llama-3-8B has 8 key heads. If each head is one program's
job, writing one text keeps 8 of 132 busy [check:test_what_splitting_wins_and_costs|8 of 132]. So a text's
keys are dealt out as well: of 32,768 keys, 1,024 to a program, and 256 programs are at work
[check:test_what_splitting_wins_and_costs|256].

![Two programs fit on a multiprocessor. Above, one has all keys of a head; below, a part of
them.](figure:multiprocessors)

It pays because decoding waits for bytes. A key and its value are $d + e$ numbers of $u$ bytes, read once and
met by the queries of $r$ heads at $t$ positions, each with $2(d + e)$ operations. So there are

$$\frac{2\,(d + e)\, r\, t}{(d + e)\, u} = \frac{2\,r\,t}{u}$$

operations to a byte of cache, whatever the length, the batch and the width. Here $r = 4$, $t = 1$ and
$u = 2$: 4 operations [check:test_what_splitting_wins_and_costs|4], where an H100 does 295 while it reads a
byte (lesson 7). Two things follow. A key is not read anew for each query head, which would be 4 times the
bytes: a group of heads is one program's. And where a tensor core wants 16 rows at least, 4 are filled up with
padding: at 16 operations to a byte [check:test_what_splitting_wins_and_costs|16] there is time to spare.

This page is what one calls, on a cache in one piece or [in pages](../flash_paged/index.md), with all that
models do to scores. [The kernels](../flash_triton_decoding_kernels/index.md) have the next.

## What came before

The idea, its formula and its history are on the page of [many readers](../flash_decoding/index.md), in
PyTorch, where readers come one after another. Flash-Decoding (2023) has the same two kernels: parts, merge.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | the newest tokens: one, or some that were drafted |
| $\mathbf{k}_j$ | `key` | `b g s d` | a cache; in pages, `key_pages`, `p g y d` |
| $\mathbf{v}_j$ | `value` | `b g s e` | a cache; in pages, `value_pages`, `p g y e` |
| $s_b$ | `lengths` | `b` | how many tokens text $b$ has |
| $i$ | `i` | `b t` | where queries stand: from $s_b - t$ to $s_b - 1$ |
| $j$ | `j` | `s` | where keys stand |
| $r$ | `r` | scalar | query heads to a key head, $h/g$ |
| $n$ | `n_splits` | scalar | parts of each text, `n` where they are chosen |
| $y$ | `y` | scalar | tokens in a page: $n$ on the page of pages |
| $a$ | `a` | scalar | keys in a tile |
| $w$ | `window` | scalar | query $i$ sees keys with $0 \le i - j < w$ |
| $c$ | `soft_cap` | scalar | scores become $c \tanh(S/c)$ |
| $z_h$ | `sink_logits` | `h` | the score of nothing (lesson 10), not scaled |
| $m_h$ | `alibi_slopes` | `h` | the price of a step (lesson 6) |
| $L_i$ | `lse` | `b h t` | logarithm of the sum, that of nothing included |

**Source.** As for the page of many readers; for pages Kwon et al. (2023), arXiv:2309.06180. An H100 (SXM) has
132 multiprocessors, 989 TFLOP/s in bf16 and 3.35 TB/s.
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
    r"""## A cache in one piece

    The queries are the newest tokens of their text. In a text of $s_b$ tokens they stand at its end and see
    the keys up to their own: causal and aligned bottom-right, as flash-attn has it, not top-left as
    `is_causal`. One query sees all. Several are tokens that were drafted, and are answered as if they had
    been written one by one [check:test_drafted_tokens_are_steps_taken_at_once].

    It is the plain formula, with each option and all of them [check:test_agrees_with_the_plain_formula] and
    any number of parts [check:test_any_number_of_parts_is_one]; without options, it is PyTorch's attention to
    the text so far [check:test_a_step_is_sdpa_over_the_text_so_far]. First comes the scale, then the soft
    cap, then the bias.

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, with any strides
    [check:test_strides_may_be_any] and anything behind the texts
    [check:test_what_lies_behind_a_text_moves_nothing]; `lengths` is `b`, and $s$ unless given. The results
    are `b h t e` and `b h t`. A query without a key, as in a text shorter than $t$, gets 0 and $-\infty$, or
    $z_h$ where there is a sink.

    **Raises.** `ValueError` if something does not fit [check:test_wrong_input_is_refused] or wants a gradient
    [check:test_a_gradient_is_refused]. There is none here, and to leave it out silently would be worse.
    Lengths are looked at on a CPU only (a GPU would make Python wait). On a GPU, more than $s$ counts as $s$.
    """
    check_inputs(query, key, value, None, False, enable_gqa=True)
    if lengths is None:
        lengths = query.new_full((len(key),), key.shape[2], dtype=torch.int32)
    options = scale, window, alibi_slopes, sink_logits, soft_cap, n_splits
    check_decoding(query, key, value, key.shape[2], lengths, None, *options)
    return decode(query, key, value, None, lengths, *options)


def paged_attention_triton(
    query: Float[Tensor, "b h t d"],
    key_pages: Float[Tensor, "p g y d"],
    value_pages: Float[Tensor, "p g y e"],
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
    r"""## A cache in pages

    Key $j$ of text $b$ is in page `block_table[b, j // y]`, slot `j % y`. A page is `g y d`, a small cache in
    the layout of all caches, so what a program reads of it, one head's keys, lies together.

    The order of pages does not matter, and what no text has reached is not looked at, in pages or in the
    table: it is the answer of the cache in one piece, to the last bit [check:test_pages_are_the_text]. Texts
    may share pages [check:test_texts_may_share_pages].

    **Raises.** As above, and if a page is named that does not exist, which is looked at on a CPU only, too.
    """
    # A page is a small cache, of no text in particular.
    check_inputs(query[:0], key_pages[:0], value_pages[:0], None, False, enable_gqa=True)
    p, y, b = len(key_pages), key_pages.shape[2], len(query)
    if len(value_pages) != p or y < 1:
        came = f"key_pages is {tuple(key_pages.shape)}"
        came = f"{came}, value_pages {tuple(value_pages.shape)}"
        raise ValueError(f"{came}: as many pages, of at least one token, are wanted")
    if block_table.shape[:-1] != (b,) or block_table.is_floating_point():
        came = f"block_table is {block_table.dtype} of shape {tuple(block_table.shape)}"
        raise ValueError(f"{came}: integers, ({b}, x), are wanted")

    options = scale, window, alibi_slopes, sink_logits, soft_cap, n_splits
    s = y * block_table.shape[1]
    given = query, key_pages, value_pages, s, lengths, block_table
    check_decoding(*given, *options)

    # Of the table, what no text has reached may be anything.
    if block_table.device.type == "cpu":
        stretches = torch.arange(block_table.shape[1])
        pages = block_table[stretches * y < lengths[:, None]].tolist()
        if pages and not 0 <= min(pages) <= max(pages) < p:
            came = f"block_table has pages {min(pages)} to {max(pages)}"
            raise ValueError(f"{came}: of {p} pages, 0 to {p - 1} are wanted")
    return decode(query, key_pages, value_pages, block_table, lengths, *options)


def decode(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "p g y d"],
    value: Float[Tensor, "p g y e"],
    table: Integer[Tensor, "b x"] | None,
    lengths: Integer[Tensor, "b"],
    scale: float | None,
    window: int | None,
    alibi_slopes: Float[Tensor, "h"] | None,
    sink_logits: Float[Tensor, "h"] | None,
    soft_cap: float | None,
    n_splits: int | None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Parts, and their merge

    Nothing here asks the device for a number. Python runs ahead of it, and a step can be recorded in a CUDA
    graph. So how many parts there are is decided by the room in the cache, not by the lengths, which only the
    device knows. Each text deals out what it has; if that is little, some parts are empty.
    """
    (b, h, t, d), g, y = query.shape, *key.shape[1:3]
    s = y if table is None else y * table.shape[1]
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
    r"""### How many

    Two programs to a multiprocessor, so that one loads while the other computes; no part below four tiles,
    for a program and its share of the merge have a price; and, rounded down, none without work
    [check:test_parts_fill_the_device_and_are_not_too_short]. From 133 programs on, an H100 has one part to a
    text.
    """
    tiles = -(-longest // a)
    n = min(2 * n_processors // programs, tiles // 4)
    part = -(-tiles // max(n, 1))
    return max(-(-tiles // max(part, 1)), 1)


def processors(query: Tensor) -> int:
    """A GPU's multiprocessors. On a CPU programs run one after another: 8, so that there are parts."""
    if not query.is_cuda:
        return 8
    device = torch.cuda.get_device_properties(query.device)
    return device.multi_processor_count


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

    Without a GPU or without Triton, in float64, and for heads wider than 256, PyTorch computes the formula,
    and a cache in pages is first gathered into one piece. The results are the same
    [check:test_falls_back_without_a_kernel] [check:test_wide_heads_fall_back], and memory is as linear: a few
    rows of scores are no longer than the cache.
    """
    (h, t), (g, s) = query.shape[1:3], key.shape[1:3]
    r = h // g
    wide = torch.promote_types(query.dtype, torch.float32)
    j = torch.arange(s, device=query.device)
    i = lengths[:, None] + torch.arange(-t, 0, device=query.device)
    distance = rearrange(i, "b t -> b 1 t 1") - j
    w = s + t if window is None else window
    seen = (distance >= 0) & (distance < w)

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


def check_decoding(query, key, value, s, lengths, table, *options) -> None:
    """## What is refused"""
    _, window, alibi_slopes, sink_logits, soft_cap, n_splits = options
    check_options(query, key, window, alibi_slopes, sink_logits, soft_cap)
    b = len(query)
    if lengths.shape != (b,) or lengths.is_floating_point():
        came = f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)}"
        raise ValueError(f"{came}: integers, ({b},), are wanted")
    given = query, value, lengths, table
    on = {str(x.device) for x in given if x is not None}
    if len(on) > 1:
        raise ValueError(f"tensors are on {sorted(on)}: one device is wanted")
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
    b: int,
    g: int,
    r: int,
    t: int,
    s: int,
    d: int,
    e: int,
    n: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[int, int, int]:
    r"""## What it costs, and when it fails

    Returns the operations of one call, the bytes of cache that it reads, and the bytes of partial results
    that it writes and reads again:

    $$2\,b\,g\,r\,t\,s\,(d + e), \qquad b\,g\,s\,(d + e)\,u, \qquad 2 \cdot 4\,n\,b\,g\,r\,t\,(e + 1).$$

    With 32,768 keys, 32 parts add 0.8% to the bytes. With 2,048 keys there are 8 parts of 256 keys, and they
    add 3.1% [check:test_what_splitting_wins_and_costs|0.8 and 3.1%]: the shorter the part, the dearer.

    - *A large batch fills the device by itself.* Then there is one part, and a merge that only rounds.
    - *Many rows make it arithmetic.* In bf16 and at 295 operations to a byte that is from $r\,t = 295$ on. A
      tile has at most 64 rows; where a group has more, its keys are read for each tile.
    - *Bits depend on* $n$, and so on the device and on what else is in the batch: see many readers.
    - *Prompts* are for the kernel that cuts queries into tiles too.

    **In production.** **flash-attn**'s
    `flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=..., block_table=..., num_splits=0)`
    does this, chooses the parts itself at 0, and in the same kernel writes the new keys and rotates them; in
    version 2, pages are of a multiple of 256 tokens. **vLLM** has two such kernels in
    `triton_decode_attention`, with `num_kv_splits` and a table of tokens or pages. **SGLang** can run
    FlashInfer, FlashAttention 3 or Triton. **FlexAttention** splits where queries are few.
    """
    rows, cache = b * g * r * t, b * g * s * (d + e) * dtype.itemsize
    return 2 * rows * s * (d + e), cache, 2 * 4 * n * rows * (e + 1)


def example(axes: dict[str, int]) -> None:
    """One cache, in one piece and in pages: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e, p, y, x = (axes[letter] for letter in "bgrtsdepyx")
    query = torch.randn(b, g * r, t, d)
    flash_decoding_triton(query, torch.randn(b, g, s, d), torch.randn(b, g, s, e))
    pages = torch.randn(p, g, y, d), torch.randn(p, g, y, e)
    table = torch.zeros(b, x, dtype=torch.int32)
    paged_attention_triton(query, *pages, table, torch.full((b,), y))
