"""`flash_attention` beside PyTorch's fused attention and lesson 1's formula, causal, as the text grows; then all keys
in sight, other tiles, one query against a long cache with one reader and with more, and a text of 32,768 tokens."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.flash import flash_attention, flash_traffic
from annotated_attention.flash_decoding import split_attention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from benchmarks.growth import HEADS, ROUNDS, WIDTH, growth, once, peak_mib
from benchmarks.measure import Function, compare, device

LONGEST = {"ours": 8192, "sdpa": 8192, "naive": 4096}
T, CACHE, LONG_TEXT = 4096, 65536, 32768


def attention(*inputs: Tensor, **options: Any) -> Tensor:
    return flash_attention(*inputs, **options)[0]


def contenders(t: int, is_causal: bool = True) -> Mapping[str, Function]:
    functions = {
        "ours": attention,
        "sdpa": F.scaled_dot_product_attention,
        "naive": scaled_dot_product_attention,
    }
    return {name: partial(function, is_causal=is_causal) for name, function in functions.items()}


def side_by_side(ours: Callable[[], Any], peer: Callable[[], Any], /, **about: Any) -> dict[str, Any]:
    return {**about, **compare(ours, peer, ROUNDS)}


def long_text(backward: bool) -> dict[str, Any]:
    """One head, once: how much memory a text takes whose scores would fill 4 GiB."""
    inputs = torch.randn(3, 1, 1, LONG_TEXT, WIDTH, device=device()).unbind()
    began = time.perf_counter()
    mib = peak_mib(partial(once, partial(attention, is_causal=True), inputs, backward), inputs)
    seconds = time.perf_counter() - began
    about = {"pass": "both" if backward else "forward", "t": LONG_TEXT, "h": 1, "d": WIDTH}
    return {**about, "seconds": seconds, "peak_mib": mib, "scores_mib": 4 * LONG_TEXT**2 / 2**20}


def run() -> Iterator[dict]:
    torch.manual_seed(0)
    for case in growth(contenders, LONGEST):
        yield {"is_causal": True, **case}

    inputs = torch.randn(3, 1, HEADS, T, WIDTH, device=device()).unbind()
    full = contenders(T, is_causal=False)
    for peer in ("sdpa", "naive"):
        calls = (partial(once, full[name], inputs, False) for name in ("ours", peer))
        yield side_by_side(*calls, **{"is_causal": False, "pass": "forward", "t": T, "peer": peer})

    default = partial(once, partial(attention, is_causal=True), inputs, False)
    for block_q, block_k in ((64, 128), (128, 256), (256, 1024), (1024, 1024)):
        tiles = partial(attention, is_causal=True, block_q=block_q, block_k=block_k)
        naive, tiled = flash_traffic(T, T, WIDTH, WIDTH, is_causal=True, block_q=block_q)
        about = {"pass": "forward", "t": T, "block_q": block_q, "block_k": block_k, "peer": "256 by 512"}
        call = partial(once, tiles, inputs, False)
        yield {**side_by_side(call, default, **about), "traffic_of_lesson_1": naive / tiled}

    query = torch.randn(1, HEADS, 1, WIDTH, device=device())
    key, value = torch.randn(2, 1, HEADS, CACHE, WIDTH, device=device()).unbind()
    for n_splits in (1, 4, 16):
        ours = partial(once, partial(split_attention, n_splits=n_splits), (query, key, value), False)
        peer = partial(once, F.scaled_dot_product_attention, (query, key, value), False)
        yield side_by_side(ours, peer, **{"pass": "a step", "s": CACHE, "n_splits": n_splits})
    for backward in (False, True):
        yield long_text(backward)
