r"""# The kernel

This lesson's loop goes over the queries outside and the keys inside, tile by tile. On a GPU the outer loop is
gone: each tile of queries is a program of its own, all run the same text, and what is left is the inner loop.

## A GPU in a few lines

An H100 has 132 *multiprocessors*. Each works through programs that know nothing of each other, and has

- *registers*, 256 KiB: what threads calculate with. A program's 4 or 8 *warps* of 32 threads share them, and
  no thread gets more than 255 of 32 bits;
- *shared memory*, up to 227 KiB for a program: where tiles wait that all of its warps read;
- *tensor cores*, which multiply tiles: 989 TFLOP/s in bf16, all together;
- *special function units*, which make $2^x$: 3.9 T/s. At $d = 128$ there are 512 operations of tensor cores
  to an exponential, so at these rates it takes half as long as they do (FlashAttention-3, section 3.1).

Outside is the chip's memory, 3.35 TB/s. What a program computes is up to us; Triton decides which thread does
it. A `tl.load` in a loop becomes copies to shared memory that run `num_stages` tiles ahead; `tl.dot` becomes
`wgmma` on an H100 and `mma` on an A100 [check:test_kernels_compile_for_gpus|wgmma and mma].

![Which tiles are visited. Dark: every query sees every key, no mask is needed. Light: a mask is. Blank: never
visited. Forward and for $d\mathbf{q}$ a program has a row of tiles, for $d\mathbf{k}$ and $d\mathbf{v}$ a
column.](figure:visited)

## An interval of keys

Causal, a window to one side or both, documents packed into one text, and all of them at once: whatever is
asked for, what query $i$ may see is an *interval* of keys. It reaches $\beta$ back and $\alpha$ ahead, and
ends where the keys or the document $[\delta_i, \epsilon_i)$ do:

$$\text{low}_i = \max(i - \beta,\ 0,\ \delta_i), \qquad \text{high}_i = \min(i + \alpha + 1,\ s,\ \epsilon_i).$$

| mask | none | causal | window $w$, causal | window $w$, both sides |
|---|---|---|---|---|
| $\beta$ | $t + s$ | $t + s$ | $w - 1$ | $w - 1$ |
| $\alpha$ | $t + s$ | 0 | 0 | $w - 1$ |

Two facts make a kernel of it. Both ends only grow with $i$: what any of a tile's queries sees is itself an
interval, and says which tiles of keys to *visit*. And a key is seen by an interval of queries, by the same
formula, with $\alpha$ and $\beta$ exchanged: going back needs nothing of its own
[check:test_intervals_are_the_masks]. What lies outside is never read, be it NaN
[check:test_masked_tiles_are_never_visited].

## Two loops, and powers of two

From the highest `low` to the lowest `high` lie tiles that every query sees whole. They need no mask and no
look at where the text ends, and in a long text they are nearly all. So there are two loops with one body:
first those tiles, then the others, at either edge [check:test_tiles_are_what_is_seen]. Keys may come in any
order, as the merge has shown. Triton makes two copies of the body, and one has no mask.

The hardware has $2^x$, not $e^x$. So $\lambda$ is multiplied by $\log_2 e$ beforehand, and even that product
is free: it is fused with the subtraction of the maximum, one instruction a score.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\beta$, $\alpha$ | `before`, `after` | scalar | how many keys a query sees before its position, and after it |
| $\delta_i$, $\epsilon_i$ | `starts`, `ends` | `t` | where the document of a position starts and ends |
| $\text{low}_i$, $\text{high}_i$ | `low`, `high` | a query | the keys that it sees, the last not included |
| $u$, $a$ | `U`, `A` | scalar | queries and keys in a tile |
| $m$, $\ell$, $\mathbf{o}$ | `m`, `l`, `o` | a query | as on the first page, $m$ in powers of two |
| $m_h/\lambda$, $c/\lambda$ | `slope`, `cap` | scalar | ALiBi's slope and the cap, in units of $1/\lambda$ |
| $z_h$ | `sinks` | `h` | sink logits |
| $L_i$ | `lse` | `b h t` | logarithm of the sum, to base $e$ |

**Source.** Dao (2023), arXiv:2307.08691, algorithm 1 and section 3.3; Shah et al. (2024), arXiv:2407.08608.
The two phases and $2^x$: Triton's tutorial *Fused Attention*.
"""

import os

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    wanted = 'pip install "annotated-attention[triton]"'
    came = "Triton is not installed, in which the kernels are written"
    raise ImportError(f"{came}: {wanted} (Linux only)") from error

