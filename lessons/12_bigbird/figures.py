"""The figures of the BigBird pages, drawn from the mechanism itself and from what was measured. Each function returns
one SVG."""

import json
import math
from pathlib import Path

from annotated_attention.bigbird import BigBirdPlan, bigbird_plan
from annotated_attention.bigbird_graph import path_lengths
from coursekit.drawing import path, rect, svg, text

SAMPLE = bigbird_plan(16, n_window=3, n_global=2, n_random=2, seed=2)
COLOURS = {"global": "bias", "window": "key", "random": "weights"}


def kinds(plan: BigBirdPlan, i: int) -> dict[int, str]:
    """Which kind of arc leads from query block `i` to each key block that it sees."""
    lists = {"global": plan.global_blocks, "window": plan.window_blocks, "random": plan.random_blocks}
    return {j: kind for kind, blocks in lists.items() for j in blocks[i]}


def plan() -> str:
    """A plan of 16 blocks."""
    drawn, cell, left, top = SAMPLE, 22, 26, 44
    side = drawn.n_blocks * cell
    parts = [text(left + side / 2, 34, "blocks of keys")]
    for place, kind in enumerate(COLOURS):
        x = left + place * 124
        parts += [rect(x, 3, 13, 13, COLOURS[kind], 0.85)]
        parts += [text(x + 20, 14, kind, anchor="start", colour="ink")]
    middle = top + side / 2
    parts.append(f'<g transform="rotate(-90 14 {middle:g})">{text(14, middle, "blocks of queries")}</g>')
    for i in range(drawn.n_blocks):
        seen = kinds(drawn, i)
        for j in range(drawn.n_blocks):
            x, y = left + j * cell, top + i * cell
            if j in seen:
                parts.append(rect(x + 1, y + 1, cell - 2, cell - 2, COLOURS[seen[j]], 0.85))
            else:
                parts.append(rect(x + 9.5, y + 9.5, 3, 3, "mask", 0.35, 1.5))
    title = "Which of 16 key blocks each of 16 query blocks sees: 2 global, 3 in the window, 2 random"
    return svg(left + side + 2, top + side + 2, title, parts)


def strip() -> str:
    """The key blocks of one row where they lie, and side by side as its queries meet them."""
    drawn, i, cell, left, top, gap = SAMPLE, 9, 26, 4, 22, 62
    seen = kinds(drawn, i)
    n, row = drawn.n_blocks, sorted(seen)
    start = left + (n - len(row)) * cell / 2
    parts = [text(left, 14, f"{n} blocks of keys", anchor="start")]
    parts += [text(start - 12, top + cell + gap + 18, f"strip of row {i}", anchor="end")]
    for j in range(n):
        x = left + j * cell
        parts.append(
            rect(
                x + 1, top, cell - 2, cell, COLOURS.get(seen.get(j, ""), "mask"), 0.85 if j in seen else 0.14
            )
        )
        parts.append(
            text(x + cell / 2, top + 17, str(j), colour="soft" if j not in seen else "paper", size=11)
        )
    below = top + cell + gap
    for place, j in enumerate(row):
        x, y = left + (j + 0.5) * cell, start + (place + 0.5) * cell
        curve = f"M{x:g} {top + cell + 2}C{x:g} {top + cell + 34} {y:g} {below - 34} {y:g} {below - 2}"
        parts.append(path(curve, COLOURS[seen[j]], 1.4, 0.8))
        parts.append(rect(y - cell / 2 + 1, below, cell - 2, cell, COLOURS[seen[j]], 0.85))
        parts.append(text(y, below + 17, str(j), colour="paper", size=11))
    title = f"Row {i} of the plan: {len(row)} of {n} key blocks, scattered above, side by side below"
    return svg(2 * left + n * cell, below + cell + 8, title, parts)


