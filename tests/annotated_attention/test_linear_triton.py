"""The proof of `linear_triton`. Without a GPU, Triton's interpreter runs the kernels, and what a GPU would run is
compiled."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from tests import proof
from tests.annotated_attention.test_linear import by_states, joined, plain
from tests.proof import Case, assert_close, changed, normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from annotated_attention import linear_triton
from annotated_attention.linear import elu_plus_one, linear_attention, linear_cost, relu_features
from annotated_attention.linear_triton import linear_attention_triton, linear_triton_traffic

pytest.importorskip("triton", reason="needs Triton")

# Two tiles and a bit of each: of tokens, features and values.
LONG = Case("long", b=1, g=2, t=37, s=37, d=35, e=33)
ours_16 = partial(linear_attention_triton, chunk_size=16)


@pytest.mark.parametrize(
    "case",
    [
        LONG,
        Case("t<s", b=1, t=17, s=23),
        Case("t>s", b=2, g=2, t=23, s=17),
        Case("t=1", b=2, t=1, s=1),
        Case("strided", b=1, t=19, s=19, strided=True),
        Case("empty-batch", b=0, t=7, s=7),
        Case("no-tokens", t=0, s=0),
        Case("no-keys", t=3, s=0),
        Case("large-scores", b=1, t=17, s=17, largest_score=1e4),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_agrees_with_linear_attention(case: Case, dtype: torch.dtype, device: str) -> None:
    inputs = case.inputs(dtype, device)
    exact, slopes = proof.with_gradients(plain, [x.double() for x in inputs])
    output, gradients = proof.with_gradients(ours_16, inputs)
    assert (output[0].dtype, output[0].shape) == (dtype, exact[0].shape)
    # A peer that adds up token by token has an empty row's gradient of 0 as well.
    peer = by_states if case.s else linear_attention
    peer_output, peer_gradients = proof.with_gradients(peer, inputs)
    assert_close(output[0], peer_output[0], exact[0])
    vectors = map(joined, (gradients, peer_gradients, slopes))
    assert_close(*vectors, factor=proof.GRADIENT_FACTOR, what="a gradient")
    with torch.no_grad():
        assert torch.equal(ours_16(*inputs), output[0])


@pytest.mark.parametrize("chunk_size", [16, 32, 64, 128])
def test_any_chunk_size_is_the_same(chunk_size: int, device: str) -> None:
    inputs = Case("text", b=1, g=1, t=131, s=131, d=5, e=3).inputs(torch.float32, device)
    exact, slopes = proof.with_gradients(plain, [x.double() for x in inputs])
    # A chunk of nearly all tokens is the parallel form.
    peer, peer_slopes = proof.with_gradients(plain if chunk_size == 128 else by_states, inputs)
    output, gradients = proof.with_gradients(partial(linear_attention_triton, chunk_size=chunk_size), inputs)
    assert_close(output[0], peer[0], exact[0])
    vectors = map(joined, (gradients, peer_slopes, slopes))
    assert_close(*vectors, factor=proof.GRADIENT_FACTOR)


def test_every_map_will_do(device: str) -> None:
    weight = normal("map", 11, 21, device=device).float().requires_grad_()

    def learned(x: Tensor) -> Tensor:
        return (x @ weight.to(x.dtype)).relu()

    inputs = Case("text", b=1, t=19, s=19).inputs(torch.float32, device)
    for feature_map in (relu_features, learned):
        exact, slopes = proof.with_gradients(
            partial(plain, feature_map=feature_map), [x.double() for x in inputs]
        )
        peer, peer_slopes = proof.with_gradients(partial(linear_attention, feature_map=feature_map), inputs)
        output, gradients = proof.with_gradients(partial(ours_16, feature_map=feature_map), inputs)
        assert_close(output[0], peer[0], exact[0])
        vectors = map(joined, (gradients, peer_slopes, slopes))
        assert_close(*vectors, factor=proof.GRADIENT_FACTOR)
    assert torch.autograd.grad(ours_16(*inputs, feature_map=learned).sum(), weight)[0].any()


def test_rows_that_see_nothing_are_zero(device: str) -> None:
    query, key, value = (
        x.requires_grad_() for x in Case("text", b=1, t=19, s=19).inputs(torch.float32, device)
    )
    for feature_map, low in ((relu_features, -1.0), (elu_plus_one, -1e4)):
        # Row 17 has no feature; before row 5, no key has any.
        q = query.index_fill(2, torch.tensor([17], device=device), low)
        k = torch.cat([torch.full_like(key[:, :, :5], low), key[:, :, 5:]], 2)
        output = ours_16(q, k, value, feature_map=feature_map)
        empty = (plain(q.double(), k.double(), value.double(), feature_map=feature_map) == 0).all(-1)
        assert empty[:, :, [0, 1, 2, 3, 4, 17]].all()
        assert ((output == 0).all(-1) == empty).all()
        gradients = torch.autograd.grad(output.sum(), (query, key, value))
        assert all(x.isfinite().all() for x in gradients)
        assert not gradients[0][empty].any()
        assert gradients[0][~empty].any()


def test_future_moves_nothing(device: str) -> None:
    query, key, value = Case("text", b=1, g=1, t=37, s=37).inputs(torch.float32, device)
    before = ours_16(query, key, value)
    for j in (1, 15, 16, 17, 36):
        after = ours_16(query, 1e4 * changed(key, 2, j), 1e4 * changed(value, 2, j))
        loud = [torch.cat([x[:, :, :j], y[:, :, j:]], 2) for x, y in ((key, 1e4 * key), (value, 1e4 * value))]
        after = ours_16(query, *loud)
        assert torch.equal(after[:, :, :j], before[:, :, :j])
        assert (after[:, :, j:] != before[:, :, j:]).any(-1).all()


def test_the_same_bits_every_time(device: str) -> None:
    inputs = LONG.inputs(torch.float32, device)
    first, second = (proof.with_gradients(ours_16, inputs) for _ in range(2))
    assert all(
        torch.equal(x, y) for x, y in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True)
    )


def test_elsewhere_it_is_linear_attention(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Case("text", t=19, s=19).inputs(device=device)
    narrow = [x.float() for x in inputs]
    cases = [(inputs, {}), (narrow, {"is_causal": False})]
    for given, options in cases:
        exact = linear_attention(*given, chunk_size=16, **options)
        assert torch.equal(ours_16(*given, **options), exact)
    exact = linear_attention(*narrow, chunk_size=16)
    assert not torch.equal(ours_16(*narrow), exact)
    monkeypatch.setattr(linear_triton, "has_kernels", lambda query: False)
    assert torch.equal(ours_16(*narrow), exact)
    monkeypatch.undo()
    if device == "cpu":
        monkeypatch.delenv("TRITON_INTERPRET")
        assert torch.equal(ours_16(*narrow), exact)


def test_wrong_input_is_refused() -> None:
    query, key, value = Case("s=7").inputs(torch.float32)
    ours = proof.bare(linear_attention_triton)
    wrong = [
        ((query[0], key, value), {}, "query is"),
        ((query, key[:, :2], value[:, :2]), {}, "key has 2 heads, query has 3"),
        ((query, key.double(), value), {}, "key is torch.float64"),
        ((query, key, value[:, :, :5]), {}, "value has shape"),
        ((query, key, value), {"chunk_size": 48}, r"chunk_size is 48: one of \(16, 32, 64, 128\) is wanted"),
        ((query, key, value), {"feature_map": lambda x: x.sum(2)}, "feature_map made .* b h t f is"),
    ]
    for arguments, more, message in wrong:
        with pytest.raises(ValueError, match=message):
            ours(*arguments, **more)


def test_not_twice_differentiable(device: str) -> None:
    inputs = [x.requires_grad_() for x in Case("text", b=1, t=7, s=7).inputs(torch.float32, device)]
    with pytest.raises(RuntimeError, match="create_graph=True asks for a gradient of the gradient"):
        torch.autograd.grad(ours_16(*inputs).sum(), inputs, create_graph=True)


class Moved(TorchDispatchMode):
    """The bytes that operations read and write, views left out."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read, made = (
            [x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), result)
        )
        if not {x.untyped_storage().data_ptr() for x in read} & {
            x.untyped_storage().data_ptr() for x in made
        }:
            self.bytes += sum(x.nbytes for x in read + made)
        return result


