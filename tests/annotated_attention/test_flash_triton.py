"""The proof of `flash_triton`: each test is a claim that its page makes.

On `cpu` Triton's interpreter runs the kernels (see `conftest.py`), where there is no GPU; beside a GPU it is PyTorch
that answers there.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.annotated_attention.test_flash_details import assert_lse, of_one_vector, one_vector
from tests.annotated_attention.test_sliding_window_details import allocated
from tests.proof import Case, assert_agrees, assert_close, causal, normal
from torch import Tensor

from annotated_attention import flash_triton
from annotated_attention.alibi import alibi_slopes
from annotated_attention.flash_merge import merge_attention
from annotated_attention.flash_triton import (
    attend_in_blocks,
    flash_attention_triton,
    keys_in_sight,
    tiles_visited,
)

# Tiles of the interpreter are 32 by 16: two rows and four columns of them, the last not full.
PACKED = Case("packed", b=1, g=1, r=2, t=53, s=53, d=11, e=19)
GROUPED = replace(PACKED, name="grouped", g=2)
# As wide as values: then PyTorch's is a fused kernel, with the same recomputation going back.
LARGE = replace(proof.CASES[-1], e=proof.CASES[-1].d)
DOCUMENTS = [0, 5, 5, 40, 51, 53]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def seen_by(t: int, s: int, options: dict[str, Any], device: str = "cpu") -> Tensor:
    """Who sees whom, from the definitions."""
    i, j = torch.arange(t, device=device)[:, None], torch.arange(s, device=device)
    seen = torch.ones(t, s, dtype=torch.bool, device=device)
    if options.get("is_causal"):
        seen &= j <= i
    if (window := options.get("window")) is not None:
        seen &= (i - j).abs() < window
    if (documents := options.get("documents")) is not None:
        marks = torch.tensor(documents, device=device)
        seen &= torch.bucketize(i, marks, right=True) == torch.bucketize(j, marks, right=True)
    return seen


def scores_of(query: Tensor, key: Tensor, *vectors: Tensor, **options: Any) -> Tensor:
    """As on paper; slopes and sinks come as inputs, so that their gradients can be compared."""
    (t, d), s = query.shape[2:], key.shape[2]
    scale = options.get("scale")
    scores = query @ key.mT * (d**-0.5 if scale is None else scale)
    if (cap := options.get("soft_cap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    if "alibi_slopes" in options.get("vectors", ()):
        scores = scores - vectors[0].to(query.dtype)[:, None, None] * distances(t, s, query.device)
    return scores.masked_fill(~seen_by(t, s, options, str(query.device)), float("-inf"))


def distances(t: int, s: int, device: Any) -> Tensor:
    return (torch.arange(t, device=device)[:, None] - torch.arange(s, device=device)).abs()


def widened(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    wide, r = torch.promote_types(query.dtype, torch.float32), query.shape[1] // key.shape[1]
    return [query.to(wide), *(x.to(wide).repeat_interleave(r, 1) for x in (key, value))]


def formula(query: Tensor, key: Tensor, value: Tensor, *vectors: Tensor, **options: Any) -> Any:
    """Everything at once."""
    q, k, v = widened(query, key, value)
    scores = scores_of(q, k, *vectors, **options)
    if "sink_logits" in options.get("vectors", ()):
        column = vectors[-1].to(q.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(q.dtype).min)[..., None])[..., : k.shape[2]]
    return (weights @ v).to(query.dtype), lse


def gradients_recomputed(inputs: list[Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """At slopes and sinks, from the logarithm and the output as every fused kernel has it: it is the fair peer, for
    autograd has the weights themselves. With `with_gradients`' projection."""
    q, k, v = widened(*inputs[:3])
    output, lse = formula(*inputs, **options)
    do, dl = (
        normal(f"upstream {n}", *x.shape, dtype=x.dtype, device=str(x.device))
        for n, x in enumerate((output, lse))
    )
    # Weights are rounded before they meet the values: those that the row's largest score makes 1.
    scores, lowest = scores_of(q, k, *inputs[3:], **options), torch.finfo(q.dtype).min
    top = scores.amax(-1, keepdim=True).clamp(min=lowest)
    output = torch.exp(scores - top).to(output.dtype).to(q.dtype) @ v
    output = (output * torch.exp(top - lse.clamp(min=lowest)[..., None])).to(inputs[0].dtype)
    shift = (do.to(q.dtype) * output.to(q.dtype)).sum(-1) - dl
    weights = torch.exp(scores - lse[..., None])
    ds = weights * (do.to(q.dtype) @ v.mT - shift[..., None])
    on_nothing = torch.exp(inputs[-1][:, None] - lse) if inputs[3:] else lse
    return {
        "alibi_slopes": -(ds * distances(*ds.shape[2:], ds.device)).sum((0, 2, 3)),
        "sink_logits": -(on_nothing * shift).sum((0, 2)),
    }


