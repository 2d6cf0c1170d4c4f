"""Interleaved medians: the contenders take turns, so that whatever slows the machine slows them all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

ROUNDS = 15
SAMPLE_S = 0.02

Function = Callable[..., torch.Tensor]


def passes(
    ours: Function, peer: Function, inputs: Sequence[torch.Tensor], about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Two cases: the forward pass without gradients, and forward with the gradients at all inputs."""
    with torch.no_grad():
        forward = compare(partial(ours, *inputs), partial(peer, *inputs))
    both = compare(partial(forward_backward, ours, inputs), partial(forward_backward, peer, inputs))
    return [{**about, "pass": "forward", **forward}, {**about, "pass": "both", **both}]


def forward_backward(function: Function, inputs: Sequence[torch.Tensor]) -> Any:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves).sum(), leaves)


def compare(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds of one call of each, and their ratio: below 1 ours is faster."""
    times = medians({"ours_ms": ours, "peer_ms": peer}, rounds)
    return {**times, "ratio": times["ours_ms"] / times["peer_ms"]}


def medians(contenders: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds of one call of each."""
    loops = {name: _loops(function) for name, function in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            samples[name].append(_time(function, loops[name]))
    return {name: 1e3 * statistics.median(times) for name, times in samples.items()}


def single(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of one call of each, each timed by itself: for calls that change what the next one finds."""
    return {name: 1e3 * statistics.median(times) for name, times in turns(contenders, rounds).items()}


def turns(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each single call."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            samples[name].append(_time(function, 1))
    return samples


def _loops(function: Callable[[], Any]) -> int:
    """How many calls make a sample long enough for the clock; they also warm up."""
    _time(function, 1)
    return max(1, round(SAMPLE_S / _time(function, 1)))


def _time(function: Callable[[], Any], loops: int) -> float:
    """Seconds a call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(loops):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / loops


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
