"""The roofline: how fast a machine could be at best, from two numbers that are measured here and not taken from a data
sheet, and what a mechanism would then take.

A computation of F operations that moves B bytes takes at least F / (operations a second) and at least
B / (bytes a second); whichever is longer is the prediction. Operations are those of multiplications and additions in
products of matrices, two for each pair of numbers; exponentials, masks and what Python does are not in it. Bytes are
the inputs, read once or as often as the formula of the page says, and the output.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from annotated_attention.bigbird import BigBirdPlan, bigbird_cost
from annotated_attention.flash import flash_traffic
from annotated_attention.linear import linear_cost
from annotated_attention.sliding_window import sliding_window_cost
from benchmarks.measure import device

ROUNDS, SECONDS = 8, 0.1


@dataclass(frozen=True)
class Work:
    """What is done: operations, and bytes moved."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Roof:
    """What a machine does at best: operations a second, and bytes a second."""

    flops: float
    bandwidth: float

    def predicted_ms(self, work: Work) -> float:
        return 1e3 * max(work.flops / self.flops, work.bytes / self.bandwidth)

    def __or__(self, other: "Roof") -> "Roof":
        """The better of two measurements of one machine."""
        return Roof(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))


def beside(roof: Roof, work: Work, ms: float) -> dict[str, float]:
    """The columns of a case: what was done, how long it had to take, how long it took, and how many times as long."""
    predicted = roof.predicted_ms(work)
    return {
        "flops": work.flops,
        "bytes": work.bytes,
        "intensity": work.intensity,
        "predicted_ms": predicted,
        "ms": ms,
        "times_predicted": ms / predicted,
        "flops_a_second": 1e3 * work.flops / ms,
    }


def roof(dtype: torch.dtype, n: int | None = None, mib: int | None = None) -> Roof:
    """Measured now: a product of two matrices of n by n numbers, and a sum of two arrays of so many MiB."""
    on_gpu = device() == "cuda"
    n, mib = n or (8192 if on_gpu else 2048), mib or (2048 if on_gpu else 512)
    a, b = torch.randn(2, n, n, device=device()).to(dtype)
    flops = 2 * n**3 / fastest(lambda: torch.mm(a, b))
    x, y = torch.randn(2, mib * 2**18, device=device())
    out = torch.empty_like(x)
    moved = 3 * x.nbytes / fastest(lambda: torch.add(x, y, out=out))
    return Roof(flops, moved)


def fastest(function: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls: nothing makes a machine faster than it is."""
    times: list[float] = []
    began = time.perf_counter()
    function()
    while len(times) < ROUNDS or (time.perf_counter() - began < SECONDS and len(times) < 1000):
        if device() == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device() == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def once_each(t: int, s: int, h: int, g: int, d: int, itemsize: int) -> int:
    """Bytes of query, key, value and output, if each is moved once."""
    return itemsize * (2 * t * h * d + 2 * s * g * d)


def products(scores: float, h: int, d: int) -> float:
    """Operations of h heads for so many scores each: two for each number of a key and of a value."""
    return 4 * scores * h * d


def causal_scores(t: int) -> int:
    return t * (t + 1) // 2


def naive(t: int, h: int, d: int, itemsize: int) -> Work:
    """Lesson 1's formula: all scores, also those that the mask takes away."""
    return Work(products(t * t, h, d), itemsize * h * flash_traffic(t, t, d, d)[0])


def tiled(t: int, h: int, d: int, itemsize: int, block_q: int = 256) -> Work:
    """Causal attention in tiles: the scores that are seen, and the traffic of lesson 13."""
    numbers = flash_traffic(t, t, d, d, is_causal=True, block_q=block_q)[1]
    return Work(products(causal_scores(t), h, d), itemsize * h * numbers)


def windowed(t: int, h: int, d: int, itemsize: int, window: int) -> Work:
    wanted, _ = sliding_window_cost(t, window, 1)
    return Work(products(wanted, h, d), once_each(t, t, h, h, d, itemsize))


def longformer(t: int, h: int, d: int, itemsize: int, window: int, n_global: int) -> Work:
    """A window to both sides, global keys for all, and global queries that see all."""
    wanted, _ = sliding_window_cost(t, window, 1, is_causal=False)
    return Work(products(wanted + 2 * n_global * t, h, d), once_each(t, t, h, h, d, itemsize))


def bigbird(t: int, h: int, d: int, itemsize: int, block_size: int, plan: BigBirdPlan) -> Work:
    return Work(products(bigbird_cost(t, block_size, plan), h, d), once_each(t, t, h, h, d, itemsize))


def linear(t: int, h: int, d: int, itemsize: int, chunk_size: int = 64) -> Work:
    return Work(h * linear_cost(t, d, d, chunk_size)[0], once_each(t, t, h, h, d, itemsize))


def step(s: int, h: int, g: int, d: int, itemsize: int) -> Work:
    """One query behind s keys."""
    return Work(products(s, h, d), once_each(1, s, h, g, d, itemsize))
