r"""# Kernels for decoding

One query a head, a cache of many keys, and a device that wants hundreds of programs at once. The page on
[many readers](../flash_decoding/index.md) has the mathematics: deal the keys out to $n$ readers, merge what
they bring. Here the readers are programs. Two kernels do it. In the first, each program attends to one part
of one text's keys, for all $r$ query heads that share a key head, and writes $(\mathbf{o}_n, L_n)$ in
float32. In the second, each program merges the $n$ answers of one query.

![Three texts in four parts each, for one head. A box is a program of the first kernel, each lowest circle one
of the second. Area: $e^L$. Shade: the answer. Dashed: a part without keys.](figure:two_kernels)

Why one program takes a whole group: the keys are what must be read, and so they are read once for all the
queries that want them. With $r$ heads and $t$ queries that is $r\,t$ rows, and a tensor core multiplies 16
rows at a time anyway. A step with fewer rows pads them, which costs arithmetic that decoding has to spare
([the page before](../flash_triton_decoding/index.md) counts it), and not a byte.

## One kernel, two kinds of memory

A contiguous cache and a paged one differ in a single point, where key $j$ of text $b$ lies. That question is
a function of its own, `place_of_keys`, and the rest of the kernel does not know what was answered. A
contiguous cache is the paged one whose only page is the text: both give the same, to the last bit
[check:test_a_contiguous_cache_is_one_page].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `q` | `u d` | rows: the $t$ queries of $r$ heads, then padding |
| $\mathbf{k}_j$ | `k` | `d a` | a tile of keys, loaded lying on its side |
| $\mathbf{v}_j$ | `v` | `a e` | and of values |
| $i$ | `i` | `u` | where a row's query stands: the last at $s_b - 1$ |
| $j$ | `j` | `a` | where the keys stand |
| $s_b$ | `n_keys` | scalar | length of text $b$ |
| $g$ | `g` | scalar | key heads |
| $r$ | `r` | scalar | query heads to a key head |
| $n$ | `n`, `n_splits` | scalar | parts of each text's keys |
| $y$ | `y`, `PAGE` | scalar | tokens in a page; 0 where the cache is in one piece |
| $m$, $m'$, $\ell$, $\mathbf{o}$ | `m`, `larger`, `l`, `o` | a row | as on the first page of the lesson |
| $\mathbf{o}_n$, $L_n$ | `outputs`, `lses` | `n b h t e`, `n b h t` | what the parts bring |
| $z_h$ | `z` | scalar | the head's sink logit, if there is one |
| $u$, $a$ | `U`, `A` | scalar | rows and keys of a tile; `D`, `E` its widths, powers of two |

**Source.** As for the page on many readers. The tile of grouped queries is how flash-attn and vLLM's Triton
kernels read a key head once.
"""

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    wanted = 'pip install "annotated-attention[triton]"'
    came = "the kernels are written in Triton, which is not installed"
    raise ImportError(f"{came}: {wanted} (Linux only)") from error

from annotated_attention.flash_triton_kernels import INTERPRETED, interval, score

__all__ = ["attend_to_parts", "attention_kernel", "merge_kernel"]
__all__ += ["merge_parts", "place_of_keys", "tile_sizes"]

LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def place_of_keys(table, b, j, held, n_columns, PAGE: tl.constexpr):
    r"""## Where does key $j$ of text $b$ lie?

    In place `b` of the cache, slot `j`; or in the page that the table names, at what is left of $j$. A page
    number is only looked up for keys that are held, so the rest of a table may hold anything
    [check:test_what_is_not_held_is_never_read]. The answers are wide integers, because a cache is larger than
    $2^{31}$ numbers before it is large.
    """
    if table is None:
        place, slot = b + 0 * j, j
    else:
        entry = table + b * n_columns + j // PAGE
        place, slot = tl.load(entry, mask=held, other=0), j % PAGE
    return place.to(tl.int64), slot.to(tl.int64)


