"""The figures of the rotary page, drawn from the mechanism itself. Each function returns one SVG."""

import math

import torch

from annotated_attention.rotary import (
    apply_rotary,
    half_split_order,
    ntk_base,
    rotary_angles,
    rotary_frequencies,
    yarn_frequencies,
)
from coursekit.drawing import circle, line, svg, text


def curve(points: list[tuple[float, float]], colour: str, *, dash: str = "", width: float = 2) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    style = f'stroke="var(--{colour})" stroke-width="{width:g}" stroke-dasharray="{dash}" fill="none"'
    return f'<path d="{path}" {style}/>'


def hands() -> str:
    """A vector of three pairs at eight positions, and the angle between positions two apart."""
    n, radius, step, top, left, apart = 8, 19, 46, 34, 52, 2
    frequencies = rotary_frequencies(6, base=20.0)
    # Every pair begins as the point (1, 0), at three o'clock.
    x = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).expand(1, 1, n, 6)
    turned = apply_rotary(x, rotary_angles(torch.arange(n), 6, frequencies=frequencies))[0, 0]
    points = turned.unflatten(-1, (2, 3)).permute(2, 0, 1).tolist()

    parts = [text(left + i * step, 12, f"{i}", size=12) for i in range(n)]
    parts.append(text(0, 12, "position", anchor="start", size=12))
    for row, places in enumerate(points):
        y = top + row * (step + 4) + 6
        parts.append(text(0, y + 4, f"pair {row}", anchor="start", size=12))
        for i, (a, b) in enumerate(places):
            cx = left + i * step
            parts.append(circle(cx, y, radius, "line", 0.55))
            # Two marked pairs of tokens: (2, 0) and (7, 5).
            if i in (2, 7):
                c, d = places[i - apart]
                begin, end = (cx + radius * c, y - radius * d), (cx + radius * a, y - radius * b)
                large = int(float(apart * frequencies[row]) > math.pi)
                arc = f"A{radius} {radius} 0 {large} 0 {end[0]:.1f} {end[1]:.1f}"
                wedge = f"M{cx} {y}L{begin[0]:.1f} {begin[1]:.1f}{arc}Z"
                parts.append(f'<path d="{wedge}" fill="var(--weights)" fill-opacity="0.3"/>')
                parts.append(line(cx, y, *begin, "key", 1.5))
            colour = "query" if i in (2, 7) else "key" if i in (0, 5) else "soft"
            parts.append(line(cx, y, cx + radius * a, y - radius * b, colour, 2.4))
            parts.append(circle(cx, y, 2, colour))
    base = top + 3 * (step + 4)
    for i in (2, 7):
        begin, end = left + (i - apart) * step, left + i * step
        path = f"M{begin} {base - 6}v8h{end - begin}v-8"
        parts.append(f'<path d="{path}" stroke="var(--weights)" fill="none"/>')
        parts.append(text((begin + end) / 2, base + 18, "distance 2", colour="weights", size=12))
    title = (
        "Hands of three clocks at eight positions; between positions two apart they turn by the same angle"
    )
    return svg(left + (n - 1) * step + radius + 6, base + 26, title, parts)


def layouts() -> str:
    """Eight dimensions in both layouts: arcs join the numbers of a pair, lines say where a number goes."""
    d, step, side, top = 8, 46, 30, 44
    colours = ["query", "key", "value", "weights"]
    order = half_split_order(d).tolist()
    parts = []
    rows = {"neighbours": list(range(d)), "halves": order}
    for row, (name, places) in enumerate(rows.items()):
        y = top + row * 108
        for x, dimension in enumerate(places):
            colour, cx = colours[dimension // 2], 20 + x * step
            parts.append(
                f'<rect x="{cx - side / 2}" y="{y}" width="{side}" height="{side}" rx="4" '
                f'fill="var(--{colour})" fill-opacity="0.16" stroke="var(--{colour})"/>'
            )
            parts.append(text(cx, y + 20, str(dimension), colour="ink"))
        for pair, colour in enumerate(colours):
            a, b = (20 + places.index(2 * pair + k) * step for k in (0, 1))
            edge, lift = (y, -20) if row == 0 else (y + side, 32)
            path = f"M{a} {edge}C{a} {edge + lift} {b} {edge + lift} {b} {edge}"
            parts.append(f'<path d="{path}" stroke="var(--{colour})" stroke-width="1.6" fill="none"/>')
        edge = 14 if row == 0 else y + side + 44
        parts.append(text(2, edge, name, anchor="start"))
    for x, dimension in enumerate(order):
        ends = 20 + dimension * step, top + side, 20 + x * step, top + 108
        parts.append(line(*ends, colours[dimension // 2], 0.9))
    title = "Pairs (0,1), (2,3), (4,5), (6,7) as neighbours, and as first and second halves"
    return svg(20 + 7 * step + 20, top + 108 + side + 52, title, parts)


def scaling() -> str:
    """What each way of stretching eight times leaves of the speeds of 64 pairs, relative to training."""
    d, f, length, left, top, width, height = 128, 8.0, 4096, 58, 26, 350, 190
    trained = rotary_frequencies(d)
    turns = length * trained / (2 * math.pi)
    gamma = ((turns - 1) / 31).clamp(0, 1)
    ways = {
        "interpolation": (trained / f, "mask", ""),
        "NTK": (rotary_frequencies(d, base=ntk_base(10000.0, f, d)), "key", ""),
        "YaRN, paper": ((1 - gamma) * trained / f + gamma * trained, "query", "3 4"),
        "YaRN": (yarn_frequencies(d, f, length), "query", ""),
    }

    def x_of(pair: float) -> float:
        return left + pair / (d // 2 - 1) * width

    def y_of(share: float) -> float:
        return top - math.log2(share) / math.log2(f) * height

    unfinished = int((turns >= 1).sum()) - 0.5
    shade = f'x="{x_of(unfinished):.1f}" y="{top}" width="{width + left - x_of(unfinished):.1f}"'
    parts = [f'<rect {shade} height="{height}" fill="var(--line)" fill-opacity="0.6"/>']
    for share, name in ((1, "1"), (0.5, "½"), (0.25, "¼"), (0.125, "⅛")):
        parts.append(line(left, y_of(share), left + width, y_of(share)))
        parts.append(text(left - 8, y_of(share) + 4, name, anchor="end"))
    for pair in (0, 16, 32, 48, 63):
        parts.append(text(x_of(pair), top + height + 18, str(pair), size=12))
        number = float(turns[pair])
        label = f"{number:.0f}" if number >= 10 else f"{number:.1f}"
        parts.append(text(x_of(pair), top - 10, label, size=12))
    for frequencies, colour, dash in ways.values():
        shares = (frequencies / trained).tolist()
        points = [(x_of(p), y_of(share)) for p, share in enumerate(shares)]
        parts.append(curve(points, colour, dash=dash))
    parts.append(text(x_of(17), y_of(0.125) - 7, "interpolation", colour="mask"))
    parts.append(text(x_of(15), y_of(0.5) - 4, "NTK", anchor="end", colour="key"))
    parts.append(text(x_of(37), y_of(0.62), "YaRN", anchor="start", colour="query"))
    parts.append(text(x_of(25.5), y_of(0.3), "its paper", anchor="end", colour="query"))
    parts.append(text(0, top + height + 18, "pair", anchor="start", size=12))
    parts.append(text(0, top - 10, "turns", anchor="start", size=12))
    title = "Speeds left by position interpolation, NTK and YaRN, for 64 pairs and texts eight times longer"
    return svg(left + width + 14, top + height + 26, title, parts)
