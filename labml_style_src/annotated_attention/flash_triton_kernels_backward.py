r"""# The kernels going back

Going back, a query collects from its keys and a key from its queries:

$$d\mathbf{q}_i = \lambda \sum_j dS_{ij}\,\mathbf{k}_j, \qquad
d\mathbf{k}_j = \lambda \sum_i dS_{ij}\,\mathbf{q}_i, \qquad
d\mathbf{v}_j = \sum_i P_{ij}\,d\mathbf{o}_i .$$

The loop in Python does both in one walk, and adds to each key's sum whenever it passes by. Thousands of
programs at once cannot: two that add to the same number must wait for each other. So there are two walks. In
one a program has a tile of keys and goes down its column of queries, in the other a tile of queries and goes
along its row of keys. Each keeps what it sums in registers, in float32, and writes it once. No two programs
write to the same place, no sum depends on who was first, and the gradient has the same bits every time
[check:test_the_kernels_have_the_same_bits_every_time].

![A window, walked twice. Left: a program has a tile of keys and goes down its queries. Right: one has a tile
of queries and goes along its keys. Strong: one program of each, and the sums that only it writes.](figure:walks)

## What it costs

A tile of weights is made from $L_i$ again, as two pages ago: that takes a product of queries and keys, and
$dP_{ij} = \mathbf{v}_j^\top d\mathbf{o}_i$ another. Two walks make both twice: seven products where one walk
has five. FlashAttention-2 has one walk, down the columns, and adds to $d\mathbf{q}$ with atomic operations:
fewer products, and other bits each time. It is a choice; flash-attn's `deterministic=True` makes the other
one, with a copy of $d\mathbf{q}$ for several programs.

## Before the tiles

What is the same in all tiles of a row is made once, by a first kernel: $D_i - dL_i$, and $L_i \log_2 e$, so
that the weights are $P_{ij} = 2^{S_{ij}\log_2 e - L_i \log_2 e}$.

## What else has a gradient

A *sink* is a score whose value is 0, so its $dP$ is 0, and $dS = P\,(0 - (D_i - dL_i))$ needs no tile at all.
A *slope* collects from everywhere:

$$\begin{aligned} dz_h &= -\sum_i e^{z_h - L_i}\,(D_i - dL_i), &
dm_h &= -\sum_i \sum_j dS_{ij}\, |i - j| . \end{aligned}$$

The sum over $j$ runs in the walk along the rows, and leaves one number a query; the rest is a sum in PyTorch.
ALiBi's slopes are not learned, in the paper; who wants to learn them can, and who does not pays nothing.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $d\mathbf{o}_i$ | `grad_output`, `do` | `b h t e` | gradient at the output |
| $D_i - dL_i$ | `shift` | `b h t` | what is subtracted in a row |
| $L_i \log_2 e$ | `log2` | `b h t` | logarithm of the sum, to base 2 |
| $P_{ij}$ | `weights` | tile | made once more |
| $dS_{ij}$ | `ds` | tile | gradient at the scores |
| $d\mathbf{q}_i$ | `dq` | tile | what a program collects at its queries, |
| $d\mathbf{k}_j$ | `dk` | tile | or at its keys |
| $d\mathbf{v}_j$ | `dv` | tile | and its values |
| $dz_h$, $dm_h$ | `dsinks`, `dslopes` | `h` | gradients at the sinks and slopes |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |

**Source.** Dao (2023), arXiv:2307.08691, algorithm 2 and section 3.2. Two walks: Triton's tutorial *Fused
Attention*.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from annotated_attention.flash_triton_kernels import (
    LOG2E,
    interval,
    load_tile,
    score,
    score_gradient,
    store_tile,
    strided,
    tile_at,
    tile_range,
    tiles_of,
)

__all__ = ["launch_backward"]


@triton.jit
def rows_kernel(
    output, grad_output, lse, grad_lse, shift, log2,
    grad_b, grad_h, grad_t, h, t,
    e: tl.constexpr, E: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    r"""## Before the tiles

    $D_i = \mathbf{o}_i^\top d\mathbf{o}_i$, less the gradient of the logarithm.
    """
    first = tl.program_id(0) * U
    head = tl.cast(tl.program_id(1), tl.int64)
    batch = tl.cast(tl.program_id(2), tl.int64)
    bh = batch * h + head
    grad_output += batch * grad_b + head * grad_h
    output += bh * t * e
    o = load_tile(output, first, t, e, e, U, E, tl.float32, True)
    do = load_tile(grad_output, first, t, grad_t, e, U, E, tl.float32, True)
    i = first + tl.arange(0, U)
    row = bh * t + i
    dl = tl.load(grad_lse + row, i < t, 0.0)
    tl.store(shift + row, tl.sum(o * do, 1) - dl, i < t)

    # A row that has seen nothing has $L = -\infty$, and its weights shall be 0: so it gets $+\infty$.
    l = tl.load(lse + row, i < t, 0.0)
    l = tl.where(l == float("-inf"), float("inf"), l * LOG2E)
    tl.store(log2 + row, l, i < t)


@triton.jit
def keys_kernel(
    query, key, value, grad_output, log2, shift, slopes, starts, ends,
    dkeys, dvalues,
    query_b, query_h, query_t, key_b, key_g, key_s,
    value_b, value_g, value_s, grad_b, grad_h, grad_t,
    h, r, t, s, before, after, scale, cap,
    d: tl.constexpr, e: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    U: tl.constexpr, A: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    r"""## A tile of keys, and all its queries

    Here a tile stands on its side, $a$ keys by $u$ queries: so the weights are transposed already when they
    meet $d\mathbf{o}$.
    """
    first = tl.program_id(0) * A
    group = tl.cast(tl.program_id(1), tl.int64)
    batch = tl.cast(tl.program_id(2), tl.int64)
    bg = batch * (h // r) + group
    key += batch * key_b + group * key_g
    value += batch * value_b + group * value_g
    k = load_tile(key, first, s, key_s, d, A, D, DOT, True)
    v = load_tile(value, first, s, value_s, e, A, E, DOT, True)

    # The queries that see a key are an interval: `before` and `after` change places.
    j = tl.minimum(first + tl.arange(0, A), s - 1)
    low, high = interval(j, t, after, before, starts, ends)
    start, whole, n_whole, n_edge = tile_range(low, high, U)

    dk = tl.zeros([A, D], tl.float32)
    dv = tl.zeros([A, E], tl.float32)
    for EDGE in tl.static_range(2):
        count = n_edge if EDGE else n_whole

        # The $r$ heads of a group use these keys, and one loop goes over the tiles of all of them.
        for n in range(r * count):
            head = group * r + n // tl.maximum(count, 1)
            top = tile_at(n % tl.maximum(count, 1), start, whole, n_whole, U, EDGE)
            q_head = query + batch * query_b + head * query_h
            do_head = grad_output + batch * grad_b + head * grad_h
            q = load_tile(q_head, top, t, query_t, d, U, D, DOT, EDGE)
            do = load_tile(do_head, top, t, grad_t, e, U, E, DOT, EDGE)
            row = (batch * h + head) * t + top
            rows = tl.arange(0, U)
            i = top + rows
            if EDGE:
                l = tl.load(log2 + row + rows, i < t, 0.0)
                move = tl.load(shift + row + rows, i < t, 0.0)
            else:
                l = tl.load(log2 + row + rows)
                move = tl.load(shift + row + rows)

            slope = None if slopes is None else tl.load(slopes + head) / scale
            products = tl.dot(k, tl.trans(q), input_precision="ieee")
            x = score(products, i[None, :], j[:, None], slope, cap)
            weights = tl.exp2(x * (scale * LOG2E) - l[None, :])
            if EDGE:
                seen = (i[None, :] >= low[:, None]) & (i < high[:, None])
                weights = tl.where(seen, weights, 0.0)

            # $dS_{ij} = P_{ij}\,(dP_{ij} - (D_i - dL_i))$, and through the cap to the products.
            dv = tl.dot(weights.to(DOT), do, dv, input_precision="ieee")
            dp = tl.dot(v, tl.trans(do), input_precision="ieee")
            ds = weights * (dp - move[None, :])
            ds = score_gradient(ds, products, cap)
            dk = tl.dot(ds.to(DOT), q, dk, input_precision="ieee")
    store_tile(dkeys + bg * s * d, dk * scale, first, s, d, A, D)
    store_tile(dvalues + bg * s * e, dv, first, s, e, A, E)


@triton.jit
def queries_kernel(
    query, key, value, grad_output, log2, shift, slopes, starts, ends,
    dqueries, dslopes,
    query_b, query_h, query_t, key_b, key_g, key_s,
    value_b, value_g, value_s, grad_b, grad_h, grad_t,
    h, r, t, s, before, after, scale, cap,
    d: tl.constexpr, e: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    U: tl.constexpr, A: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    r"""## A tile of queries, and all its keys

    The forward kernel's walk, with its rows' logarithms known.
    """
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * U
    head = tl.cast(tl.program_id(1), tl.int64)
    batch = tl.cast(tl.program_id(2), tl.int64)
    bh = batch * h + head
    query += batch * query_b + head * query_h
    grad_output += batch * grad_b + head * grad_h
    key += batch * key_b + head // r * key_g
    value += batch * value_b + head // r * value_g
    slope = None if slopes is None else tl.load(slopes + head) / scale
    q = load_tile(query, first, t, query_t, d, U, D, DOT, True)
    do = load_tile(grad_output, first, t, grad_t, e, U, E, DOT, True)

    rows = first + tl.arange(0, U)
    l = tl.load(log2 + bh * t + rows, rows < t, 0.0)
    move = tl.load(shift + bh * t + rows, rows < t, 0.0)
    i = tl.minimum(rows, t - 1)
    low, high = interval(i, s, before, after, starts, ends)
    start, whole, n_whole, n_edge = tile_range(low, high, A)

    dq = tl.zeros([U, D], tl.float32)
    dslope = tl.zeros([U], tl.float32)
    for EDGE in tl.static_range(2):
        for n in range(n_edge if EDGE else n_whole):
            left = tile_at(n, start, whole, n_whole, A, EDGE)
            k = load_tile(key, left, s, key_s, d, A, D, DOT, EDGE)
            v = load_tile(value, left, s, value_s, e, A, E, DOT, EDGE)
            j = left + tl.arange(0, A)
            products = tl.dot(q, tl.trans(k), input_precision="ieee")
            x = score(products, i[:, None], j[None, :], slope, cap)
            weights = tl.exp2(x * (scale * LOG2E) - l[:, None])
            if EDGE:
                seen = (j[None, :] >= low[:, None]) & (j < high[:, None])
                weights = tl.where(seen, weights, 0.0)
            dp = tl.dot(do, tl.trans(v), input_precision="ieee")
            ds = weights * (dp - move[:, None])
            if dslopes is not None:
                dslope -= tl.sum(ds * tl.abs(i[:, None] - j[None, :]), 1)
            ds = score_gradient(ds, products, cap)
            dq = tl.dot(ds.to(DOT), k, dq, input_precision="ieee")
    store_tile(dqueries + bh * t * d, dq * scale, first, t, d, U, D)
    if dslopes is not None:
        tl.store(dslopes + bh * t + rows, dslope, rows < t)


# Two sums in registers, and more that has to be at hand: the tile beside them is smaller than forward.
KEYS = {
    (2, 64): (64, 128, 8, 3),
    (2, 128): (32, 128, 8, 3),
    (2, 256): (16, 64, 8, 2),
    (4, 64): (32, 32, 8, 1),
    (4, 128): (32, 32, 8, 1),
    (4, 256): (16, 16, 8, 1),
}
QUERIES = {
    (2, 64): (128, 64, 8, 3),
    (2, 128): (128, 64, 8, 2),
    (2, 256): (64, 32, 8, 1),
    (4, 64): (32, 32, 8, 1),
    (4, 128): (32, 32, 8, 1),
    (4, 256): (16, 16, 8, 1),
}


def launch_backward(
    grad_output: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor,
    value: Tensor, sinks: Tensor | None, slopes: Tensor | None,
    output: Tensor, lse: Tensor, before: int, after: int,
    starts: Tensor | None, ends: Tensor | None,
    scale: float, cap: float | None, wants_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    r"""## The launch

    Gradients at queries, keys, values, sinks and slopes. Those of the slopes are only collected if somebody
    wants them.
    """
    (b, h, t, d), (g, s), e = query.shape, key.shape[1:3], value.shape[3]
    dq, dk, dv = (x.new_zeros(x.shape) for x in (query, key, value))
    dsinks, dslopes = None, torch.zeros_like(lse) if wants_slopes else None
    shift, log2 = torch.zeros_like(lse), torch.empty_like(lse)
    if lse.numel():
        inputs = map(strided, (query, key, value, grad_output))
        tensors, places = zip(*inputs, strict=True)
        ratio = None if cap is None else cap / scale
        given = [*tensors, log2, shift, slopes, starts, ends]
        rest = [stride for place in places for stride in place]
        rest += [h, h // g, t, s, before, after, scale, ratio]

        sizes, launch = tiles_of(QUERIES, d, e, query.dtype)
        grid = triton.cdiv(t, sizes["U"]), h, b
        row = [output, tensors[3], lse, grad_lse.contiguous(), shift, log2]
        row += [*places[3], h, t, e, sizes["E"], sizes["U"]]
        rows_kernel[grid](*row)
        whole = [*given, dq, dslopes, *rest]
        queries_kernel[grid](*whole, **sizes, **launch)

        sizes, launch = tiles_of(KEYS, d, e, query.dtype)
        grid = triton.cdiv(s, sizes["A"]), g, b
        if s:
            whole = [*given, dk, dv, *rest]
            keys_kernel[grid](*whole, **sizes, **launch)

    # $e^{z_h - L_i}$ is the weight of the sink.
    if sinks is not None:
        lowest = torch.finfo(lse.dtype).min
        on_nothing = torch.exp(sinks[:, None] - lse.clamp(min=lowest))
        dsinks = -(on_nothing * shift).sum((0, 2))
    if dslopes is not None:
        dslopes = dslopes.sum((0, 2))
    return dq, dk, dv, dsinks, dslopes
