"""The proof of `flash_triton_kernels`: each test is a claim that its page makes."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_flash_triton import seen_by
from torch import Tensor

from annotated_attention import flash_triton
from annotated_attention.flash_triton import flash_attention_triton, spans_of

triton = pytest.importorskip("triton", reason="needs Triton")
import triton.language as tl  # noqa: E402

from annotated_attention import flash_triton_kernels as kernels  # noqa: E402


@triton.jit
def interval_kernel(
    lows, highs, tiles, m, n, before, after, starts, ends, ROWS: tl.constexpr, SIZE: tl.constexpr
):
    first = tl.program_id(0) * ROWS
    x = tl.minimum(first + tl.arange(0, ROWS), m - 1)
    low, high = kernels.interval(x, n, before, after, starts, ends)
    tl.store(lows + x, low)
    tl.store(highs + x, high)
    start, whole, n_whole, n_edge = kernels.tile_range(low, high, SIZE)
    for EDGE in tl.static_range(2):
        for k in range(n_edge if EDGE else n_whole):
            place = kernels.tile_at(k, start, whole, n_whole, SIZE, EDGE)
            tl.store(tiles + tl.program_id(0) * tl.cdiv(n, SIZE) + place // SIZE, 2 - EDGE)


@triton.jit
def tanh_kernel(x, y, n, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y + i, kernels.tanh(tl.load(x + i, i < n, 0.0)), i < n)


def skip_without_kernels(device: str) -> None:
    if not flash_triton.has_kernels(torch.zeros(1, device=device)):
        pytest.skip("beside a GPU, nothing is interpreted")


def intervals(m: int, n: int, reach: tuple[Any, ...], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of all positions, and for tiles of 8 by 4: 2 where the kernel visits one without a mask, 1 with one."""
    lows, highs = (torch.empty(m, dtype=torch.int32, device=device) for _ in range(2))
    tiles = torch.zeros(triton.cdiv(m, 8), triton.cdiv(n, 4), dtype=torch.int32, device=device)
    interval_kernel[(len(tiles),)](lows, highs, tiles, m, n, *reach, ROWS=8, SIZE=4)
    return lows, highs, tiles


@st.composite
def masks(draw: Any) -> tuple[int, int, dict[str, Any]]:
    t, s = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    options: dict[str, Any] = {"is_causal": draw(st.booleans())}
    options["window"] = draw(st.none() | st.integers(1, 35))
    if draw(st.booleans()):
        s = t
        options["documents"] = [0, *sorted(draw(st.lists(st.integers(0, t), max_size=4))), t]
    return t, s, options


def reach_of(t: int, s: int, options: dict[str, Any], device: str) -> tuple[Any, ...]:
    window = options.get("window")
    before = t + s if window is None else window - 1
    after = 0 if options.get("is_causal") else before
    query = torch.empty(1, 1, t, 1, device=device)
    return before, after, *spans_of(options.get("documents"), query, s)


@settings(max_examples=25)
@given(mask=masks())
def test_intervals_are_the_masks(mask: tuple[int, int, dict[str, Any]], device: str) -> None:
    skip_without_kernels(device)
    t, s, options = mask
    before, after, starts, ends = reach_of(t, s, options, device)
    seen = seen_by(t, s, options, device)
    for matrix, (m, n), reach in (
        (seen, (t, s), (before, after)),
        (seen.T, (s, t), (after, before)),
    ):
        low, high, _ = intervals(m, n, (*reach, starts, ends), device)
        x = torch.arange(n, device=device)
        assert torch.equal((x >= low[:, None]) & (x < high[:, None]), matrix)


