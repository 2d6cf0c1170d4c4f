"""`sliding_window_attention` beside PyTorch's fused attention, once with the window as a mask and once causal, as
the text grows; then small windows, and the same tiles with lesson 1's formula in them."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from annotated_attention.sliding_window import sliding_window_attention, sliding_window_mask, window_tiles
from annotated_attention.sliding_window_tiles import attend_in_tiles
from benchmarks.growth import HEADS, ROUNDS, WIDTH, growth, once
from benchmarks.measure import Function, compare, device

WINDOW = 512
LONGEST = {"ours": 32768, "mask": 8192, "causal": 8192}


def contenders(t: int) -> Mapping[str, Function]:
    attend = F.scaled_dot_product_attention

    # Made here, so that its making is not counted.
    mask = sliding_window_mask(t, t, WINDOW, device=device()) if t <= LONGEST["mask"] else None
    ours = partial(sliding_window_attention, window=WINDOW)
    return {"ours": ours, "mask": partial(attend, attn_mask=mask), "causal": partial(attend, is_causal=True)}


def tiles_of_lesson_1(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    tiles = partial(window_tiles, query.shape[2], key.shape[2], WINDOW, device=key.device)
    return attend_in_tiles(scaled_dot_product_attention, tiles, query, key, value)


def run() -> Iterator[dict]:
    torch.manual_seed(0)
    for case in growth(contenders, LONGEST):
        yield {"window": WINDOW, **case}
    t = 8192
    inputs = torch.randn(3, 1, HEADS, t, WIDTH, device=device()).unbind()
    ours = partial(sliding_window_attention, window=WINDOW)
    for window in (1, 8, 64):
        small = partial(sliding_window_attention, window=window)
        times = compare(partial(once, small, inputs, False), partial(once, ours, inputs, False), ROUNDS)
        yield {"window": window, "pass": "forward", "t": t, "ours_ms": times["ours_ms"]}
    for what in ("forward", "both"):
        calls = (partial(once, function, inputs, what == "both") for function in (ours, tiles_of_lesson_1))
        times = compare(*calls, ROUNDS)
        yield {"window": WINDOW, "pass": what, "t": t, "peer": "lesson 1's formula in the tiles", **times}