def test_traffic_of_one_head() -> None:
    inputs = [normal(name, 1, 1, 4096, 64).bfloat16() for name in ("query", "key", "value")]
    with Moved() as plain_torch:
        linear_attention(*inputs)
    numbers, _ = linear_triton_traffic(4096, 64, 64, 64)
    # In bf16, but for the denominators, and for a normaliser at each border.
    kernels = 2 * numbers + 2 * (4096 + 2 * 64 * 64)
    assert 4 * inputs[0].nbytes == 2 * 2**20
    assert round(plain_torch.bytes / 2**20) == 52
    assert round(kernels / 2**20) == 4


class Counted:
    """Numbers that the interpreter's kernels load and store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import InterpreterBuilder

        self.numbers = 0
        for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
            monkeypatch.setattr(
                InterpreterBuilder, name, self.counting(getattr(InterpreterBuilder, name), place)
            )

    def counting(self, access, place: int):
        def counted(builder, *args):
            self.numbers += int(args[place].data.sum())
            return access(builder, *args)

        return counted


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
@pytest.mark.parametrize(("t", "f", "e"), [(64, 16, 16), (37, 5, 11)])
def test_traffic_is_what_the_kernels_move(t: int, f: int, e: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.requires_grad_() for x in Case("text", b=1, g=1, t=t, s=t, d=f, e=e).inputs(torch.float32)]
    seen = Counted(monkeypatch)
    output = ours_16(*inputs)
    forward = seen.numbers
    output.sum().backward()
    assert (forward, seen.numbers - forward) == linear_triton_traffic(t, f, e, 16)


def test_what_a_chunk_size_trades() -> None:
    t, found = 2**20, []
    for u in (16, 32, 64, 128):
        found.append((linear_triton_traffic(t, 64, 64, u)[0] / t, linear_cost(t, 64, 64, u)[0] / t))
    assert found == [(905, 20_608), (645, 24_704), (515, 32_896), (450, 49_280)]
    assert round(32_896 / (2 * 515)) == 32
    assert round(312e12 / 1.5e12) == 208
    assert 128 * 128 == 65_536 / 4


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU rounds by itself")
@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["values", "values around 1"])
def test_what_a_gpu_rounds(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes the bits of a bf16 for an integer: here it is taught to multiply it."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widened(x):
        return (x.data.astype("uint32") << 16).view("float32") if str(x.dtype.scalar) == "bf16" else x.data

    def create_dot(builder, a, b, d, *options):
        return TensorHandle(widened(a) @ widened(b) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(linear_triton, "arithmetic", lambda x: "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    query, key, value = Case("text", b=1, g=2, t=203, s=203, d=64, e=64).inputs(torch.bfloat16)
    inputs = [query, key, value + shift]
    exact, slopes = proof.with_gradients(plain, [x.double() for x in inputs])
    peer, peer_slopes = proof.with_gradients(by_states, inputs)
    output, gradients = proof.with_gradients(linear_attention_triton, inputs)
    assert_close(output[0], peer[0], exact[0])
    for triple in zip(gradients, peer_slopes, slopes, strict=True):
        assert_close(*triple, factor=proof.GRADIENT_FACTOR)


COMPILE = r"""
import json, re, subprocess, sys, tempfile
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from annotated_attention import linear_triton as page
from annotated_attention import linear_triton_kernels as forward, linear_triton_kernels_backward as back

ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
text = ("query", "key", "value", "output", "grad_output", "grad_query", "grad_key", "grad_value")
sums = ("total", "shift", "normalisers", "shifts")

