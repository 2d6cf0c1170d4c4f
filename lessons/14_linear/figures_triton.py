"""Figures of the pages on Triton: what waits for what, what a program holds. Each function returns one SVG."""

import torch
from torch import Tensor

from annotated_attention.linear import (
    LinearState,
    elu_plus_one,
    linear_attention,
    merge_states,
    ratio,
    read,
    state_of,
)
from coursekit.drawing import line, path, rect, svg, text


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def borders(k: Tensor, v: Tensor, u: int) -> list[LinearState]:
    """The state before each chunk of u tokens, and after the last."""
    states = [state_of(k[:, :, :0], v[:, :, :0])]
    for chunk in zip(k.split(u, 2), v.split(u, 2), strict=True):
        states.append(merge_states(states[-1], state_of(*chunk)))
    return states


def grid(x: float, y: float, shades: Tensor, colour: str, cell: float, gap: float = 1) -> list[str]:
    """A matrix of numbers from 0 to 1."""
    return [
        rect(x + j * cell, y + i * cell, cell - gap, cell - gap, colour, 0.06 + 0.94 * shade, 1)
        for i, row in enumerate(shades.tolist())
        for j, shade in enumerate(row)
    ]


def triangle(x: float, y: float, shades: Tensor, cell: float, gap: float) -> list[str]:
    """The lower triangle of a matrix."""
    return [
        rect(x + j * cell, y + i * cell, cell - gap, cell - gap, "weights", 0.2 + 0.8 * shade, 1)
        for i, row in enumerate(shades.tolist())
        for j, shade in enumerate(row[: i + 1])
    ]


def shaded(x: Tensor, most: Tensor | None = None) -> Tensor:
    """Magnitudes, the greatest of which is 1."""
    return x.abs() / (x.abs().max() if most is None else most.abs().max())


def frame(x: float, y: float, width: float, height: float, colour: str = "ink") -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
    return f'<rect {place} fill="none" stroke="var(--{colour})" stroke-width="1.3"/>'


