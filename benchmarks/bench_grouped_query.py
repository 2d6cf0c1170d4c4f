"""`grouped_query_attention` in a decoding step, one query for each text, beside PyTorch's attention in the two
ways that there are: with the keys and values repeated for every head, and with `enable_gqa`."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.grouped_query import grouped_query_attention
from benchmarks.measure import compare, device


def repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(r, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value)


@torch.no_grad()
def run() -> list[dict]:
    cases, h, s, d = [], 32, 4096, 64
    peers = {"repeat": repeated, "enable_gqa": partial(F.scaled_dot_product_attention, enable_gqa=True)}
    for g in (8, 1):
        query = torch.randn(1, h, 1, d, device=device())
        key, value = torch.randn(2, 1, g, s, d, device=device()).unbind()
        for name, peer in peers.items():
            ours = partial(grouped_query_attention, query, key, value)
            about = {"h": h, "g": g, "s": s, "d": d, "peer": name}
            cases.append({**about, **compare(ours, partial(peer, query, key, value))})
    return cases
