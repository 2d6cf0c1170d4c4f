"""Every mechanism under the roof of this machine: predicted from operations and bytes, measured, and the ratio, as the
text grows; then one step behind a long cache. The peaks of the machine are measured before and after, in the same
run."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from annotated_attention.bigbird import bigbird_plan
from annotated_attention.flash_decoding import split_attention
from annotated_attention.linear import LinearState, linear_attention_step, linear_cost
from benchmarks import roofline
from benchmarks.bench_choose import BLOCK, REACH, WINDOW, contenders
from benchmarks.growth import HEADS, WIDTH, exponent, once, peak_mib
from benchmarks.measure import device, medians
from benchmarks.roofline import Roof, Work

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
LONGEST = {
    "dense": 16384, "weights": 4096, "flash": 16384,
    "window": 32768, "longformer": 32768, "bigbird": 32768, "linear": 32768,
}  # fmt: skip
CACHES = (4096, 65536)
ROUNDS, SIZE = 3, 4


def works(t: int) -> dict[str, Work]:
    """What each mechanism has to do: `h d` numbers of four bytes for a token."""
    shape = (t, HEADS, WIDTH, SIZE)
    plan = bigbird_plan(t // BLOCK, n_window=3, n_global=2, n_random=3, seed=0)
    return {
        "dense": roofline.tiled(*shape),
        "weights": roofline.naive(*shape),
        "flash": roofline.tiled(*shape),
        "window": roofline.windowed(*shape, WINDOW),
        "longformer": roofline.longformer(*shape, REACH, 1),
        "bigbird": roofline.bigbird(*shape, BLOCK, plan),
        "linear": roofline.linear(*shape),
    }


# A case, what had to be done, and milliseconds.
Timed = Iterator[tuple[dict[str, Any], Work, float]]


def texts() -> Timed:
    """A forward pass."""
    for t in LENGTHS:
        inputs = torch.randn(3, 1, HEADS, t, WIDTH, device=device()).unbind()
        functions = contenders(t)
        calls = {
            name: partial(once, functions[name], inputs, False)
            for name, longest in LONGEST.items()
            if t <= longest
        }
        work = works(t)
        for name, ms in medians(calls, ROUNDS).items():
            mib = peak_mib(calls[name], inputs)
            yield {"what": "forward", "mechanism": name, "t": t, "mib": mib}, work[name], ms


def steps() -> Timed:
    """One query behind a cache."""
    query, key, value = torch.randn(3, 1, HEADS, 1, WIDTH, device=device())
    state = LinearState(
        torch.rand(1, HEADS, WIDTH, WIDTH, device=device()), torch.rand(1, HEADS, WIDTH, device=device())
    )
    for s in CACHES:
        keys, values = torch.randn(2, 1, HEADS, s, WIDTH, device=device())
        calls: Mapping[str, Callable[[], Any]] = {
            "dense": partial(F.scaled_dot_product_attention, query, keys, values),
            "flash": partial(split_attention, query, keys, values, n_splits=4),
            "linear": partial(linear_attention_step, query, key, value, state),
        }
        read = roofline.step(s, HEADS, HEADS, WIDTH, SIZE)
        # A state is read and written.
        held = 2 * SIZE * sum(x.numel() for x in state)
        products = HEADS * linear_cost(1, WIDTH, WIDTH, 1)[0]
        work = {"dense": read, "flash": read, "linear": Work(products, held)}
        for name, ms in medians(calls).items():
            yield {"what": "a step", "mechanism": name, "s": s}, work[name], ms


def run() -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    dtype = torch.float32
    before = roofline.roof(dtype)
    with torch.no_grad():
        cases = [*texts(), *steps()]
    roof: Roof = before | roofline.roof(dtype)
    yield {"what": "roof", "dtype": "float32", "flops": roof.flops, "bandwidth": roof.bandwidth}
    done = [{**case, **roofline.beside(roof, work, ms)} for case, work, ms in cases]
    yield from done
    for name in LONGEST:
        rows = [case for case in done if case["what"] == "forward" and case["mechanism"] == name]
        found = {unit: exponent(rows, unit) for unit in ("ms", "mib")}
        yield {"what": "exponent", "mechanism": name, **found}
