"""`sliding_window_attention` beside PyTorch's fused attention, once with the window as a mask and once causal.

Time and peak memory against the length of the text, each with the exponent that fits; then small windows, and
the same tiles with lesson 1's formula in them."""

import json
import subprocess
import sys
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from annotated_attention.sliding_window import sliding_window_attention, sliding_window_mask
from benchmarks.measure import compare, device, forward_backward

WINDOW, HEADS, WIDTH, ROUNDS = 512, 8, 64, 3
ABOUT = {"window": WINDOW, "h": HEADS, "d": WIDTH}


def ours(query: Tensor, key: Tensor, value: Tensor, window: int = WINDOW) -> Tensor:
    return sliding_window_attention(query, key, value, window)


def masked(query: Tensor, key: Tensor, value: Tensor, window: int = WINDOW) -> Tensor:
    mask = sliding_window_mask(query.shape[2], key.shape[2], window, device=query.device)
    return F.scaled_dot_product_attention(query, key, value, mask)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def tiles_of_lesson_1(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
        return scaled_dot_product_attention(q, k, v, mask, scale=scale)

    with patch.object(F, "scaled_dot_product_attention", attend):
        return ours(query, key, value)


CONTENDERS = {"ours": ours, "masked": masked, "causal": causal}


def text(t: int) -> list[Tensor]:
    return list(torch.randn(3, 1, HEADS, t, WIDTH, device=device()).unbind())


def peak(name: str, t: int, both: bool) -> float:
    """MiB that the process needs at most, beyond what it has when the inputs are there. A process of its own,
    for the most that it ever had cannot be taken back; on a GPU its allocator says it."""
    call = f"from benchmarks.bench_sliding_window import grown; print(grown({name!r}, {t}, {both}))"
    answer = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def grown(name: str, t: int, both: bool) -> float:
    import resource

    def most() -> float:
        if device() == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def work(inputs: list[Tensor]) -> None:
        if both:
            forward_backward(CONTENDERS[name], inputs)
        else:
            with torch.no_grad():
                CONTENDERS[name](*inputs)

    inputs = text(t)
    work(text(64))
    before = most()
    work(inputs)
    return most() - before


def exponent(rows: list[dict], column: str) -> float:
    """The slope of a line through the logarithms: 1 is linear in the length, 2 is quadratic."""
    points = np.log([[row["t"], row[column]] for row in rows])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def run() -> list[dict]:
    torch.manual_seed(0)
    cases = []
    for which, lengths in {"forward": (2048, 4096, 8192, 16384), "both": (1024, 2048, 4096)}.items():
        times = []
        for t in lengths:
            inputs, row = text(t), {"case": "time", "pass": which, "t": t, **ABOUT}
            for name in ("masked", "causal"):
                calls = [partial(f, *inputs) for f in (ours, CONTENDERS[name])]
                if which == "both":
                    calls = [partial(forward_backward, f, inputs) for f in (ours, CONTENDERS[name])]
                with torch.set_grad_enabled(which == "both"):
                    ms = compare(*calls, rounds=ROUNDS)
                row |= {"ours_ms": ms["ours_ms"], f"{name}_ms": ms["peer_ms"], f"{name}_ratio": ms["ratio"]}
            times.append(row)
        fits = {f"{name}_exponent": exponent(times, f"{name}_ms") for name in CONTENDERS}
        cases += [*times, {"case": "time", "pass": which, **fits}]

    for which in ("forward", "both"):
        sizes = []
        for t in (4096, 8192, 16384):
            names = CONTENDERS if t < 16384 else ("ours", "causal")
            mib = {f"{name}_MiB": peak(name, t, which == "both") for name in names}
            sizes.append({"case": "memory", "pass": which, "t": t, **ABOUT, **mib})
        fits = {f"{name}_exponent": exponent(sizes, f"{name}_MiB") for name in ("ours", "causal")}
        fits["masked_exponent"] = exponent(sizes[:2], "masked_MiB")
        cases += [*sizes, {"case": "memory", "pass": which, **fits}]

    inputs = text(8192)
    with torch.no_grad():
        for window in (1, 8, 64):
            calls = partial(ours, *inputs, window), partial(ours, *inputs)
            ms = compare(*calls, rounds=ROUNDS)
            cases.append({"case": "small window", "t": 8192, "window": window, "ms": ms["ours_ms"]})
    for which in ("forward", "both"):
        pair = partial(ours, *inputs), partial(tiles_of_lesson_1, *inputs)
        if which == "both":
            pair = tuple(partial(forward_backward, f, inputs) for f in (ours, tiles_of_lesson_1))
        with torch.set_grad_enabled(which == "both"):
            ms = compare(*pair, rounds=ROUNDS)
        row = {"ours_ms": ms["ours_ms"], "lesson_1_ms": ms["peer_ms"], "ratio": ms["ratio"]}
        cases.append({"case": "kernel in the tiles", "pass": which, "t": 8192, **ABOUT, **row})
    return cases