def ours(*inputs: Tensor, vectors: tuple[str, ...] = (), **options: Any) -> Any:
    named = dict(zip(vectors, inputs[3:], strict=True))
    return flash_attention_triton(*inputs[:3], **named, **options)


def without_kernels(*inputs: Tensor, **options: Any) -> Any:
    """By PyTorch, in small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_triton, "has_kernels", lambda query: False)
        patch.setattr(flash_triton, "attend_in_blocks", partial(attend_in_blocks, block=29))
        return ours(*inputs, **options)


def inputs_of(case: Case, dtype: torch.dtype, device: str, options: dict[str, Any]) -> list[Tensor]:
    vectors = {
        "alibi_slopes": alibi_slopes(case.h, device=device),
        "sink_logits": normal("sinks", case.h, device=device),
    }
    return [*case.inputs(dtype, device), *(vectors[name].float() for name in options.get("vectors", ()))]


def assert_is(
    function: Callable[..., Any], case: Case, options: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    """Outputs and gradients of `function` are those of the formula; so are logarithms, in float32."""
    inputs = inputs_of(case, dtype, device, options)
    double = [x.double() for x in inputs]
    given = (function, inputs), (formula, inputs), (formula, double)
    run = [proof.with_gradients(partial(f, **options), x) for f, x in given]
    (found, peer, exact), (grads, peers, exacts) = zip(*run, strict=True)
    assert_close(found[0], peer[0], exact[0], what="the output")
    assert found[1].dtype == torch.promote_types(dtype, torch.float32)
    assert_lse(found[1], peer[1], exact[1])
    vectors = options.get("vectors", ())
    peers = [*peers[:3], *map(gradients_recomputed(inputs, options).__getitem__, vectors)]
    for name, *triple in zip(["query", "key", "value", *vectors], grads, peers, exacts, strict=True):
        assert_close(*triple, factor=proof.GRADIENT_FACTOR, what=f"the gradient at {name}")


def skip_bfloat16_on(device: str, dtype: torch.dtype) -> None:
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("needs CUDA: Triton's interpreter rounds bf16 in a way of its own")


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": 9},
    "causal-window": {"is_causal": True, "window": 21},
    "documents": {"documents": DOCUMENTS},
    "causal-documents": {"documents": DOCUMENTS, "is_causal": True},
    "slopes": {"vectors": ("alibi_slopes",)},
    "sinks": {"vectors": ("sink_logits",), "is_causal": True},
    "cap": {"soft_cap": 1.5},
    "scale": {"scale": -0.3, "soft_cap": 2.0},
    "all": {
        "is_causal": True,
        "window": 25,
        "documents": DOCUMENTS,
        "soft_cap": 3.0,
        "vectors": ("alibi_slopes", "sink_logits"),
    },
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_agrees_with_the_formula(is_causal: bool, device: str) -> None:
    case = Case("text", b=1, g=1, r=2, t=37, s=53)
    assert_is(ours, case, {"is_causal": is_causal}, torch.float32, device)


@each_dtype
@pytest.mark.parametrize("case", [Case("text", b=2, g=1, t=19, s=37, e=11), LARGE], ids=str)
def test_agrees_with_pytorch(case: Case, dtype: torch.dtype, device: str) -> None:
    skip_bfloat16_on(device, dtype)
    inputs = case.inputs(dtype, device)
    functions = (
        lambda *x: flash_attention_triton(*x, is_causal=True)[0],
        partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True),
        partial(proof.plain_attention, mask=causal(case.t, case.s, device)),
    )
    found, peer, oracle = (of_one_vector(f, case, inputs) for f in functions)
    assert_agrees(found, peer, one_vector(inputs), oracle=oracle, names=["all inputs"])


@each_option
def test_options_combine(options: dict[str, Any], device: str) -> None:
    assert_is(ours, PACKED, options, torch.float32, device)


@each_dtype
def test_options_combine_below_float32(dtype: torch.dtype, device: str) -> None:
    skip_bfloat16_on(device, dtype)
    assert_is(ours, GROUPED, OPTIONS["all"], dtype, device)


@each_option
def test_pytorch_says_the_same(options: dict[str, Any], device: str) -> None:
    assert_is(without_kernels, PACKED, options, torch.float32, device)
    inputs = inputs_of(PACKED, torch.float64, device, options)
    found, exact = (proof.with_gradients(partial(f, **options), inputs) for f in (ours, formula))
    for x, y in zip([*found[0], *found[1]], [*exact[0], *exact[1]], strict=True):
        assert_close(x, y, y)


LENGTHS = [(1, 37), (37, 1), (33, 70), (70, 33), (64, 64)]


@pytest.mark.parametrize(("t", "s"), LENGTHS)
def test_lengths_and_strides(t: int, s: int, device: str) -> None:
    b = 16 if t == 1 else 1
    case = Case("text", b=b, g=1, r=2, t=t, s=s, d=20, e=16, strided=True)
    assert_is(ours, case, {"is_causal": True}, torch.float32, device)


def test_strides_change_nothing(device: str) -> None:
    dense = PACKED.inputs(torch.float32, device)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in dense]
    results = [proof.with_gradients(flash_attention_triton, x) for x in (strided, dense)]
    for pair in zip(*([*outputs, *gradients] for outputs, gradients in results), strict=True):
        assert torch.equal(*pair)


def test_vectors_may_have_strides_and_a_window_no_end(device: str) -> None:
    dense = GROUPED.inputs(torch.float32, device)
    vector = normal("vector", 2 * GROUPED.h, device=device).float().abs()
    for options in ({"alibi_slopes": vector[::2]}, {"sink_logits": vector[:1].expand(GROUPED.h)}):
        copied = {name: x.contiguous() for name, x in options.items()}
        pair = (flash_attention_triton(*dense, **given)[0] for given in (options, copied))
        assert torch.equal(*pair)
    pair = (flash_attention_triton(*dense, window=window)[0] for window in (None, 2**31 - 1))
    assert torch.equal(*pair)


@pytest.mark.parametrize(("b", "t", "s"), [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0)])
def test_nothing_at_all(b: int, t: int, s: int, device: str) -> None:
    inputs = [x.requires_grad_() for x in Case("empty", b=b, t=t, s=s).inputs(torch.float32, device)]
    for options in ({}, {"window": 2}):
        for function in (ours, without_kernels):
            output, lse = function(*inputs, **options)
            assert output.shape == (b, 3, t, 13)
            assert lse.shape == (b, 3, t)
            assert not output.any()
            assert (lse == float("-inf")).all()
            assert not any(x.any() for x in torch.autograd.grad(output.sum() + lse.exp().sum(), inputs))


def test_who_sees_nothing(device: str) -> None:
    case = Case("text", b=1, t=80, s=30)
    for function in (ours, without_kernels):
        inputs = [x.requires_grad_() for x in case.inputs(torch.float32, device)]
        output, lse = function(*inputs, window=4)
        blind = torch.arange(80, device=device) >= 30 + 3
        assert not output[:, :, blind].any()
        assert output[:, :, ~blind].all()
        assert torch.equal(lse == float("-inf"), blind.expand_as(lse))
        gradients = torch.autograd.grad(output.sum() + lse[:, :, ~blind].sum(), inputs)
        assert not gradients[0][:, :, blind].any()
        assert all(x.isfinite().all() for x in gradients)
        sinks = torch.tensor([0.5, -1.0, 2.0], device=device)
        lse = function(*case.inputs(torch.float32, device), sinks, window=4, vectors=("sink_logits",))[1]
        assert_close(lse[:, :, blind], *[sinks[:, None].expand_as(lse[:, :, blind])] * 2)


def test_documents_are_texts_of_their_own(device: str) -> None:
    inputs = PACKED.inputs(torch.float32, device)
    packed = flash_attention_triton(*inputs, documents=DOCUMENTS, is_causal=True)
    marks = torch.tensor(DOCUMENTS, device=device)
    assert torch.equal(flash_attention_triton(*inputs, documents=marks, is_causal=True)[0], packed[0])
    for first, last in pairwise(DOCUMENTS):
        alone = [x[:, :, first:last] for x in inputs]
        exact = formula(*(x.double() for x in alone), is_causal=True)
        for x, y, z in zip(packed, formula(*alone, is_causal=True), exact, strict=True):
            assert_close(x[:, :, first:last], y, z)


def test_a_sink_counts_once_in_a_merge(device: str) -> None:
    query, key, value = Case("text", t=5, s=37).inputs(torch.float32, device)
    sinks = normal("sinks", 3, device=device).float()
    exact = ours(query, key, value, sinks, vectors=("sink_logits",))
    near = ours(query, key[:, :, :20], value[:, :, :20], sinks, vectors=("sink_logits",))
    far = ours(query, key[:, :, 20:], value[:, :, 20:])
    merged = merge_attention(*near, *far)
    double = [x.double() for x in (query, key, value, sinks)]
    oracle = formula(*double, vectors=("sink_logits",))
    for triple in zip(merged, exact, oracle, strict=True):
        assert_close(*triple)


def test_wide_heads_are_left_to_pytorch(device: str) -> None:
    case = Case("wide", b=1, g=1, t=5, s=7, d=257, e=3)
    assert_is(ours, case, {"is_causal": True, "window": 3}, torch.float32, device)


def test_memory_without_a_kernel_is_linear(device: str) -> None:
    def windowed(*inputs: Tensor) -> Tensor:
        return without_kernels(*inputs, window=32, is_causal=True)[0]

    # A block of 29 queries and 60 keys in two heads, beside all keys or all queries.
    for t in (512, 1024):
        assert [x.largest for x in allocated(windowed, t, device)] == [4 * 2 * t * 8] * 2


def test_visited_tiles_are_counted() -> None:
    def count(t: int, before: int, after: int) -> tuple[int, int]:
        return tiles_visited(*keys_in_sight(torch.arange(t), t, before, after, None, None), 128, 64)

    t = 8192
    assert count(t, 2 * t, 2 * t) == (8192, 0)
    assert count(t, 2 * t, 0) == (4160, 128)
    assert count(t, 511, 0) == (620, 248)
    visited, masked = count(t, 63, 0)
    assert visited == masked == 3 * 64 - 1
    assert 64 * t / (visited * 128 * 64) == pytest.approx(1 / 3, rel=0.01)


def test_is_not_twice_differentiable(device: str) -> None:
    if not flash_triton.has_kernels(torch.zeros(1, device=device)):
        pytest.skip("PyTorch answers here")
    inputs = [x.requires_grad_() for x in Case("text", b=1, g=1).inputs(torch.float32, device)]
    output, _ = flash_attention_triton(*inputs)
    with pytest.raises(RuntimeError, match="a gradient of the gradient, which flash_attention_triton lacks"):
        torch.autograd.grad(output.sum(), inputs[0], create_graph=True)


def test_wrong_input_is_refused() -> None:
    query, key, value = Case("text", b=1, g=3, r=2, t=7, s=7).inputs(torch.float32)
    function = proof.bare(flash_attention_triton)
    meta = torch.zeros(6, device="meta")
    wrong = [
        ((query[0], key, value), {}, "query is"),
        ((query[:, :5], key, value), {}, "key has 3 heads, query has 5"),
        ((query, key.half(), value), {}, "key is torch.float16"),
        ((query, key.to("meta"), value), {}, "keys or values are on meta, query on cpu"),
        ((query, key, value.to("meta")), {}, "keys or values are on meta, query on cpu"),
        ((query, key, value), {"window": 0}, "window is 0: at least 1 is wanted"),
        ((query, key, value), {"soft_cap": 0.0}, "soft_cap is 0.0: more than 0 is wanted"),
        ((query, key, value), {"soft_cap": float("nan")}, "soft_cap is nan"),
        (
            (query, key, value),
            {"alibi_slopes": torch.ones(3)},
            r"alibi_slopes has shape \(3,\), on cpu: \(6,\)",
        ),
        ((query, key, value), {"sink_logits": meta}, r"sink_logits has shape \(6,\), on meta: \(6,\) on cpu"),
        ((query, key, value), {"documents": [0, 5]}, r"documents is \[0, 5\] for 7 queries and 7 keys"),
        ((query, key, value), {"documents": [1, 7]}, r"documents is \[1, 7\]"),
        ((query, key, value), {"documents": [0, 5, 3, 7]}, r"documents is \[0, 5, 3, 7\]"),
        ((query, key, value), {"documents": []}, r"documents is \[\]"),
        ((query[:, :, :5], key, value), {"documents": [0, 7]}, r"documents is \[0, 7\] for 5 queries"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)
