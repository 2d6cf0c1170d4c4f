"""`alibi_attention` beside PyTorch's fused attention with the same bias as its mask. Both make the bias in
every call."""

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.alibi import alibi_attention, alibi_bias
from benchmarks.measure import device, passes


def peer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    h, t = query.shape[1:3]
    hidden = torch.ones(t, t, dtype=torch.bool, device=query.device).triu(1)
    bias = alibi_bias(h, t, t).to(query.device).masked_fill(hidden, float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def run() -> list[dict]:
    cases = []
    for t in (128, 512, 1024):
        inputs = torch.randn(3, 2, 8, t, 64, device=device()).unbind()
        cases += passes(alibi_attention, peer, inputs, {"b": 2, "h": 8, "t": t, "d": 64})
    return cases
