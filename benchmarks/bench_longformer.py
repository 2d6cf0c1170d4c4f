"""`longformer_attention` with [CLS] global, beside PyTorch's attention: over the whole text, and with the pattern as
a mask. Time and peak memory against the length of the text, each with the exponent that fits the last lengths."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.longformer import longformer_attention, longformer_mask_mod
from benchmarks.measure import compare, device, forward_backward

WINDOW, HEADS, WIDTH, ROUNDS = 257, 4, 64, 3
ABOUT = {"window": WINDOW, "h": HEADS, "d": WIDTH}
LENGTHS = {"forward": (512, 1024, 2048, 4096, 8192, 16384), "both": (512, 1024, 2048, 4096, 8192)}
LONGEST_MASK = {"forward": 8192, "both": 4096}


def cls(t: int) -> Tensor:
    return torch.arange(t, device=device())[None] == 0


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return longformer_attention(query, key, value, WINDOW, cls(query.shape[2]))


def mask(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    i = torch.arange(query.shape[2], device=device())
    zero = i.new_zeros(())
    pairs = longformer_mask_mod(WINDOW, cls(len(i)))(zero, zero, i[:, None], i)
    return F.scaled_dot_product_attention(query, key, value, pairs)


CONTENDERS = {"ours": ours, "full": F.scaled_dot_product_attention, "mask": mask}


def text(t: int) -> list[Tensor]:
    return list(torch.randn(3, 1, HEADS, t, WIDTH, device=device()).unbind())


def times(which: str) -> list[dict]:
    rows = []
    for t in LENGTHS[which]:
        inputs, row = text(t), {"case": "time", "pass": which, "t": t, **ABOUT}
        for name in ("full", "mask") if t <= LONGEST_MASK[which] else ("full",):
            calls = [partial(CONTENDERS[x], *inputs) for x in ("ours", name)]
            if which == "both":
                calls = [partial(forward_backward, CONTENDERS[x], inputs) for x in ("ours", name)]
            with torch.set_grad_enabled(which == "both"):
                ms = compare(*calls, ROUNDS)
            row |= {"ours_ms": ms["ours_ms"], f"{name}_ms": ms["peer_ms"], f"{name}_ratio": ms["ratio"]}
        rows.append(row)
    return [*rows, {"case": "time", "pass": which, **exponents(rows, "ms")}]


def memory() -> list[dict]:
    rows = []
    longest = {"ours": 16384, "full": 8192, "mask": 4096}
    for t in (2048, 4096, 8192, 16384):
        mib = {f"{name}_MiB": peak(name, t) for name in CONTENDERS if t <= longest[name]}
        rows.append({"case": "memory", "pass": "both", "t": t, **ABOUT, **mib})
    return [*rows, {"case": "memory", "pass": "both", **exponents(rows, "MiB")}]


def exponents(rows: list[dict], unit: str) -> dict[str, float]:
    """The slope of a line through the logarithms: 1 is linear in the length, 2 is quadratic."""
    fits = {}
    for name in CONTENDERS:
        points = [
            [row["t"], row[f"{name}_{unit}"]] for row in rows if f"{name}_{unit}" in row and row["t"] >= 2048
        ]
        fits[f"{name}_exponent"] = float(np.polyfit(*np.log(points).T, 1)[0])
    return fits


def peak(name: str, t: int) -> float:
    """MiB that a process needs at most, beyond what it has when the inputs are there."""
    call = f"from benchmarks.bench_longformer import grown; print(grown({name!r}, {t}))"
    answer = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True)
    return float(answer.stdout)


def grown(name: str, t: int) -> float:
    inputs = text(t)
    forward_backward(CONTENDERS[name], text(128))
    before = high_water()
    forward_backward(CONTENDERS[name], inputs)
    return high_water() - before


def high_water() -> float:
    """MiB. `ru_maxrss` would not do: a process inherits it from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def run() -> list[dict]:
    torch.manual_seed(0)
    cases = [*times("forward"), *times("both")]
    return cases + memory() if sys.platform == "linux" and device() == "cpu" else cases
