"""The proof of `linear_recall`: each test is a claim that its page makes."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_linear_decay import SQUARE, gates
from tests.proof import Case, assert_agrees, assert_close, changed, normal
from torch import Tensor

from annotated_attention.linear import elu_plus_one
from annotated_attention.linear_recall import (
    delta_rule,
    recall_accuracy,
    recall_batch,
    sharpness,
    sum_rule,
)

CASES = [
    SQUARE,
    Case("t=1", t=1, s=1),
    Case("strided", t=7, s=7, strided=True),
    Case("empty-batch", b=0, t=7, s=7),
]


def units(name: str, *shape: int, device: str = "cpu") -> Tensor:
    """Random vectors of length 1."""
    return F.normalize(normal(name, *shape, device=device), dim=-1)


def orthonormal(n: int, d: int, device: str = "cpu") -> Tensor:
    return torch.linalg.qr(normal("frame", 2, 3, d, d, device=device)).Q[:, :, :n]


def ones_for(key: Tensor) -> Tensor:
    return torch.ones_like(key[..., 0])


def state_after(rule, key: Tensor, value: Tensor, *gates: Tensor) -> Tensor:
    """What stands in the state: it is asked for each unit vector, and nothing more is written."""
    b, h, _, d = key.shape
    eye = torch.eye(d, dtype=key.dtype, device=key.device).expand(b, h, d, d)
    query = torch.cat([torch.zeros_like(key), eye], dim=2)
    key, value = (F.pad(x, (0, 0, 0, d)) for x in (key, value))
    return rule(query, key, value, *(F.pad(x, (0, d)) for x in gates))[:, :, -d:]


def inputs_of(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, ...]:
    """Keys of length 1, rates between 0 and 1 and gates."""
    query, key, value = case.inputs(dtype, device)
    decay = gates(case, dtype, device)
    return query, F.normalize(key, dim=-1), value, (3 * decay).exp(), decay


def plain(query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    """By the second form of the formula, with the matrix that takes something out."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v, beta, a = (x.to(wide) for x in (query, key, value, beta, log_decay))
    eye, state, outputs = (
        torch.eye(q.shape[3]).to(q),
        q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]),
        [v[:, :, :0]],
    )
    for i in range(q.shape[2]):
        rate, column = beta[:, :, i, None, None], k[:, :, i, :, None]
        erase = eye - rate * column @ column.mT
        state = erase @ (a[:, :, i].exp()[..., None, None] * state) + rate * column @ v[:, :, i, None]
        outputs.append(q[:, :, i, None] @ state)
    return torch.cat(outputs, 2).to(query.dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
@proof.each_dtype
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, device: str) -> None:
    inputs = inputs_of(case, dtype, device)
    names = ("query", "key", "value", "beta", "log_decay")
    assert_agrees(delta_rule, plain, inputs, names=names)
    open_gate = partial(plain, log_decay=torch.zeros_like(inputs[4]))
    assert_agrees(delta_rule, open_gate, inputs[:4], names=names[:4])
    nothing = [x[:, :, :0] for x in inputs]
    assert delta_rule(*nothing).shape == (case.b, case.h, 0, case.e)


@proof.each_dtype
def test_the_sum_agrees(dtype: torch.dtype, device: str) -> None:
    def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        written = key.to(wide)[..., None] * value.to(wide)[..., None, :]
        return torch.einsum("bhtd, bhtde -> bhte", query.to(wide), written.cumsum(2)).to(query.dtype)

    assert_agrees(sum_rule, by_hand, SQUARE.inputs(dtype, device))


def test_gates_are_not_rounded(device: str) -> None:
    inputs = inputs_of(Case("text", b=1, t=200, s=200), torch.bfloat16, device)
    inputs = (*inputs[:3], inputs[3] / 100, torch.full_like(inputs[4], -0.0019))
    assert (inputs[4].exp() == 1).all()
    assert_close(delta_rule(*inputs), plain(*inputs), plain(*(x.double() for x in inputs)))


