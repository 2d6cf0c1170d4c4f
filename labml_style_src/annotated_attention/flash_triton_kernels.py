r"""# The kernel

Forward kernel and seam.
"""

import os

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    wanted = 'pip install "annotated-attention[triton]"'
    came = "the kernels are written in Triton, which is not installed"
    raise ImportError(f"{came}: {wanted} (Linux only)") from error

__all__ = ["interval", "launch_forward", "load_tile", "score"]
__all__ += ["score_gradient", "tanh", "tile_range", "tiles_of"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def interval(x, n, before, after, starts, ends):
    r"""## Who sees whom"""
    low = tl.maximum(x - before, 0)
    high = tl.minimum(x + after + 1, n)
    if starts is not None:
        low = tl.maximum(low, tl.load(starts + x))
        high = tl.minimum(high, tl.load(ends + x))
    return low, high


@triton.jit
def tile_range(first, last, n, before, after, starts, ends, BLOCK: tl.constexpr):
    low, high = interval(first, n, before, after, starts, ends)
    last_low, last_high = interval(last, n, before, after, starts, ends)
    start = low // BLOCK * BLOCK
    whole = (last_low + BLOCK - 1) // BLOCK * BLOCK
    n_whole = tl.maximum(high // BLOCK - whole // BLOCK, 0)
    n_all = tl.maximum((last_high - start + BLOCK - 1) // BLOCK, 0)
    return start, whole, n_whole, n_all - n_whole


@triton.jit
def tanh(x):
    square = x * x
    near = tl.abs(x) < 0.5
    small = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    far = tl.where(x < 0, small - 1, 1 - small)
    top = x * (945 + square * (105 + square))
    bottom = 945 + square * (420 + 15 * square)
    return tl.where(near, top, far) / tl.where(near, bottom, 1 + small)


@triton.jit
def score(products, i, j, slope, cap):
    scores = products
    if cap is not None:
        scores = cap * tanh(scores / cap)
    if slope is not None:
        scores -= slope * tl.abs(i - j)
    return scores


@triton.jit
def score_gradient(ds, products, cap):
    if cap is not None:
        capped = tanh(products / cap)
        ds = ds * (1 - capped * capped)
    return ds


@triton.jit
def load_tile(
    base, first, n, stride, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DOT: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    base += first.to(tl.int64) * stride
    places = base + rows[:, None] * stride + columns[None, :]
    if EDGE and width < COLUMNS:
        inside = (rows[:, None] < n - first) & (columns[None, :] < width)
        tile = tl.load(places, mask=inside, other=0.0)
    elif EDGE:
        tile = tl.load(places, mask=rows[:, None] < n - first, other=0.0)
    elif width < COLUMNS:
        tile = tl.load(places, mask=columns[None, :] < width, other=0.0)
    else:
        tile = tl.load(places)
    return tile.to(DOT)


@triton.jit
def forward_kernel(
    query, key, value, sinks, slopes, starts, ends, output, lse,
    query_b, query_h, query_t, key_b, key_g, key_s,
    value_b, value_g, value_s,
    h, r, t, s, before, after, scale, cap,
    d: tl.constexpr, e: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    U: tl.constexpr, A: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * U
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // h, bh % h
    query += batch * query_b + head * query_h
    key += batch * key_b + head // r * key_g
    value += batch * value_b + head // r * value_g
    slope = None if slopes is None else tl.load(slopes + head) / scale

    q = load_tile(query, first, t, query_t, d, U, D, DOT, True)
    i = tl.minimum(first + tl.arange(0, U), t - 1)
    low, high = interval(i, s, before, after, starts, ends)
    last = tl.minimum(first + U, t) - 1
    start, whole, n_whole, n_edge = tile_range(first, last, s, before, after, starts, ends, A)

    m = tl.full([U], -3.4028235e38, tl.float32)
    l = tl.zeros([U], tl.float32)
    o = tl.zeros([U, E], tl.float32)
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
            if EDGE:
                seen = (j[None, :] >= low[:, None]) & (j < high[:, None])
                scores = tl.where(seen, scores, float("-inf"))

            larger = tl.maximum(m, tl.max(scores, 1) * (scale * LOG2E))
            weights = tl.exp2(scores * (scale * LOG2E) - larger[:, None])
            shrink = tl.exp2(m - larger)
            l = l * shrink + tl.sum(weights, 1)
            o = o * shrink[:, None]
            o = tl.dot(weights.to(DOT), v, o, input_precision="ieee")
            m = larger

    if sinks is not None:
        z = tl.load(sinks + head).to(tl.float32) * LOG2E
        larger = tl.maximum(m, z)
        shrink = tl.exp2(m - larger)
        l = l * shrink + tl.exp2(z - larger)
        o = o * shrink[:, None]
        m = larger

    total = tl.where(l == 0, 1, l)
    o = o / total[:, None]
    logs = tl.where(l == 0, float("-inf"), (m + tl.log2(total)) * LN2)
    rows, columns = first + tl.arange(0, U), tl.arange(0, E)
    output += (bh * t + first) * e
    places = output + tl.arange(0, U)[:, None] * e + columns[None, :]
    inside = (rows < t)[:, None] & (columns < e)[None, :]
    tl.store(places, o.to(output.dtype.element_ty), mask=inside)
    tl.store(lse + bh * t + rows, logs, mask=rows < t)


# width: queries, keys, warps, stages
TILES = {
    (2, 64): (128, 64, 4, 3),
    (2, 128): (128, 64, 8, 3),
    (2, 256): (128, 32, 8, 2),
    (4, 64): (64, 32, 4, 2),
    (4, 128): (64, 32, 8, 2),
    (4, 256): (32, 16, 8, 2),
}


def tiles_of(
    table: dict[tuple[int, int], tuple[int, int, int, int]],
    query: Tensor,
    value: Tensor,
) -> tuple[dict[str, object], dict[str, int]]:
    d, e = query.shape[3], value.shape[3]
    widths = [max(16, triton.next_power_of_2(n)) for n in (d, e)]
    size = query.element_size()
    u, a, warps, stages = table[size, max(64, *widths)]
    dot = {
        torch.float32: tl.float32,
        torch.float16: tl.float16,
        torch.bfloat16: tl.float32 if INTERPRETED else tl.bfloat16,
    }[query.dtype]
    if INTERPRETED:
        u, a = 32, 16
    sizes = dict(zip("dDeE", (d, widths[0], e, widths[1]), strict=True))
    launch = {"num_warps": warps, "num_stages": stages}
    return {**sizes, "U": u, "A": a, "DOT": dot}, launch


def strided(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    x = x if x.stride(3) == 1 else x.contiguous()
    return x, x.stride()[:3]


def launch_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    slopes: Tensor | None,
    before: int,
    after: int,
    starts: Tensor | None,
    ends: Tensor | None,
    scale: float,
    cap: float | None,
) -> tuple[Tensor, Tensor]:
    (b, h, t, _), (g, s), e = query.shape, key.shape[1:3], value.shape[3]
    output = query.new_empty(b, h, t, e)
    lse = query.new_empty(b, h, t, dtype=torch.float32)
    sizes, launch = tiles_of(TILES, query, value)
    (q, q_at), (k, k_at), (v, v_at) = map(strided, (query, key, value))
    if lse.numel():
        grid = (triton.cdiv(t, sizes["U"]), b * h)
        forward_kernel[grid](
            q, k, v, sinks, slopes, starts, ends, output, lse,
            *q_at, *k_at, *v_at, h, h // g, t, s, before, after,
            scale, None if cap is None else cap / scale, **sizes, **launch,
        )  # fmt: skip
    return output, lse
