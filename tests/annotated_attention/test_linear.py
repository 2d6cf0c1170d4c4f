"""The proof of `linear`: each test is a claim that its page makes. Feature maps, decoding: files of their own."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_sliding_window_details import Allocations, flops
from tests.proof import Case, assert_close, changed, normal
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from annotated_attention.linear import (
    LinearState,
    elu_plus_one,
    linear_attention,
    linear_attention_piece,
    linear_attention_step,
    linear_cost,
    merge_states,
    positive_random_features,
    ratio,
    read,
    relu_features,
    state_of,
    taylor_features,
)

FORMS = ("parallel", "recurrent", "chunked")
each_form = pytest.mark.parametrize("form", FORMS)
both_directions = pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
TEXT = Case("text", t=11, s=11)


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = True,
    feature_map: Callable[[Tensor], Tensor] = elu_plus_one,
) -> Tensor:
    """Equation 4 of the paper as it stands, with all weights, and sums in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = feature_map(query.to(wide)) @ feature_map(key.to(wide)).mT
    if is_causal:
        weights = weights.tril()
    blend, total = weights @ value.to(wide), weights.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, blend / torch.where(total == 0, 1, total)).to(query.dtype)


def by_states(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = True) -> Tensor:
    """Equations 10 to 12 as they stand: the sum at every position, of every outer product."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = elu_plus_one(query.to(wide)), elu_plus_one(key.to(wide)), value.to(wide)
    matrices, sums = (k[..., None] * v[..., None, :]).cumsum(2), k.cumsum(2)
    last = torch.arange(q.shape[2], device=q.device).clamp(max=k.shape[2] - 1)
    last = last if is_causal else torch.full_like(last, k.shape[2] - 1)
    blend, total = (q[..., None] * matrices[:, :, last]).sum(3), (q * sums[:, :, last]).sum(3, keepdim=True)
    return (blend / total).to(query.dtype)


def joined(gradients: tuple[Tensor, ...]) -> Tensor:
    """One vector: where a query has a single key its gradient is 0, and has no size to be measured by."""
    return torch.cat([x.flatten() for x in gradients])


@proof.each_case
@proof.each_dtype
@both_directions
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    inputs = case.inputs(dtype, device)
    exact, slopes = proof.with_gradients(partial(plain, is_causal=is_causal), [x.double() for x in inputs])
    for form in FORMS if is_causal else ("parallel", "chunked"):
        ours = partial(linear_attention, is_causal=is_causal, form=form, chunk_size=3)
        output, gradients = proof.with_gradients(ours, inputs)
        peer = partial(plain if form == "parallel" else by_states, is_causal=is_causal)
        peer_output, peer_gradients = proof.with_gradients(peer, inputs)
        assert output[0].dtype == dtype
        assert_close(output[0], peer_output[0], exact[0], what=form)
        vectors = map(joined, (gradients, peer_gradients, slopes))
        assert_close(*vectors, factor=proof.GRADIENT_FACTOR, what=f"a gradient, {form}")
        with torch.no_grad():
            assert torch.equal(ours(*inputs), output[0])


@given(
    t=st.integers(0, 17),
    s=st.integers(0, 17),
    chunk_size=st.integers(1, 19),
    is_causal=st.booleans(),
)
def test_forms_are_one_function(t: int, s: int, chunk_size: int, is_causal: bool, device: str) -> None:
    inputs = Case("any", b=1, g=2, t=t, s=s, d=3, e=5).inputs(device=device)
    exact, slopes = proof.with_gradients(partial(plain, is_causal=is_causal), inputs)
    for form in FORMS:
        ours = partial(linear_attention, is_causal=is_causal, form=form, chunk_size=chunk_size)
        output, gradients = proof.with_gradients(ours, inputs)
        assert_close(output[0], exact[0], exact[0])
        assert_close(joined(gradients), joined(slopes), joined(slopes))


@each_form
@pytest.mark.parametrize("t", [3, 7], ids=["t<s", "t>s"])
def test_gradcheck(form: str, t: int) -> None:
    case = Case("small", b=1, g=2, t=t, s=5, d=2, e=3)
    proof.assert_gradcheck(partial(linear_attention, form=form, chunk_size=2), case.inputs())


@each_form
def test_future_moves_nothing(form: str, device: str) -> None:
    query, key, value = TEXT.inputs(torch.float32, device)
    ours = partial(linear_attention, form=form, chunk_size=4)
    before = ours(query, key, value)
    for j in range(11):
        # A key of the future as large as they come: not even its rounding may be seen.
        after = ours(query, 1e4 * changed(key, 2, j), 1e4 * changed(value, 2, j))
        loud = [torch.cat([x[:, :, :j], y[:, :, j:]], 2) for x, y in ((key, 1e4 * key), (value, 1e4 * value))]
        after = ours(query, *loud)
        assert torch.equal(after[:, :, :j], before[:, :, :j])
        assert (after[:, :, j:] != before[:, :, j:]).any(-1).all() or j == 0


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_neighbours_move_nothing(dim: int, device: str) -> None:
    inputs = TEXT.inputs(torch.float32, device)
    before = linear_attention(*inputs, chunk_size=4)
    after = linear_attention(*(changed(x, dim, 1, 2) for x in inputs), chunk_size=4)
    moved = (before != after).transpose(0, dim).flatten(1).any(1)
    assert moved.tolist() == [n == 1 for n in range(before.shape[dim])]


@each_form
@proof.each_dtype
def test_rows_that_see_nothing_are_zero(form: str, dtype: torch.dtype, device: str) -> None:
    ours = partial(linear_attention, form=form, chunk_size=3)
    query, key, value = (x.requires_grad_() for x in TEXT.inputs(dtype, device))
    for feature_map, low in ((relu_features, -1.0), (elu_plus_one, -1e4)):
        # Rows 3 and 8 have no feature; before row 5, no key has any.
        q = query.index_fill(2, torch.tensor([3, 8], device=device), low)
        k = torch.cat([torch.full_like(key[:, :, :5], low), key[:, :, 5:]], 2)
        output = ours(q, k, value, feature_map=feature_map)
        empty = torch.tensor([i < 5 or i == 8 for i in range(11)], device=device)
        assert ((output == 0).all(-1) == empty).all()
        gradients = torch.autograd.grad(output.sum(), (query, key, value))
        assert all(x.isfinite().all() for x in gradients)
        assert not gradients[0][:, :, empty].any()
        assert gradients[0][:, :, ~empty].any()
    for t, s in ((0, 3), (3, 0), (0, 0)):
        for is_causal in (True, False):
            output = ours(query[:, :, :t], key[:, :, :s], value[:, :, :s], is_causal=is_causal)
            assert output.shape[2] == t
            assert not output.any()


def test_wrong_input_is_refused() -> None:
    query, key, value = Case("s=7").inputs()
    ours, piece, step = map(proof.bare, (linear_attention, linear_attention_piece, linear_attention_step))
    state = LinearState(torch.zeros(2, 3, 11, 12).double(), torch.zeros(2, 3, 11).double())
    wrong = [
        (ours, (query[0], key, value), {}, "query is"),
        (ours, (query, key[:, :2], value[:, :2]), {}, "key has 2 heads, query has 3"),
        (ours, (query, key.float(), value), {}, "key is torch.float32"),
        (ours, (query, key, value[:, :, :5]), {}, "value has shape"),
        (ours, (query, key, value), {"form": "chunks"}, "form is 'chunks', chunk_size is 64: one of"),
        (ours, (query, key, value), {"chunk_size": 0}, "chunk_size is 0: one of .* at least 1, is wanted"),
        (ours, (query, key, value), {"feature_map": lambda x: x.sum(2)}, "feature_map made .* b h t f is"),
        (piece, (query, key, value), {}, "query has 5 tokens, key has 7: the same tokens are wanted"),
        (piece, (key, key, value, state), {}, r"state has .* \(2, 3, 11, 13\), is wanted"),
        (step, (key, key, value, None), {}, "one token, b h 1 d, is wanted"),
    ]
    for function, arguments, more, message in wrong:
        with pytest.raises(ValueError, match=message):
            function(*arguments, **more)


def test_outputs_are_means(device: str) -> None:
    query, key, _ = TEXT.inputs(device=device)
    weights = linear_attention(query, key, torch.eye(11, device=device).double().expand(2, 3, 11, 11))
    assert_close(weights.sum(-1), torch.ones(2, 3, 11), torch.ones(2, 3, 11, device=device))
    assert (weights.tril() > 0).sum() == 2 * 3 * 66
    assert not weights.triu(1).any()


def test_a_scale_belongs_to_the_map(device: str) -> None:
    inputs = TEXT.inputs(device=device)
    query, key, value = inputs

    def half(x: Tensor) -> Tensor:
        return elu_plus_one(x / 2)

    exact = plain(query / 2, key / 2, value)
    assert_close(linear_attention(*inputs, feature_map=half), exact, exact)
    assert (exact - plain(*inputs)).abs().max() > 0.1


def test_keys_have_no_order(device: str) -> None:
    query, key, value = TEXT.inputs(device=device)
    order = normal("order", 11).argsort().to(device)
    both = partial(linear_attention, is_causal=False)
    exact = both(query, key, value)
    assert_close(both(query, key[:, :, order], value[:, :, order]), exact, exact)


@given(cut=st.integers(0, 11))
def test_states_add(cut: int, device: str) -> None:
    query, key, value = TEXT.inputs(device=device)
    q, k = elu_plus_one(query), elu_plus_one(key)
    parts = state_of(k[:, :, :cut], value[:, :, :cut]), state_of(k[:, :, cut:], value[:, :, cut:])
    exact = plain(query, key, value, is_causal=False)
    for first, second in (parts, parts[::-1]):
        assert_close(ratio(*read(q, merge_states(first, second))), exact, exact)


@given(cuts=st.sets(st.integers(1, 36)), chunk_size=st.integers(1, 9))
def test_a_text_in_pieces_is_the_text(cuts: set[int], chunk_size: int, device: str) -> None:
    inputs = Case("long", b=1, t=37, s=37).inputs(device=device)
    exact = plain(*inputs)
    marks, state, outputs = [0, *sorted(cuts), 37], None, []
    for a, z in itertools.pairwise(marks):
        output, state = linear_attention_piece(*(x[:, :, a:z] for x in inputs), state, chunk_size=chunk_size)
        outputs.append(output)
    assert_close(torch.cat(outputs, 2), exact, exact)
    whole = state_of(elu_plus_one(inputs[1]), inputs[2])
    for ours, sums in zip(state, whole, strict=True):
        assert_close(ours, sums, sums)
        # The state is its own memory, not a view of all those before it.
        assert ours.untyped_storage().nbytes() == ours.nbytes


def test_a_step_is_a_step(device: str) -> None:
    inputs = TEXT.inputs(torch.bfloat16, device)
    state, made = None, set()
    for i in range(11):
        with Allocations() as seen:
            token = (x[:, :, i : i + 1] for x in inputs)
            output, state = linear_attention_step(*token, state)
        assert (output.dtype, state.matrix.dtype) == (torch.bfloat16, torch.float32)
        assert state.nbytes == 2 * 3 * 11 * (13 + 1) * 4
        made |= {(seen.total, seen.largest)} if i else set()
    assert len(made) == 1


def test_a_sum_in_bf16_ends_at_256() -> None:
    for dtype, end in ((torch.bfloat16, 2.0**8), (torch.float32, 2.0**24)):
        one = torch.ones((), dtype=dtype)
        assert end * one + one == end
        assert (end - 1) * one + one == end
    # So a bf16 model keeps a float32 state: 300 keys of ones are 300 of them.
    ones = torch.zeros(1, 1, 300, 2, dtype=torch.bfloat16)
    _, state = linear_attention_piece(ones, ones, ones)
    assert (state.normaliser == 300).all()


@pytest.mark.parametrize(("t", "f", "e", "u"), [(24, 3, 5, 4), (24, 3, 5, 24), (64, 8, 8, 8)])
def test_cost_counts_the_products(t: int, f: int, e: int, u: int) -> None:
    inputs = Case("text", b=1, g=1, t=t, s=t, d=f, e=e).inputs()
    operations, numbers = linear_cost(t, f, e, u)
    # What PyTorch counts; the sum of the keys is no product.
    assert flops(partial(linear_attention, chunk_size=u), *inputs) == operations
    _, state = linear_attention_piece(*inputs, chunk_size=u)
    assert numbers == t // u * sum(x.numel() for x in state)


def test_softmax_needs_more_from_257_tokens() -> None:
    assert linear_cost(1, 64, 64, 64)[0] == 32_896
    causal_softmax = [2 * (64 + 64) * t * (t + 1) // 2 for t in range(1000)]
    needs_more = [t for t in range(1, 1000) if causal_softmax[t] > linear_cost(t, 64, 64, 64)[0]]
    assert needs_more[0] == 257


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@both_directions
def test_memory_is_linear(form: str, is_causal: bool, device: str) -> None:
    def grown(t: int) -> list[int]:
        inputs = [normal("text", 1, 2, t, 8, device=device).float().requires_grad_() for _ in range(3)]
        with Allocations() as forward:
            output = linear_attention(*inputs, form=form, is_causal=is_causal, chunk_size=8)
        with Allocations() as backward:
            output.backward(torch.ones_like(output))
        text = 2 * t * 8 * 4
        assert max(forward.largest, backward.largest) <= text
        return [forward.total, backward.total]

    long, longer = 1024, 2048
    if form == "recurrent":
        long, longer = 32, 64
    for short, double in zip(grown(long), grown(longer), strict=True):
        assert double / short == pytest.approx(2, rel=0.05)


def test_weights_have_rank_f(device: str) -> None:
    query, key, _ = Case("wide", b=1, g=1, t=13, s=17, d=5).inputs(device=device)
    eye = torch.eye(17, device=device).double()[None, None]
    weights = linear_attention(query, key, eye, is_causal=False)
    assert torch.linalg.matrix_rank(weights) == 5
    assert torch.linalg.matrix_rank(F.scaled_dot_product_attention(query, key, eye)) == 13


def test_the_gradient_has_no_bound(device: str) -> None:
    query, key, value = TEXT.inputs(device=device)
    found = []
    for c in (1.0, 1e-3):
        q = (c * query).requires_grad_()
        output = linear_attention(q, key, value, feature_map=relu_features)
        found.append((output.detach(), *torch.autograd.grad(output.square().sum(), q)))
    assert_close(found[1][0], found[0][0], found[0][0])
    assert (found[1][1] / found[0][1])[:, :, 1:].nanmedian().item() == pytest.approx(1e3)
    assert (found[1][1].norm() / found[0][1].norm()).item() == pytest.approx(1e3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_flex_attention_agrees(dtype: torch.dtype, device: str) -> None:
    query, key, value = Case("even", d=8, e=8).inputs(dtype, device)
    q, k = elu_plus_one(query), elu_plus_one(key)
    flex = flex_attention(q, k, value, lambda score, b, h, i, j: score.log(), scale=1.0)
    assert isinstance(flex, Tensor)
    exact = plain(*(x.double() for x in (query, key, value)), is_causal=False)
    assert_close(linear_attention(query, key, value, is_causal=False), flex, exact)


@each_form
def test_every_map_will_do(form: str, device: str) -> None:
    inputs = Case("small", t=7, s=7, d=3).inputs(device=device)
    random = positive_random_features(3, 17, generator=torch.Generator().manual_seed(proof.SEED))
    for feature_map in (relu_features, taylor_features, random):
        exact = plain(*inputs, feature_map=feature_map)
        ours = linear_attention(*inputs, form=form, feature_map=feature_map, chunk_size=3)
        # A sum of f products of either sign is rounded f times.
        assert (ours - exact).abs().max() < 1e-12 * math.sqrt(17)
