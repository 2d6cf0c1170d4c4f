"""The figures of the pages, drawn from the mechanisms themselves. Each function returns one SVG."""

import math
import statistics
from pathlib import Path

import torch

from annotated_attention.alibi import alibi_slopes
from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.linear import elu_plus_one, linear_cost
from annotated_attention.linear_decay import half_life, retention_log_decay
from annotated_attention.linear_decoding import linear_state_bytes
from annotated_attention.linear_features import positive_random_features, taylor_features
from annotated_attention.linear_state_space import state_space_matrix
from coursekit.drawing import curve, line, rect, svg, text
from coursekit.experiments import load


def frame(x: float, y: float, width: float, height: float, colour: str) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
    return f'<rect {place} fill="none" stroke="var(--{colour})" stroke-width="1.5"/>'


def product(factors: list, top: float, height: float, cell: float = 6) -> tuple[list[str], float]:
    """Matrices as grids of numbers, each (rows, columns, colour, name), with signs between; and where it ends."""
    x, middle, parts = 12.0, top + height / 2, []
    for factor in factors:
        if isinstance(factor, str):
            parts.append(text(x + 6, middle + 6, factor, size=19))
            x += 18 if factor == "=" else 14
            continue
        rows, columns, colour, name = factor
        y = middle - rows * cell / 2
        for i in range(rows):
            for j in range(columns):
                parts.append(rect(x + j * cell, y + i * cell, cell - 1, cell - 1, colour, 0.8, 1))
        parts.append(text(x + columns * cell / 2, y - 7, name, colour="ink"))
        x += columns * cell + 10
    return parts, x


def orders() -> str:
    """Queries times keys times values, and queries times (keys times values): two orders, drawn to scale."""
    t, d = 20, 3
    q, k, v = torch.randn(3, 1, 1, t, d, generator=torch.Generator().manual_seed(0)).double().unbind()
    q, k = elu_plus_one(q), elu_plus_one(k)
    assert torch.allclose((q @ k.mT) @ v, q @ (k.mT @ v))
    query, key, value = (t, d, "query", "φ(Q)"), (d, t, "key", "φ(K)ᵀ"), (t, d, "value", "V")
    pairs, state = (t, t, "weights", f"{t} × {t} numbers"), (d, d, "bias", f"{d} × {d}")
    above, right = product(["(", query, key, ")", value, "=", pairs, value], 42, 6 * t)
    below, _ = product([query, "(", key, value, ")", "=", query, state], 206, 6 * t)
    title = (
        "Multiplied from the left, 20 queries and keys make 400 numbers; keys times values first make nine"
    )
    return svg(right, 206 + 6 * t + 6, title, above + below)


