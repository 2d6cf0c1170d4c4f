"""The proof of `flash_merge`: each test is a claim that its page makes."""

import math
from functools import partial, reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_flash_details import GROUPED, assert_lse
from tests.proof import Case, assert_close, normal, plain_attention
from torch import Tensor

from annotated_attention.attention_sinks_full import streaming_mask
from annotated_attention.attention_sinks_logits import sink_attention
from annotated_attention.flash import flash_attention, online_softmax
from annotated_attention.flash_merge import (
    Triple,
    finish,
    merge_attention,
    merge_triples,
    merged_with_nothing,
    summary,
)
from annotated_attention.sliding_window import sliding_window_mask

# A few scores, up to the largest of the course, and keys that nobody may see.
a_score = st.one_of(st.just(float("-inf")), st.floats(-1e4, 1e4), st.floats(-3, 3))
some_scores = st.lists(a_score, max_size=4)


def triple_of(scores: list[float], first: int, device: str = "cpu") -> Triple:
    """Of one query and keys from number `first` on, whose values are always the same."""
    row = torch.tensor([scores], dtype=torch.float64, device=device).reshape(1, len(scores))
    if not scores:
        return empty_like(torch.zeros(1, 3, dtype=torch.float64, device=device))
    return summary(row, normal("value", 20, 3, device=device)[first : first + len(scores)])


def empty_like(o: Tensor) -> Triple:
    l = torch.zeros_like(o[..., :1])
    return torch.full_like(l, torch.finfo(o.dtype).min), l, torch.zeros_like(o)


@given(a=some_scores, b=some_scores, c=some_scores)
def test_merge_is_associative_and_commutative(
    a: list[float], b: list[float], c: list[float], device: str
) -> None:
    x = triple_of(a, 0, device)
    y, z = triple_of(b, len(a), device), triple_of(c, len(a) + len(b), device)
    left, right = merge_triples(merge_triples(x, y), z), merge_triples(x, merge_triples(y, z))
    whole = triple_of([*a, *b, *c], 0, device)
    assert torch.equal(left[0], whole[0])
    assert torch.equal(right[0], whole[0])
    for n in (1, 2):
        assert_close(left[n], whole[n], whole[n])
        assert_close(right[n], whole[n], whole[n])
    assert all(torch.equal(*both) for both in zip(merge_triples(x, y), merge_triples(y, x), strict=True))
    (o_x, l_x), (o_y, l_y), (o_z, l_z) = finish(x), finish(y), finish(z)
    left = merge_attention(*merge_attention(o_x, l_x, o_y, l_y), o_z, l_z)
    right = merge_attention(o_x, l_x, *merge_attention(o_y, l_y, o_z, l_z))
    output, lse = finish(whole)
    for found in (left, right):
        assert_lse(found[1], lse, lse)
        # A share is as exact as the logarithm that it is made of.
        step = torch.tensor([1.0, *lse[lse.isfinite()].abs()]).max() * 2.0**-52
        assert (found[0] - output).abs().max() <= 8 * step * (1 + output.abs().max())


@given(scores=some_scores)
def test_the_empty_triple_is_neutral(scores: list[float], device: str) -> None:
    x = triple_of(scores, 0, device)
    empty = triple_of([], 0, device)
    hidden = triple_of([float("-inf")], 0, device)
    for nothing in (empty, hidden):
        for merged in (merge_triples(x, nothing), merge_triples(nothing, x)):
            assert all(torch.equal(*both) for both in zip(merged, x, strict=True))
    output, lse = finish(x)
    merged = merge_attention(output, lse, *finish(empty))
    assert torch.equal(merged[0], output)
    assert torch.equal(merged[1], lse)


def test_one_key_at_a_time_is_the_recurrence(device: str) -> None:
    scores, value = normal("scores", 2, 5, 9, device=device), normal("value", 2, 9, 3, device=device)
    keys = [
        (scores[..., j : j + 1], torch.ones_like(scores[..., :1]), value[:, j : j + 1].expand(2, 5, 3))
        for j in range(9)
    ]
    m, l, o = reduce(merge_triples, keys)
    exact = scores.softmax(-1) @ value
    assert_close(o / l, exact, exact)
    assert_close(torch.exp(scores - m) / l, online_softmax(scores), scores.softmax(-1))


def test_both_forms_say_the_same(device: str) -> None:
    scores, value = normal("scores", 2, 5, 9, device=device), normal("value", 2, 9, 3, device=device)
    m, l, o = triple = summary(scores, value)
    output, lse = finish(triple)
    again = finish((lse[..., None], torch.ones_like(l), output))
    # The same, written otherwise.
    m, l, o = m - 2.0, l * math.exp(2.0), o * math.exp(2.0)
    shifted = finish((m, l, o))
    exact = scores.softmax(-1) @ value, scores.logsumexp(-1)
    assert torch.equal(again[0], output)
    assert torch.equal(again[1], lse)
    for found, expected in zip((output, lse), exact, strict=True):
        assert_close(found, expected, expected)
    for found, expected in zip(shifted, exact, strict=True):
        assert_close(found, expected, expected)


