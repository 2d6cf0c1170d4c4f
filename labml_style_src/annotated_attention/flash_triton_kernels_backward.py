r"""# The kernels going back

Page to come.
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
    strided,
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
    first = tl.program_id(0) * U
    bh = tl.program_id(1).to(tl.int64)
    grad_output += bh // h * grad_b + bh % h * grad_h
    output += bh * t * e
    o = load_tile(output, first, t, e, e, U, E, tl.float32, True)
    do = load_tile(grad_output, first, t, grad_t, e, U, E, tl.float32, True)

    i = first + tl.arange(0, U)
    places = bh * t + i
    dl = tl.load(grad_lse + places, mask=i < t, other=0.0)
    tl.store(shift + places, tl.sum(o * do, 1) - dl, mask=i < t)
    l = tl.load(lse + places, mask=i < t, other=0.0)
    l = tl.where(l == float("-inf"), float("inf"), l * LOG2E)
    tl.store(log2 + places, l, mask=i < t)


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
    first = tl.program_id(0) * A
    bg = tl.program_id(1).to(tl.int64)
    batch, group = bg // (h // r), bg % (h // r)
    key += batch * key_b + group * key_g
    value += batch * value_b + group * value_g
    k = load_tile(key, first, s, key_s, d, A, D, DOT, True)
    v = load_tile(value, first, s, value_s, e, A, E, DOT, True)

    j = tl.minimum(first + tl.arange(0, A), s - 1)
    low, high = interval(j, t, after, before, starts, ends)
    last = tl.minimum(first + A, s) - 1
    start, whole, n_whole, n_edge = tile_range(
        first, last, t, after, before, starts, ends, U
    )
    dk = tl.zeros([A, D], tl.float32)
    dv = tl.zeros([A, E], tl.float32)
    for head in range(group * r, group * r + r):
        q_head = query + batch * query_b + head * query_h
        do_head = grad_output + batch * grad_b + head * grad_h
        row = (batch * h + head) * t
        slope = None if slopes is None else tl.load(slopes + head) / scale
        for EDGE in tl.static_range(2):
            for n in range(n_edge if EDGE else n_whole):
                u = whole + n * U
                if EDGE:
                    u = start + n * U
                    u += tl.where(u >= whole, n_whole * U, 0)
                i = u + tl.arange(0, U)
                q = load_tile(q_head, u, t, query_t, d, U, D, DOT, EDGE)
                do = load_tile(do_head, u, t, grad_t, e, U, E, DOT, EDGE)
                if EDGE:
                    l = tl.load(log2 + row + i, mask=i < t, other=float("inf"))
                    move = tl.load(shift + row + i, mask=i < t, other=0.0)
                else:
                    l, move = tl.load(log2 + row + i), tl.load(shift + row + i)

                products = tl.dot(k, tl.trans(q), input_precision="ieee")
                scores = score(products, i[None, :], j[:, None], slope, cap)
                weights = tl.exp2(scores * (scale * LOG2E) - l[None, :])
                if EDGE:
                    seen = (i[None, :] >= low[:, None]) & (i < high[:, None])
                    weights = tl.where(seen, weights, 0.0)
                dv = tl.dot(weights.to(DOT), do, dv, input_precision="ieee")
                dp = tl.dot(v, tl.trans(do), input_precision="ieee")
                ds = weights * (dp - move[None, :])
                ds = score_gradient(ds, products, cap)
                dk = tl.dot(ds.to(DOT), q, dk, input_precision="ieee")
    store_tile(dkeys + bg * s * d, dk * scale, first, s, d, A, D)
    store_tile(dvalues + bg * s * e, dv, first, s, e, A, E)


@triton.jit
def store_tile(base, tile, first, n, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    places = base + first.to(tl.int64) * width + rows[:, None] * width + columns[None, :]
    inside = (rows[:, None] < n - first) & (columns[None, :] < width)
    tl.store(places, tile.to(base.dtype.element_ty), mask=inside)


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
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * U
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // h, bh % h
    query += batch * query_b + head * query_h
    grad_output += batch * grad_b + head * grad_h
    key += batch * key_b + head // r * key_g
    value += batch * value_b + head // r * value_g
    slope = None if slopes is None else tl.load(slopes + head) / scale
    q = load_tile(query, first, t, query_t, d, U, D, DOT, True)
    do = load_tile(grad_output, first, t, grad_t, e, U, E, DOT, True)

    rows = first + tl.arange(0, U)
    l = tl.load(log2 + bh * t + rows, mask=rows < t, other=float("inf"))
    move = tl.load(shift + bh * t + rows, mask=rows < t, other=0.0)
    i = tl.minimum(rows, t - 1)
    low, high = interval(i, s, before, after, starts, ends)
    last = tl.minimum(first + U, t) - 1
    start, whole, n_whole, n_edge = tile_range(
        first, last, s, before, after, starts, ends, A
    )
    dq = tl.zeros([U, D], tl.float32)
    dslope = tl.zeros([U], tl.float32)
    for EDGE in tl.static_range(2):
        for n in range(n_edge if EDGE else n_whole):
            a = whole + n * A
            if EDGE:
                a = start + n * A
                a += tl.where(a >= whole, n_whole * A, 0)
            k = load_tile(key, a, s, key_s, d, A, D, DOT, EDGE)
            v = load_tile(value, a, s, value_s, e, A, E, DOT, EDGE)
            j = a + tl.arange(0, A)
            products = tl.dot(q, tl.trans(k), input_precision="ieee")
            scores = score(products, i[:, None], j[None, :], slope, cap)
            weights = tl.exp2(scores * (scale * LOG2E) - l[:, None])
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
        tl.store(dslopes + bh * t + rows, dslope, mask=rows < t)


# width: queries, keys, warps, stages
KEYS = {
    (2, 64): (64, 128, 8, 3),
    (2, 128): (64, 128, 8, 2),
    (2, 256): (32, 64, 8, 1),
    (4, 64): (32, 32, 4, 1),
    (4, 128): (32, 32, 8, 1),
    (4, 256): (16, 16, 8, 1),
}
QUERIES = {
    (2, 64): (128, 64, 8, 3),
    (2, 128): (128, 64, 8, 2),
    (2, 256): (64, 32, 8, 1),
    (4, 64): (32, 32, 4, 1),
    (4, 128): (32, 32, 8, 1),
    (4, 256): (16, 16, 8, 1),
}


def launch_backward(
    grad_output: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    slopes: Tensor | None,
    output: Tensor,
    lse: Tensor,
    before: int,
    after: int,
    starts: Tensor | None,
    ends: Tensor | None,
    scale: float,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    (b, h, t, _), (g, s) = query.shape, key.shape[1:3]
    dq, dk, dv = (
        torch.zeros_like(x, memory_format=torch.contiguous_format)
        for x in (query, key, value)
    )
    dslopes = None if slopes is None else torch.zeros_like(lse)
    shift, log2 = torch.empty_like(lse), torch.empty_like(lse)
    inputs = map(strided, (query, key, value, grad_output))
    tensors, places = zip(*inputs, strict=True)
    options = h, h // g, t, s, before, after, scale
    options += (None if cap is None else cap / scale,)
    shared = *tensors, log2, shift, slopes, starts, ends
    strides = tuple(stride for place in places for stride in place)

    if lse.numel():
        sizes, launch = tiles_of(QUERIES, query, value)
        rows = triton.cdiv(t, sizes["U"]), b * h
        widths = {name: sizes[name] for name in ("e", "E", "U")}
        rows_kernel[rows](
            output, tensors[3], lse, grad_lse.contiguous(), shift, log2,
            *places[3], h, t, **widths,
        )  # fmt: skip
        queries_kernel[rows](
            *shared, dq, dslopes, *strides, *options, **sizes, **launch
        )
        if s:
            sizes, launch = tiles_of(KEYS, query, value)
            keys = triton.cdiv(s, sizes["A"]), b * g
            keys_kernel[keys](
                *shared, dk, dv, *strides, *options, **sizes, **launch
            )

    dsinks = None
    if sinks is not None:
        lowest = torch.finfo(lse.dtype).min
        on_nothing = torch.exp(sinks[:, None] - lse.clamp(min=lowest))
        dsinks = -(on_nothing * shift).sum((0, 2))
    if dslopes is not None:
        dslopes = dslopes.sum((0, 2))
    return dq, dk, dv, dsinks, dslopes
