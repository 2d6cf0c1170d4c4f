"""`MultiHeadAttention` beside `torch.nn.MultiheadAttention`, both returning the weights of every head."""

from functools import partial

import torch

from annotated_attention.multi_head import MultiHeadAttention
from benchmarks.measure import device, passes


def run() -> list[dict]:
    ours = MultiHeadAttention(512, 8).to(device())
    peer = torch.nn.MultiheadAttention(512, 8, batch_first=True, device=device())
    cases = []
    for t in (128, 512):
        inputs = torch.randn(3, 2, t, 512, device=device()).unbind()
        cases += passes(
            partial(output_of, ours),
            partial(output_of, partial(peer, average_attn_weights=False)),
            inputs,
            {"b": 2, "h": 8, "t": t, "m": 512},
        )
    return cases


def output_of(attention, query, key, value):
    """The first of the two results, `(output, weights)`."""
    return attention(query, key, value)[0]