def arrow(x: float, y: float, dx: float, dy: float, colour: str = "soft") -> str:
    """Along an axis."""
    wings = ("m-4 -3.5l4 3.5l-4 3.5", "m4 -3.5l-4 3.5l4 3.5", "m-3.5 -4l3.5 4l3.5 -4", "m-3.5 4l3.5 -4l3.5 4")
    side = (0 if dx > 0 else 1) if dx else (2 if dy > 0 else 3)
    return path(f"M{x:g} {y:g}l{dx:g} {dy:g}{wings[side]}", colour, 1.3)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention, of features."""
    return linear_attention(q, k, v, feature_map=lambda x: x)


def at_once() -> str:
    """Four chunks, two heads, a state in two blocks: what is passed along, and what waits for nothing."""
    heads, t, u, f, e, block = 2, 24, 6, 4, 8, 4
    q, k = (elu_plus_one(1.2 * normal(seed, 1, heads, t, f)) for seed in (1, 2))
    v = normal(3, 1, heads, t, e) + 0.6
    states, shares, weights, outputs = borders(k, v, u), [], [], []
    for state, *chunk in zip(states[:-1], *(x.split(u, 2) for x in (q, k, v)), strict=True):
        blend, total = read(chunk[0], state)
        own = (chunk[0] @ chunk[1].mT).tril()
        outputs.append(ratio(blend + own @ chunk[2], total + own.sum(-1)))
        shares.append(ratio(total[..., None], total + own.sum(-1))[0])
        weights.append(ratio(own, total + own.sum(-1))[0])
    assert torch.allclose(torch.cat(outputs, 2), plain(q, k, v))

    left, pitch, cell, small, lane, top = 28, 99, 10.5, 5.5, 26, 42
    inside, height = left + 27, 2 * lane + u * cell + 36
    parts = []
    for name, y, colour in (("k", 4, "key"), ("v", 15, "value")):
        parts.append(text(left - 12, y + 8, name, anchor="end", colour=colour))
        for token in range(t):
            x = inside + token // u * pitch + token % u * cell
            parts.append(rect(x, y, cell - 1.5, 8, colour, 0.85))
    for head in range(heads):
        y = top + head * height
        floor = y + 2 * lane + 10
        parts.append(text(left - 12, y + lane, "S", anchor="end", colour="ink"))
        parts.append(text(left - 12, floor + u * cell / 2 + 3, "A", anchor="end", colour="ink"))
        for n in range(t // u):
            x, most = left + n * pitch, states[-2].matrix[0, head]
            for number, part in enumerate(states[n].matrix[0, head].split(block, 1)):
                at = y + number * lane
                parts += grid(x, at, shaded(part, most), "bias", small)
                if n < t // u - 1:
                    parts.append(arrow(x + 26, at + 10.5, pitch - 32, 0, "bias"))
            if n:
                parts.append(line(x + 10.5, floor - 9, x + 10.5, floor - 3, "bias"))
                for i, share in enumerate(shares[n][head, :, 0].tolist()):
                    parts.append(rect(x, floor + i * cell, 21, cell - 1.5, "bias", share**2))
            own = (weights[n][head] / weights[n][head, -1].max()).clamp(max=1)
            parts += triangle(inside + n * pitch, floor, own, cell, 1.5)
    title = (
        "For each of two heads, four states, each in two blocks, joined by arrows from chunk to chunk; below"
        " them four triangles of weights without arrows, each beside the share of the state before it"
    )
    return svg(420, top + heads * height - 24, title, parts)


def tile(x: float, y: float, numbers: Tensor, most: Tensor, colour: str, strength: float = 1) -> str:
    """Numbers that this program has."""
    shades = 0.2 + 0.8 * shaded(numbers, most)
    return f'<g opacity="{strength:g}">{"".join(grid(x, y, shades, colour, 9))}</g>'


def other(x: float, y: float, columns: int, rows: int, colour: str) -> str:
    """A tile that it does not touch, or not yet."""
    return rect(x, y, columns * 9 - 1, rows * 9 - 1, colour, 0.13, 2)


def held(x: float, y: float, columns: int, rows: int) -> str:
    return frame(x - 3, y - 3, columns * 9 + 5, rows * 9 + 5)


def one_block() -> str:
    """The walk: what one program fetches (in cells), holds (framed), and has put down."""
    t, u, f, block, now, gap, left, top = 20, 5, 8, 4, 2, 14, 18, 20
    k, v = elu_plus_one(1.2 * normal(5, 1, 1, t, f)), normal(6, 1, 1, t, f) + 0.8
    states, (k, v) = borders(k, v, u), (x[0, 0] for x in (k, v))
    S, z = states[now + 1].matrix[0, 0], states[now + 1].normaliser[0, 0, :, None]

    # Keys from the left, values from above, and a block of the state where they meet.
    chunk, half = 9 * u + 3, 9 * block + 3
    x0, y0 = left + t // u * chunk + gap - 3, top + t // u * chunk + gap - 3
    xz, parts = x0 + 2 * half + 5, []
    for n, (keys, values) in enumerate(zip(k.split(u), v.split(u), strict=True)):
        x, y = left + n * chunk, top + n * chunk
        parts += [other(x, y0 + half, u, block, "key"), other(x0 + half, y, block, u, "value")]
        if n > now:
            parts += [other(x, y0, u, block, "key"), other(x0, y, block, u, "value")]
            continue
        strength = 1 if n == now else 0.4
        parts.append(tile(x, y0, keys[:, :block].mT, k, "key", strength))
        parts.append(tile(x0, y, values[:, :block], v, "value", strength))
        put_down = shaded(states[n].matrix[0, 0, :block, :block], S)
        parts += grid(xz + 26, y, 0.2 + 0.8 * put_down if n else put_down, "bias", 6)
    parts += [tile(x0, y0, S[:block, :block], S, "bias"), tile(xz, y0, z[:block], z, "bias")]
    parts += [other(x0 + b * half, y0 + a * half, block, block, "bias") for a, b in ((0, 1), (1, 0), (1, 1))]
    parts += [other(xz, y0 + half, 1, block, "bias"), held(x0, y0, block, block), held(xz, y0, 1, block)]
    way = now * chunk + u * 9
    parts += [arrow(left, y0 - 8, way, 0), arrow(x0 - 8, top, 0, way)]
    below = y0 + 2 * half + 12
    parts.append(text(left - 6, y0 + half + 3, "k", anchor="end", colour="key"))
    parts.append(text(x0 + half - 2, top - 8, "v", colour="value"))
    parts.append(text(xz + 38, top - 8, "S", colour="ink"))
    parts += [text(x, below, name, colour="ink") for x, name in ((x0 + half - 2, "S"), (xz + 4, "z"))]
    title = (
        "A row of tiles of keys and a column of tiles of values meet in one block of a state, which is framed"
    )
    return svg(xz + 54, below + 4, title, parts)


def one_chunk() -> str:
    """The outputs: what one program fetches (in cells) and holds (framed)."""
    u, f, block, gap, left, top = 5, 8, 4, 14, 4, 4
    q, k = (elu_plus_one(1.2 * normal(seed, 1, 1, 3 * u, f)) for seed in (4, 5))
    v = normal(6, 1, 1, 3 * u, f) + 0.8
    expected, state = plain(q, k, v)[0, 0, 2 * u :], borders(k, v, u)[2]
    (q, k, v), S, z = (
        (x[0, 0, 2 * u :] for x in (q, k, v)),
        state.matrix[0, 0],
        state.normaliser[0, 0, :, None],
    )
    weights = (q @ k.mT).tril()
    r = q @ z + weights.sum(-1, keepdim=True)
    o = (q @ S + weights @ v) / r
    assert torch.allclose(o, expected)

    # Queries from the left; from above the keys, the state and its normaliser, and for the weights the values.
    chunk, half = 9 * u + 3, 9 * block + 3
    x1, y1 = left + 2 * half + gap, top + chunk + 4
    x0, y0 = x1 + chunk + gap, y1 + 2 * half + gap - 3
    xz, parts = x0 + 2 * half + 5, []
    for number in range(f // block):
        part, y = slice(number * block, (number + 1) * block), y1 + number * half
        parts.append(tile(left + number * half, y0, q[:, part], q, "query"))
        parts += [tile(x1, y, k[:, part].mT, k, "key"), other(x0 + half, y, block, block, "bias")]
        parts += [tile(x0, y, S[part, :block], S, "bias"), tile(xz, y, z[part], z, "bias")]
    parts += [tile(x0, top, v[:, :block], v, "value"), other(x0 + half, top, block, u, "value")]
    parts += triangle(x1, y0, shaded(weights), 9, 1)
    parts += [tile(x0, y0, o[:, :block], o, "value"), other(x0 + half, y0, block, u, "value")]
    parts.append(tile(xz, y0, r, r, "weights"))
    parts += [held(x, y0, columns, u) for x, columns in ((x1, u), (x0, block), (xz, 1))]
    parts += [arrow(left, y0 - 8, 2 * half - 4, 0), arrow(x1 - 8, y1, 0, 2 * half - 4)]
    below, middle = y0 + chunk + 13, y1 + half + 3
    for x, y, name, colour in (
        (left + half - 2, below, "q", "query"),
        (x1 + chunk / 2 - 2, below, "A", "ink"),
        (x0 + half - 2, below, "o", "ink"),
        (xz + 4, below, "r", "ink"),
        (x1 - 20, middle, "k", "key"),
        (x0 - 13, top + chunk / 2 + 2, "v", "value"),
        (xz + 30, middle, "S, z", "ink"),
    ):
        parts.append(text(x, y, name, colour=colour))
    title = "A chunk's queries meet its keys in a triangle of weights; these and the state make a block of outputs"
    return svg(xz + 120, below + 4, title, parts)


def gradients(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, u: int, now: int) -> tuple:
    """By the page's formulas, for one chunk; before them the weights, and the states from the left and the right."""
    output = plain(*(given := [x.requires_grad_() for x in (q, k, v)]))
    expected = torch.autograd.grad(output, given, grad)
    q, k, v, output = (x.detach() for x in (*given, output))
    total = (q @ k.mT).tril().sum(-1, keepdim=True)
    divided, shift = q / total, (output * grad).sum(-1, keepdim=True)
    weights = (divided @ k.mT).tril()

    # The walk from the right is that from the left of a text turned round. Beside do, D makes w of it.
    before = borders(k, v, u)[:-1]
    after = borders(divided.flip(2), torch.cat([grad, shift], -1).flip(2), u)[-2::-1]
    S, z = before[now]
    R, w = after[now].matrix[..., :-1], after[now].matrix[..., -1]

    rows = slice(now * u, (now + 1) * u)
    own = weights[:, :, rows, rows]
    q, k, v, grad, total, shift, divided = (x[:, :, rows] for x in (q, k, v, grad, total, shift, divided))
    dA = (grad @ v.mT - shift).tril()
    dq = (dA @ k + grad @ S.mT - shift * z[:, :, None]) / total
    dk = dA.mT @ divided + v @ R.mT - w[:, :, None]
    dv = own.mT @ grad + k @ R
    for ours, exact in zip((dq, dk, dv), expected, strict=True):
        assert torch.allclose(ours, exact[:, :, rows])
    left, right = ([x.matrix[0, 0, :, : v.shape[3]] for x in states] for states in (before, after))
    return weights[0, 0], left, right, dq[0, 0], dk[0, 0], dv[0, 0]


