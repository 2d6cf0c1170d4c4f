"""The figures of the pages on attention sinks, drawn from the mechanism itself. Each function returns one SVG.

`silent_head` trains the head of the figure `parking`; the proof measures the same head.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from annotated_attention.attention_sinks import SinkKVCache, sink_attention, streaming_mask
from annotated_attention.scaled_dot_product import attention_weights
from coursekit.drawing import circle, line, rect, svg, text
from coursekit.experiments import load

LENGTH, CONTENT = 16, 8
STREAMED = Path(__file__).parent / "results" / "experiment.default.json"
NOTHING = STREAMED.with_name("experiment_nothing.default.json")
SPEED = STREAMED.with_name("experiment_speed.default.json")


def frame(x: float, y: float, width: float, height: float, colour: str) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="none"'
    return f'<rect {place} stroke="var(--{colour})" stroke-width="1.5"/>'


def stream() -> str:
    """Which tokens a cache of two sinks and a window of four holds, step by step, and where they stand in it."""
    n_sinks, window, length, cell, top = 2, 4, 12, 34, 4
    cache, parts = SinkKVCache(n_sinks, window), []
    for step in range(length):
        token = torch.full((1, 1, 1, 1), float(step))
        keys, _ = cache.update(token, token)
        places = dict(zip(keys.flatten().int().tolist(), cache.positions.tolist(), strict=True))
        for n in range(step + 1):
            x, y = n * cell, top + step * 27
            if n not in places:
                parts.append(circle(x + 16, y + 12.5, 1.6, "mask"))
                continue
            colour = "weights" if n < n_sinks else "key"
            parts.append(rect(x + 1, y, cell - 3, 25, colour, 0.75 if n == step else 0.28))
            parts.append(text(x + 16, y + 17, str(places[n]), colour="ink"))
    base = top + length * 27 + 14
    parts.append(text(0, base, "first token", anchor="start", colour="weights"))
    parts.append(text(length * cell, base, "newest token", anchor="end", colour="key"))
    title = "A triangle of tokens: two columns at the left stay, a band of four along the diagonal passes by"
    return svg(length * cell + 2, base + 6, title, parts)


def eviction() -> str:
    """The weights of one query: over all keys, over a window of four, and over that window with the sink."""
    scores = torch.tensor([6.2, 0.4, 0.9, 0.1, 1.2, 0.3, 0.8, 1.5])
    # A query and keys of width 1 that have these scores.
    query, key = torch.ones(1, 1, 1, 1), scores[None, None, :, None]
    i, j = torch.tensor([7]), torch.arange(8)
    masks = {"all": None, "window": streaming_mask(i, j, 0, 4), "window and sink": streaming_mask(i, j, 1, 4)}
    width, height, parts = 46, 74, []
    for row, (name, mask) in enumerate(masks.items()):
        weights = attention_weights(query, key, mask)[0, 0, 0].tolist()
        floor = 22 + (row + 1) * (height + 32) - 22
        parts.append(text(8 * width - 4, floor - height + 6, name, anchor="end", colour="ink"))
        parts.append(line(0, floor + 0.5, 8 * width, floor + 0.5))
        for n, weight in enumerate(weights):
            x = n * width
            if mask is not None and not mask[0, n]:
                parts.append(circle(x + width / 2 - 2, floor - 5, 1.6, "mask"))
                continue
            parts.append(rect(x, floor - weight * height, width - 4, weight * height, "weights", 0.8))
            number = f"{100 * weight:.1f}" if weight < 0.095 else f"{100 * weight:.0f}"
            parts.append(text(x + width / 2 - 2, floor - weight * height - 5, number, size=12))
    title = "The first of eight keys has nearly all the weight; without it four others share what was its"
    return svg(8 * width, 22 + 3 * (height + 32) - 18, title, parts)


def distances() -> str:
    """The distance at which each query of a stream sees each key."""
    n_sinks, window, length, cell, top = 2, 4, 12, 34, 4
    i = torch.arange(length)
    mask, parts = streaming_mask(i, i, n_sinks, window), []
    for row in range(length):
        for column in range(row + 1):
            x, y = column * cell, top + row * 27
            if not mask[row, column]:
                parts.append(circle(x + 16, y + 12.5, 1.6, "mask"))
                continue
            is_sink = column < n_sinks
            place = min(row, n_sinks + window - 1) if is_sink else row
            colour, opacity = ("weights", 0.28) if is_sink else ("bias", 0.12 + 0.1 * (row - column))
            parts.append(rect(x + 1, y, cell - 3, 25, colour, opacity))
            parts.append(text(x + 16, y + 17, str(place - column), colour="ink"))
    base = top + length * 27 + 14
    parts.append(text(0, base, "sinks", anchor="start", colour="weights"))
    parts.append(text(length * cell, base, "window", anchor="end", colour="bias"))
    title = "Distances in the window are those of the text, distances to the two sinks stop at 5 and 4"
    return svg(length * cell + 2, base + 6, title, parts)


def band(xs: list[float], lows: list[float], highs: list[float], colour: str) -> str:
    """What lies between the lowest and the highest of the seeds."""
    there = [f"{x:.1f},{y:.1f}" for x, y in zip(xs, highs, strict=True)]
    back = [f"{x:.1f},{y:.1f}" for x, y in zip(xs, lows, strict=True)]
    return f'<polygon points="{" ".join(there + back[::-1])}" fill="var(--{colour})" fill-opacity="0.22"/>'


def curve(xs: list[float], ys: list[float], colour: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="var(--{colour})" stroke-width="2"/>'


def lines_of_seeds(
    seeds: dict[str, list[list[float]]],
    xs: list[float],
    place: Callable[[float], float],
    colours: dict[str, str],
) -> list[str]:
    """For each name the mean over its seeds as a line, and their range as a band."""
    parts = []
    for name, lists in seeds.items():
        numbers = list(zip(*lists, strict=True))
        lows, highs = [place(min(few)) for few in numbers], [place(max(few)) for few in numbers]
        parts.append(band(xs, lows, highs, colours[name]))
        parts.append(curve(xs, [place(sum(few) / len(few)) for few in numbers], colours[name]))
    return parts


def sinks_needed() -> str:
    """What streaming costs above reading the cache anew, by the number of sinks, for three ways to train."""
    runs, counts = load(STREAMED).runs.where(position="rotary"), (0, 1, 2, 4, 8)
    seeds = {}
    for kind in ("vanilla", "zero", "token"):
        measured = [run.measured for run in runs.where(kind=kind)]
        seeds[kind] = [[each[f"sinks_{n}"] - each["recompute"] for n in counts] for each in measured]
    every = [number for lists in seeds.values() for numbers in lists for number in numbers]
    low, high = math.floor(50 * min(every)) / 50, math.ceil(50 * max(every)) / 50
    left, right, top, bottom = 46, 400, 26, 190

    def place(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    xs = [left + 14 + n * (right - left - 28) / 4 for n in range(5)]
    parts = [text(0, 14, "bits per byte above reading anew", anchor="start", size=12)]
    for n in range(round(low * 50), round(high * 50) + 1):
        parts.append(line(left, place(n / 50), right, place(n / 50), "soft" if n == 0 else "line"))
        number = f"{n / 50:.2f}".replace("-", "−")
        parts.append(text(left - 6, place(n / 50) + 4, number, anchor="end", size=12))
    colours = {"vanilla": "key", "zero": "bias", "token": "weights"}
    parts += lines_of_seeds(seeds, xs, place, colours)
    for n, x in zip(counts, xs, strict=True):
        parts.append(text(x, bottom + 18, str(n), size=12))
    parts.append(text((left + right) / 2, bottom + 36, "sinks kept, of 32 places", size=12))
    for n, (name, said) in enumerate(
        {"token": "sink token", "zero": "zero sink", "vanilla": "vanilla"}.items()
    ):
        parts.append(text(right, top + 14 + 18 * n, said, anchor="end", colour=colours[name]))
    title = "Without a sink the model that was trained with a sink token loses; with one it does not"
    return svg(410, bottom + 44, title, parts)


def streamed() -> str:
    """Bits per byte along a stream of sixteen caches: full attention, a window, one sink and a window."""
    runs = load(STREAMED).runs.where(kind="token", position="rotary")
    names = {"full": "all of the stream", "sinks_0": "a window of 32", "sinks_1": "one sink, 31 newest"}
    seeds = {name: [run.measured["along"][name] for run in runs] for name in names}
    left, right, top, bottom, high = 34, 620, 26, 210, 6.0

    def place(value: float) -> float:
        return bottom - (value - 2) / (high - 2) * (bottom - top)

    xs = [left + (n + 0.5) * (right - left) / 16 for n in range(16)]
    parts = [text(0, 14, "bits per byte", anchor="start", size=12)]
    for n in range(2, round(high) + 1):
        parts.append(line(left, place(n), right, place(n)))
        parts.append(text(left - 6, place(n) + 4, str(n), anchor="end", size=12))
    colours = {"full": "query", "sinks_0": "bias", "sinks_1": "weights"}
    parts += lines_of_seeds(seeds, xs, place, colours)
    for n in range(0, 513, 64):
        parts.append(text(left + n * (right - left) / 512, bottom + 18, str(n), size=12))
    parts.append(text((left + right) / 2, bottom + 36, "byte of the stream", size=12))
    heights = (place(4.5), place(3.5), place(3.5) + 18)
    for (name, said), y in zip(names.items(), heights, strict=True):
        parts.append(text(right, y, said, anchor="end", colour=colours[name]))
    title = "Beyond the trained length full attention costs more and more; a window and a sink stay where they are"
    return svg(right + 14, bottom + 44, title, parts)


def quiet_texts(count: int, first_token: bool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Texts whose second token is marked and of which some others are asked. With `first_token`, the first has
    no content. Also what is to be said, the content of the marked token or nothing, and who is asked."""
    content = torch.randn(count, LENGTH, CONTENT, generator=generator)
    asked = torch.rand(count, LENGTH, generator=generator) < 0.25
    asked[:, :2] = False
    flags = torch.zeros(count, LENGTH, 4)
    flags[..., 0], flags[:, 1, 1], flags[..., 2] = 1.0, 3.0, 3.0 * asked
    if first_token:
        content[:, 0] = 0.0
        flags[:, 0, 3] = 3.0
    return torch.cat([content, flags], dim=-1), asked[..., None] * content[:, 1:2], asked