def compiled(kernel, told, dtype, arch, **more):
    states = "*bf16" if dtype == "bf16" else "*fp32"
    types = dict.fromkeys(text, "*" + dtype) | dict.fromkeys(sums, "*fp32")
    types |= dict.fromkeys(("matrices", "before", "after"), states) | {"T": "i32", "H": "i32", "tokens": "i32"}
    fixed = {name: value for name, value in {**told, **more}.items() if name in kernel.arg_names and name not in "TH"}
    signature = {name: "constexpr" if name in fixed else types[name] for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    options = {"num_warps": told["num_warps"], "num_stages": told["num_stages"]}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        Path(file.name).write_text(made.asm["ptx"])
        name = "sm_90a" if arch == 90 else f"sm_{arch}"
        call = [ptxas, "-v", "--gpu-name", name, file.name, "-o", "/dev/null"]
        said = subprocess.run(call, capture_output=True, text=True, check=True).stderr
    spills = int(re.search(r"(\d+) bytes spill stores", said)[1])
    tensor_cores = [word in made.asm["ptx"] for word in ("wgmma", "mma.sync")]
    return {"kernel": kernel.__name__, "dtype": dtype, "arch": arch, "shared": made.metadata.shared,
        "spills": spills, "tensor_cores": any(tensor_cores), "d": told["F"], **more}

for dtype, arch, d, u in json.loads(sys.argv[1]):
    kind = {"bf16": "bf16", "fp16": "tf32x3", "fp32": "ieee"}[dtype]
    page.arithmetic = lambda x: kind
    torch.cuda.get_device_capability = lambda device: divmod(arch, 10)
    x = torch.empty(1, 4096, 8, d, device="meta")
    told = page.settings(x, x, u, True)
    jobs = [(forward.state_kernel, {"BACKWARDS": False, "total": None, "shift": None}),
        (forward.state_kernel, {"BACKWARDS": True}), (forward.output_kernel, {}), (back.shift_kernel, {}),
        (back.feature_gradient_kernel, {}), (back.value_gradient_kernel, {})]
    for kernel, more in jobs if dtype == "bf16" else [jobs[1], jobs[2], jobs[4]]:
        print(json.dumps(compiled(kernel, told, dtype, arch, **more)), flush=True)
"""
# The main one whole, of the others what is largest, on small tiles: it takes time.
TARGETS = [("bf16", 90, 128, 64), ("fp16", 90, 64, 16), ("fp32", 90, 16, 16)]
TARGETS += [("bf16", 80, 128, 64), ("fp16", 80, 16, 16), ("fp32", 80, 16, 16)]


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    call = [sys.executable, "-c", COMPILE, json.dumps(TARGETS)]
    answer = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert not answer.returncode, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_kernels_compile_for_gpus(kernels: list[dict]) -> None:
    assert len(kernels) == 2 * 6 + 4 * 3
    for kernel in kernels:
        assert kernel["shared"] <= {90: 227, 80: 163}[kernel["arch"]] * 1024, kernel
        multiplies = kernel["kernel"] != "shift_kernel" and kernel["dtype"] != "fp32"
        assert kernel["tensor_cores"] == multiplies, kernel


def test_nothing_spills(kernels: list[dict]) -> None:
    spilled = [kernel for kernel in kernels if kernel["spills"] and kernel["dtype"] == "bf16"]
    assert not spilled
