"""The proof of `flash_triton_decoding_kernels`: each test is a claim that its page makes."""

import json
import os
import runpy
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
from tests.annotated_attention.test_flash_details import assert_lse
from tests.annotated_attention.test_flash_triton_decoding import CACHE, LENGTHS, in_pages, plain_decoding
from tests.proof import Case, assert_close, normal

from annotated_attention.flash_merge import merge_attention
from annotated_attention.flash_triton_decoding import decoding_cost

pytest.importorskip("triton")

from annotated_attention.flash_triton_decoding_kernels import (
    attend_to_parts,
    merge_parts,
    tile_sizes,
)

FIGURES = Path(__file__).parents[2] / "lessons" / "13_flash" / "figures_decoding.py"
NO_OPTIONS = {"slopes": None, "window": None, "scale": 0.3, "soft_cap": None}


@pytest.mark.parametrize("n", [1, 5, 37])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["bare", "sinks"])
def test_the_kernel_merges_as_the_lesson_does(n: int, with_sinks: bool, device: str) -> None:
    """Also where parts are empty, some or all of them, and where a part counts for nearly nothing."""
    b, h, t, e = 2, 3, 2, 5
    outputs, lses = (
        normal("outputs", n, b, h, t, e, device=device),
        4 * normal("lses", n, b, h, t, device=device),
    )
    empty = normal("empty", n, b, h, t, device=device) < -0.5
    empty[:, 0, 0, 0], empty[:, 1, 2, 1], lses[-1, 0, 1] = True, False, 40.0
    outputs, lses = outputs.masked_fill(empty[..., None], 0.0), lses.masked_fill(empty, float("-inf"))
    sinks = (
        torch.tensor([float("-inf"), 0.0, 30.0], dtype=torch.float64, device=device) if with_sinks else None
    )

    def lesson(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        parts = list(zip(outputs.to(dtype), lses.to(dtype), strict=True))
        if sinks is not None:
            parts.append((torch.zeros_like(parts[0][0]), sinks.to(dtype)[:, None].expand(b, h, t)))
        return reduce(lambda x, y: merge_attention(*x, *y), parts)

    narrow = None if sinks is None else sinks.float()
    found = merge_parts(outputs.float(), lses.float(), narrow, torch.float32)
    peer, exact = lesson(torch.float32), lesson(torch.float64)
    assert_close(found[0], peer[0], exact[0])
    assert_lse(found[1], peer[1], exact[1])
    assert with_sinks or not found[0][0, 0, 0].any()


def test_a_contiguous_cache_is_one_page(device: str) -> None:
    query, key, value = CACHE.inputs(torch.float32, device)
    lengths = torch.tensor(LENGTHS, device=device)
    table = torch.arange(3, device=device)[:, None]
    whole = attend_to_parts(query, key, value, None, lengths, n_splits=2, **NO_OPTIONS)
    paged = attend_to_parts(query, key, value, table, lengths, n_splits=2, **NO_OPTIONS)
    assert all(torch.equal(x, y) for x, y in zip(whole, paged, strict=True))


def test_what_is_not_held_is_never_read(device: str) -> None:
    """Neither a table's entries that no text has reached, nor slots behind a text, nor keys before a window."""
    query, key, value = CACHE.inputs(torch.float32, device)
    lengths = torch.tensor(LENGTHS, device=device)
    *pages, table = in_pages(key, value, LENGTHS, 5)
    assert (table.abs() == 2**30).any()
    assert pages[1].isnan().any()
    found = attend_to_parts(query, *pages, table, lengths, n_splits=2, **NO_OPTIONS)
    assert not any(x.isnan().any() for x in found)

    # A window of 20 for queries at 38, 39 and 40: 19 is the first key that is seen.
    settings = {**NO_OPTIONS, "window": 20, "n_splits": 2}
    before = attend_to_parts(query, key, value, None, lengths, **settings)
    for x in (key, value):
        x[0, :, :19] = float("nan")
    after = attend_to_parts(query, key, value, None, lengths, **settings)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_window_is_dealt_out_not_the_cache(device: str) -> None:
    """Of 200 keys a window of 61 shows 64 to four queries: a tile of 16 to each of four parts."""
    query, key, value = Case("window", b=1, g=1, t=4, s=200).inputs(torch.float32, device)
    lengths = torch.tensor([200], device=device)
    _, lses = attend_to_parts(query, key, value, None, lengths, n_splits=4, **{**NO_OPTIONS, "window": 61})
    assert tile_sizes(4, 13, torch.float32)[1] == 16
    # The first query sees nothing of the last three keys, but all see some of the last part.
    assert lses.isfinite().all()


def test_the_figure_deals_out_as_the_kernel_does(device: str) -> None:
    """Equal keys: a part's logsumexp counts them."""
    dealt = runpy.run_path(str(FIGURES))["dealt"]
    lengths = [200, 90, 33, 16, 0]
    query, key = torch.ones(5, 1, 1, 8, device=device), torch.zeros(5, 1, 200, 8, device=device)
    a = tile_sizes(1, 8, torch.float32)[1]
    for n in (1, 4, 7):
        given = None, torch.tensor(lengths, device=device)
        counts = attend_to_parts(query, key, key, *given, n_splits=n, **NO_OPTIONS)[1].exp()
        for b, length in enumerate(lengths):
            drawn = [stop - start for start, stop in dealt(length, a, n)]
            assert counts[:, b, 0, 0].round().tolist() == drawn


def test_parts_weigh_what_was_counted(device: str) -> None:
    query, key, value = CACHE.inputs(torch.float16, device)
    outputs, lses = attend_to_parts(
        query, key, value, None, torch.tensor(LENGTHS, device=device), n_splits=3, **NO_OPTIONS
    )
    _, cache, parts = decoding_cost(3, 2, 2, 3, 53, 11, 13, 3, dtype=torch.float16)
    assert (outputs.dtype, lses.dtype) == (torch.float32, torch.float32)
    assert key.nbytes + value.nbytes == cache
    assert 2 * (outputs.nbytes + lses.nbytes) == parts


def test_a_group_with_more_rows_than_a_tile(device: str) -> None:
    """Multi-query attention with drafted tokens: 35 rows are three tiles of 16."""
    inputs = Case("rows", b=1, g=1, r=7, t=5, s=19).inputs(torch.float32, device)
    assert tile_sizes(35, 13, torch.float32)[0] == 16
    parts = attend_to_parts(*inputs, None, torch.tensor([19], device=device), n_splits=1, **NO_OPTIONS)
    found = merge_parts(*parts, None, torch.float32)
    peer, exact = (
        plain_decoding(*(x.to(kind) for x in inputs), [19], scale=0.3)
        for kind in (inputs[0].dtype, torch.float64)
    )
    assert_close(found[0], peer[0], exact[0])
    assert_close(found[1], peer[1], exact[1])


def test_without_triton_the_import_says_what_to_do() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import annotated_attention.flash_triton_decoding_kernels"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode != 0
    assert (
        'ImportError: the kernels are written in Triton, which is not installed: pip install "annotated'
        in done.stderr
    )


def environment() -> dict[str, str]:
    """Kernels that were imported for the interpreter cannot be compiled: a process of its own, told of none."""
    found = {name: content for name, content in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**found, "PYTHONPATH": os.pathsep.join(sys.path)}


COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton.language as tl
from annotated_attention import flash_triton_decoding_kernels as kernels

def compiled(kernel, arch, stages, **constants):
    pointers = {"query": "x", "key": "x", "value": "x", "output": "x", "table": "i32", "lengths": "i32"}
    signature, constexprs, attributes = {}, {}, {}
    for n, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], constexprs[n,] = "constexpr", constants[name]
        elif name in ("scale", "cap"):
            signature[name] = "fp32"
        elif name in pointers or name in ("slopes", "outputs", "lses", "sink_logits", "lse"):
            kind = pointers.get(name, "fp32")
            signature[name] = "*" + (constants["x"] if kind == "x" else kind)
            attributes[n,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if name.startswith(("key_", "value_")):
                attributes[n,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    options = {"num_warps": 4, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

found = []
kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
for arch, x, rows, d, e, page, cap in json.loads(sys.argv[1]):
    u, a = kernels.tile_sizes(rows, max(d, e), kinds[x])
    wide = {"D": triton.next_power_of_2(d), "E": triton.next_power_of_2(e)}
    dot = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[x]
    none = {} if page else {"table": None}
    none |= {} if cap else {"cap": None, "slopes": None}
    # Triton makes a constant of an argument that is 1: one new token of one head of one text.
    none |= {"t": 1, "r": 1, "g": 1} if rows == 1 else {}
    both = {"x": x, "d": d, "e": e, "U": u, "A": a, "PAGE": page, "DOT": dot, "key_d": 1, "value_e": 1}
    kernel = compiled(kernels.attention_kernel, arch, 5 if page else 3, **both, **wide, **none)
    none = {} if cap else {"sink_logits": None}
    merge = compiled(kernels.merge_kernel, arch, 3, x=x, e=e, N=16, E=wide["E"], **none)
    ptx = kernel.asm["ptx"]
    found.append([kernel.metadata.shared, merge.metadata.shared, "cp.async" in ptx, "mma" in ptx])
print(json.dumps(found))
"""


def test_kernels_compile_for_two_generations() -> None:
    """For A100 and H100, without either. Two programs fit on a multiprocessor, for heads of up to 128, and loads run
    ahead of the arithmetic."""
    cases = [
        (90, "bf16", 4, 128, 128, 0, False),
        (90, "bf16", 4, 128, 128, 16, False),
        (90, "bf16", 64, 80, 96, 16, True),
        (90, "bf16", 16, 256, 256, 0, False),
        (90, "fp32", 4, 128, 128, 16, True),
        (80, "fp16", 4, 128, 128, 0, True),
        (80, "bf16", 1, 64, 64, 16, False),
        (80, "fp32", 4, 256, 256, 0, False),
    ]
    room = {80: 163 * 1024, 90: 227 * 1024}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(cases)], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    for case, found in zip(cases, json.loads(done.stdout), strict=True):
        (arch, x, _, d, *_), (shared, merge, runs_ahead, on_tensor_cores) = case, found
        assert max(shared, merge) <= room[arch] // (2 if d <= 128 else 1), case
        assert runs_ahead, case
        assert on_tensor_cores == (x != "fp32"), case
