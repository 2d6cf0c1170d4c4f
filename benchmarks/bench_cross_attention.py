"""`CrossAttention` beside `torch.nn.MultiheadAttention` with widths of its own for keys and values; and one
token beside a context that is projected anew, which is what `keys_values` saves."""

from functools import partial

import torch

from annotated_attention.cross_attention import CrossAttention
from benchmarks.measure import compare, device, passes


def run() -> list[dict]:
    ours = CrossAttention(512, 384, 8).to(device())
    peer = torch.nn.MultiheadAttention(
        512, 8, bias=False, kdim=384, vdim=384, batch_first=True, device=device()
    )
    cases = []
    for t, s in ((32, 256), (128, 1024)):
        inputs = torch.randn(2, t, 512, device=device()), torch.randn(2, s, 384, device=device())
        cases += passes(ours, partial(output_of, peer), inputs, {"b": 2, "h": 8, "t": t, "s": s, "m": 512})
    with torch.no_grad():
        x, context = torch.randn(1, 1, 512, device=device()), torch.randn(1, 1500, 384, device=device())
        cached = partial(ours, x, keys_values=ours.project(context))
        decoding = compare(cached, partial(ours, x, context))
    return [*cases, {"b": 1, "h": 8, "t": 1, "s": 1500, "m": 512, "pass": "one token, cached", **decoding}]


def output_of(attention, x, context):
    return attention(x, context, context, need_weights=False)[0]
