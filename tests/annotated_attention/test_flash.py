"""The proof of `flash`: each test is a claim that its page makes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from benchmarks.growth import peak_mib
from benchmarks.measure import forward_backward
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_flash_details import (
    GROUPED,
    Products,
    assert_lse,
    attention,
    causal_tiles,
    is_causal_or_not,
    of_one_vector,
    one_vector,
    plain_lse,
)
from tests.annotated_attention.test_grouped_query import inputs_of
from tests.annotated_attention.test_sliding_window_details import allocated
from tests.proof import (
    Case,
    assert_agrees,
    assert_close,
    causal,
    changed,
    flex_with_lse,
    normal,
    plain_attention,
)
from torch import Tensor

from annotated_attention.flash import flash_attention, flash_traffic, online_softmax
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

sdpa = partial(F.scaled_dot_product_attention, enable_gqa=True)


def mask_of(case: Case, is_causal: bool, device: str = "cpu") -> Tensor | None:
    return causal(case.t, case.s, device) if is_causal else None


@proof.each_case
@proof.each_dtype
@is_causal_or_not
def test_agrees_with_pytorch(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    # Keys as wide as values: then PyTorch's is a fused kernel, with the same recomputation going back.
    case = replace(case, r=2, e=case.d)
    inputs = inputs_of(case, dtype, device)
    ours, peer, oracle = (
        of_one_vector(function, case, inputs)
        for function in (
            attention(is_causal=is_causal, block_q=2, block_k=3),
            partial(sdpa, is_causal=is_causal),
            partial(plain_attention, mask=mask_of(case, is_causal, device)),
        )
    )
    assert_agrees(ours, peer, one_vector(inputs), oracle=oracle, names=["all inputs"])


@proof.each_dtype
@is_causal_or_not
def test_values_may_be_wider_than_keys(dtype: torch.dtype, is_causal: bool, device: str) -> None:
    oracle = partial(plain_attention, mask=mask_of(GROUPED, is_causal, device))
    inputs = GROUPED.inputs(dtype, device)
    ours, peer = attention(is_causal=is_causal, block_q=4, block_k=2), partial(sdpa, is_causal=is_causal)
    ours, peer, oracle = (of_one_vector(f, GROUPED, inputs) for f in (ours, peer, oracle))
    assert_agrees(ours, peer, one_vector(inputs), oracle=oracle, names=["all inputs"])


@proof.each_case
@proof.each_dtype
@is_causal_or_not
def test_lse_is_that_of_pytorch(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    case = replace(case, e=case.d)
    inputs = inputs_of(case, dtype, device)
    exact = plain_lse(*(x.double() for x in inputs[:2]), mask_of(case, is_causal, device))
    _, lse = flash_attention(*inputs, is_causal=is_causal, block_q=2, block_k=3)
    wide = torch.promote_types(dtype, torch.float32)
    assert lse.dtype == wide
    peer = plain_lse(*(x.to(wide) for x in inputs[:2]), mask_of(case, is_causal, device))
    if device == "cpu" and case.b:
        # The kernel that `scaled_dot_product_attention` calls here; it is private, and so is what it returns.
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        peer = kernel(*inputs, is_causal=is_causal)[1].view(lse.shape)
    assert_close(lse, peer, exact, dtype=wide)


@given(
    t=st.integers(0, 23),
    s=st.integers(0, 23),
    block_q=st.integers(1, 29),
    block_k=st.integers(1, 29),
    is_causal=st.booleans(),
)
def test_any_block_size_is_the_same(
    t: int, s: int, block_q: int, block_k: int, is_causal: bool, device: str
) -> None:
    inputs = Case("any", b=1, g=1, r=2, t=t, s=s, d=4, e=3).inputs(device=device)
    ours = partial(flash_attention, is_causal=is_causal, block_q=block_q, block_k=block_k)
    whole = partial(flash_attention, is_causal=is_causal, block_q=30, block_k=30)
    for outputs in zip(*(proof.with_gradients(f, inputs) for f in (ours, whole)), strict=True):
        found, exact = (torch.cat([x.flatten() for x in parts]) for parts in outputs)
        assert_lse(found, exact, exact)
    exact = plain_attention(*inputs, causal(t, s, device) if is_causal else None)
    assert_close(ours(*inputs)[0], exact, exact)


@given(scores=st.lists(st.one_of(st.just(float("-inf")), st.floats(-1e4, 1e4)), max_size=9))
def test_online_softmax_is_softmax(scores: list[float], device: str) -> None:
    x = torch.tensor(scores, dtype=torch.float64, device=device).expand(3, -1)
    is_empty = all(score == float("-inf") for score in scores)
    exact = torch.zeros_like(x) if is_empty else x.softmax(-1)
    assert_close(online_softmax(x), exact, exact)


@pytest.mark.parametrize(("t", "s", "is_causal"), [(4, 5, False), (4, 5, True), (5, 4, True)])
def test_gradcheck(t: int, s: int, is_causal: bool) -> None:
    case = Case("small", b=1, g=2, r=2, t=t, s=s, d=3, e=2)
    ours = partial(flash_attention, is_causal=is_causal, block_q=2, block_k=3)
    proof.assert_gradcheck(ours, case.inputs())


@pytest.mark.parametrize(("t", "s"), [(11, 11), (5, 11), (11, 5)])
def test_the_future_moves_nothing(t: int, s: int, device: str) -> None:
    query, key, value = Case("text", t=t, s=s).inputs(torch.float32, device)
    ours = partial(flash_attention, is_causal=True, block_q=3, block_k=2)
    before = ours(query, key, value)
    for j in range(s):
        after = ours(query, changed(key, 2, j, j + 1), changed(value, 2, j, j + 1))
        for old, new in zip(before, after, strict=True):
            moved = (old != new).transpose(0, 2).flatten(1).any(1)
            assert moved.tolist() == [i >= j for i in range(t)]


@proof.each_dtype
def test_no_keys_at_all(dtype: torch.dtype, device: str) -> None:
    for t, s in ((5, 0), (0, 7), (0, 0)):
        inputs = [x.requires_grad_() for x in Case("empty", t=t, s=s).inputs(dtype, device)]
        output, lse = flash_attention(*inputs, is_causal=True)
        assert output.shape == (2, 3, t, 13)
        assert lse.shape == (2, 3, t)
        assert not output.any()
        assert (lse == float("-inf")).all()
        assert not any(x.any() for x in torch.autograd.grad(output.sum() + lse.exp().sum(), inputs))


@is_causal_or_not
def test_scores_may_overflow_downwards(is_causal: bool, device: str) -> None:
    # In float32, all scores but those of the last two keys are minus infinity; a tile has two keys.
    case = Case("text", t=5, s=5)
    query, key, value = (x.abs() + 1 for x in case.inputs(torch.float32, device))
    query, key = query * 1e20, torch.cat([key[:, :, :3] * -1e20, key[:, :, 3:] * 1e-20], 2)
    output, lse = flash_attention(query, key, value, is_causal=is_causal, block_q=2, block_k=2)
    peer = scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    exact = plain_attention(*(x.double() for x in (query, key, value)), mask_of(case, is_causal, device))
    blind = torch.tensor([is_causal and i < 3 for i in range(5)], device=device)
    assert_close(output[:, :, ~blind], peer[:, :, ~blind], exact[:, :, ~blind])
    assert not output[:, :, blind].any()
    assert torch.equal(lse == -torch.inf, blind.expand_as(lse))


def test_wrong_input_is_refused() -> None:
    query, key, value = GROUPED.inputs()
    ours = proof.bare(flash_attention)
    wrong = [
        ((query[0], key, value), {}, "query is"),
        ((query, key[:, :2], value[:, :2][:, :, :4]), {}, "value has shape"),
        ((query[:, :5], key, value), {}, "key has 3 heads, query has 5"),
        ((query, key.float(), value), {}, "key is torch.float32"),
        ((query, key, value), {"block_q": 0}, "block_q is 0, block_k is 512: at least 1 is wanted"),
        ((query, key, value), {"block_k": -1}, "block_q is 256, block_k is -1: at least 1 is wanted"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            ours(*arguments, **options)


@pytest.mark.parametrize(("t", "s"), [(24, 24), (22, 24), (10, 24), (22, 13)])
def test_skipped_tiles_cost_nothing(t: int, s: int) -> None:
    case, tiles = Case("text", b=1, g=1, r=2, t=t, s=s, d=3, e=5), causal_tiles(t, s)
    with Products() as seen:
        flash_attention(*case.inputs(), is_causal=True, block_q=4, block_k=6)
    scores = 2 * sum(tile.queries * tile.keys for tile in tiles)
    assert seen.operations == 2 * scores * (3 + 5)
    assert seen.masks == sum(tile.is_crossed for tile in tiles)
    if t == s == 24:
        # Of a long text half: here, of 6 rows and columns of 4 by 4, 21 squares of 36.
        assert scores / (2 * t * s) == 21 / 36


@is_causal_or_not
def test_memory_is_linear(is_causal: bool, device: str) -> None:
    ours = attention(is_causal=is_causal, block_q=64, block_k=64)
    tile = 4 * 2 * 64 * 64
    for t in (512, 1024):
        assert [x.largest for x in allocated(ours, t, device)] == [max(tile, 4 * 2 * t * 8)] * 2
    whole = partial(scaled_dot_product_attention, is_causal=is_causal)
    assert all(x.largest == 4 * 2 * 1024 * 1024 for x in allocated(whole, 1024, device))

    # And all that is there at a time: the length of a text makes it larger, never its square.
    peaks = []
    for t in (512, 1024, 1536):
        inputs = normal("text", 3, 1, 2, t, 8, device=device).float().unbind()
        peaks.append(peak_mib(lambda inputs=inputs: forward_backward(ours, inputs), inputs) * 2**20)
    assert peaks[1] - peaks[0] == pytest.approx(peaks[2] - peaks[1], rel=0.01)
    assert peaks[2] < 12 * 4 * 2 * 1536 * 8 + 6 * tile


def test_what_is_kept_is_linear(device: str) -> None:
    kept = []
    inputs = [x.requires_grad_() for x in GROUPED.inputs(device=device)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        output, lse = flash_attention(*inputs)
    (b, h, t, _), e = inputs[0].shape, inputs[2].shape[3]
    assert sum(x.numel() for x in kept) == sum(x.numel() for x in inputs) + b * h * t * (e + 1)
    assert output.numel() + lse.numel() == b * h * t * (e + 1)


def test_autocast_does_not_reach_the_tiles(device: str) -> None:
    def run() -> list[Tensor]:
        outputs, gradients = proof.with_gradients(flash_attention, GROUPED.inputs(torch.float32, device))
        return [*outputs, *gradients]

    plain = run()
    with torch.autocast(device, torch.bfloat16):
        cast = run()
    assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))


def test_traffic_of_one_head() -> None:
    t, d = 4096, 64
    assert 3 * t * d * 2 == 1.5 * 2**20
    scores = 4 * t * t
    assert scores * 2 == 128 * 2**20
    assert flash_traffic(t, t, d, d)[0] == scores + 4 * t * d
    assert 1e6 * scores * 2 / 1.5e12 == pytest.approx(90, abs=1)
    assert 1e6 * 2 * t * t * (d + d) / 312e12 == pytest.approx(14, abs=0.5)


@is_causal_or_not
@pytest.mark.parametrize(("t", "s"), [(24, 24), (22, 13), (13, 22)])
def test_traffic_is_what_tiles_read(is_causal: bool, t: int, s: int) -> None:
    inputs = Case("text", b=1, g=1, t=t, s=s, d=3, e=5).inputs()
    with Products() as seen:
        output, lse = flash_attention(*inputs, is_causal=is_causal, block_q=4, block_k=6)
    once = inputs[0].numel() + output.numel() + lse.numel()
    assert flash_traffic(t, s, 3, 5, is_causal=is_causal, block_q=4)[1] == once + seen.read


def test_traffic_falls_with_the_block() -> None:
    ratios = [flash_traffic(2**15, 2**15, 64, 64, block_q=u) for u in (128, 256, 512)]
    assert [naive / tiled for naive, tiled in ratios] == pytest.approx([4, 8, 16], rel=0.02)


def test_bits_depend_on_the_blocks(device: str) -> None:
    inputs = Case("text", t=64, s=64).inputs(torch.float32, device)
    outputs = [flash_attention(*inputs, block_k=a)[0] for a in (8, 64)]
    assert not torch.equal(*outputs)
    exact = plain_attention(*(x.double() for x in inputs))
    assert_close(outputs[0], outputs[1], exact)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_flex_attention_returns_the_same(dtype: torch.dtype, device: str) -> None:
    inputs = GROUPED.inputs(dtype, device)
    flex = flex_with_lse(*inputs, enable_gqa=True)
    exact = plain_attention(*(x.double() for x in inputs)), plain_lse(*(x.double() for x in inputs[:2]))
    ours = flash_attention(*inputs, block_q=2, block_k=3)
    for triple in zip(ours, flex, exact, strict=True):
        assert_close(*triple)


def test_long_texts_stay_exact(device: str) -> None:
    query, key, value = (
        normal(x, 1, 1, n, 8, device=device) for x, n in (("q", 3), ("k", 9000), ("v", 9000))
    )
    exact = plain_attention(query, key, value)
    inputs = query.float(), key.float(), value.float()
    assert_close(flash_attention(*inputs)[0], sdpa(*inputs), exact)
