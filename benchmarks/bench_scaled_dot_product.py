"""`scaled_dot_product_attention` beside PyTorch's fused one. Ours holds the whole matrix of scores."""

from functools import partial

import torch
import torch.nn.functional as F

from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from benchmarks.measure import device, passes


def run() -> list[dict]:
    cases = []
    for t in (128, 512, 1024):
        inputs = torch.randn(3, 2, 8, t, 64, device=device()).unbind()
        for is_causal in (False, True):
            ours = partial(scaled_dot_product_attention, is_causal=is_causal)
            peer = partial(F.scaled_dot_product_attention, is_causal=is_causal)
            cases += passes(ours, peer, inputs, {"b": 2, "h": 8, "t": t, "d": 64, "is_causal": is_causal})
    return cases