def test_the_merge_is_attention_over_parts(device: str) -> None:
    inputs = Case("parts", s=12).inputs(device=device)
    parts = [
        flash_attention(inputs[0], k, v) for k, v in zip(*(x.split(5, 2) for x in inputs[1:]), strict=True)
    ]
    outputs, lses = (torch.stack(x, -2) for x in ([o for o, _ in parts], [l[..., None] for _, l in parts]))
    shares = lses.softmax(-2)
    output, lse = reduce(lambda a, b: merge_attention(*a, *b), parts)
    exact = (shares * outputs).sum(-2)
    assert_close(output, exact, exact)
    assert_close(lse, lses.logsumexp(-2)[..., 0], lses.logsumexp(-2)[..., 0])
    two = merge_attention(*parts[0], *parts[1])[0]
    gate = torch.sigmoid(parts[0][1] - parts[1][1])[..., None]
    exact = gate * parts[0][0] + (1 - gate) * parts[1][0]
    assert_close(two, exact, exact)


@proof.each_dtype
@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_halves_make_a_whole(dtype: torch.dtype, cut: int, device: str) -> None:
    query, key, value = GROUPED.inputs(dtype, device)
    parts = zip(key.split([cut, 7 - cut], 2), value.split([cut, 7 - cut], 2), strict=True)
    (a, b), whole = (flash_attention(query, k, v) for k, v in parts), flash_attention(query, key, value)
    exact = flash_attention(query.double(), key.double(), value.double())
    for triple in zip(merge_attention(*a, *b), whole, exact, strict=True):
        assert triple[0].dtype == triple[1].dtype
        assert_close(*triple)


def test_empties_merge_to_empty(device: str) -> None:
    zeros = torch.zeros(2, 5, 3, device=device)
    empty = torch.full((2, 5), float("-inf"), device=device)
    inputs = [x.clone().requires_grad_() for x in (zeros, empty, zeros, empty)]
    output, lse = merge_attention(*inputs)
    assert not output.any()
    assert (lse == float("-inf")).all()
    assert not any(x.any() for x in torch.autograd.grad(output.sum() + lse.sum(), inputs))
    # Beside one that is not empty, too.
    full = normal("output", 2, 5, 3, device=device).float(), normal("lse", 2, 5, device=device).float()
    inputs = [x.clone().requires_grad_() for x in (zeros, empty, *full)]
    output, lse = merge_attention(*inputs)
    assert torch.equal(output, full[0])
    assert torch.equal(lse, full[1])
    gradients = torch.autograd.grad(output.sum() + lse.sum(), inputs)
    assert [bool(x.any()) for x in gradients] == [False, False, True, True]
    assert torch.equal(gradients[3], torch.ones(2, 5, device=device))


