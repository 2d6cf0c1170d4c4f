"""One more token behind a text, with each kind of cache, as the text grows from 1,000 tokens to 100,000."""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.attention_sinks import SinkKVCache
from annotated_attention.kv_cache import KVCache
from annotated_attention.rotary import rotary_attention
from annotated_attention.sliding_window import RollingKVCache, causal_window_attention
from benchmarks.growth import HEADS, WIDTH
from benchmarks.measure import device

SINKS, WINDOW = 4, 512
POSITIONS = (1_000, 3_000, 10_000, 30_000, 100_000)
ROUNDS, STEPS = 15, 10

Cache = RollingKVCache | SinkKVCache | KVCache


def step(cache: Cache, token: Tensor) -> Tensor:
    """Update and attention: what a cache has to do with a token. `token` is query, key and value."""
    query, key, value = token
    keys, values = cache.update(key, value)
    if isinstance(cache, KVCache):
        return F.scaled_dot_product_attention(query, keys, values)
    j = cache.positions
    i = j.max()[None]
    if isinstance(cache, SinkKVCache):
        return rotary_attention(query, keys, values, i, j)
    return causal_window_attention(query, keys, values, i, j, window=WINDOW)


def reach(cache: Cache, have: int, position: int) -> None:
    """Reads on. What is bounded goes step by step; what grows takes all in at once, for it holds the same then."""
    if isinstance(cache, KVCache):
        key = torch.randn(1, HEADS, position - have, WIDTH, device=device())
        cache.update(key, key)
        return
    token = torch.randn(3, 1, HEADS, 1, WIDTH, device=device())
    for _ in range(position - have):
        cache.update(token[1], token[2])


@torch.no_grad()
def steps() -> list[dict]:
    """Median milliseconds of a step. Caches at all positions take turns, so that none has the quiet moments."""
    kinds: dict[str, Callable[[int], Cache]] = {
        "rolling": lambda n: RollingKVCache(WINDOW),
        "sinks": lambda n: SinkKVCache(SINKS, WINDOW - SINKS),
        "full": lambda n: KVCache(n + STEPS * (ROUNDS + 1)),
    }
    held: dict[tuple[str, int], Cache] = {}
    for name, make in kinds.items():
        have, cache = 0, make(0)
        for position in POSITIONS:
            if name == "full":
                have, cache = 0, make(position)
            reach(cache, have, position)
            have, held[name, position] = position, copy.deepcopy(cache)
    token = torch.randn(3, 1, HEADS, 1, WIDTH, device=device())
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in held}
    for turn in range(ROUNDS + 1):
        for key, cache in held.items():
            ms = _time(partial(step, cache, token))
            if turn:
                samples[key].append(ms)
    return [
        {"what": "a step", "cache": name, "position": position, "ours_ms": statistics.median(times)}
        for (name, position), times in samples.items()
    ]


def _time(call: Callable[[], Tensor]) -> float:
    """Milliseconds of a step, a mean over a few."""
    if device() == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        call()
    if device() == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / STEPS
