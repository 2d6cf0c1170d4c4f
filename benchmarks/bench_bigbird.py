"""`bigbird_attention` with the paper's plan, as the text grows: beside PyTorch's attention over the whole text and with
the plan as a mask, and beside the same plan gathered with one `index_select`."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.bigbird import BigBirdPlan, bigbird_attention, bigbird_plan, plan_mask
from benchmarks.growth import growth
from benchmarks.measure import Function, device

SIZE = 64
LONGEST = {"ours": 32768, "full": 8192, "mask": 8192, "index_select": 8192}


def contenders(t: int) -> Mapping[str, Function]:
    plan = bigbird_plan(t // SIZE, n_window=3, n_global=2, n_random=3, seed=0)
    block = torch.arange(min(t, LONGEST["mask"]), device=device()) // SIZE
    mask = plan_mask(plan).to(device())[block][:, block]
    attend = F.scaled_dot_product_attention
    return {
        "ours": partial(bigbird_attention, block_size=SIZE, plan=plan),
        "full": attend,
        "mask": partial(attend, attn_mask=mask),
        "index_select": partial(gathered, plan=plan),
    }


def gathered(query: Tensor, key: Tensor, value: Tensor, plan: BigBirdPlan) -> Tensor:
    """All strips at once: one gather and, as they differ in length, a split."""
    first = plan.n_global * SIZE
    rows = [plan.row(i) for i in range(plan.n_global, plan.n_blocks)]
    blocks = torch.tensor([j for row in rows for j in row], device=key.device)
    lengths = [len(row) * SIZE for row in rows]
    keys, values = (
        x.unflatten(2, (plan.n_blocks, SIZE)).index_select(2, blocks).flatten(2, 3).split(lengths, 2)
        for x in (key, value)
    )
    tiles = query[:, :, first:].split(SIZE, 2)
    outputs = [F.scaled_dot_product_attention(query[:, :, :first], key, value)]
    outputs += map(F.scaled_dot_product_attention, tiles, keys, values)
    return torch.cat(outputs, 2)


def run() -> Iterator[dict]:
    torch.manual_seed(0)
    for case in growth(contenders, LONGEST):
        yield {"block_size": SIZE, **case}