def reach() -> str:
    """Four plans of 24 blocks, and how many layers each block is from the last."""
    n, radius, width, height = 24, 84, 206, 226
    panels = [("window", (3, 0, 0)), ("and 1 random", (3, 0, 1))]
    panels += [("and 3 random", (3, 0, 3)), ("and 1 global", (3, 1, 0))]
    parts = []
    for panel, (name, (n_window, n_global, n_random)) in enumerate(panels):
        drawn = bigbird_plan(n, n_window=n_window, n_global=n_global, n_random=n_random, seed=3)
        lengths = path_lengths(drawn)[-1].tolist()
        x0, y0 = (panel % 2) * width + width / 2, (panel // 2) * height + 96
        # From the lower left over the top to the lower right: the ends of a text do not touch.
        angles = [math.radians(235 - 290 * j / (n - 1)) for j in range(n)]
        places = [(x0 + radius * math.cos(angle), y0 - radius * math.sin(angle)) for angle in angles]
        for i in range(n):
            for j, kind in kinds(drawn, i).items():
                if i == j or (kind == "global" and j != 0):
                    continue
                (x1, y1), (x2, y2) = places[i], places[j]
                # Chords bend towards the middle.
                bend = 0.0 if kind == "window" else 0.35
                x, y = (x1 + x2) / 2 * (1 - bend) + x0 * bend, (y1 + y2) / 2 * (1 - bend) + y0 * bend
                curve = f"M{x1:.1f} {y1:.1f}Q{x:.1f} {y:.1f} {x2:.1f} {y2:.1f}"
                parts.append(path(curve, COLOURS[kind], 1.2, 0.8 if kind == "window" else 0.5))
        longest = int(max(lengths))
        for (x, y), length in zip(places, lengths, strict=True):
            shade = 0.06 + 0.94 * (1 - length / longest)
            circle = f'cx="{x:.1f}" cy="{y:.1f}" r="7.5"'
            parts.append(f'<circle {circle} fill="var(--paper)"/>')
            fill = f'fill="var(--query)" fill-opacity="{shade:.2f}" stroke="var(--query)"'
            parts.append(f"<circle {circle} {fill}/>")
        parts.append(text(x0, y0 + 84, name, colour="ink"))
        parts.append(text(x0, y0 + 102, f"{longest} layers"))
    title = "To the last of 24 blocks: 23 layers by window, fewer with random arcs, 2 by a hub"
    return svg(2 * width, 2 * height, title, parts)


def growth() -> str:
    """The longest shortest path of four plans, against the number of blocks."""
    left, bottom, step, unit = 40, 250, 58, 15
    lines = [
        ("window", (3, 0, 0), "key", [8, 16]),
        ("and 1 random", (3, 0, 1), "weights", [8, 16, 32, 64, 128, 256, 512]),
        ("and 3 random", (3, 0, 3), "weights", [8, 16, 32, 64, 128, 256, 512]),
        ("and 1 global", (3, 1, 0), "bias", [8, 16, 32, 64, 128, 256, 512]),
    ]

    def place(n: int, length: float) -> tuple[float, float]:
        return left + (math.log2(n) - 3) * step, bottom - length * unit

    parts = []
    for layers in (0, 5, 10, 15):
        y = bottom - layers * unit
        parts += [path(f"M{left - 6} {y}H{left + 6 * step + 6}", "line")]
        parts += [text(left - 12, y + 4, str(layers), anchor="end", size=12)]
    for n in (8, 16, 32, 64, 128, 256, 512):
        parts.append(text(place(n, 0)[0], bottom + 18, str(n), size=12))
    parts.append(text(left + 3 * step, bottom + 36, "blocks"))
    parts.append(text(left - 26, 12, "layers", anchor="start"))
    for name, (n_window, n_global, n_random), colour, sizes in lines:
        points = []
        for n in sizes:
            drawn = bigbird_plan(n, n_window=n_window, n_global=n_global, n_random=n_random, seed=0)
            points.append(place(n, path_lengths(drawn).max().item()))
        parts.append(path("M" + "L".join(f"{x:g} {y:g}" for x, y in points), colour, 1.8))
        parts += [f'<circle cx="{x:g}" cy="{y:g}" r="3.4" fill="var(--{colour})"/>' for x, y in points]
        x, y = points[-1]
        parts.append(text(x + 12, y + 4, name, anchor="start", colour=colour))
    title = (
        "Layers from end to end: with a window they grow as the blocks, with random arcs as their logarithm"
    )
    return svg(left + 6 * step + 118, bottom + 44, title, parts)


def measured(**settings: int | str) -> list[dict]:
    """What the experiment measured with these settings, one for each seed."""
    file = Path(__file__).parent / "results" / "experiment.default.json"
    runs = json.loads(file.read_text("utf-8"))["runs"]
    return [run["measured"] for run in runs if settings.items() <= run["settings"].items()]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def recall() -> str:
    """One fact: right answers by distance in blocks, for six patterns and one to three layers, and what the plans
    predict."""
    patterns = ["window", "random", "window and random", "longformer", "window and global", "bigbird"]
    width, height, gap, top, side = 172, 74, 52, 44, 66
    parts = [text(34, 14, "right answers", anchor="start", size=12)]
    for panel, pattern in enumerate(patterns):
        left = 38 + panel % 2 * (width + side)
        floor = top + panel // 2 * (height + gap) + height
        for share in (0, 0.5, 1):
            y = floor - height * share
            parts.append(path(f"M{left} {y:g}h{width}", "line"))
            if panel % 2 == 0:
                parts.append(text(left - 6, y + 4, f"{share:.0%}", anchor="end", size=12))
        parts.append(text(left, floor - height - 8, pattern, anchor="start", colour="ink"))
        for layers in (3, 2, 1):
            runs = measured(pattern=pattern, layers=layers, facts=1)
            if not runs:
                continue
            rights = list(zip(*(run["right_by_distance"] for run in runs), strict=True))
            paths = [mean(each) for each in zip(*(run["path_by_distance"] for run in runs), strict=True)]
            step = width / (len(rights) - 1)
            for r, (right, share) in enumerate(zip(rights, paths, strict=True)):
                guess = share + (1 - share) / 8
                x, opacity = left + r * step, 1.15 - 0.25 * layers
                low, high, y = (floor - height * share for share in (min(right), max(right), mean(right)))
                parts.append(path(f"M{x:.1f} {low:.1f}V{high:.1f}", "weights", 2, opacity))
                parts.append(rect(x - 3, y - 3, 6, 6, "weights", opacity, rx=3))
                mark = path(f"M{x - 5:.1f} {floor - height * guess:.1f}h10", "ink", 1.3)
                parts.append(mark)
        for r in (0, 5, 10):
            parts.append(text(left + r * step, floor + 16, f"{r}", size=12))
    parts.append(text(left + width, floor + 34, "blocks between fact and question", anchor="end", size=12))
    title = "Six patterns: where the plan has a path, the answer is right; elsewhere it is a guess"
    return svg(38 + 2 * width + side + 16, floor + 42, title, parts)


def bridge() -> str:
    """One fact against eight, in two layers: right answers where the way takes two arcs."""
    names = {
        "dense": "dense (one arc)",
        "window and random": "window and random",
        "longformer": "one global token",
        "window and global": "four global tokens",
        "bigbird": "four, and random",
    }
    left, width, row, top = 138, 240, 30, 30
    floor, parts = top + row * len(names), []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + width * share
        parts.append(path(f"M{x:g} {top - 8}V{floor}", "line"))
        parts.append(text(x, floor + 18, f"{share:.0%}", size=12))
    parts.append(path(f"M{left + width / 8:g} {top - 8}V{floor}", "bias", 1.2))
    for place, (pattern, name) in enumerate(names.items()):
        y = top + place * row + 8
        parts.append(text(left - 12, y + 4, name, anchor="end", size=12))
        for facts, colour in ((1, "key"), (8, "query")):
            runs = measured(pattern=pattern, layers=2, facts=facts)
            shares = [run["right_by_hops"][2] or run["right_by_hops"][1] for run in runs]
            x, low, high = (left + width * share for share in (mean(shares), min(shares), max(shares)))
            parts.append(path(f"M{low:.1f} {y}H{high:.1f}", colour, 2.5))
            parts.append(rect(x - 4, y - 4, 8, 8, colour, rx=4))
    parts.append(text(left, 12, "one fact", anchor="start", colour="key", size=12))
    parts.append(text(left + 72, 12, "eight facts", anchor="start", colour="query", size=12))
    parts.append(text(left + width, floor + 36, "right answers over two arcs", anchor="end", size=12))
    title = "One fact crosses every bridge; of eight, much is lost on a narrow one"
    return svg(left + width + 24, floor + 42, title, parts)
