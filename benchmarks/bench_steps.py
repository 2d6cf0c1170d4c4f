"""One more token, wherever it stands: its key and value go into a rolling cache, one with sinks or one that grows, and
one query is asked. Behind 1,000 to 100,000 tokens; the two that stay small take turns, and the one that grows comes
after them, since what it reads would push theirs out of the processor's own memory."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.attention_sinks import SinkKVCache
from annotated_attention.kv_cache import KVCache
from annotated_attention.rotary import rotary_attention
from annotated_attention.sliding_window import RollingKVCache
from benchmarks.growth import HEADS, WIDTH, exponent
from benchmarks.measure import device, single

POSITIONS = (1_000, 3_000, 10_000, 30_000, 100_000)
WINDOW, SINKS = 512, 4
STEPS = 100
# A text goes into the caches in pieces; with sinks a token at a time.
PIECE = 1_000

Cache = RollingKVCache | SinkKVCache | KVCache


def read(cache: Cache, n: int) -> None:
    """So many tokens go into the cache, and nothing is asked."""
    piece = 1 if isinstance(cache, SinkKVCache) else PIECE
    while n > 0:
        cache.update(*torch.randn(2, 1, HEADS, min(piece, n), WIDTH, device=device()))
        n -= piece


def step(cache: Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    keys, values = cache.update(key, value)
    if isinstance(cache, SinkKVCache):
        # Positions are those inside the cache, so its keys are turned anew in every step.
        j = cache.positions
        return rotary_attention(query, keys, values, j.max()[None], j)
    return F.scaled_dot_product_attention(query, keys, values)


@torch.no_grad()
def run() -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    one = torch.randn(3, 1, HEADS, 1, WIDTH, device=device()).unbind()
    rows: dict[str, list[dict[str, Any]]] = {"rolling": [], "sinks": [], "growing": []}
    caches: dict[str, Cache] = {
        "rolling": RollingKVCache(WINDOW),
        "sinks": SinkKVCache(SINKS, WINDOW - SINKS),
    }
    before = 0
    for position in POSITIONS:
        for cache in caches.values():
            read(cache, position - before)
        growing = KVCache(position + STEPS)
        read(growing, position)
        calls = {name: partial(step, cache, *one) for name, cache in caches.items()}
        before = position + STEPS
        times = single(calls, STEPS) | single({"growing": partial(step, growing, *one)}, STEPS)
        for name, ms in times.items():
            case = {"what": "a step", "cache": name, "position": position, "ours_ms": ms}
            rows[name].append(case)
            yield case
    for name, cases in rows.items():
        found = exponent(cases, "ours_ms", "position")
        yield {"what": "exponent", "cache": name, "ours_ms": found}
