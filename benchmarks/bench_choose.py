"""All mechanisms of the course on the same inputs, for the guide `docs/choose.md`: the time to read a whole text, the
memory to train on one, and one more token behind a text, with the bytes of the cache that it needs.

Dense attention is PyTorch's fused kernel under a causal mask. Where a mechanism only changes what the kernel is given
(fewer key heads, turned queries, another context), the same kernel stands behind it. The others are the course's own.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.alibi import alibi_attention, alibi_slopes
from annotated_attention.attention_sinks import SinkKVCache, streaming_rotary
from annotated_attention.bigbird import bigbird_attention, bigbird_plan
from annotated_attention.flash import flash_attention
from annotated_attention.kv_cache import KVCache
from annotated_attention.linear import LinearState, linear_attention, linear_attention_step
from annotated_attention.linear_decay import (
    decayed_linear_attention,
    decayed_linear_attention_step,
    retention_log_decay,
)
from annotated_attention.longformer import longformer_attention
from annotated_attention.rotary import rotary_attention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from annotated_attention.sliding_window import RollingKVCache, sliding_window_attention
from benchmarks.bench_steps import STEPS, Cache, read, step
from benchmarks.growth import HEADS, WIDTH, once, peak_mib
from benchmarks.measure import Function, device, medians, single

KEY_HEADS, WINDOW, SINKS, REACH, BLOCK, CONTEXT = 2, 512, 4, 257, 64, 1500
LENGTHS, TRAINED = (1024, 2048, 4096, 8192, 16384), (2048, 8192)

# Those that make a number for every pair of tokens end where memory does.
ROUNDS, ALL_PAIRS, LAST_OF_ALL_PAIRS = 3, ("weights", "alibi"), 4096


def contenders(t: int) -> dict[str, Function]:
    """Functions of query, key and value, each `1 h t d`."""
    i = torch.arange(t, device=device())
    longer = torch.randn(2, 1, HEADS, CONTEXT, WIDTH, device=device())
    causal = partial(F.scaled_dot_product_attention, is_causal=True)
    everything = {
        "dense": causal,
        "weights": partial(scaled_dot_product_attention, is_causal=True),
        "flash": partial(flash, is_causal=True),
        "grouped": grouped,
        "window": partial(sliding_window_attention, window=WINDOW),
        "sinks": partial(streaming_rotary, i=i, j=i, n_sinks=SINKS, window=WINDOW - SINKS),
        "longformer": partial(longformer_attention, window=REACH, global_mask=i[None] == 0),
        "bigbird": partial(
            bigbird_attention,
            block_size=BLOCK,
            plan=bigbird_plan(t // BLOCK, n_window=3, n_global=2, n_random=3, seed=0),
        ),
        "alibi": alibi_attention,
        "coordinate": partial(alibi_in_the_kernel, slopes=alibi_slopes(HEADS, device=device())),
        "rotary": partial(rotary_attention, i=i, j=i, attend=lambda q, k, v, i, j: causal(q, k, v)),
        "linear": linear_attention,
        "decayed": partial(decayed_linear_attention, log_decay=decays(t)),
        "cross": partial(cross, longer=longer),
    }
    return {
        name: function
        for name, function in everything.items()
        if name not in ALL_PAIRS or t <= LAST_OF_ALL_PAIRS
    }


def flash(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    return flash_attention(query, key, value, is_causal=is_causal)[0]


def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key, value = key[:, :KEY_HEADS], value[:, :KEY_HEADS]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def alibi_in_the_kernel(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """Lesson 6's bias as one more coordinate of each key, for a kernel that knows no bias; values get a 0, for on a CPU
    the fused kernel wants all three of one width."""
    bias = slopes[:, None, None] * torch.arange(key.shape[2], device=key.device)[:, None]
    key = torch.cat([key, bias[None]], dim=-1)
    query, value = F.pad(query, (0, 1), value=WIDTH**0.5), F.pad(value, (0, 1))
    scale = WIDTH**-0.5
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)[..., :-1]


def decays(t: int) -> Tensor:
    return retention_log_decay(HEADS, device=device())[None, :, None].expand(1, HEADS, t)


def cross(query: Tensor, key: Tensor, value: Tensor, longer: Tensor) -> Tensor:
    """A context of its own length for all queries: the first tokens of `key`, or `longer` if they are too few."""
    if key.shape[2] < CONTEXT:
        key, value = longer
    return F.scaled_dot_product_attention(query, key[:, :, :CONTEXT], value[:, :, :CONTEXT])


def whole_texts() -> Iterator[dict[str, Any]]:
    """Milliseconds of the forward pass, and the peak of memory with the gradients."""
    for what, lengths in (("forward", LENGTHS), ("both", TRAINED)):
        for t in lengths:
            inputs = torch.randn(3, 1, HEADS, t, WIDTH, device=device()).unbind()
            calls = {
                name: partial(once, function, inputs, what == "both")
                for name, function in contenders(t).items()
            }
            if what == "both":
                shown = {name: {"mib": peak_mib(call, inputs)} for name, call in calls.items()}
            else:
                times = medians(calls, ROUNDS)
                shown = {name: {"ms": ms, "ratio": ms / times["dense"]} for name, ms in times.items()}
            for name in calls:
                yield {"pass": what, "t": t, "variant": name, **shown[name]}


def next_tokens() -> Iterator[dict[str, Any]]:
    """Bytes of what one layer keeps of `t` tokens, and milliseconds for the token behind them: to take it in, and to
    attend."""
    rings: dict[str, Cache] = {"window": RollingKVCache(WINDOW), "sinks": SinkKVCache(SINKS, WINDOW - SINKS)}
    query, key, value = one = torch.randn(3, 1, HEADS, 1, WIDTH, device=device()).unbind()

    # A group of heads is one head with more queries.
    grouped = query.view(1, KEY_HEADS, -1, WIDTH), key[:, :KEY_HEADS], value[:, :KEY_HEADS]
    state, faded = states(*one)
    before = 0
    for t in LENGTHS:
        growing = {name: KVCache(t + STEPS) for name in ("dense", "grouped")}
        for name, cache in growing.items():
            heads = KEY_HEADS if name == "grouped" else HEADS
            cache.update(*torch.randn(2, 1, heads, t, WIDTH, device=device()))
        for cache in rings.values():
            read(cache, t - before)
        before = t + STEPS
        context = torch.randn(2, 1, HEADS, CONTEXT, WIDTH, device=device())

        sizes = {name: 2 * cache.keys[:, :, :t].nbytes for name, cache in growing.items()}
        sizes |= {name: cache.nbytes for name, cache in rings.items()} | {"cross": context.nbytes}
        sizes |= {"linear": state.nbytes, "decayed": faded.nbytes}
        small: dict[str, Callable[[], Any]] = {
            name: partial(step, cache, *one) for name, cache in rings.items()
        }
        small |= {
            "linear": partial(linear_attention_step, *one, state),
            "decayed": partial(decayed_linear_attention_step, *one, decays(1), faded),
            "cross": partial(F.scaled_dot_product_attention, query, *context),
        }

        # What reads much comes by itself: it would push what the others keep out of the processor's own memory.
        times = single(small, STEPS)
        times |= single({"grouped": partial(step, growing["grouped"], *grouped)}, STEPS)
        times |= single({"dense": partial(step, growing["dense"], *one)}, STEPS)
        for name, ms in times.items():
            yield {"pass": "next", "t": t, "variant": name, "ms": ms, "bytes": sizes[name]}


def states(query: Tensor, key: Tensor, value: Tensor) -> tuple[LinearState, Tensor]:
    """What linear attention keeps of any number of tokens, without decay and with it."""
    _, state = linear_attention_step(query, key, value, None)
    _, faded = decayed_linear_attention_step(query, key, value, decays(1))
    return state, faded


def run() -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    with torch.no_grad():
        steps = list(next_tokens())
    sizes: Mapping[str, int] = {
        "b": 1, "h": HEADS, "g": KEY_HEADS, "d": WIDTH, "window": WINDOW, "n_sinks": SINKS,
        "longformer_window": REACH, "block_size": BLOCK, "context": CONTEXT,
    }  # fmt: skip
    yield {"pass": "sizes", **sizes}
    yield from whole_texts()
    yield from steps