@triton.jit
def attention_kernel(
    query, key, value, table, lengths, slopes, outputs, lses,
    key_b, key_g, key_s, key_d, value_b, value_g, value_s, value_e,
    g, r, t, s, n_columns, before, scale, cap,
    d: tl.constexpr, e: tl.constexpr, PAGE: tl.constexpr,
    U: tl.constexpr, A: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    r"""## Attention to a part

    The first axis of programs is that of texts, key heads and, should a group have more rows than a tile,
    tiles of rows; the second is that of parts.
    """
    n_rows = r * t
    n_tiles = tl.cdiv(n_rows, U)
    group = tl.program_id(0) // n_tiles
    b, head = group // g, group % g
    row = tl.program_id(0) % n_tiles * U + tl.arange(0, U)
    inside = row < n_rows

    # Queries stand at the end of their text, so a shorter text has its queries earlier. A length is never
    # trusted to be within the memory: a kernel that reads past its end brings down its neighbours too.
    n_keys = tl.minimum(tl.load(lengths + b), s)
    i = n_keys - t + row % t

    # Heads of a group are neighbours, so the rows of `b h t d` that a program wants are too.
    columns, places = tl.arange(0, D), tl.arange(0, E)
    rows = group.to(tl.int64) * n_rows + row
    q_held = inside[:, None] & (columns < d)[None, :]
    q_at = query + rows[:, None] * d + columns[None, :]
    q = tl.load(q_at, mask=q_held, other=0.0).to(DOT)
    slope = None
    if slopes is not None:
        slope = slopes + head * r + row // t
        slope = tl.load(slope, mask=inside, other=0.0)[:, None]

    # Which keys do any of these queries see? From the first that the first query sees to the end of the text.
    # *These* are dealt out, in whole tiles, as in the figure
    # [check:test_the_figure_deals_out_as_the_kernel_does]. Had the cache been dealt out instead, a window
    # would leave most readers without work [check:test_a_window_is_dealt_out_not_the_cache].
    low, high = interval(i, n_keys, before, 0, None, None)
    oldest = tl.maximum(n_keys - t - before, 0)
    part, n = tl.program_id(1), tl.num_programs(1)
    share = tl.cdiv(tl.cdiv(n_keys - oldest, A), n) * A
    start = oldest + part * share
    stop = tl.minimum(start + share, n_keys)

    m = tl.full([U], LOWEST, tl.float32)
    l = tl.zeros([U], tl.float32)
    o = tl.zeros([U, E], tl.float32)
    key += head.to(tl.int64) * key_g
    value += head.to(tl.int64) * value_g
    for tile in range(start, stop, A):
        j = tile + tl.arange(0, A)
        held = j < stop
        place, slot = place_of_keys(table, b, j, held, n_columns, PAGE)
        at = (place * key_b + slot * key_s)[None, :]
        k_held = held[None, :] & (columns < d)[:, None]
        k_at = key + at + columns[:, None] * key_d
        k = tl.load(k_at, mask=k_held, other=0.0).to(DOT)
        at = (place * value_b + slot * value_s)[:, None]
        v_held = held[:, None] & (places < e)[None, :]
        v_at = value + at + places[None, :] * value_e
        v = tl.load(v_at, mask=v_held, other=0.0).to(DOT)

        # Scale, soft cap and bias are those of the kernel for training: one function for both.
        products = tl.dot(q, k, input_precision="ieee") * scale
        scores = score(products, i[:, None], j[None, :], slope, cap)
        seen = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None])
        seen = seen & held[None, :]
        scores = tl.where(seen, scores, float("-inf"))

        # The three lines of the lesson.
        larger = tl.maximum(m, tl.max(scores, 1))
        shrink = tl.exp(m - larger)
        weights = tl.exp(scores - larger[:, None])
        l = shrink * l + tl.sum(weights, 1)
        o = shrink[:, None] * o
        o = tl.dot(weights.to(DOT), v, o, input_precision="ieee")
        m = larger

    # The largest score has added $e^0$, so a sum below 1 is that of a row without a key: it brings 0 and
    # $-\infty$.
    total = tl.maximum(l, 1.0)
    logs = tl.where(l == 0.0, float("-inf"), m + tl.log(total))
    n_groups = tl.num_programs(0) // n_tiles
    rows += part.to(tl.int64) * n_groups * n_rows
    o_held = inside[:, None] & (places < e)[None, :]
    o_at = outputs + rows[:, None] * e + places[None, :]
    tl.store(o_at, o / total[:, None], mask=o_held)
    tl.store(lses + rows, logs, mask=inside)