def chunks() -> str:
    """A causal text of 24 tokens in chunks of six: weights on the diagonal, one state for what lies left of it."""
    t, u, cell, left, top = 24, 6, 17, 62, 24
    parts = [text(left + t * cell / 2, 14, "keys", size=12)]
    computed = 0
    for n in range(t // u):
        y = top + n * u * cell
        if n:
            parts.append(rect(left, y, n * u * cell - 2, u * cell - 2, "bias", 0.22, 4))
            name = f"state of {n * u} tokens"
            parts.append(text(left + n * u * cell / 2, y + u * cell / 2 + 4, name, colour="ink", size=11))
        for i in range(u):
            for j in range(i + 1):
                place = left + (n * u + j) * cell, y + i * cell
                parts.append(rect(*place, cell - 2, cell - 2, "weights", 0.9))
                computed += 1
        parts.append(text(left - 8, y + u * cell / 2 + 4, f"chunk {n}", anchor="end", size=12))
    assert computed == t * (u + 1) // 2
    title = "Four triangles of weights along the diagonal; left of each, one rectangle: a state"
    return svg(left + t * cell + 6, top + t * cell + 4, title, parts)


def maps() -> str:
    """Products of features over products of vectors, for 150 pairs, beside the exponential."""
    size, gap, top, left, reach = 112, 22, 28, 26, 4.0
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 900, 8, generator=generator, dtype=torch.float64).unbind()
    query, key = 0.8 * query, 0.8 * key
    score = (query * key).sum(-1)
    near = (score.abs() < reach).nonzero()[:150, 0]
    query, key, score = query[near], key[near], score[near]
    random = positive_random_features(8, 256, generator=generator)
    panels = {"elu + 1": elu_plus_one, "1 + x + x²/2": taylor_features, "256 random": random}
    parts = []
    for column, (name, phi) in enumerate(panels.items()):
        x0 = left + column * (size + gap)

        def place(x: float, y: float, x0: float = x0) -> tuple[float, float]:
            return x0 + size * (x / reach + 1) / 2, top + size * (1 - y / reach) / 2

        weight = (phi(query) * phi(key)).sum(-1)
        if phi is elu_plus_one:  # a common factor cancels in the ratio
            weight = weight / weight[score.abs() < 0.5].mean()
        parts.append(frame(x0, top, size, size, "line"))
        parts.append(text(x0 + size / 2, top - 10, name, colour="ink"))
        parts.append(line(*place(-reach, -reach), *place(reach, reach), "soft", 1.5))
        for x, y in zip(score.tolist(), weight.log().tolist(), strict=True):
            if abs(y) < reach:
                parts.append(dot(*place(x, y), 2.2, "weights", 0.7))
        for mark in (-4, 0, 4):
            parts.append(text(place(mark, 0)[0], top + size + 16, f"{mark}".replace("-", "−"), size=12))
    for mark in (-4, 0, 4):
        y, sign = top + size * (1 - mark / reach) / 2, f"{mark}".replace("-", "−")
        parts.append(text(left - 6, y + 4, sign, anchor="end", size=12))
    parts.append(text(left + 1.5 * size + gap, top + size + 34, "product of query and key", size=12))
    title = (
        "Three clouds beside the line of the exponential: elu + 1 is nearly flat, the series is a curve that"
        " turns up on the left, random features scatter around the line"
    )
    return svg(left + 3 * size + 2 * gap + 8, top + size + 42, title, parts)


def memory() -> str:
    """Numbers that one head keeps while it reads: a state, and a cache of keys and values."""
    left, width, height, top, f, d, last = 58, 320, 150, 14, 64, 64, 96
    most = 12_500

    def place(tokens: float, numbers: float) -> tuple[float, float]:
        return left + width * tokens / last, top + height * (1 - numbers / most)

    state, a_token = linear_state_bytes(1, 1, f, d) // 4, kv_cache_bytes(1, 1, d, 1) // 2
    parts = []
    for numbers in (0, 4_000, 8_000, 12_000):
        y = place(0, numbers)[1]
        parts += [line(left, y, left + width, y)]
        parts += [text(left - 8, y + 4, f"{numbers:,}", anchor="end", size=12)]
    for tokens in (0, 32, 64, 96):
        parts.append(text(place(tokens, 0)[0], top + height + 18, f"{tokens}", size=12))
    parts.append(curve([place(0, 0), place(last, a_token * last)], "key", 3))
    parts.append(curve([place(0, state), place(last, state)], "bias", 3))
    cross = state / a_token
    assert 32 < cross < 33
    parts.append(dot(*place(cross, state), 4.5, "ink"))
    parts.append(text(place(66, 0)[0], place(0, 10_600)[1], "keys and values", anchor="end", colour="ink"))
    parts.append(text(place(last, 0)[0], place(0, state)[1] - 8, "the state", anchor="end", colour="ink"))
    parts.append(text(left + width / 2, top + height + 36, "tokens read", size=12))
    title = "A cache grows by 128 numbers a token and passes the constant 4,160 of a state after 32 tokens"
    return svg(left + width + 14, top + height + 42, title, parts)