def both_ways() -> str:
    """States of keys from the left, states of queries from the right; a chunk takes one of each."""
    t, u, d, now, cell, small, left, top = 20, 4, 4, 2, 15, 6, 44, 50
    q, k = (elu_plus_one(1.2 * normal(seed, 1, 1, t, d)) for seed in (7, 8))
    v, grad = normal(9, 1, 1, t, d) + 0.6, normal(10, 1, 1, t, d)
    weights, before, after, dq, dk, dv = gradients(q, k, v, grad, u, now)
    n, side, room, block = t // u, t * cell, u * cell, d * small
    right, x_now, y_now = left + side + 14, left + now * room, top + now * room

    # Pale, what its states stand for: all keys before it, all queries behind it.
    parts = [
        rect(left, y_now, now * room - 2, room - 2, "bias", 0.2, 4),
        rect(x_now, y_now + room, room - 2, (n - now - 1) * room - 2, "query", 0.2, 4),
    ]
    for m in range(n):
        x, y, strength = left + m * room, top + m * room, 1 if m == now else 0.35
        own = weights[m * u : (m + 1) * u, m * u : (m + 1) * u]
        parts.append(f'<g opacity="{strength:g}">{"".join(triangle(x, y, shaded(own), cell, 2))}</g>')

        # The two walks, along both edges.
        low = y + room - block - 2
        parts += grid(x, 8, shaded(before[m], before[-1]), "bias", small)
        parts += grid(right, low, shaded(after[m], after[0]), "query", small)
        if m < n - 1:
            parts.append(arrow(x + block + 3, 8 + block / 2, room - block - 7, 0, "bias"))
            parts.append(arrow(right + block / 2, low + room - 4, 0, block - room + 7, "query"))
    parts.append(arrow(x_now + block / 2, 12 + block, 0, y_now - block - 18, "bias"))
    parts.append(arrow(right - 5, y_now + room - block / 2, x_now + room + 11 - right, 0, "query"))
    parts.append(text(left - 12, 25, "S", anchor="end", colour="ink"))
    parts.append(text(right + block / 2, top + room - block - 10, "R", colour="ink"))

    # What it collects: along its row, and down its column.
    middle, floor = y_now + room / 2 - 1, top + side + 4
    for x, y, name, numbers, colour in (
        (4, middle - block / 2, "dq", dq, "query"),
        (x_now + 2, floor, "dk", dk, "key"),
        (x_now + 32, floor, "dv", dv, "value"),
    ):
        parts += grid(x, y, shaded(numbers), colour, small)
        parts.append(text(x + block / 2, y + block + 14, name, colour=colour))
    title = (
        "Five triangles of weights along a diagonal; above, states grow to the right, beside them others grow"
        " upwards; one chunk takes one of each, for the keys left of it and for the queries below it"
    )
    return svg(right + block + 6, floor + block + 20, title, parts)