def test_gradcheck() -> None:
    small = inputs_of(Case("small", b=1, g=2, t=4, s=4, d=2, e=3))
    proof.assert_gradcheck(delta_rule, small)
    proof.assert_gradcheck(delta_rule, small[:4])
    proof.assert_gradcheck(sum_rule, small[:3])


def test_future_and_neighbours_move_nothing(device: str) -> None:
    inputs = inputs_of(SQUARE, torch.float32, device)
    before = delta_rule(*inputs)
    for dim, at in ((2, 4), (0, 1), (1, 1)):
        after = delta_rule(*(changed(x, dim, at, at + 1) for x in inputs))
        moved = (before != after).transpose(0, dim).flatten(1).any(1).tolist()
        assert moved == [n >= at if dim == 2 else n == at for n in range(len(moved))]


def test_orthogonal_keys_are_exact(device: str) -> None:
    key, value = orthonormal(11, 11, device), normal("value", 2, 3, 11, 13, device=device)
    answers = torch.einsum("bhnd, bhde -> bhne", key, state_after(sum_rule, key, value))
    assert_close(answers, value, value)


@pytest.mark.parametrize(("n", "d"), [(5, 64), (65, 64), (257, 64), (33, 16)])
def test_noise_grows_with_the_pairs(n: int, d: int, device: str) -> None:
    texts = 10_000 // n
    key, value = units("key", texts, 1, n, d, device=device), units("value", texts, 1, n, 3, device=device)
    answers = key @ state_after(sum_rule, key, value)
    noise = (answers - value).square().sum(-1).mean().item()
    assert noise == pytest.approx((n - 1) / d, rel=0.05)


@pytest.mark.parametrize(("n", "d"), [(8, 32), (32, 32), (48, 32), (128, 32)])
def test_the_best_state_has_a_limit(n: int, d: int, device: str) -> None:
    key, value = units("key", 200, n, d, device=device), units("value", 200, n, 16, device=device)
    best = torch.linalg.pinv(key) @ value
    left = (key @ best - value).square().sum(-1).mean().item()
    assert left == pytest.approx(max(0, 1 - d / n), abs=0.01)


def test_positive_features_are_never_orthogonal(device: str) -> None:
    x = elu_plus_one(10 * normal("x", 1000, 16, device=device))
    assert (x > 0).all()
    assert (x @ x.mT > 0).all()


@given(n=st.integers(2, 60), error=st.floats(1e-9, 0.9))
def test_a_sharp_softmax_is_exact(n: int, error: float, device: str) -> None:
    key = units("key", n, 24, device=device)
    products = key @ key.mT
    wrong = products.masked_fill(torch.eye(n, dtype=torch.bool, device=device), -1)
    separation = (products.diagonal() - wrong.amax(-1)).min().item()
    weights = (sharpness(n, separation, error) * products).softmax(-1)
    wasted = weights.tril(-1) + weights.triu(1)
    assert (wasted.sum(-1) <= error * (1 + 1e-9)).all()


def test_exponentially_many_keys_are_separate(device: str) -> None:
    assert math.floor(math.exp(128 * 0.5**2 / 4)) == 2980
    key = units("key", 2980, 128, device=device)
    assert (key @ key.mT).tril(-1).max() < 0.5
    one, other = units("one", 100_000, 16, device=device), units("other", 100_000, 16, device=device)
    products = (one * other).sum(-1)
    for c in (0.1, 0.3, 0.5, 0.7):
        assert (products > c).double().mean().item() <= math.exp(-16 * c * c / 2)


def test_it_is_a_step_of_gradient_descent(device: str) -> None:
    _, key, value, beta, _ = inputs_of(SQUARE, device=device)
    before = state_after(delta_rule, key[:, :, :-1], value[:, :, :-1], beta[:, :, :-1]).requires_grad_()
    said = torch.einsum("bhd, bhde -> bhe", key[:, :, -1], before)
    loss = (said - value[:, :, -1]).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, before)
    exact = before.detach() - beta[:, :, -1, None, None] * gradient
    assert_close(state_after(delta_rule, key, value, beta), exact, exact)


