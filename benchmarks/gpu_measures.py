"""What `benchmarks/gpu.py` measures: our Triton kernels beside SDPA's backends, FlexAttention and whoever is installed.

Run as a program it calls every kernel once, at small sizes, for `compute-sanitizer` to watch.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.config as functorch
from torch import Tensor

from annotated_attention.bigbird import bigbird_attention, bigbird_plan
from annotated_attention.flash_triton import flash_attention_triton
from annotated_attention.linear import linear_attention
from annotated_attention.longformer import longformer_attention
from benchmarks import peers, roofline
from benchmarks.gpu_calls import (
    Prepared,
    backward_of,
    first_of,
    forward_of,
    groups_as_rows,
    most_mib,
    of_query,
    replayed,
)
from benchmarks.growth import exponent
from benchmarks.measure import Function, device, medians
from benchmarks.roofline import Roof, Work

Cases = Iterator[dict[str, Any]]

# A backward pass multiplies five times where a forward one does twice.
BACKWARD = 2.5
SOFT_CAP, BLOCK = 30.0, 64


@dataclass(frozen=True)
class Sizes:
    """How large: lengths, heads and widths."""

    lengths: tuple[int, ...]
    aimed: tuple[int, ...]  # the lengths of the aims, which come first
    naive: int  # the longest whose weights are written out
    tokens: int  # in a batch, at least
    m: int  # width of all heads together
    widths: tuple[int, ...]
    window: int
    cache: int
    cache_heads: tuple[int, int]
    page: int
    batches: tuple[int, ...]  # of a step
    rounds: int
    growing: tuple[int, ...]
    dtype: torch.dtype


WHOLE = Sizes(
    lengths=(1024, 2048, 4096, 8192, 16384, 32768), aimed=(8192, 16384, 32768), naive=4096, tokens=16384, m=2048,
    widths=(128, 64), window=1024, cache=32768, cache_heads=(32, 8), page=16, batches=(1, 8), rounds=5,
    growing=(8192, 16384, 32768, 65536, 131072), dtype=torch.bfloat16,
)  # fmt: skip
REHEARSAL = Sizes(
    lengths=(64,), aimed=(64,), naive=64, tokens=64, m=32, widths=(16,), window=24, cache=96,
    cache_heads=(4, 2), page=16,
    batches=(1,), rounds=1, growing=(128, 256), dtype=torch.float32,
)  # fmt: skip


def flash(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return flash_attention_triton(query, key, value, **options)[0]


class Measures:
    """The phases. Each stops before a case for which its time is up."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.best: Roof | None = None
        torch.manual_seed(0)
        # Graphs are kept, so that backward passes can be timed alone.
        functorch.donated_buffer = False

    def random(self, b: int, h: int, t: int, d: int, n: int = 3) -> tuple[Tensor, ...]:
        return torch.randn(n, b, h, t, d, device=device(), dtype=self.sizes.dtype).unbind()

    def roof(self, end: float) -> Cases:
        n, mib = (256, 1) if device() == "cpu" else (None, None)
        self.best = roofline.roof(self.sizes.dtype, n, mib)
        for name in ("flops", "bandwidth"):
            yield {
                "what": "roof",
                "of": name,
                "a_second": getattr(self.best, name),
                "dtype": str(self.sizes.dtype),
            }

    def beside(
        self,
        about: dict[str, Any],
        makers: Mapping[str, peers.Maker],
        prepared: Prepared,
        work: Work | None = None,
    ) -> Cases:
        """A case for each of them: milliseconds, times as fast as ours, MiB; or why it is absent. Ours comes first."""
        found = peers.tried(makers, prepared)
        times = medians(found.calls, self.sizes.rounds)
        ours = times.get(next(iter(makers)))
        for name, ms in times.items():
            case = {**about, "peer": name, "ms": ms, "ratio": ours / ms if ours else None}
            case["mib"] = most_mib(found.calls[name])
            if work:
                case |= {"tflops": work.flops / ms / 1e9}
                if self.best:
                    case |= {"times_predicted": ms / self.best.predicted_ms(work)}
            yield case
        for name, why in found.absent.items():
            yield {**about, "peer": name, "absent": why}
        if device() == "cuda":
            found.calls.clear()
            torch.cuda.empty_cache()

    def dense(self, end: float) -> Cases:
        """Forward, and backward alone, beside every backend: first the lengths and the width of the aims."""
        size = self.sizes
        settings = [
            (d, is_causal, t) for d in size.widths for is_causal in (True, False) for t in size.lengths
        ]
        settings.sort(key=lambda each: (each[0] != size.widths[0], not each[1], each[2] not in size.aimed))
        for d, is_causal, t in settings:
            if time.monotonic() > end:
                yield {"what": "dense", "skipped": "the time was up", "t": t, "d": d, "is_causal": is_causal}
                continue
            b, h = max(1, size.tokens // t), size.m // d
            inputs = self.random(b, h, t, d)
            makers = {"ours": lambda is_causal=is_causal: partial(flash, is_causal=is_causal)}
            makers |= peers.dense(t, is_causal)
            del makers["Transformers"]  # it calls SDPA
            if t > size.naive:
                makers = {name: make for name, make in makers.items() if name not in ("naive", "SDPA, math")}
            # Each length is compiled anew, which takes longer than to measure it.
            if t != max(size.aimed) or d != size.widths[0]:
                del makers[peers.FLEX]
            scores = roofline.causal_scores(t) if is_causal else t * t
            flops = b * roofline.products(scores, h, d)
            moved = b * roofline.once_each(t, t, h, h, d, inputs[0].element_size())
            about = {"what": "dense", "b": b, "h": h, "t": t, "d": d, "is_causal": is_causal}
            yield from self.beside(
                {**about, "pass": "forward"}, makers, forward_of(inputs), Work(flops, moved)
            )
            # Back come the output, its gradient and three more.
            work = Work(BACKWARD * flops, 2 * moved)
            yield from self.beside({**about, "pass": "backward"}, makers, backward_of(inputs), work)

    def variants(self, end: float) -> Cases:
        """Causal, with a window, slopes, sinks or a soft cap, beside FlexAttention with the same."""
        size = self.sizes
        d = size.widths[0]
        h = size.m // d
        slopes = torch.linspace(0.01, 0.5, h, device=device())
        logits = torch.randn(h, device=device())
        for t in sorted({min(size.aimed), max(size.aimed)}):
            inputs = self.random(max(1, size.tokens // t), h, t, d)
            kinds = {
                "window": ({"window": size.window}, peers.window(t, size.window)),
                "ALiBi": ({"alibi_slopes": slopes}, peers.alibi(t, slopes)),
                "sinks": ({"sink_logits": logits}, peers.sinks(t, logits)),
                "soft cap": ({"soft_cap": SOFT_CAP}, peers.soft_cap(t, SOFT_CAP)),
            }
            for what, (options, others) in kinds.items():
                if time.monotonic() > end:
                    yield {"what": what, "skipped": "the time was up", "t": t}
                    continue
                # A mask of all pairs takes too much memory for long texts.
                others.pop("SDPA, mask", None)
                makers = {"ours": lambda options=options: partial(flash, is_causal=True, **options), **others}
                about = {"what": what, "t": t, "d": d, "h": h, "b": len(inputs[0])}
                yield from self.beside({**about, "pass": "forward"}, makers, forward_of(inputs))
                yield from self.beside({**about, "pass": "backward"}, makers, backward_of(inputs))

    def decoding(self, end: float) -> Cases:
        """One query of each text behind a long cache, called and replayed; then the cache in pages."""
        from annotated_attention.flash_triton_decoding import flash_decoding_triton, paged_attention_triton

        size = self.sizes
        (h, g), s, d, n = size.cache_heads, size.cache, size.widths[0], size.page
        for b in size.batches:
            if time.monotonic() > end:
                yield {"what": "a step", "skipped": "the time was up", "b": b}
                continue
            (query,), (key, value) = self.random(b, h, 1, d, 1), self.random(b, g, s, d, 2)
            table = torch.randperm(b * (s // n), device=device()).view(b, -1).int()
            pages = [x.new_empty(b * (s // n), g, n, d) for x in (key, value)]
            for x, page in zip((key, value), pages, strict=True):
                page[table.long()] = x.unflatten(2, (-1, n)).transpose(1, 2)
            lengths = torch.full((b,), s, device=device(), dtype=torch.int32)

            held = {"key_pages": pages[0], "value_pages": pages[1], "block_table": table, "lengths": lengths}
            makers: dict[str, peers.Maker] = {
                "ours": lambda: first_of(flash_decoding_triton),
                "ours, in pages": partial(of_query, partial(paged_attention_triton, **held)),
            }
            for name, which in peers.BACKENDS.items():
                makers[name] = partial(peers.sdpa, which, enable_gqa=True)
                makers[f"{name}, groups as rows"] = partial(groups_as_rows, peers.sdpa(which), g)
            work = Work(
                b * roofline.products(s, h, d), b * roofline.once_each(1, s, h, g, d, key.element_size())
            )
            about = {"what": "a step", "b": b, "h": h, "g": g, "s": s, "d": d}
            inputs = (query, key, value)
            yield from self.beside({**about, "how": "called"}, makers, forward_of(inputs), work)
            yield from self.beside({**about, "how": "replayed"}, makers, replayed(inputs), work)

    def growth(self, end: float) -> Cases:
        """One text that gets longer; then the exponents that fit the last three lengths."""
        from annotated_attention.linear_triton import linear_attention_triton

        size = self.sizes
        d = size.widths[0]
        rows: list[dict[str, Any]] = []
        for t in size.growing:
            if time.monotonic() > end:
                yield {"what": "growth", "skipped": "the time was up", "t": t}
                continue
            inputs = self.random(1, size.m // d, t, d)
            first = torch.arange(t, device=device())[None] == 0
            plan = (
                bigbird_plan(t // BLOCK, n_window=3, n_global=2, n_random=3, seed=0)
                if t >= 8 * BLOCK
                else None
            )
            functions: dict[str, Function] = {
                "window": partial(flash, is_causal=True, window=size.window),
                "longformer": partial(longformer_attention, window=size.window // 2, global_mask=first),
                "linear": linear_attention_triton,
            }
            if plan:
                functions["bigbird"] = partial(bigbird_attention, block_size=BLOCK, plan=plan)
            makers = {name: (lambda function=function: function) for name, function in functions.items()}
            for which, prepare in (("forward", forward_of), ("backward", backward_of)):
                for case in self.beside({"what": "growth", "pass": which, "t": t}, makers, prepare(inputs)):
                    rows.append(case)
                    yield case
        for which in ("forward", "backward"):
            for name in ("window", "longformer", "bigbird", "linear"):
                mine = [row for row in rows if row["pass"] == which and row["peer"] == name and "ms" in row]
                if len(mine) > 1:
                    yield {"what": "exponent", "pass": which, "mechanism": name, "ms": exponent(mine, "ms")}

    def linear(self, end: float) -> Cases:
        """Chunks in Triton, in PyTorch, and in flash-linear-attention if it is installed."""
        from annotated_attention.linear_triton import linear_attention_triton

        size = self.sizes
        for t in sorted({min(size.aimed), max(size.aimed)}):
            if time.monotonic() > end:
                yield {"what": "linear", "skipped": "the time was up", "t": t}
                continue
            d = size.widths[-1]
            inputs = self.random(max(1, size.tokens // t), size.m // d, t, d)
            makers = {
                "ours": lambda: linear_attention_triton,
                "PyTorch": lambda: linear_attention,
                **peers.linear(),
            }
            for which, prepare in (("forward", forward_of), ("backward", backward_of)):
                yield from self.beside(
                    {"what": "linear", "pass": which, "t": t, "d": d}, makers, prepare(inputs)
                )

    def tiles(self, end: float) -> Cases:
        """Other tiles, warps and stages than those of the kernels' tables, for whoever tunes them."""
        from annotated_attention import flash_triton_kernels, flash_triton_kernels_backward

        keys = [(32, 128, 4, 3), (64, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 3), (64, 128, 4, 2)]
        queries = [(128, 64, 8, 3), (64, 64, 4, 2), (128, 32, 8, 3), (64, 128, 8, 2), (128, 128, 8, 1)]
        forward = [(128, 128, 8, 2), (128, 64, 4, 3), (128, 64, 8, 2), (64, 64, 4, 3), (128, 32, 4, 4)]
        tried = {
            "forward": (flash_triton_kernels.TILES, forward_of, forward),
            "backward, queries": (flash_triton_kernels_backward.QUERIES, backward_of, queries),
            "backward, keys": (flash_triton_kernels_backward.KEYS, backward_of, keys),
        }
        size = self.sizes
        d, t = size.widths[0], min(size.aimed)
        inputs = self.random(max(1, size.tokens // t), size.m // d, t, d)
        entry = inputs[0].element_size(), max(64, d)
        makers: dict[str, peers.Maker] = {"ours": lambda: partial(flash, is_causal=True)}
        for what, (table, prepare, others) in tried.items():
            for tile in [table[entry], *others]:
                if time.monotonic() > end:
                    yield {"what": "tiles", "skipped": "the time was up", "of": what, "tile": list(tile)}
                    continue
                about = {"what": "tiles", "of": what, "d": d, "t": t, "tile": list(tile)}
                with patch.dict(table, {entry: tile}):
                    yield from self.beside(about, makers, prepare(inputs))


def every_kernel() -> None:
    """Each kernel once: odd lengths, all options, forward and backward."""
    from annotated_attention.flash_triton_decoding import flash_decoding_triton, paged_attention_triton
    from annotated_attention.linear_triton import linear_attention_triton

    torch.manual_seed(0)
    options: list[dict[str, Any]] = [
        {"is_causal": True},
        {
            "is_causal": True,
            "window": 70,
            "soft_cap": SOFT_CAP,
            "sink_logits": torch.zeros(4, device=device()),
        },
        {"alibi_slopes": torch.full((4,), 0.1, device=device())},
        {"is_causal": True, "documents": [0, 60, 133]},
    ]
    for option in options:
        leaves = [torch.randn(1, h, 133, 64, device=device(), dtype=torch.bfloat16) for h in (4, 2, 2)]
        leaves = [x.requires_grad_() for x in leaves]
        output, lse = flash_attention_triton(*leaves, **option)
        torch.autograd.grad(output.float().sum() + lse.sum(), leaves)
    leaves = [torch.randn(1, 4, 133, 64, device=device(), dtype=torch.bfloat16) for _ in range(3)]
    leaves = [x.requires_grad_() for x in leaves]
    torch.autograd.grad(linear_attention_triton(*leaves).float().sum(), leaves)
    query = torch.randn(2, 4, 1, 64, device=device(), dtype=torch.bfloat16)
    key, value = torch.randn(2, 2, 2, 133, 64, device=device(), dtype=torch.bfloat16)
    flash_decoding_triton(query, key, value)
    pages = torch.randn(2, 20, 2, 16, 64, device=device(), dtype=torch.bfloat16)
    table = torch.randperm(20, device=device())[:18].view(2, 9).int()
    paged_attention_triton(query, *pages, table, torch.tensor([133, 70], device=device()))
    if device() == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    every_kernel()