def silent_head(first_token: bool, sink_logit: bool) -> dict[str, Tensor]:
    """A head that is to repeat the marked token when asked and to be silent else, after 200 steps of training:
    its errors with all keys and with the first evicted, its weights and its values on fresh texts."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    project = nn.ModuleList(nn.Linear(CONTENT + 4, CONTENT, bias=False) for _ in range(3))
    logit = nn.Parameter(torch.full((1,), 0.0 if sink_logit else -torch.inf), requires_grad=sink_logit)
    trained = [*project.parameters(), *([logit] if sink_logit else [])]
    optimizer = torch.optim.Adam(trained, lr=0.03)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for _ in range(200):
        x, wanted, _ = quiet_texts(32, first_token, generator)
        query, key, value = (linear(x)[:, None] for linear in project)
        said = sink_attention(query, key, value, logit, causal)[:, 0]
        loss = (said - wanted).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    x, wanted, asked = quiet_texts(256, first_token, generator)
    evicted = causal.clone()
    evicted[1:, 0] = False
    with torch.no_grad():
        query, key, value = (linear(x)[:, None] for linear in project)
        # With one-hot values the result is the weights themselves.
        one_hot = torch.eye(LENGTH).expand(len(x), 1, LENGTH, LENGTH)
        found = {"weights": sink_attention(query, key, one_hot, logit, causal)[:, 0], "asked": asked}
        for name, mask in (("error", causal), ("error_evicted", evicted)):
            said = sink_attention(query, key, value, logit, mask)[:, 0]
            found[name] = (said - wanted).square().sum(-1)[:, 2:].mean()
    return found | {"value": value[:, 0].norm(dim=-1), "logit": logit.detach()}


def parking() -> str:
    """Three trained heads on one text each: with a first token that means nothing, without, with a sink logit."""
    cell, gap, top, parts = 7.2, 16, 24, []
    panels = {"first token": (True, False), "none": (False, False), "sink logit": (False, True)}
    x = 9.0
    for name, (first_token, sink_logit) in panels.items():
        head = silent_head(first_token, sink_logit)
        weights, asked = head["weights"][0].tolist(), head["asked"][0].tolist()
        left = x + (cell + 4 if sink_logit else 0)
        middle = (x + left + LENGTH * cell) / 2
        parts.append(text(middle, 14, name, colour="ink"))
        for row in range(LENGTH):
            y = top + row * cell
            if asked[row]:
                parts.append(circle(x - 6, y + cell / 2, 2.2, "query"))
            rest = max(0.0, 1 - sum(weights[row]))
            columns = [(left + n * cell, weights[row][n], "weights") for n in range(row + 1)]
            columns += [(x, rest, "bias")] if sink_logit else []
            for place, weight, colour in columns:
                parts.append(rect(place, y, cell - 1, cell - 1, colour, 0.06 + 0.9 * weight))
        x = left + LENGTH * cell + gap
    base = top + LENGTH * cell + 18
    parts += [circle(6, base - 4, 2.2, "query"), text(16, base, "is asked", anchor="start", size=12)]
    title = (
        "With a first token, rows that are not asked are all on it; without one they are spread; with a "
        "sink logit they are on a column apart"
    )
    return svg(int(x - gap) + 4, base + 6, title, parts)


def masses() -> str:
    """Where the weights of trained heads are: three seeds, two layers, four heads, if silent and if asked. The left
    half of a cell is the weight on the first token, the right half that on nothing."""
    cell, block, wide, top, parts = 15, 68, 216, 34, []
    kinds = {
        "a token in front": ("fetch", "token", "none", False),
        "a token in front, and a zero sink": ("fetch", "token", "zero", False),
        "a zero sink": ("fetch", "anywhere", "zero", False),
        "neither": ("fetch", "anywhere", "none", False),
        "a token in front, and MLPs": ("fetch", "token", "none", True),
        "a model that predicts, and copies": ("copy", "token", "none", True),
        "a language model": ("text", "token", "none", True),
    }
    for name, (task, begins, sink, mlp) in kinds.items():
        parts.append(text(0, top, name, anchor="start"))
        found = load(NOTHING).runs.where(task=task, begins=begins, sink=sink, mlp=mlp)
        columns = {"silent": 0} if task == "text" else {"silent": 0, "asked": wide}
        for (seed, run), (when, left) in itertools.product(enumerate(found), columns.items()):
            parts.append(text(left + 98, 13, when, colour="ink") if top == 34 and seed == 0 else "")
            for layer, head in itertools.product(range(2), range(4)):
                x, y = left + seed * block + head * cell, top + 7 + layer * cell
                parts.append(frame(x + 0.5, y + 0.5, cell - 2, cell - 2, "line"))
                for shift, what, colour in ((0, "first", "weights"), (7, "nothing", "bias")):
                    share = run.measured[f"{what}_{when}"][layer][head]
                    parts.append(rect(x + shift, y, 7, cell - 1, colour, share) if share > 0.02 else "")
        top += 2 * cell + 30
    for x, colour, said in ((0, "weights", "on the first token"), (140, "bias", "on nothing")):
        parts.append(rect(x, top - 17, 7, 14, colour))
        parts.append(text(x + 12, top - 6, said, anchor="start", size=12))
    title = "Silent heads are on the token in front, on nothing, or, with neither, spread; asked ones are elsewhere"
    return svg(2 * wide - 18, top + 2, title, parts)


def faster() -> str:
    """How many times as fast a step is as a recomputation, by the size of the cache: the seeds, and their mean."""
    runs, sizes = load(SPEED).runs, (256, 512, 1024, 2048, 4096)
    highest = math.log10(max(40.0, *runs.values("faster")))

    def place(ratio: float) -> float:
        return 200 - 180 * math.log10(ratio) / highest

    parts = [text(0, 12, "times as fast", anchor="start", size=12)]
    for mark in (mark for mark in (1, 10, 100, 1000) if math.log10(mark) <= highest):
        parts += [line(38, place(mark), 390, place(mark)), text(32, place(mark) + 4, str(mark), anchor="end")]
    parts.append(line(38, place(22.2), 390, place(22.2), "mask", 1.5))
    parts.append(text(42, place(22.2) - 5, "22.2, the paper's best", anchor="start", size=12))
    means = [runs.where(cache=size).spread("faster").mean for size in sizes]
    for n, (before, after) in enumerate(itertools.pairwise(means)):
        parts.append(line(62 + 74 * n, place(before), 136 + 74 * n, place(after), "weights", 2))
    for n, size in enumerate(sizes):
        parts += [
            circle(62 + 74 * n, place(x), 3, "weights") for x in runs.where(cache=size).values("faster")
        ]
        parts.append(text(62 + 74 * n, 218, f"{size:,}", size=12))
    parts.append(text(214, 238, "tokens in the cache", size=12))
    title = "Times as fast as reading the window anew, against the size of the cache, both logarithmic"
    return svg(400, 244, title, parts)
