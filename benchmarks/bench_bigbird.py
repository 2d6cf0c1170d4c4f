"""`bigbird_attention` with the paper's plan, at doubling lengths: beside PyTorch's dense attention, without a mask and
with the plan as a mask, and beside the same plan gathered with one `index_select`. Then the exponents with which time
and peak memory grow."""

import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.bigbird import BigBirdPlan, bigbird_attention, bigbird_plan, plan_mask
from benchmarks.measure import compare, device, forward_backward

SIZE, HEADS, WIDTH = 64, 8, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384)
# A pass of dense attention forward and back, or under a mask, takes too long beyond this.
LONGEST = {("forward", "dense"): 8192, ("both", "dense"): 8192, ("forward", "mask"): 8192}
LONGEST |= {("forward", "index_select"): 8192, ("both", "index_select"): 8192}


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


class Peak(TorchDispatchMode):
    """The most bytes that new tensors held at one time."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.held = {x.untyped_storage()._cdata: 0 for x in known}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.held:
                storage = x.untyped_storage()
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.free, storage._cdata)
        return result

    def free(self, which: int) -> None:
        self.now -= self.held.pop(which)


def peak_mib(function: Callable[[], Any], known: Sequence[Tensor]) -> float:
    with Peak(known) as seen:
        function()
    return seen.most / 2**20


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """The slope of the straight line through the logarithms."""
    x, y = (torch.tensor([math.log(n) for n in numbers]) for numbers in (lengths, values))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def run() -> list[dict]:
    cases, grown = [], {}
    for t in LENGTHS:
        plan = bigbird_plan(t // SIZE, n_window=3, n_global=2, n_random=3, seed=0)
        inputs = torch.randn(3, 1, HEADS, t, WIDTH, device=device()).unbind()
        block = torch.arange(min(t, LONGEST["forward", "mask"])) // SIZE
        mask = plan_mask(plan)[block][:, block].to(device())
        ours = partial(bigbird_attention, block_size=SIZE, plan=plan)
        dense = F.scaled_dot_product_attention
        peers = {
            "dense": dense,
            "mask": partial(dense, attn_mask=mask),
            "index_select": partial(gathered, plan=plan),
        }
        for what in ("forward", "both"):

            def call(function: Callable, what: str = what, inputs: Any = inputs) -> Any:
                if what == "both":
                    return forward_backward(function, inputs)
                with torch.no_grad():
                    return function(*inputs)

            about = {"t": t, "pass": what, "ours_mib": peak_mib(partial(call, ours), inputs)}
            timed = {}
            for name, peer in peers.items():
                if t <= LONGEST.get((what, name), 0):
                    timed = compare(partial(call, ours), partial(call, peer), rounds=3)
                    cases.append(
                        {**about, "peer": name, **timed, "peer_mib": peak_mib(partial(call, peer), inputs)}
                    )
            if not timed:
                timed = compare(partial(call, ours), lambda: None, rounds=3)
                cases.append({**about, "peer": None, "ours_ms": timed["ours_ms"]})
            grown.setdefault((what, "ms"), []).append(timed["ours_ms"])
            grown.setdefault((what, "mib"), []).append(about["ours_mib"])
    # The shortest text is left out: there the global rows and the ends weigh most.
    for (what, unit), values in grown.items():
        cases.append({"pass": what, "grows": unit, "exponent": exponent(LENGTHS[1:], values[1:])})
    return cases