def test_the_newest_value_wins(device: str) -> None:
    key, value = units("key", 2, 3, 23, 5, device=device), normal("value", 2, 3, 23, 7, device=device)
    answers = delta_rule(key, key, value, ones_for(key))
    assert_close(answers, value, value)
    # The sum returns all that was ever written there.
    again, other = key[:, :, :1].expand(2, 3, 2, 5), value[:, :, :2]
    assert_close(delta_rule(again, again, other, ones_for(again)), other, other)
    both = other.sum(2)
    assert_close(sum_rule(again, again, other)[:, :, 1], both, both)


def test_orthonormal_keys_make_a_sum(device: str) -> None:
    query, key = normal("query", 2, 3, 7, 11, device=device), orthonormal(7, 11, device)
    value = normal("value", 2, 3, 7, 13, device=device)
    exact = sum_rule(query, key, value)
    assert_close(delta_rule(query, key, value, ones_for(key)), exact, exact)


def test_repetition_finds_the_smallest_solution(device: str) -> None:
    key, value = units("key", 2, 3, 5, 11, device=device), normal("value", 2, 3, 5, 7, device=device)
    smallest = torch.linalg.pinv(key) @ value
    off = []
    for times in (1, 10, 200):
        text = key.repeat(1, 1, times, 1), value.repeat(1, 1, times, 1)
        state = state_after(delta_rule, *text, ones_for(text[0]))
        off.append((state - smallest).abs().max().item())
    assert off[0] > 0.1
    assert off[2] < 1e-10


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_delta_rule_fades(rate: float, device: str) -> None:
    n, d = 17, 8
    key = units("key", 8_000, 1, n, d, device=device)
    value = torch.eye(n, dtype=torch.float64, device=device).expand(8_000, 1, n, n)
    state = state_after(delta_rule, key, value, rate * ones_for(key))
    answers = torch.einsum("bhnd, bhdn -> bhn", key, state).mean(0)[0]
    age = torch.arange(n - 1, -1, -1, device=device)
    assert (answers - rate * (1 - rate / d) ** age).abs().max() < 0.012
    assert half_of(rate, d) == pytest.approx(0.7 * d / rate, rel=0.08)


def half_of(rate: float, d: int) -> float:
    return math.log(0.5) / math.log(1 - rate / d)


def test_the_state_stays_bounded(device: str) -> None:
    key, value = units("key", 50, 1, 400, 16, device=device), units("value", 50, 1, 400, 16, device=device)
    delta = state_after(delta_rule, key, value, ones_for(key)).square().sum((-1, -2)).mean().item()
    added = state_after(sum_rule, key, value).square().sum((-1, -2)).mean().item()
    assert delta == pytest.approx(16, rel=0.03)
    assert added == pytest.approx(400, rel=0.03)


def test_a_long_text(device: str) -> None:
    key, value = units("key", 60, 1, 256, 32, device=device), units("value", 60, 1, 256, 32, device=device)
    right = {}
    for name, state in (
        ("sum", state_after(sum_rule, key, value)),
        ("delta", state_after(delta_rule, key, value, ones_for(key))),
    ):
        found = (key @ state @ value.mT).argmax(-1)[:, 0]
        right[name] = (found == torch.arange(256, device=device)).double().mean(0)
    assert right["sum"].mean() < 0.2
    assert right["delta"][-4:].min() > 0.95
    assert right["delta"][:128].mean() < 0.05
    assert right["delta"].mean() < right["sum"].mean()


@given(b=st.integers(0, 3), n=st.integers(1, 6), more=st.integers(0, 9), vocabulary=st.integers(16, 40))
def test_texts_ask_what_they_told(b: int, n: int, more: int, vocabulary: int) -> None:
    generator, half = torch.Generator().manual_seed(proof.SEED), vocabulary // 2
    tokens, targets = recall_batch(b, n, 3 * n + more, vocabulary, generator=generator)
    for text, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        told = dict(zip(text[0 : 2 * n : 2], text[1 : 2 * n : 2], strict=True))
        assert len(told) == len(set(told.values())) == n
        assert all(0 < key < half <= value < vocabulary for key, value in told.items())
        assert answers[: 2 * n] == [-100] * (2 * n)
        asked = {token: answer for token, answer in zip(text, answers, strict=True) if answer != -100}
        assert asked == told
        assert all(
            token == 0 for token, answer in zip(text[2 * n :], answers[2 * n :], strict=True) if answer < 0
        )


