"""The figures of the hand-written pages, drawn from what was measured. Each function returns one SVG."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coursekit.drawing import circle, curve, svg, text

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

Points = Sequence[tuple[float, float]]

# One colour a family, and the label at the end of the line.
FAMILIES = {
    "dense": ("ink", "dense"),
    "weights": ("weights", "weights written out"),
    "flash": ("weights", "flash"),
    "grouped": ("key", "grouped"),
    "rotary": ("bias", "rotary"),
    "coordinate": ("bias", "ALiBi, a coordinate"),
    "alibi": ("bias", "ALiBi, written out"),
    "sinks": ("key", "sinks"),
    "window": ("key", "window"),
    "longformer": ("value", "Longformer"),
    "bigbird": ("value", "BigBird"),
    "linear": ("query", "linear"),
    "decayed": ("query", "decayed"),
    "cross": ("mask", "cross"),
}


def measured(name: str = "choose") -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["cases"]


def chart(
    title: str,
    lines: Mapping[str, tuple[str, str, Points, str]],
    ticks: Mapping[float, str],
    name: Callable[[float], str],
) -> str:
    """Lines on two logarithmic axes, each with its label beside its end: label, colour, points, dashes."""
    left, top, width, height, room = 60, 10, 246, 330, 142
    every = [point for _, _, points, _ in lines.values() for point in points]
    lengths = sorted({t for t, _ in every})
    low, high = min(ticks), max(ticks)

    def place(t: float, y: float) -> tuple[float, float]:
        across = math.log(t / lengths[0]) / math.log(lengths[-1] / lengths[0])
        up = math.log(y / low) / math.log(high / low)
        return left + width * across, top + height * (1 - up)

    parts = []
    for y, label in ticks.items():
        row = place(lengths[0], y)[1]
        parts.append(curve([(left, row), (left + width, row)], "line", 1))
        parts.append(text(left - 8, row + 4, label, anchor="end"))
    for t in lengths[::2]:
        parts.append(text(place(t, low)[0], top + height + 20, name(t)))
    parts.append(text(left + width / 2, top + height + 40, "tokens"))

    ends = []
    for label, colour, points, dash in lines.values():
        drawn = [place(t, y) for t, y in points]
        parts.append(curve(drawn, colour, 3 if colour == "ink" else 2, dash=dash))
        ends.append((drawn[-1], label, colour))
    parts += labels(ends, left + width + 16, top, top + height)
    return svg(left + width + room, top + height + 48, title, parts)


def labels(
    ends: Sequence[tuple[tuple[float, float], str, str]], x: float, top: float, bottom: float
) -> list[str]:
    """Labels in one column, pushed apart until none covers another, each tied to the end of its line."""
    step = 17.0
    ends = sorted(ends, key=lambda end: end[0][1])
    rows = [y for (_, y), _, _ in ends]
    for _ in range(200):
        for k in range(len(rows) - 1):
            short = step - (rows[k + 1] - rows[k])
            if short > 0:
                rows[k] -= short / 2
                rows[k + 1] += short / 2
        rows = [min(max(row, top + 4), bottom + 4) for row in rows]
    parts = []
    for (end, label, colour), row in zip(ends, rows, strict=True):
        parts.append(
            f'<path d="M{end[0]:.1f} {end[1]:.1f}L{x - 3:.1f} {row:.1f}" fill="none" '
            f'stroke="var(--{colour})" stroke-width="1" stroke-opacity="0.5"/>'
        )
        parts.append(text(x, row + 4, label, anchor="start", colour="ink"))
    return parts


def reading() -> str:
    """Time of a forward pass against that of dense attention."""
    cases = [case for case in measured() if case["pass"] == "forward"]
    lines = {}
    for variant, (colour, label) in FAMILIES.items():
        points = [(case["t"], case["ratio"]) for case in cases if case["variant"] == variant]
        lines[variant] = (label, colour, points, "")
    most = max(case["ratio"] for case in cases)
    least = min(case["ratio"] for case in cases)
    steps = [10.0**k for k in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)]
    ticks = {y: f"{y:g}" for y in steps}
    title = (
        "Mechanisms that score all pairs stay level; a window, Longformer, BigBird and linear attention fall"
    )
    return chart(title, lines, ticks, lambda t: f"{t:,.0f}")


def caches() -> str:
    """Bytes that one layer keeps, and those of latent attention by its formula."""
    cases = [case for case in measured() if case["pass"] == "next"]
    lines = {}
    for variant in ("dense", "grouped", "window", "cross", "linear"):
        colour, label = FAMILIES[variant]
        points = [(case["t"], case["bytes"]) for case in cases if case["variant"] == variant]
        lines[variant] = (label, colour, points, "")
    lines["window"] = ("window, sinks", *lines["window"][1:])
    lines["linear"] = ("linear, decayed", *lines["linear"][1:])

    # DeepSeek-V2 keeps 4 d + d / 2 numbers of a token, for all heads together.
    d = next(case["d"] for case in measured() if case["pass"] == "sizes")
    latent = [(t, 4 * (4 * d + d // 2) * t) for t, _ in lines["dense"][2]]
    lines["latent"] = ("latent", "weights", latent, "5 4")
    ticks = {2.0**k: label for k, label in ((16, "64 KiB"), (20, "1 MiB"), (24, "16 MiB"), (28, "256 MiB"))}
    title = "A cache grows with the text, slower with grouped heads; a window and a linear state stop growing"
    return chart(title, lines, ticks, lambda t: f"{t:,.0f}")


# In a plot of seven the guide's colours of families are too few.
OF_ITS_OWN = {"flash": "bias", "bigbird": "mask"}


def grown(column: str, ticks: Mapping[float, str], title: str) -> str:
    """Every mechanism against the length of the text, with the exponent that fits its last three lengths."""
    cases, lines = measured("roofline"), {}
    exponents = {case["mechanism"]: case[column] for case in cases if case["what"] == "exponent"}
    for name, exponent in exponents.items():
        colour, label = FAMILIES[name]
        colour = OF_ITS_OWN.get(name, colour)
        rows = [case for case in cases if case["what"] == "forward" and case["mechanism"] == name]
        label = {"weights": "naive"}.get(name, label)
        label += f': t<tspan dy="-5" font-size="10">{exponent:.2f}</tspan>'
        lines[name] = (label, colour, [(case["t"], case[column]) for case in rows], "")
    return chart(title, lines, ticks, lambda t: f"{t:,.0f}")


def decades(column: str) -> dict[float, str]:
    """Powers of ten around what was measured."""
    found = [case[column] for case in measured("roofline") if case["what"] == "forward"]
    steps = range(math.floor(math.log10(min(found))), math.ceil(math.log10(max(found))) + 1)
    return {10.0**k: f"{10.0**k:,g}" for k in steps}


def time_by_length() -> str:
    """Milliseconds of a forward pass."""
    title = "Time of a forward pass against the length of the text, on two logarithmic axes"
    return grown("ms", decades("ms"), title)


def memory_by_length() -> str:
    """MiB that tensors hold at most, beside the inputs."""
    title = "Memory of a forward pass against the length of the text, on two logarithmic axes"
    return grown("mib", decades("mib"), title)


def step_by_position() -> str:
    """Milliseconds of one more token behind a text."""
    lines: dict[str, tuple[str, str, Points, str]] = {}
    colours = {"rolling": "key", "sinks": "value", "growing": "ink"}
    for case in measured("steps"):
        if case["what"] == "a step":
            name = case["cache"]
            points = [*(lines[name][2] if name in lines else []), (case["position"], case["ours_ms"])]
            lines[name] = (name, colours[name], points, "")
    title = "Time of one more token against the tokens before it"
    every = [ms for _, _, points, _ in lines.values() for _, ms in points]
    steps = range(math.floor(math.log10(min(every))), math.ceil(math.log10(max(every))) + 1)
    ticks = {10.0**k: f"{10.0**k:,g}" for k in steps}
    return chart(title, lines, ticks, lambda t: f"{t:,.0f}")


def under_the_roof() -> str:
    """Operations a second against operations a byte: the roof of the machine, and each mechanism at each length."""
    left, top, width, height, room = 78, 14, 400, 330, 116
    cases = measured("roofline")
    (roof,) = (case for case in cases if case["what"] == "roof")
    points = [case for case in cases if case["what"] in ("forward", "a step")]
    places = [case["intensity"] for case in points]
    ridge = roof["flops"] / roof["bandwidth"]
    low_x, high_x = 10 ** math.floor(math.log10(min([*places, ridge]))), 2 * max([*places, ridge])
    speeds = [case["flops_a_second"] for case in points]
    low_y = 10.0 ** math.floor(math.log10(min([*speeds, low_x * roof["bandwidth"]])))
    high_y = 2 * roof["flops"]

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / low_x) / math.log(high_x / low_x)
        return left + width * across, top + height * (1 - math.log(y / low_y) / math.log(high_y / low_y))

    parts = []
    y = low_y
    while y <= high_y:
        row = place(low_x, y)[1]
        parts.append(curve([(left, row), (left + width, row)], "line", 1))
        parts.append(text(left - 8, row + 4, f"{y / 1e9:,g} G/s", anchor="end"))
        y *= 10
    x = float(low_x)
    while x <= high_x:
        parts.append(text(place(x, low_y)[0], top + height + 20, f"{x:g}"))
        x *= 10
    parts.append(text(left + width / 2, top + height + 40, "operations for each byte"))
    corner = [(low_x, low_x * roof["bandwidth"]), (ridge, roof["flops"]), (high_x, roof["flops"])]
    parts.append(curve([place(*point) for point in corner], "ink", 2))
    names = list(dict.fromkeys(case["mechanism"] for case in points))
    for case in points:
        name, radius = case["mechanism"], 5.0 if case["what"] == "forward" else 3.5
        colour = OF_ITS_OWN.get(name, FAMILIES[name][0])
        opacity = 0.85 if case["what"] == "forward" else 0.5
        parts.append(circle(*place(case["intensity"], case["flops_a_second"]), radius, colour, opacity))
    for k, name in enumerate(names):
        colour = OF_ITS_OWN.get(name, FAMILIES[name][0])
        row = top + 18 + 22 * k
        parts.append(circle(left + width + 22, row, 5, colour, 0.85))
        label = {"weights": "naive"}.get(name, FAMILIES[name][1])
        parts.append(text(left + width + 34, row + 4, label, anchor="start", colour="ink"))
    title = "Operations a second against operations for each byte, under the roof of this machine"
    return svg(left + width + room, top + height + 48, title, parts)