def dot(x: float, y: float, radius: float, colour: str, opacity: float = 1.0) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" '
        f'fill="var(--{colour})" fill-opacity="{opacity:.2f}"/>'
    )


def half_lives() -> str:
    """What is left of a token against its distance: eight heads of RetNet, and of ALiBi."""
    left, top, width, height, most = 34, 12, 386, 190, 10_000

    def place(r: float, share: float) -> tuple[float, float]:
        return left + width * math.log10(r) / math.log10(most), top + height * (1 - share)

    parts = []
    for share in (0, 0.5, 1):
        y = place(1, share)[1]
        parts.append(line(left, y, left + width, y))
        parts.append(text(left - 7, y + 4, f"{share:g}", anchor="end", size=12))
    for r in (1, 10, 100, 1000, 10_000):
        parts.append(text(place(r, 0)[0], top + height + 17, f"{r:,}", size=12))
    distances = [10 ** (n / 20) for n in range(81)]
    slopes, retnet = -alibi_slopes(8).double(), retention_log_decay(8).double()
    for decays, colour, opacity, thick in ((slopes, "bias", 0.35, 1.5), (retnet, "weights", 0.9, 2.0)):
        for x in decays.tolist():
            parts.append(curve([place(r, math.exp(x * r)) for r in distances], colour, thick, opacity))
        for life in half_life(decays).tolist():
            parts.append(dot(*place(life, 0.5), 3.5, colour, 1 if colour == "weights" else 0.5))
    parts.append(text(*place(700, 0.93), "RetNet", colour="weights", anchor="start"))
    parts.append(text(*place(1.3, 0.06), "ALiBi", colour="bias", anchor="start"))
    parts.append(text(left + width / 2, top + height + 35, "tokens ago", size=12))
    title = (
        "Curves that fall from 1 to 0, each half as fast as the one before it; RetNet's heads remember longer"
    )
    return svg(left + width + 22, top + height + 42, title, parts)