@settings(max_examples=25)
@given(mask=masks())
def test_tiles_are_what_is_seen(mask: tuple[int, int, dict[str, Any]], device: str) -> None:
    skip_without_kernels(device)
    t, s, options = mask
    tiles = intervals(t, s, reach_of(t, s, options, device), device)[2]
    seen = seen_by(t, s, options, device)
    for i, row in enumerate(tiles.tolist()):
        rows = seen[8 * i : 8 * i + 8]
        columns = rows.any(0).nonzero().flatten().tolist()
        for j, visited in enumerate(row):
            tile = rows[:, 4 * j : 4 * j + 4]
            inside = bool(columns) and columns[0] // 4 <= j <= columns[-1] // 4
            assert (visited > 0) == inside
            assert (visited == 2) == (tile.shape[1] == 4 and bool(tile.all()))


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"window": 5}, {"window": 20, "is_causal": True}, {"documents": [0, 32, 64, 80]}],
    ids=["causal", "window", "causal-window", "documents"],
)
def test_masked_tiles_are_never_visited(options: dict[str, Any], device: str) -> None:
    """All tiles that a group of queries has no business in are NaN, in queries, keys, values and gradients."""
    skip_without_kernels(device)
    t, e = 80, 5
    inputs = proof.Case("text", b=1, g=1, t=t, s=t, d=11, e=e).inputs(torch.float32, device)
    u, a = (32, 16) if device == "cpu" else (128, 128)
    seen = seen_by(t, t, options, device)
    exact = proof.with_gradients(lambda *x: flash_attention_triton(*x, **options)[0], inputs)
    for i in range(0, t, u):
        keys = seen[i : i + u].any(0).nonzero().flatten()
        hidden = torch.ones(t, dtype=torch.bool, device=device)
        hidden[int(keys.min()) // a * a : (int(keys.max()) // a + 1) * a] = False
        query, *kv = (x.clone().requires_grad_() for x in inputs)
        spoiled = [x.detach().masked_fill(hidden[:, None], float("nan")).requires_grad_() for x in kv]
        output = flash_attention_triton(query, *spoiled, **options)[0]
        assert torch.equal(output[:, :, i : i + u], exact[0][0][:, :, i : i + u])

        # Back from these queries alone; all that could bring NaN along is somewhere else.
        upstream = proof.normal("upstream 0", *output.shape, dtype=output.dtype, device=device)
        if i == 0:
            dq = torch.autograd.grad(output[:, :, :u], query, upstream[:, :, :u])[0]
            assert torch.equal(dq[:, :, :u], exact[1][0][:, :, :u])

    # And a tile of keys meets no query that does not see it.
    for j in range(0, t, 2 * a):
        rows = seen[:, j : j + a].any(1).nonzero().flatten()
        hidden = torch.ones(t, dtype=torch.bool, device=device)
        hidden[int(rows.min()) // u * u : (int(rows.max()) // u + 1) * u] = False
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = flash_attention_triton(*leaves, **options)[0]
        upstream = proof.normal("upstream 0", *output.shape, dtype=output.dtype, device=device)
        grads = torch.autograd.grad(output, leaves[1:], upstream.masked_fill(hidden[:, None], float("nan")))
        for x, y in zip(grads, exact[1][1:], strict=True):
            assert torch.equal(x[:, :, j : j + a], y[:, :, j : j + a])


def test_tanh_is_exact(device: str) -> None:
    skip_without_kernels(device)
    x = torch.cat(
        [torch.linspace(-12, 12, 2000), torch.logspace(-30, 1, 2000), torch.tensor([0.0, 1e30, -1e30])]
    )
    x = x.to(device)
    y = torch.empty_like(x)
    tanh_kernel[(1,)](x, y, len(x), SIZE=4096)
    exact = x.double().tanh()
    error = ((y - exact).abs() / exact.abs().clamp(min=1e-38)).max()
    assert error < 3 * 2**-23


# What runs in a process of its own, where nothing is interpreted: Triton compiles for a GPU that is not there.
COMPILE = """
import json, sys
import torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from annotated_attention import flash_triton_kernels as forward, flash_triton_kernels_backward as backward

OPTIONAL = {"sinks", "slopes", "starts", "ends", "cap", "dslopes"}
ACCUMULATED = {"sinks", "slopes", "lse", "log2", "shift", "dslopes"}

def compiled(kernel, table, arch, dtype, d, has_options):
    sizes, launch = forward.tiles_of(table, d, d, dtype)
    short = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    signature, constants, attributes = {}, {}, {}
    for n, name in enumerate(kernel.arg_names):
        kind = "i32"
        if name in sizes or (name in OPTIONAL and not has_options):
            kind, constants[(n,)] = "constexpr", sizes.get(name)
        elif name in ("starts", "ends"):
            kind = "*i32"
        elif name in ("scale", "cap"):
            kind = "fp32"
        elif name in ACCUMULATED:
            kind = "*fp32"
        elif "_" not in name.replace("grad_output", "") and len(name) > 1 and name not in ("before", "after"):
            kind = "*" + short
        if kind[0] == "*" or "_" in name:
            attributes[(n,)] = [["tt.divisibility", 16]]
        signature[name] = kind
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
    return {"kernel": kernel.__name__, "arch": arch, "shared": made.metadata.shared, "ptx": made.asm["ptx"]}

KERNELS = [
    (forward.forward_kernel, forward.TILES),
    (backward.keys_kernel, backward.KEYS),
    (backward.queries_kernel, backward.QUERIES),
]
CASES = [(90, torch.bfloat16, 128, False), (80, torch.float16, 96, True), (80, torch.bfloat16, 256, False)]
results = [compiled(*kernel, *case) for kernel in KERNELS for case in CASES]
results += [compiled(*KERNELS[0], 90, torch.float32, 64, True)]
json.dump(results, sys.stdout)
"""


def test_kernels_compile_for_gpus() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    source = str(Path(kernels.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([source, environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", COMPILE]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr[-2000:]
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    for n, result in enumerate(json.loads(made.stdout)):
        product = "wgmma.mma_async" if result["arch"] == 90 else "mma.sync"
        is_float32 = n == 9
        assert (product in result["ptx"]) == (not is_float32)
        assert is_float32 or "cp.async" in result["ptx"] or "queries" in result["kernel"]

        # A program of an A100 has 163 KiB, of an H100 227, of a small GPU 99: they fit in the least where they
        # were made for no H100.
        assert result["shared"] <= 1024 * (227 if result["arch"] == 90 else 99)
        if result["arch"] == 90 and not is_float32:
            with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
                file.write(result["ptx"])
                file.flush()
                assemble = [assembler, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull]
                said = subprocess.run(assemble, capture_output=True, text=True, check=True).stderr
            assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", said), said
