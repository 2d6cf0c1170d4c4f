"""A stream of 100,000 tokens through a cache with sinks, and beside it one that grows: milliseconds a token and
memory at 1,000, 10,000 and 100,000 tokens; then the stream in one pass, and what sink logits cost.

Each cache has a process of its own, for the most memory that a process ever had cannot be taken back. To read
100,000 tokens into the growing cache would take an hour: what it would hold is put there at once, and the last
steps are timed. The weights are random: time does not depend on what is read."""

import json
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from annotated_attention.attention_sinks import (
    SinkKVCache,
    fused_sink_attention,
    sink_attention,
    streaming_rotary,
)
from annotated_attention.kv_cache import KVCache
from annotated_attention.language_model import LanguageModel, LanguageModelConfig, SelfAttention
from annotated_attention.rotary import rotary_attention
from benchmarks.growth import ROUNDS, exponent, once
from benchmarks.measure import compare, device, passes

N_SINKS, WINDOW = 4, 252
MARKS, LAST = (1_000, 10_000, 100_000), 100
CONFIG = LanguageModelConfig(
    d_model=64,
    n_layers=1,
    n_heads=4,
    position_embedding="none",
    make_attention=lambda config, layer: SelfAttention(64, 4, attend=rotary_attention),
)


def most() -> float:
    """MiB that this process has had at most. (`ru_maxrss` would not do: a process inherits it from its parent.)"""
    if device() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")), math.nan)


@torch.no_grad()
def read(name: str) -> list[dict]:
    """At each mark: the milliseconds of a token, a mean over the last 100, the bytes that hold tokens, and how
    much the process has grown since the stream began."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LanguageModel(CONFIG).to(device()).eval()
    tokens = torch.randint(256, (1, max(MARKS)), device=device())
    cache = SinkKVCache(N_SINKS, WINDOW) if name == "sinks" else KVCache(max(MARKS))
    n, found = 1, []
    model(tokens[:, :1], caches=[cache])
    start = most()
    for mark in MARKS:
        if isinstance(cache, KVCache):
            key = torch.randn(1, 4, mark - LAST - n, 16, device=device())
            cache.update(key, key)
            n = mark - LAST
        while n < mark - LAST:
            model(tokens[:, n : n + 1], caches=[cache])
            n += 1
        began = time.perf_counter()
        while n < mark:
            model(tokens[:, n : n + 1], caches=[cache])
            n += 1
        if device() == "cuda":
            torch.cuda.synchronize()
        ms = 1e3 * (time.perf_counter() - began) / LAST
        kib = cache.positions.numel() * 2 * 64 * 4 / 2**10
        found.append({"tokens": mark, "ms_a_token": ms, "cache_kib": kib, "grown_mib": most() - start})
    return found


def apart(name: str) -> list[dict]:
    call = (
        f"import json; from benchmarks.bench_attention_sinks import read; print(json.dumps(read({name!r})))"
    )
    answer = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def run() -> list[dict]:
    cases = []
    for name in ("sinks", "growing"):
        found = apart(name)
        about = {"case": "stream", "cache": name, "n_sinks": N_SINKS, "window": WINDOW}
        cases += [about | case for case in found]
        cases.append({"case": "exponent", "cache": name, "time": exponent(found, "ms_a_token", "tokens")})

    # The pass over a whole text beside causal attention to all of it, with lesson 5's rotary positions.
    causal = lambda q, k, v, i, j: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    for t in (2048, 8192):
        i = torch.arange(t, device=device())
        inputs = list(torch.randn(3, 1, 8, t, 64, device=device()).unbind())
        ours = partial(streaming_rotary, i=i, j=i, n_sinks=N_SINKS, window=WINDOW)
        dense = partial(rotary_attention, i=i, j=i, attend=causal)
        for what in ("forward", "both"):
            mine, theirs = (partial(once, function, inputs, what == "both") for function in (ours, dense))
            cases.append({"case": "one pass", "t": t, "pass": what, **compare(mine, theirs, ROUNDS)})

    inputs = list(torch.randn(3, 1, 8, 512, 64, device=device()).unbind())
    logits = torch.zeros(8, device=device())
    plain = partial(F.scaled_dot_product_attention, is_causal=True)
    sinks = partial(sink_attention, sink_logits=logits, is_causal=True)
    fused = partial(fused_sink_attention, sink_logits=logits, is_causal=True)
    about = {"t": 512, "h": 8, "d": 64}
    cases += passes(sinks, plain, inputs, {"case": "sink logits", **about})
    return cases + passes(fused, plain, inputs, {"case": "sink logits, nothing is a key", **about})
