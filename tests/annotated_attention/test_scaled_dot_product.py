"""The proof of `scaled_dot_product`: each test is a claim that its page makes."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_scaled_dot_product_mutants import REFUSED
from tests.proof import Case, assert_agrees, assert_close, causal, changed, draw_mask, normal, plain_attention
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention import scaled_dot_product as chapter
from annotated_attention.scaled_dot_product import numpy_attention, numpy_attention_backward, numpy_weights
from coursekit import numerics

attention, weights_of = chapter.scaled_dot_product_attention, chapter.attention_weights
sdpa = F.scaled_dot_product_attention
WIDE, SHARED, LARGE = Case("t<s"), Case("shared", g=2, r=3), Case("large-scores", largest_score=1e4)
EPS, seeds = torch.finfo(torch.float64).eps, st.integers(0, 2**32 - 1)


def arrays(*tensors):
    """The same numbers in NumPy; None stays None."""
    return tuple(None if x is None else x.cpu().numpy() for x in tensors)


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)


@proof.each_case
@proof.each_dtype
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_agrees_with_pytorch(case, dtype, is_causal, device):
    ours, peer = partial(attention, is_causal=is_causal), partial(sdpa, is_causal=is_causal)
    oracle = partial(plain_attention, mask=causal(case.t, case.s, device) if is_causal else None)
    assert_agrees(ours, peer, case.inputs(dtype, device), oracle=oracle)


@proof.each_mask
@proof.each_dtype
def test_masks_agree_with_pytorch(mask_kind, dtype, device):
    inputs, mask = WIDE.inputs(dtype, device), draw_mask(mask_kind, WIDE, dtype, device)
    if mask.dtype == torch.bool:
        ours, peer, oracle = (proof.masked(f, mask) for f in (attention, sdpa, plain_attention))
        assert_agrees(ours, peer, inputs, oracle=oracle)
    else:
        names = ("query", "key", "value", "attn_mask")
        assert_agrees(attention, sdpa, (*inputs, mask), oracle=plain_attention, names=names)


@proof.each_dtype
def test_gqa_shares_neighbouring_heads(dtype, device):
    inputs = query, key, value = SHARED.inputs(dtype, device)
    ours, peer = partial(attention, enable_gqa=True), partial(sdpa, enable_gqa=True)
    assert_agrees(ours, peer, inputs, oracle=plain_attention)
    first = attention(query[:, :3], key[:, [0, 0, 0]], value[:, [0, 0, 0]])
    assert torch.equal(ours(*inputs)[:, :3], first), "heads 0, 1 and 2 do not read key head 0"


@pytest.mark.parametrize("e", [1, 3, 29])
def test_value_width_is_free(e, device):
    assert_agrees(attention, sdpa, Case("width", e=e).inputs(device=device), oracle=plain_attention)


@pytest.mark.parametrize("kind", [None, "causal", *proof.MASKS])
def test_gradcheck(kind, device):
    case = Case("small", g=1, r=2, t=3, s=5, d=2, e=3)
    mask = draw_mask(kind, case, device=device) if kind in proof.MASKS else None
    ours = partial(attention, attn_mask=mask, is_causal=kind == "causal", enable_gqa=True)
    proof.assert_gradcheck(ours, case.inputs(device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_dropout_is_that_of_pytorch(dtype):
    inputs = query, key, _ = Case("dropout", t=31, s=37).inputs(dtype)

    def dropped(function, *inputs, p=0.25):
        torch.manual_seed(0)
        return function(*inputs, dropout_p=p)

    assert_agrees(partial(dropped, attention), partial(dropped, sdpa), inputs)
    assert (dropped(attention, *inputs, p=1.0) == 0).all()
    # With the unit matrix for values, the output is the weights themselves.
    kept = dropped(attention, query, key, torch.eye(37, dtype=dtype).repeat(2, 3, 1, 1))
    survivors = (kept != 0) * weights_of(query, key) / 0.75
    assert_close(kept, survivors, survivors.double())
    for p in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"dropout.*{p}"):
            attention(*inputs, dropout_p=p)


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_named(name):
    wrong, message = REFUSED[name]
    shapes = {"query": (2, 3, 5, 11), "key": (2, 3, 7, 11), "value": (2, 3, 7, 13)}
    inputs = [torch.ones(wrong.get(n, shapes[n]), dtype=wrong.get(f"{n}_dtype")) for n in shapes]
    mask = torch.ones(wrong["mask"], dtype=wrong.get("mask_dtype", torch.bool)) if "mask" in wrong else None
    options = {"is_causal": "causal" in wrong, "enable_gqa": "gqa" in wrong}
    with pytest.raises(ValueError, match=message):
        proof.bare(attention)(*inputs, mask, **options)
    if name in ("key batch", "no width"):
        assert sdpa(*inputs, mask, **options).shape == (2, 3, 5, 13)
    else:
        with pytest.raises(IndexError if name == "mask of rank 1" else RuntimeError):
            sdpa(*inputs, mask, **options)


@proof.each_dtype
@pytest.mark.parametrize("mask_dtype", proof.DTYPES, ids=str)
def test_pytorch_is_stricter(dtype, mask_dtype):
    inputs, mask = WIDE.inputs(dtype), draw_mask("float-rank-2", WIDE, mask_dtype)
    with pytest.raises(TypeError):
        sdpa(*inputs, None, 0.0, False, 0.3)
    if mask_dtype not in (dtype, torch.float32):
        with pytest.raises(RuntimeError, match="attn_mask"):
            sdpa(*inputs, mask)
    oracle = plain_attention(*(x.double() for x in inputs), mask, scale=0.3)
    assert_close(attention(*inputs, mask, 0.0, False, 0.3), plain_attention(*inputs, mask, 0.3), oracle)


@proof.each_case
def test_rows_sum_to_one(case):
    query, key, _ = case.inputs()
    for weights in (numpy_weights(*arrays(query, key)), weights_of(query, key, is_causal=True)):
        ones = np.ones(weights.shape[:-1])
        assert_close(weights.sum(-1), ones, ones)


def test_scale_is_applied_once():
    (query, key, value), root = WIDE.inputs(), WIDE.d**-0.5
    once, twice = sdpa(query, key, value), sdpa(query, key, value, scale=1 / WIDE.d)
    assert_close(attention(query * root, key, value, scale=1.0), once, once)
    assert_close(attention(query * root, key, value), twice, twice)
    for scale in (0.0, 0.3, -2.0):
        oracle = sdpa(query, key, value, scale=scale)
        assert_close(attention(query, key, value, scale=scale), oracle, oracle)
        assert_close(numpy_attention(*arrays(query, key, value), scale=scale), oracle, oracle)


@pytest.mark.parametrize("case", proof.CASES[:4], ids=str)
def test_is_causal_is_aligned_top_left(case, device):
    inputs = query, key, value = case.inputs(device=device)
    output = attention(query, key, value, is_causal=True)
    assert torch.equal(output, attention(query, key, value, causal(case.t, case.s, device)))
    assert torch.equal(output[:, :, 0], value[:, :, 0]), "the first query does not see the first key alone"
    for n in range(1, min(case.t, case.s)):
        moved = attention(*(changed(x, 2, n) for x in inputs), is_causal=True)
        assert torch.equal(moved[:, :, :n], output[:, :, :n]), f"position {n} reached an earlier query"
    oracle = weights_of(query, key, is_causal=True)
    assert_close(numpy_weights(*arrays(query, key), is_causal=True), oracle, oracle)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_finite_mask_returns_the_mean(dtype):
    query, key, value = WIDE.inputs(dtype)
    nothing = torch.zeros(WIDE.t, WIDE.s, dtype=torch.bool)
    assert not any(f(query, key, value, nothing).any() for f in (attention, sdpa, plain_attention))
    filled = (query @ key.mT * WIDE.d**-0.5).masked_fill(~nothing, -1e9).softmax(-1) @ value
    mean = value.double().mean(2, keepdim=True).expand_as(filled)
    assert_close(filled, mean.to(dtype), mean)


@given(seeds, st.floats(-1e6, 1e6))
def test_shift_invariance(seed, constant):
    query, key, shift = draw(seed, (1, 2, 3, 5), (1, 2, 7, 5), (2, 3, 1))
    # Shifting rounds the scores, and a weight moves by no more than its score does.
    allowed = 8 * EPS * (1 + abs(constant) * shift.abs().max())
    moved = weights_of(query, key, constant * shift) - weights_of(query, key)
    by_hand = numpy_weights(*arrays(query, key, constant * shift)) - numpy_weights(*arrays(query, key))
    assert max(moved.abs().max(), np.abs(by_hand).max()) <= allowed


@proof.each_dtype
def test_large_scores_do_not_overflow(dtype, device):
    inputs = LARGE.inputs(dtype, device)
    assert attention(*inputs).isfinite().all()
    assert np.isfinite(numpy_weights(*arrays(*(x.double() for x in inputs[:2])))).all()
    scores = (inputs[0].double() @ inputs[1].double().mT) * LARGE.d**-0.5
    assert scores.max().exp().isinf(), "these scores would not overflow anyway"


@pytest.mark.parametrize("kind", ["bool-empty-rows", "float-empty-rows"])
def test_empty_rows_are_zero(kind, device):
    inputs, mask = WIDE.inputs(device=device), draw_mask(kind, WIDE, device=device)
    outputs, gradients = proof.with_gradients(proof.masked(attention, mask), inputs)
    numbers, mask = arrays(*inputs), mask.cpu().numpy()
    ours = numpy_attention(*numbers, mask)
    by_hand = numpy_attention_backward(np.ones_like(ours), *numbers, mask)
    for output, dq, dk, dv in (arrays(*outputs, *gradients), (ours, *by_hand)):
        assert not any(x[:, :, ::2].any() for x in (output, dq))
        assert all(np.isfinite(x).all() for x in (output, dq, dk, dv))
    assert not any(x.any() for x in numpy_attention_backward(ours, *numbers, np.zeros((5, 7), dtype=bool)))


def test_masks_are_read_from_the_right():
    padding, per_text = draw_mask("bool-rank-2", WIDE), draw_mask("bool-rank-3", WIDE)
    for case, mask, read, meant in (
        (Case("b=t", b=5), padding, padding.expand(5, 3, 5, 7), padding[:, None, None]),
        (Case("b=h", b=3), per_text, per_text[None], per_text[:, None]),
    ):
        output = attention(*case.inputs(), mask)
        assert torch.equal(output, attention(*case.inputs(), read))
        assert not torch.allclose(output, attention(*case.inputs(), meant))
        with pytest.raises(ValueError, match="attn_mask"):
            attention(*WIDE.inputs(), mask[:2])
    one = Case("b=1", b=1).inputs()
    assert torch.equal(attention(*one, per_text[:1]), attention(*one, per_text[:1, None]))


def test_multihead_attention_masks_the_opposite():
    x, allowed = normal("x", 2, 1, 7, 11), draw_mask("bool-rank-2", proof.SQUARE)
    module = torch.nn.MultiheadAttention(11, 1, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(11).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(11))
        theirs = module(x[:, 0], x[:, 0], x[:, 0], attn_mask=~allowed, need_weights=False)[0]
    ours = attention(x, x, x, allowed)[:, 0]
    assert_close(ours, theirs, theirs)
    assert not torch.allclose(attention(x, x, x, ~allowed)[:, 0], theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(dtype, device):
    inputs = query, key, value = Case("large", largest_score=1e3).inputs(dtype, device)
    wide = [x.float() for x in inputs]
    ours, oracle = attention(*inputs), sdpa(*(x.double() for x in inputs))
    assert torch.equal(ours, attention(*wide).to(dtype))
    assert torch.equal(weights_of(query, key), weights_of(*wide[:2]).to(dtype))
    narrow = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, -1) @ value
    assert_close(ours, plain_attention(*inputs), oracle)
    assert not numerics.measure(narrow, plain_attention(*inputs), oracle).passed, "half precision would do"


@proof.each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_numpy_agrees(case, dtype):
    inputs = case.inputs(dtype)
    for mask in (None, causal(case.t, case.s), draw_mask("float-empty-rows", case, dtype)):
        ours = numpy_attention(*arrays(*inputs, mask))
        assert_close(ours, sdpa(*inputs, mask), plain_attention(*(x.double() for x in inputs), mask))


@proof.each_case
@pytest.mark.parametrize("kind", [None, "causal", *proof.MASKS])
def test_numpy_backward_equals_autograd(case, kind):
    inputs, is_causal = case.inputs(), kind == "causal"
    mask = draw_mask(kind, case) if kind in proof.MASKS else None
    _, expected = proof.with_gradients(partial(sdpa, attn_mask=mask, is_causal=is_causal), inputs)
    upstream = normal("upstream 0", case.b, case.h, case.t, case.e)
    ours = numpy_attention_backward(*arrays(upstream, *inputs, mask), is_causal)
    assert max(np.abs(x - y).max(initial=0.0) for x, y in zip(ours, arrays(*expected), strict=True)) <= 1e-10


def test_softmax_jacobian():
    weights = torch.softmax(normal("scores", 7), -1)
    jacobian = torch.autograd.functional.jacobian(partial(torch.softmax, dim=-1), normal("scores", 7))
    assert_close(weights[:, None] * (torch.eye(7) - weights), jacobian, jacobian)


def test_row_sum_needs_no_weights():
    query, key, value = arrays(*WIDE.inputs())
    weights, output = numpy_weights(query, key), numpy_attention(query, key, value)
    grad_output = normal("upstream", *output.shape).numpy()
    dp, oracle = grad_output @ value.swapaxes(2, 3), (grad_output * output).sum(-1)
    assert_close((dp * weights).sum(-1), oracle, oracle)


@pytest.mark.parametrize("d", [4, 16, 64, 256, 1024])
def test_scores_have_variance_d(d):
    n = 5000
    variance = (normal("q", n, d) * normal("k", n, d)).sum(-1).var() / d
    # A sample's variance varies by (kurtosis - 1) / n, and the kurtosis here is 3 + 6 / d.
    assert abs(variance - 1) < 5 * ((2 + 6 / d) / n) ** 0.5, "five standard deviations"


def test_unscaled_softmax_saturates():
    def norms(d, scale):
        p = weights_of(normal("q", 1, 1, 2000, d), normal("k", 1, 1, 24, d), scale=scale)[0, 0]
        return torch.linalg.matrix_norm(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])

    small, large = norms(4, scale=1.0), norms(1024, scale=1.0)
    assert large.median() < small.median() / 1000
    assert 4 < small.mean() / large.mean() < 6
    assert all(norms(d, None).median() > 0.9 * norms(4, None).median() for d in (16, 64, 256, 1024))


def test_cost():
    with FlopCounterMode(display=False) as counter:
        attention(*WIDE.inputs())
    operations, weights = chapter.attention_cost(WIDE.b, WIDE.h, WIDE.t, WIDE.s, WIDE.d, WIDE.e)
    assert operations == counter.get_total_flops()
    assert weights == weights_of(*WIDE.inputs()[:2]).numel()
    _, weights = chapter.attention_cost(1, 32, 32_768, 32_768, 128, 128)
    assert weights * torch.bfloat16.itemsize == 64 * 2**30


@given(st.permutations(range(7)))
def test_key_order_is_invisible(order):
    query, key, value = WIDE.inputs()
    oracle = sdpa(query, key, value)
    assert_close(attention(query, key[:, :, order], value[:, :, order]), oracle, oracle)


@given(seeds, st.integers(1, 40), st.floats(0.0, 8.0))
def test_long_texts_dilute(seed, s, largest):
    (key,), query = draw(seed, (1, 1, s, 1)), torch.full((1, 1, 1, 1), largest, dtype=torch.float64)
    limit = np.exp(2 * largest) / (np.exp(2 * largest) + s - 1)
    assert weights_of(query, key.clamp(-1, 1), scale=1.0).max() <= limit * (1 + 64 * EPS)
    # The limit is reached: one key scores as high as it may, all others as low.
    key = torch.tensor([1.0] + [-1.0] * (s - 1), dtype=torch.float64).reshape(1, 1, s, 1)
    assert weights_of(query, key, scale=1.0).max() >= limit * (1 - 64 * EPS)


@given(seeds, st.floats(0.0, 30.0))
def test_output_lies_between_the_values(seed, scale):
    inputs = query, key, value = draw(seed, (1, 2, 3, 5), (1, 2, 7, 5), (1, 2, 7, 2))
    slack = 16 * EPS * value.abs().max()
    low, high = value.amin(2, keepdim=True) - slack, value.amax(2, keepdim=True) + slack
    by_hand = torch.from_numpy(numpy_attention(*arrays(*inputs), scale=scale))
    for output in (attention(query, key, value, scale=scale), by_hand):
        assert ((low <= output) & (output <= high)).all()


def test_forbidden_values_must_be_finite():
    query, key, value = WIDE.inputs()
    value[:, :, 3], allowed = torch.nan, (torch.arange(WIDE.s) != 3).expand(WIDE.t, -1)
    assert all(f(query, key, value, allowed).isnan().all() for f in (attention, sdpa))


@pytest.mark.parametrize(("t", "s", "spoilt"), [(5, 7, 5), (64, 600, 0)])
def test_garbage_in_the_future(t, s, spoilt):
    query, key, value = Case("future", t=t, s=s, e=11).inputs()
    value[:, :, -1] = torch.nan
    assert (sdpa(query, key, value, is_causal=True).isnan().any(-1).sum(-1) == spoilt).all()
    assert attention(query, key, value, is_causal=True).isnan().all()


@pytest.mark.parametrize("case", proof.CASES[:4], ids=str)
def test_cached_attention_is_aligned_bottom_right(case, device):
    inputs = case.inputs(device=device)
    i, j = torch.arange(case.t, device=device)[:, None], torch.arange(case.s, device=device)
    ours, oracle = chapter.cached_attention(*inputs), attention(*inputs, j <= i + case.s - case.t)
    assert_close(ours, oracle, oracle)
    assert torch.allclose(ours, attention(*inputs, is_causal=True)) == (case.t == case.s)