def test_a_softmax_answers_everything(device: str) -> None:
    generator = torch.Generator().manual_seed(proof.SEED)
    tokens, targets = (x.to(device) for x in recall_batch(8, 64, 256, 1024, generator=generator))
    table = units("table", 1024, 32, device=device)
    softmax = partial(F.scaled_dot_product_attention, is_causal=True, scale=64.0)

    def delta(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return delta_rule(query, key, value, ones_for(key))

    assert recall_accuracy(softmax, tokens, targets, table) == 1
    added, corrected = (recall_accuracy(rule, tokens, targets, table) for rule in (sum_rule, delta))
    assert 0.2 < corrected < added < 0.8
    assert recall_accuracy(lambda q, k, v: torch.zeros_like(v), tokens, targets, table) < 0.02


def test_it_is_stable_up_to_two(device: str) -> None:
    key, value = units("key", 1, 1, 400, 3, device=device), units("value", 1, 1, 400, 3, device=device)
    sizes = [state_after(delta_rule, key, value, rate * ones_for(key)).norm().item() for rate in (1.9, 2.3)]
    assert sizes[0] < 100
    assert sizes[1] > 1e6
    # What is left along the key, and across it.
    first, before = key[:, :, :1], state_after(delta_rule, key, value, ones_for(key))
    after = state_after(
        delta_rule,
        torch.cat([key, 2 * first], 2),
        torch.cat([value, 0 * first], 2),
        F.pad(ones_for(key), (0, 1), value=0.3),
    )
    exact = before - 0.3 * 4 * first.mT @ (first @ before)
    assert_close(after, exact, exact)
    assert_close(first @ after, (1 - 0.3 * 4) * first @ before, (1 - 0.3 * 4) * first @ before)


def test_two_counts_parity(device: str) -> None:
    bits = (normal("bits", 3, 1, 40, 1, device=device) > 0).double()
    one = torch.ones_like(bits)
    # The first token writes a 1, and each bit that is set takes twice what is there.
    value, beta = torch.zeros_like(bits), 2 * bits[..., 0]
    value[:, :, 0], beta[:, :, 0] = 1, 1
    bits[:, :, 0] = 0
    assert torch.equal(delta_rule(one, one, value, beta), 1 - 2 * (bits.cumsum(2) % 2))


def test_transformers_gated_delta_rule_agrees(device: str) -> None:
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    inputs = inputs_of(SQUARE, torch.float32, device)
    theirs, _ = qwen.torch_recurrent_gated_delta_rule(
        *(x.transpose(1, 2) for x in (*inputs[:3], inputs[4], inputs[3])),
        initial_state=None,
        output_final_state=False,
    )
    exact = plain(*(x.double() for x in inputs))
    ours = delta_rule(*inputs)
    assert_close(ours, theirs.transpose(1, 2) * 11**0.5, exact)
    assert_close(theirs.transpose(1, 2) * 11**0.5, ours, exact)


def test_wrong_input_is_refused() -> None:
    query, key, value, beta, decay = inputs_of(SQUARE)
    ours = proof.bare(delta_rule)
    wrong = [
        ((query[0], key, value, beta), "query is"),
        ((query[:, :, :5], key, value, beta), r"key has \(2, 3, 7\) positions: .* \(2, 3, 5\), are wanted"),
        ((query, key, value, beta[:, :, :5]), r"beta has \(2, 3, 5\) positions"),
        ((query, key, value, beta, decay[:, :1]), r"log_decay has \(2, 1, 7\) positions"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            ours(*arguments)
    for n_pairs, t, vocabulary in ((0, 9, 16), (3, 8, 16), (8, 24, 16)):
        with pytest.raises(ValueError, match=f"n_pairs is {n_pairs}, t is {t}, vocabulary is {vocabulary}"):
            recall_batch(2, n_pairs, t, vocabulary)
