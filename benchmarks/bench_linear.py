"""`linear_attention` beside PyTorch's fused causal attention and its own parallel form, as the text grows; chunks of
other sizes; a step of decoding after 1,000, 10,000 and 100,000 tokens, beside one with a cache of keys and values;
and the longest text of one head.

What measures memory has a process of its own, for the most memory that a process ever had cannot be taken back."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F

from annotated_attention.linear import linear_attention, linear_attention_step, state_of
from benchmarks.bench_attention_sinks import most
from benchmarks.growth import HEADS, ROUNDS, WIDTH, exponent, growth, once
from benchmarks.measure import Function, compare, device

LONGEST = {"ours": 32768, "causal": 8192, "parallel": 4096}
MARKS, STEPS = (1_000, 10_000, 100_000), 100
TOKENS = 2**20


def contenders(t: int) -> Mapping[str, Function]:
    return {
        "ours": linear_attention,
        "causal": partial(F.scaled_dot_product_attention, is_causal=True),
        "parallel": partial(linear_attention, form="parallel"),
    }


@torch.no_grad()
def decode(name: str) -> list[dict]:
    """At each mark: milliseconds of a token in 8 heads, a mean over 100, and KiB that hold the past. What a cache
    would hold is put there at once, and so is the state."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cases = []
    for mark in MARKS:
        past = torch.randn(3, 1, HEADS, mark + STEPS, WIDTH, device=device())
        tokens = torch.randn(STEPS, 3, 1, HEADS, 1, WIDTH, device=device())
        keys, values = past[1], past[2]
        state = state_of(past[1, :, :, :mark].exp(), past[2, :, :, :mark])
        kept = state.nbytes if name == "state" else 2 * keys[:, :, :mark].nbytes
        for timed in (False, True):
            began = time.perf_counter()
            for n, (query, key, value) in enumerate(tokens):
                if name == "state":
                    _, state = linear_attention_step(query, key, value, state)
                    continue
                end = mark + n
                keys[:, :, end : end + 1], values[:, :, end : end + 1] = key, value
                F.scaled_dot_product_attention(query, keys[:, :, : end + 1], values[:, :, : end + 1])
            if device() == "cuda":
                torch.cuda.synchronize()
            if timed:
                ms = 1e3 * (time.perf_counter() - began) / STEPS
                cases.append({"tokens": mark, "ms_a_token": ms, "past_kib": kept / 2**10})
    return cases


def longest(what: str) -> list[dict]:
    """One head, forward or with the gradients: seconds, and how much the process grew beyond its inputs."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 1, 1, TOKENS, WIDTH, device=device()).unbind()
    start, began = most(), time.perf_counter()
    once(linear_attention, inputs, what == "both")
    if device() == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return [{"pass": what, "t": TOKENS, "h": 1, "d": WIDTH, "s": seconds, "grown_mib": most() - start}]


def apart(function: str, name: str) -> list[dict]:
    call = f"import json; from benchmarks.bench_linear import {function} as f; print(json.dumps(f({name!r})))"
    answer = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def run() -> Iterator[dict]:
    torch.manual_seed(0)
    yield from growth(contenders, LONGEST)
    inputs = torch.randn(3, 1, HEADS, 8192, WIDTH, device=device()).unbind()
    for what in ("forward", "both"):
        for size in (16, 32, 128, 256):
            other = partial(linear_attention, chunk_size=size)
            calls = (
                partial(once, function, inputs, what == "both") for function in (other, linear_attention)
            )
            times = compare(*calls, ROUNDS)
            yield {"case": "chunk size", "chunk_size": size, "pass": what, "t": 8192, **times}
    for name in ("state", "cache"):
        found = apart("decode", name)
        for case in found:
            yield {"case": "decode", "past": name, "h": HEADS, "d": WIDTH, **case}
        yield {"case": "exponent", "past": name, "time": exponent(found, "ms_a_token", "tokens")}
    for what in ("forward", "both"):
        for case in apart("longest", what):
            yield {"case": "longest", **case}