def semiseparable() -> str:
    """The matrix of 24 tokens in chunks of six, and one of its blocks as a product."""
    size, u, d, cell, top, left = 24, 6, 3, 13, 26, 4
    generator = torch.Generator().manual_seed(4)
    B, C = torch.randn(2, 1, 1, size, d, generator=generator)
    dt = torch.rand(1, 1, size, generator=generator) * 0.1 + 0.02
    rate = torch.tensor([-1.0])
    matrix = (state_space_matrix(dt, rate, B, C) / dt[:, :, None])[0, 0]
    largest = matrix.abs().max()
    parts = [text(left + 3 * cell, 16, "M", size=14)]
    for i in range(size):
        for j in range(i + 1):
            strength = 0.1 + 0.9 * float((matrix[i, j].abs() / largest) ** 0.6)
            colour = "weights" if i // u == j // u else "key"
            parts.append(rect(left + j * cell, top + i * cell, cell - 2, cell - 2, colour, strength))
    for n in range(size // u):
        for k in range(n + 1):
            x, y = left + k * u * cell - 2, top + n * u * cell - 2
            parts.append(frame(x, y, u * cell + 2, u * cell + 2, "ink" if n == k else "line"))

    # The block of the last chunk's queries and the first chunk's keys, taken apart.
    parts.append(frame(left - 3, top + 3 * u * cell - 3, u * cell + 4, u * cell + 4, "ink"))
    x, y0 = left + size * cell - 104, top + 4
    factors = (
        (C[0, 0, -u:], "query", "reads"),
        (torch.ones(1, 1), "mask", "fades"),
        (B[0, 0, :u].mT, "key", "leaves"),
    )
    for factor, colour, name in factors:
        rows, columns = factor.shape
        y = y0 + (u - rows) * cell / 2
        for i in range(rows):
            for j in range(columns):
                strength = 0.15 + 0.85 * float((factor[i, j].abs() / factor.abs().max()) ** 0.6)
                parts.append(rect(x + j * cell, y + i * cell, cell - 2, cell - 2, colour, strength))
        parts.append(text(x + columns * cell / 2, y0 + u * cell + 18, name, colour=colour, size=14))
        x += columns * cell + 36
    parts.append(text(x - 118, 16, f"a block below: rank {d}", size=14))
    right = x - 30
    title = f"A lower triangle in blocks; one below the diagonal is a product of {d} columns and {d} rows"
    return svg(right, top + size * cell + 4, title, parts)


def ratios_of(over: str, under: str, **settings: object) -> dict[int, list[float]]:
    """By length, the ratio of two times, one for each repetition."""
    found: dict[int, list[float]] = {}
    runs = load(Path(__file__).parent / "results" / "experiment.default.json").runs
    for run in runs.where(**settings):
        if over in run.measured:
            found.setdefault(run.settings["t"], []).append(run.measured[over] / run.measured[under])
    return dict(sorted(found.items()))


def times(series: list, ys: tuple[float, float], xs: list[int], ends: tuple[int, int], title: str) -> str:
    """Ratios over lengths, both logarithmic: (name, colour, values by length, where the name stands)."""
    left, top, width, height = 44, 12, 366, 190

    def place(t: float, ratio: float) -> tuple[float, float]:
        across, up = (math.log(x / a) / math.log(b / a) for x, (a, b) in ((t, ends), (ratio, ys)))
        return left + width * across, top + height * (1 - up)

    parts = []
    for power in range(math.ceil(math.log10(ys[0])), math.floor(math.log10(ys[1])) + 1):
        y = place(ends[0], 10**power)[1]
        parts.append(line(left, y, left + width, y, "soft" if power == 0 else "line"))
        parts.append(text(left - 7, y + 4, f"{10**power:,g}", anchor="end", size=12))
    parts += [text(place(t, ys[0])[0], top + height + 17, f"{t:,}", size=12) for t in xs]
    for name, colour, values, (at, ratio) in series:
        middles = [(t, statistics.median(several)) for t, several in values.items()]
        parts.append(curve([place(*point) for point in middles], colour))
        for t, several in values.items():
            (x, y0), (_, y1) = place(t, min(several)), place(t, max(several))
            parts += [line(x, y0, x, y1, colour, 4, 0.3)] if len(several) > 1 else []
        parts.append(text(*place(at, ratio), name, anchor="start", colour=colour))
    parts.append(text(left + width / 2, top + height + 35, "tokens", size=12))
    return svg(left + width + 22, top + height + 42, title, parts)


def crossing() -> str:
    """Time of a softmax over that of linear attention, measured, and by operations."""
    measured = ratios_of("softmax_ms", "linear_ms", part="reading")
    a_token = linear_cost(64, 64, 64, 64)[0] / 64
    expected = {t: [128 * (t + 1) / a_token] for t in measured}
    series = [
        ("by operations", "soft", expected, (230, 9)),
        ("measured", "weights", measured, (1400, 0.45)),
    ]
    title = "Both lines rise with the text; above 1 the softmax takes longer"
    return times(series, (0.03, 40), [64, 256, 1024, 4096], (64, 8192), title)


def baselines() -> str:
    """A whole model writes one token: how many times as long as with states."""
    one = ratios_of("prefix_ms", "state_ms", part="model", texts=1)
    series = [
        ("prefix read again", "weights", one, (3, 20)),
        ("cache, one text", "key", ratios_of("cache_ms", "state_ms", part="model", texts=1), (3, 0.5)),
        ("cache, 16 texts", "query", ratios_of("cache_ms", "state_ms", part="model", texts=16), (2, 4)),
    ]
    title = "Far above 1 against a prefix that is read again; near 1 against a cache, for one text"
    return times(series, (0.3, 1000), [1, 10, 100, 1000], (1, 3072), title)
