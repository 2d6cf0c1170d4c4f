"""How time and memory grow with the length of a text: ours beside its peers, with the exponents that fit."""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Function, compare, device, forward_backward, turns
from coursekit.experiments.memory import Peak

HEADS, WIDTH, ROUNDS, TURNS = 8, 64, 3, 9


def growth(
    contenders: Callable[[int], Mapping[str, Function]], longest: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """At doubling lengths, forward and with the gradients: milliseconds and MiB of each contender, and the ratio of
    ours to it. `contenders(t)` are functions of query, key and value, ours first; each runs from 1,024 tokens
    up to its `longest`. Then the exponents: 1 is linear, 2 is quadratic."""
    keep_what_is_freed()
    for what in ("forward", "both"):
        rows, calls, t = [], dict[str, dict[str, Callable[[], Any]]](), 1024
        while t <= max(longest.values()):
            inputs = torch.randn(3, 1, HEADS, t, WIDTH, device=device()).unbind()
            beside = {
                name: partial(once, function, inputs, what == "both")
                for name, function in contenders(t).items()
                if t <= longest[name]
            }
            rows.append({"pass": what, "t": t, "h": HEADS, "d": WIDTH, **side_by_side(beside, inputs)})
            yield rows[-1]
            for name, call in beside.items():
                calls.setdefault(name, {})[str(t)] = call
            t *= 2
        found = {f"{name}_ms": exponent_in_turns(calls[name]) for name in longest}
        found |= {f"{name}_mib": exponent(rows, f"{name}_mib") for name in longest}
        yield {"pass": what, "exponent_of": found}


def exponent_in_turns(calls: Mapping[str, Callable[[], Any]]) -> float:
    """The exponent of time of one contender: its last three lengths take turns, and the fastest of each counts, for
    whatever else the machine has to do can only add."""
    times = turns(dict(list(calls.items())[-3:]), TURNS)
    return exponent([{"t": int(t), "s": min(seconds)} for t, seconds in times.items()], "s")


def keep_what_is_freed() -> None:
    """Else every tensor above 32 MiB, and none below, is memory that the system clears anew in each call: glibc gives
    back what is so large. It would be a step between the longest lengths that no mechanism makes. (jemalloc, or
    PyTorch on a GPU, keep it by themselves.)"""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        m_mmap_max, m_trim_threshold = -4, -1
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def once(function: Function, inputs: Sequence[Tensor], backward: bool) -> Any:
    if backward:
        return forward_backward(function, inputs)
    with torch.no_grad():
        return function(*inputs)


def side_by_side(calls: Mapping[str, Callable[[], Any]], inputs: Sequence[Tensor]) -> dict[str, float]:
    ours, *peers = calls
    row = {f"{name}_mib": peak_mib(call, inputs) for name, call in calls.items()}
    for peer in peers or [ours]:
        times = compare(calls[ours], calls[peer], ROUNDS)
        row[f"{ours}_ms"] = times["ours_ms"]
        if peers:
            row |= {f"{peer}_ms": times["peer_ms"], f"{peer}_ratio": times["ratio"]}
    return row


def exponent(rows: Sequence[Mapping[str, Any]], column: str, length: str = "t") -> float:
    """The slope of a line through the logarithms, over the last three lengths: in short texts other things weigh."""
    points = np.log([[row[length], row[column]] for row in rows if column in row][-3:])
    return float(np.polyfit(*points.T, 1)[0])


def peak_mib(function: Callable[[], Any], known: Sequence[Tensor]) -> float:
    with Peak(known) as seen:
        function()
    return seen.most / 2**20
