"""`longformer_attention` with [CLS] global, beside PyTorch's attention, as the text grows: over the whole text, and
with the pattern as a mask."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.longformer import longformer_attention, longformer_mask_mod
from benchmarks.growth import growth
from benchmarks.measure import Function, device

WINDOW = 257
LONGEST = {"ours": 32768, "full": 8192, "mask": 8192}


def contenders(t: int) -> Mapping[str, Function]:
    first = torch.arange(t, device=device())[None] == 0
    ours = partial(longformer_attention, window=WINDOW, global_mask=first)
    attend = F.scaled_dot_product_attention
    mask = pattern(first) if t <= LONGEST["mask"] else None
    return {"ours": ours, "full": attend, "mask": partial(attend, attn_mask=mask)}


def pattern(is_global: Tensor) -> Tensor:
    i = torch.arange(is_global.shape[1], device=is_global.device)
    zero = i.new_zeros(())
    return longformer_mask_mod(WINDOW, is_global)(zero, zero, i[:, None], i)


def run() -> Iterator[dict]:
    torch.manual_seed(0)
    for case in growth(contenders, LONGEST):
        yield {"window": WINDOW, **case}
