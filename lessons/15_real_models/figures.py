"""The figures of the three pages, drawn from the mechanisms themselves. Each function returns one SVG."""

from functools import partial
from types import SimpleNamespace

import torch

from annotated_attention.grouped_query import causal_grouped_attention
from annotated_attention.real_models_modules import split_fused
from annotated_attention.real_models_weights import Llama
from annotated_attention.rotary import half_split_order, rotary_attention
from coursekit.drawing import rect, svg, text

# What each model takes of the course, and how: through the interface, or as a module of its own.
SEAMS = {
    "Llama": (True, ["8 grouped heads", "13 flash"]),
    "Mistral": (True, ["8 grouped heads", "9 window"]),
    "gpt-oss": (True, ["10 sink logits", "9 window", "13 flash"]),
    "Whisper": (True, ["4 cross-attention", "8 grouped heads"]),
    "T5": (True, ["4 cross-attention", "8 grouped heads"]),
    "BLOOM": (False, ["6 ALiBi"]),
    "Longformer": (False, ["11 window and global"]),
}
LESSONS = ["4 cross-attention", "8 grouped heads", "9 window", "10 sink logits", "13 flash", "6 ALiBi"]
LESSONS += ["11 window and global"]


def curve(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    middle = (x1 + x2) / 2
    path = f"M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"
    style = f'fill="none" stroke="var(--{colour})" stroke-width="1.5" stroke-opacity="0.7"{dash}'
    return f'<path d="{path}" {style}/>'


def seams() -> str:
    """Models on the left, lessons on the right, and one name that five models go through."""
    step, top, left, bar, right = 34, 16, 84, 176, 262
    row = {name: top + n * step for n, name in enumerate(SEAMS)}
    place = {name: top + n * step for n, name in enumerate(LESSONS)}
    middle = (row["Llama"] + row["T5"]) / 2
    parts = []
    for asks, lessons in SEAMS.values():
        for lesson in lessons if asks else []:
            parts.append(curve(bar + 22, middle, right, place[lesson], "value"))
    for name, (asks, lessons) in SEAMS.items():
        parts.append(text(left - 8, row[name] + 4, name, anchor="end", colour="ink"))
        if asks:
            parts.append(curve(left, row[name], bar - 22, middle, "query"))
        for lesson in [] if asks else lessons:
            parts.append(curve(left, row[name], right, place[lesson], "weights", ' stroke-dasharray="3 4"'))
    for lesson in LESSONS:
        number, name = lesson.split(" ", 1)
        parts.append(text(right + 24, place[lesson] + 4, number, anchor="end", colour="ink"))
        parts.append(text(right + 32, place[lesson] + 4, name, anchor="start", colour="ink"))
    parts.append(rect(bar - 22, middle - 15, 44, 30, "weights", 0.3))
    parts.append(text(bar, middle + 4, "name", colour="ink"))
    title = "Five models reach the lessons through one name in a table, two by exchanging a module of theirs"
    return svg(420, top + (len(SEAMS) - 1) * step + 16, title, parts)


def fused() -> str:
    """Where BLOOM's rows go, and where they would go if read in thirds."""
    heads, d, cell, top, left = 3, 4, 11, 44, 6
    rows = torch.arange(heads * 3 * d, dtype=torch.float32)
    right = split_fused(rows[None, None], heads)[:, 0, :, 0]
    kind = {int(x): (n, h) for n in range(3) for h in range(heads) for x in right[n, h]}
    colours, names = ("query", "key", "value"), "QKV"
    parts = []
    for place in range(heads * 3 * d):
        n, h = kind[place]
        x = left + place * cell
        parts.append(rect(x, top, cell - 1.5, 26, colours[n], 0.4 + 0.22 * h))
    for h in range(heads):
        middle = left + (h + 0.5) * 3 * d * cell
        parts.append(text(middle, top - 8, f"head {h}"))
        parts.append(text(middle, top + 46, f"taken for {names[h]}", colour=colours[h]))
        x = left + h * 3 * d * cell
        parts.append(rect(x, top + 29, 3 * d * cell - 3, 2.5, colours[h]))
    for n in range(3):
        parts.append(text(left + (n + 0.5) * d * cell, top + 18, names[n], colour="ink", size=12))
    wrong = sum(n != place // (heads * d) for place, (n, _) in kind.items()) / len(kind)
    assert wrong == 2 / 3
    title = "36 rows of a fused projection: stored head by head, and below what reading in thirds would make"
    return svg(2 * left + heads * 3 * d * cell, top + 56, title, parts)


def mistakes() -> str:
    """How far each logit moves, token by token, for three mistakes in reading one checkpoint."""
    config = SimpleNamespace(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        hidden_act="silu",
        rope_theta=500_000.0,
    )
    torch.manual_seed(0)
    model = Llama(config).double()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[1] ** -0.5)
    tokens = torch.randint(61, (8, 64))
    right, state = model(tokens), {name: x.clone() for name, x in model.state_dict().items()}

    def error() -> list[float]:
        moved = (model(tokens) - right).pow(2).mean((0, 2)) / right.pow(2).mean((0, 2))
        return moved.sqrt().tolist()

    def dealt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: torch.Tensor, j: torch.Tensor):
        return causal_grouped_attention(q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1), i, j)

    found = {}
    order = half_split_order(8).argsort()
    for block in model.blocks:
        for layer in (block.attention.w_q, block.attention.w_k):
            layer.weight.data = layer.weight.data.unflatten(0, (-1, 8))[:, order].flatten(0, 1)
    found["rows of neighbours read as halves"] = error()
    model.load_state_dict(state)
    for base, attend, name in (
        (500_000.0, dealt, "repeat for repeat_interleave"),
        (10_000.0, causal_grouped_attention, "base 10,000 for 500,000"),
    ):
        for block in model.blocks:
            block.attention.attend = partial(rotary_attention, base=base, attend=attend)
        found[name] = error()
    assert (
        found["rows of neighbours read as halves"][0] < 1e-12 < 0.1 < found["repeat for repeat_interleave"][0]
    )

    left, width, top, height, most = 46, 350, 14, 170, 1.2

    def place(token: int, x: float) -> tuple[float, float]:
        return left + width * token / 63, top + height * (1 - x / most)

    parts = []
    for percent in (0, 50, 100):
        y = place(0, percent / 100)[1]
        parts.append(f'<path d="M{left} {y:g}H{left + width}" stroke="var(--line)"/>')
        parts.append(text(left - 6, y + 4, f"{percent}%", anchor="end", size=12))
    for row, (colour, (name, values)) in enumerate(
        zip(("weights", "key", "query"), sorted(found.items(), key=lambda x: -sum(x[1])), strict=True)
    ):
        marks = " ".join("{:.1f},{:.1f}".format(*place(n, x)) for n, x in enumerate(values))
        line = f'fill="none" stroke="var(--{colour})" stroke-width="2"'
        parts.append(f'<polyline points="{marks}" {line}/>')
        y = place(0, 0.3 - 0.12 * row)[1]
        parts.append(text(left + width, y + 4, name, anchor="end", colour=colour, size=12))
    for token in (0, 16, 32, 48, 63):
        parts.append(text(place(token, 1)[0], top + height + 18, f"{token}", size=12))
    parts.append(text(left + width / 2, top + height + 36, "token", size=12))
    title = "Errors of all logits by token: two of three mistakes leave the first token as it was"
    return svg(left + width + 12, top + height + 44, title, parts)