def test_gradients_of_the_whole(device: str) -> None:
    def halves(query: Tensor, key: Tensor, value: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        parts = zip(key.split([3, 4], 2), value.split([3, 4], 2), strict=True)
        (o_a, l_a), (o_b, l_b) = (flash_attention(query, k, v, block_q=2, block_k=2) for k, v in parts)
        if detach:
            l_a, l_b = l_a.detach(), l_b.detach()
        return merge_attention(o_a, l_a, o_b, l_b)

    inputs = GROUPED.inputs(device=device)
    for found, exact in zip(
        *(proof.with_gradients(f, inputs)[1] for f in (halves, flash_attention)), strict=True
    ):
        assert_close(found, exact, exact)
    shapes = [(2, 3, 4), (2, 3), (2, 3, 4), (2, 3)]
    proof.assert_gradcheck(merge_attention, [normal(f"x{n}", *shape) for n, shape in enumerate(shapes)])
    # And without the gradient of the logarithms, it would be another one.
    outputs = (lambda *x: halves(*x, detach=True)[0], lambda *x: flash_attention(*x)[0])
    without, exact = (proof.with_gradients(f, inputs)[1][0] for f in outputs)
    assert (without - exact).abs().max() > 0.1


def test_wrong_input_is_refused() -> None:
    o, l = torch.zeros(2, 5, 3), torch.zeros(2, 5)
    ours = proof.bare(merge_attention)
    wrong = [
        ((o, l, o[:1], l[:1]), r"output_b is torch.float32 \(1, 5, 3\), lse_b torch.float32 \(1, 5\)"),
        ((o, l[:1], o, l), r"lse_a torch.float32 \(1, 5\)"),
        ((o, l, o, l[..., None]), r"lse_b torch.float32 \(2, 5, 1\)"),
        ((o, l, o.double(), l), "output_b is torch.float64"),
        ((o, l.bfloat16(), o, l), "lse_a torch.bfloat16"),
        ((o, l, o, l.half()), "lse_b torch.float16 .* of float32 or wider are wanted"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            ours(*arguments)


@proof.each_dtype
def test_a_sink_logit_is_a_merge_with_nothing(dtype: torch.dtype, device: str) -> None:
    inputs = Case("sinks", r=2).inputs(dtype, device)
    for z in (torch.zeros(6, device=device), normal("z", 6, device=device)):
        ours = merged_with_nothing(*flash_attention(*inputs), z)
        exact = sink_attention(*(x.double() for x in inputs), z.double())
        assert_close(ours, sink_attention(*inputs, z.to(dtype)), exact)
    # With a logit of 0, it is one more in the denominator.
    query, key, value = Case("off-by-one").inputs(device=device)
    exponentials = torch.exp(query @ key.mT * 11**-0.5)
    exact = exponentials @ value / (1 + exponentials.sum(-1, keepdim=True))
    ours = merged_with_nothing(*flash_attention(query, key, value), torch.zeros(3, device=device))
    assert_close(ours, exact, exact)


def test_sinks_and_window_are_two_readers(device: str) -> None:
    n, w, t = 2, 4, 13
    query, key, value = Case("stream", t=t, s=t).inputs(device=device)
    i = torch.arange(t, device=device)
    exact = plain_attention(query, key, value, streaming_mask(i, i, n, w))
    scores = query @ key.mT * 11**-0.5
    band = sliding_window_mask(t, t, w, device=device)
    window = finish(summary(scores.masked_fill(~band, float("-inf")), value))
    sinks = flash_attention(query, key[:, :, :n], value[:, :, :n])
    merged = merge_attention(*window, *sinks)[0]
    late = n + w - 1
    assert_close(merged[:, :, late:], exact[:, :, late:], exact[:, :, late:])
    # Before, a sink is in the window as well, and would count twice.
    assert (merged[:, :, :late] != exact[:, :, :late]).any(-1).all()


def test_a_key_read_twice_counts_twice(device: str) -> None:
    query, key, value = GROUPED.inputs(device=device)
    first, rest = flash_attention(query, key[:, :, :4], value[:, :, :4]), (key[:, :, 3:], value[:, :, 3:])
    merged = merge_attention(*first, *flash_attention(query, *rest))[0]
    order = [0, 1, 2, 3, 3, 4, 5, 6]
    exact = plain_attention(query, key[:, :, order], value[:, :, order])
    assert_close(merged, exact, exact)


def test_round_after_the_last_merge(device: str) -> None:
    inputs = Case("cache", t=3, s=256).inputs(torch.bfloat16, device)

    def parts(*inputs: Tensor) -> Tensor:
        split = zip(*(x.split(4, 2) for x in inputs[1:]), strict=True)
        pieces = [flash_attention(inputs[0], k, v) for k, v in split]
        assert len(pieces) == 64
        return reduce(lambda a, b: merge_attention(*a, *b), pieces)[0]

    exact = plain_attention(*(x.double() for x in inputs))
    early = (parts(*inputs).double() - exact).abs().max()
    late = (parts(*(x.float() for x in inputs)).bfloat16().double() - exact).abs().max()
    assert early > 3 * late
    assert_close(parts(*(x.float() for x in inputs)).bfloat16(), plain_attention(*inputs), exact)


def test_the_other_base_is_wrong(device: str) -> None:
    query, key, value = Case("text", s=64).inputs(device=device)
    exact = plain_attention(query, key, value)
    (o_a, l_a), (o_b, l_b) = (flash_attention(query, *x) for x in ((key[:, :, :60], value[:, :, :60]),
                                                                  (key[:, :, 60:], value[:, :, 60:])))  # fmt: skip
    right = merge_attention(o_a, l_a, o_b, l_b)[0]
    assert_close(right, exact, exact)
    wrong = merge_attention(o_a, l_a / math.log(2), o_b, l_b / math.log(2))[0]
    assert (wrong - exact).abs().max() > 0.1


def test_a_step_of_bfloat16_at_ten() -> None:
    ten = torch.tensor(10.0, dtype=torch.bfloat16)
    step = torch.nextafter(ten, torch.tensor(20.0, dtype=torch.bfloat16)) - ten
    assert step == 1 / 16
    assert partial(pytest.approx, abs=0.005)(1.06) == step.double().exp().item()