__all__ = ["interval", "launch_forward", "score", "tile_range"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def interval(x, n, before, after, starts, ends):
    r"""## Who sees whom

    The interval of each position `x`, among `n`. For keys, `before` and `after` change places.
    """
    low = tl.maximum(x - before, 0)
    high = tl.minimum(x + after + 1, n)
    if starts is not None:
        low = tl.maximum(low, tl.load(starts + x))
        high = tl.minimum(high, tl.load(ends + x))
    return low, high


@triton.jit
def tile_range(low, high, SIZE: tl.constexpr):
    r"""Where the first tile begins that any position of a tile sees, where the first that all of them see whole;
    how many of these there are, and how many others.
    """
    start = tl.min(low, 0) // SIZE * SIZE
    whole = tl.cdiv(tl.max(low, 0), SIZE) * SIZE
    n_whole = tl.maximum(tl.min(high, 0) // SIZE - whole // SIZE, 0)
    n_all = tl.maximum(tl.cdiv(tl.max(high, 0) - start, SIZE), 0)
    return start, whole, n_whole, n_all - n_whole


@triton.jit
def tile_at(
    n, start, whole, n_whole,
    SIZE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    r"""Where tile `n` begins, of the whole ones or of those at the edges, which skip the whole ones."""
    place = (start if EDGE else whole) + n * SIZE
    if EDGE:
        place += tl.where(place >= whole, n_whole * SIZE, 0)
    return place


@triton.jit
def tanh(x):
    r"""## What a score is

    Near 0 Lambert's fraction, since $1 - e^{-2x}$ would lose digits there [check:test_tanh_is_exact].
    """
    square = x * x
    near = tl.abs(x) < 0.5
    small = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    far = tl.where(x < 0, small - 1, 1 - small)
    top = x * (945 + square * (105 + square))
    bottom = 945 + square * (420 + square * 15)
    return tl.where(near, top, far) / tl.where(near, bottom, 1 + small)


@triton.jit
def score(products, i, j, slope, cap):
    r"""The scores of a tile, up to the factor $\lambda$, so that the plain ones cost nothing:

    $$S_{ij} = \lambda \Big( \tfrac{c}{\lambda} \tanh\frac{\mathbf{q}_i^\top \mathbf{k}_j}{c/\lambda}
    - \tfrac{m_h}{\lambda}\, |i - j| \Big).$$

    Another score is another line here, and its derivative below.
    """
    if cap is not None:
        products = cap * tanh(products / cap)
    if slope is not None:
        # Positions become floats before they meet: $u + a$ conversions and not $u\,a$. Exact up to $2^{24}$.
        distance = tl.abs(i.to(tl.float32) - j.to(tl.float32))
        products -= slope * distance
    return products


@triton.jit
def score_gradient(ds, products, cap):
    r"""Back to the products: $\tanh' = 1 - \tanh^2$. (The compiler sees that it has this $\tanh$ already.)"""
    if cap is not None:
        capped = tanh(products / cap)
        ds *= 1 - capped * capped
    return ds


@triton.jit
def load_tile(
    base, first, n, stride, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DOT: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    r"""## Tiles come and go

    Rows from `first`, in the dtype `DOT` of the products. Columns are a power of two, with zeros where a head
    is narrower; so are rows behind the last, but only at an edge does anybody look. Addresses have 64 bits.
    """
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    base += tl.cast(first, tl.int64) * stride
    inside = rows < n - first if EDGE else None
    if width < COLUMNS:
        narrow = columns < width
        inside = narrow & inside if EDGE else narrow
    other = None if inside is None else 0.0
    places = base + rows * stride + columns
    tile = tl.load(places, inside, other)
    return tile.to(DOT)


@triton.jit
def store_tile(
    base, tile, first, n, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r"""Rounded once, here, to the dtype of the result."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    base += tl.cast(first, tl.int64) * width
    inside = first + rows < n
    if width < COLUMNS:
        inside &= columns < width
    tile = tile.to(base.dtype.element_ty)
    places = base + rows * width + columns
    tl.store(places, tile, inside)


@triton.jit
def forward_kernel(
    query, key, value, sinks, slopes, starts, ends, output, lse,
    query_b, query_h, query_t, key_b, key_g, key_s,
    value_b, value_g, value_s,
    h, r, t, s, before, after, scale, cap,
    d: tl.constexpr, e: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    U: tl.constexpr, A: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    r"""## One tile of queries

    The first page's loop; `query_b` and its like are strides. The last queries come first: under a causal
    mask they have the most keys, and the short programs fill the gaps at the end.
    """
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * U
    head = tl.cast(tl.program_id(1), tl.int64)
    batch = tl.cast(tl.program_id(2), tl.int64)
    bh = batch * h + head

    # Head $h$ reads the keys of its group, $\lfloor h/r \rfloor$: nothing is repeated (lesson 8).
    query += batch * query_b + head * query_h
    key += batch * key_b + head // r * key_g
    value += batch * value_b + head // r * value_g
    slope = None if slopes is None else tl.load(slopes + head) / scale

    q = load_tile(query, first, t, query_t, d, U, D, DOT, True)
    i = tl.minimum(first + tl.arange(0, U), t - 1)
    low, high = interval(i, s, before, after, starts, ends)
    start, whole, n_whole, n_edge = tile_range(low, high, A)

    # $m$ begins at the lowest of all float32.
    m = tl.full([U], -3.4028235e38, tl.float32)
    l = tl.zeros([U], tl.float32)
    o = tl.zeros([U, E], tl.float32)
    for EDGE in tl.static_range(2):
        for n in range(n_edge if EDGE else n_whole):
            left = tile_at(n, start, whole, n_whole, A, EDGE)
            k = load_tile(key, left, s, key_s, d, A, D, DOT, EDGE)
            v = load_tile(value, left, s, value_s, e, A, E, DOT, EDGE)
            j = left + tl.arange(0, A)

            # "ieee": Triton would round float32 to TF32, ten bits.
            x = tl.dot(q, tl.trans(k), input_precision="ieee")
            x = score(x, i[:, None], j[None, :], slope, cap)
            if EDGE:
                seen = (j[None, :] >= low[:, None]) & (j < high[:, None])
                x = tl.where(seen, x, float("-inf"))

            # The three lines. The weights are rounded to the dtype of the values, all sums are float32.
            larger = tl.maximum(m, tl.max(x, 1) * (scale * LOG2E))
            weights = tl.exp2(x * (scale * LOG2E) - larger[:, None])
            shrink = tl.exp2(m - larger)
            l = l * shrink + tl.sum(weights, 1)
            o = o * shrink[:, None]
            o = tl.dot(weights.to(DOT), v, o, input_precision="ieee")
            m = larger

    # A sink is one more score, and no value: it enters once, at the end of the row (lesson 10).
    if sinks is not None:
        z = tl.load(sinks + head) * LOG2E
        larger = tl.maximum(m, z)
        shrink = tl.exp2(m - larger)
        l = l * shrink + tl.exp2(z - larger)
        o = o * shrink[:, None]
        m = larger

    # Where there was no key, $0/1$ and $-\infty$.
    is_empty = l == 0
    l = tl.where(is_empty, 1, l)
    o = o / l[:, None]
    store_tile(output + bh * t * e, o, first, t, e, U, E)
    logarithm = (m + tl.log2(l)) * LN2
    logarithm = tl.where(is_empty, float("-inf"), logarithm)
    rows = first + tl.arange(0, U)
    tl.store(lse + bh * t + rows, logarithm, rows < t)


# What a tile may hold. Bytes of an element and width of a head: queries, keys, warps, stages.
TILES = {
    (2, 64): (128, 64, 4, 3),
    (2, 128): (128, 64, 8, 3),
    (2, 256): (64, 32, 4, 2),
    (4, 64): (64, 32, 8, 2),
    (4, 128): (64, 32, 8, 2),
    (4, 256): (32, 16, 8, 2),
}


def tiles_of(
    table: dict, d: int, e: int, dtype: torch.dtype
) -> tuple[dict[str, object], dict[str, int]]:  # fmt: skip
    r"""## How large a tile

    As large as registers and shared memory allow, for then keys are read less often. With 128 queries and 64
    keys of width 128 in bf16, $\mathbf{o}$ takes 64 registers of each of 256 threads, the scores 32; three
    stages of keys and values take 96 KiB, the queries 32. Nothing spills
    [check:test_kernels_compile_for_gpus|no spills]. Nothing is tried out when a program starts: the same
    tiles, the same bits, every time.
    """
    D, E = (max(16, triton.next_power_of_2(n)) for n in (d, e))
    u, a, warps, stages = table[dtype.itemsize, max(64, D, E)]
    dot = getattr(tl, str(dtype).removeprefix("torch."))

    # The interpreter is NumPy, which has no bf16, and takes its time.
    if INTERPRETED:
        u, a = 32, 16
        dot = tl.float32 if dtype == torch.bfloat16 else dot
    sizes = {"d": d, "e": e, "D": D, "E": E, "U": u, "A": a, "DOT": dot}
    return sizes, {"num_warps": warps, "num_stages": stages}


def strided(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor whose rows are dense, and its other strides: most views need no copy."""
    x = x if x.stride(3) == 1 else x.contiguous()
    return x, x.stride()[:3]


def launch_forward(
    query: Tensor, key: Tensor, value: Tensor,
    sinks: Tensor | None, slopes: Tensor | None,
    before: int, after: int, starts: Tensor | None, ends: Tensor | None,
    scale: float, cap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""## The launch

    One program for each tile of queries of each head of each text.
    """
    (b, h, t, d), (g, s), e = query.shape, key.shape[1:3], value.shape[3]
    output = query.new_empty(b, h, t, e)
    lse = query.new_empty(b, h, t, dtype=torch.float32)
    sizes, launch = tiles_of(TILES, d, e, query.dtype)
    (q, q_at), (k, k_at), (v, v_at) = map(strided, (query, key, value))
    if lse.numel():
        grid = triton.cdiv(t, sizes["U"]), h, b
        ratio = None if cap is None else cap / scale
        given = [q, k, v, sinks, slopes, starts, ends, output, lse]
        given += [*q_at, *k_at, *v_at, h, h // g, t, s]
        given += [before, after, scale, ratio]
        forward_kernel[grid](*given, **sizes, **launch)
    return output, lse