@triton.jit
def merge_kernel(
    outputs, lses, sink_logits, output, lse, n, h, t,
    e: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    r"""## The merge

    One program a query. The merge is once more attention, with the $L_n$ for scores and the $\mathbf{o}_n$
    for values, so its lines are those above, over tiles of $N$ parts. It computes what `merge_attention`
    computes, one part after another [check:test_the_kernel_merges_as_the_lesson_does].
    """
    row = tl.program_id(0).to(tl.int64)
    n_rows = tl.num_programs(0)
    m = tl.full([], LOWEST, tl.float32)
    l = tl.full([], 0.0, tl.float32)
    o = tl.zeros([E], tl.float32)

    # A sink logit is a reader who counts for $e^{z_h}$ and brings nothing. The parts know nothing of it:
    # there it would be counted $n$ times.
    if sink_logits is not None:
        z = tl.load(sink_logits + row // t % h).to(tl.float32)
        m = tl.maximum(m, z)
        l = tl.exp(z - m)

    places = tl.arange(0, E)
    for first in range(0, n, N):
        part = first + tl.arange(0, N)
        rows = part.to(tl.int64) * n_rows + row
        lse_n = tl.load(lses + rows, mask=part < n, other=float("-inf"))
        o_held = (part < n)[:, None] & (places < e)[None, :]
        o_at = outputs + rows[:, None] * e + places[None, :]
        o_n = tl.load(o_at, mask=o_held, other=0.0)

        larger = tl.maximum(m, tl.max(lse_n, 0))
        shrink = tl.exp(m - larger)
        weights = tl.exp(lse_n - larger)
        l = shrink * l + tl.sum(weights, 0)
        o = shrink * o + tl.sum(weights[:, None] * o_n, 0)
        m = larger

    total = tl.maximum(l, 1.0)
    o = (o / total).to(output.dtype.element_ty)
    tl.store(output + row * e + places, o, mask=places < e)
    logs = tl.where(l == 0.0, float("-inf"), m + tl.log(total))
    tl.store(lse + row, logs)


def tile_sizes(n_rows: int, width: int, dtype: torch.dtype) -> tuple[int, int]:
    r"""## Rows and keys of a tile

    Some 16 KiB of keys, and as much of values: a few such tiles on their way at a time keep the memory busy,
    and two programs still fit on a multiprocessor [check:test_kernels_compile_for_two_generations]. In
    float32, where products run without tensor cores, tiles are small so that they stay in registers.
    """
    if dtype == torch.float32:
        return 16, 16
    u = min(64, max(16, power_of_two(n_rows)))
    return u, min(128, max(32, 8192 // power_of_two(width)))


def power_of_two(n: int) -> int:
    """The next one. Triton's tiles have no other sizes, so wider ones are masked."""
    return 1 << (n - 1).bit_length()


def attend_to_parts(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "p g y d"],
    value: Float[Tensor, "p g y e"],
    table: Integer[Tensor, "b x"] | None,
    lengths: Integer[Tensor, "b"],
    slopes: Float[Tensor, "h"] | None,
    n_splits: int,
    window: int | None,
    scale: float,
    soft_cap: float | None,
) -> tuple[Float[Tensor, "n b h t e"], Float[Tensor, "n b h t"]]:
    r"""## The launch

    Without a table, `key` and `value` are `b g s d` and `b g s e`. They may have any strides: a copy would
    cost as much as attention itself.

    Loads of later tiles are begun while a tile is computed, three tiles deep. With pages, the table has to be
    read before it is known what to load, which takes two stages more to reach the same depth.
    """
    (b, h, t, d), (g, s), e = query.shape, key.shape[1:3], value.shape[3]
    r, y = h // g, 0 if table is None else s
    n_columns = 0 if table is None else table.shape[1]
    capacity = s if table is None else n_columns * y
    u, a = tile_sizes(r * t, max(d, e), query.dtype)
    exact = INTERPRETED or query.dtype == torch.float32
    half = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    lengths = lengths.to(torch.int32).contiguous()
    table = None if table is None else table.to(torch.int32).contiguous()
    slopes = None if slopes is None else slopes.float().contiguous()
    outputs = query.new_empty(n_splits, b, h, t, e, dtype=torch.float32)
    lses = query.new_empty(n_splits, b, h, t, dtype=torch.float32)
    strides = [*key.stride(), *value.stride()]
    names = [f"key_{axis}" for axis in "bgsd"]
    names += [f"value_{axis}" for axis in "bgse"]
    strides = dict(zip(names, strides, strict=True))
    sizes: dict[str, Any] = {"d": d, "e": e, "PAGE": y, "U": u, "A": a}
    sizes |= {"D": max(16, power_of_two(d)), "E": max(16, power_of_two(e))}
    sizes["DOT"] = tl.float32 if exact else half[query.dtype]
    stages = 3 if table is None else 5
    launch: dict[str, Any] = {"num_warps": 4, "num_stages": stages}
    grid = b * g * -(-r * t // u), n_splits
    attention_kernel[grid](
        query.contiguous(), key, value, table, lengths, slopes, outputs, lses,
        **strides, g=g, r=r, t=t, s=capacity, n_columns=n_columns,
        before=capacity + t if window is None else window - 1,
        scale=scale, cap=soft_cap, **sizes, **launch,
    )  # fmt: skip
    return outputs, lses


def merge_parts(
    outputs: Float[Tensor, "n b h t e"],
    lses: Float[Tensor, "n b h t"],
    sink_logits: Float[Tensor, "h"] | None,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""Sixteen parts at a time; the output is rounded here, once."""
    n, b, h, t, e = outputs.shape
    output = outputs.new_empty(b, h, t, e, dtype=dtype)
    lse = lses.new_empty(b, h, t)
    sink_logits = None if sink_logits is None else sink_logits.contiguous()
    sizes: dict[str, Any] = {"e": e, "N": 16, "E": power_of_two(e)}
    grid = (b * h * t,)
    given = outputs, lses, sink_logits
    merge_kernel[grid](*given, output, lse, n, h, t, **sizes)
    return output, lse
