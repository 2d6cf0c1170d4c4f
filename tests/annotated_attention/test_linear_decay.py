"""The proof of `linear_decay`: each test is a claim that its page makes."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_sliding_window_details import allocated, flops
from tests.proof import Case, apart, assert_agrees, assert_close, changed, normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.alibi import alibi_attention, alibi_slopes
from annotated_attention.linear import elu_plus_one, linear_attention
from annotated_attention.linear_decay import (
    decay_cost,
    decayed_linear_attention,
    decayed_linear_attention_step,
    half_life,
    retention_log_decay,
    segment_sum,
    summarise,
)

SQUARE = proof.SQUARE
CASES = [
    SQUARE,
    Case("t=1", t=1, s=1),
    Case("strided", t=7, s=7, strided=True),
    Case("empty-batch", b=0, t=7, s=7),
    Case("no-tokens", t=0, s=0),
    Case("large-scores", t=7, s=7, largest_score=1e4),
]
each_form = pytest.mark.parametrize("form", ["parallel", "recurrent", "chunked"])


def gates(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Logarithms of gates from wide open to almost shut."""
    x = -normal("gates", case.b, case.h, case.t, 1).square()
    x = x.to(device, dtype)
    return (apart(x) if case.strided else x)[..., 0]


def inputs_of(
    case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *case.inputs(dtype, device), gates(case, dtype, device)


def products(log_decay: Tensor) -> Tensor:
    """The matrix `D`, row by row: each is the one above it, faded once more."""
    a, t = log_decay.exp(), log_decay.shape[-1]
    rows = [torch.zeros_like(a)]
    for i in range(t):
        one = F.one_hot(torch.tensor(i, device=a.device), t).to(a)
        rows.append(a[..., i, None] * rows[-1] + one)
    return torch.stack(rows[1:], dim=-2) if t else a[..., None, :]


def plain(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v, x = (y.to(wide) for y in (query, key, value, log_decay))
    return ((q @ k.mT * products(x)) @ v).to(query.dtype)


agrees = partial(assert_agrees, names=("query", "key", "value", "log_decay"))


@pytest.mark.parametrize("case", CASES, ids=str)
@proof.each_dtype
@each_form
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, form: str, device: str) -> None:
    # Without a denominator an output is as large as the scores, and float16 ends at 65,504.
    if dtype == torch.float16 and case.largest_score:
        case = replace(case, largest_score=1e2)
    ours = partial(decayed_linear_attention, form=form, chunk_size=3)
    agrees(ours, plain, inputs_of(case, dtype, device))


@each_form
def test_gradcheck(form: str) -> None:
    case = Case("small", b=1, g=2, t=5, s=5, d=2, e=3)
    proof.assert_gradcheck(partial(decayed_linear_attention, form=form, chunk_size=2), inputs_of(case))


@given(t=st.integers(0, 17), u=st.integers(1, 19))
def test_chunk_size_is_irrelevant(t: int, u: int, device: str) -> None:
    inputs = inputs_of(Case("text", b=1, t=t, s=t, d=3, e=5), device=device)
    exact = plain(*inputs)
    assert_close(decayed_linear_attention(*inputs, chunk_size=u), exact, exact)


@given(x=st.lists(st.floats(-50, 0) | st.just(-math.inf), max_size=9))
def test_segment_sum(x: list[float], device: str) -> None:
    found = segment_sum(torch.tensor(x, dtype=torch.float64, device=device))
    rows = [[sum(x[j + 1 : i + 1]) if j <= i else -math.inf for j in range(len(x))] for i in range(len(x))]
    exact = torch.tensor(rows, dtype=torch.float64, device=device).reshape(len(x), len(x))
    assert torch.equal(found.isinf(), exact.isinf())
    found, exact = (sums.clamp(min=-1e3) for sums in (found, exact))
    assert_close(found, exact, exact)


def test_constant_decay_is_a_power_of_the_distance(device: str) -> None:
    found = segment_sum(torch.full((11,), math.log(0.9), dtype=torch.float64, device=device)).exp()
    rows = [[0.9 ** (i - j) if j <= i else 0.0 for j in range(11)] for i in range(11)]
    exact = torch.tensor(rows, dtype=torch.float64)
    assert_close(found, exact, exact)


def test_decay_is_alibi(device: str) -> None:
    query, key, value = Case("text", g=8, t=13, s=13).inputs(device=device)
    slopes = alibi_slopes(8, dtype=torch.float64, device=device)
    decay = segment_sum(-slopes[:, None].expand(8, 13)).exp()
    faded = (query @ key.mT * 11**-0.5).exp() * decay
    ours = faded / faded.sum(-1, keepdim=True) @ value
    exact = alibi_attention(query, key, value)
    assert_close(ours, exact, exact)


def test_first_decay_does_nothing(device: str) -> None:
    *inputs, log_decay = inputs_of(SQUARE, device=device)
    other = changed(log_decay, 2, 0, 1)
    assert torch.equal(decayed_linear_attention(*inputs, log_decay), decayed_linear_attention(*inputs, other))


def test_ratio_overflows(device: str) -> None:
    query, key, value = Case("text", b=1, t=256, s=256).inputs(torch.float32, device)
    log_decay = torch.full((1, 3, 256), math.log(0.5), device=device)
    c = log_decay.cumsum(-1)[..., None]
    assert (-c[:, :, :127]).exp().isfinite().all()
    assert (-c[:, :, 128:]).exp().isinf().all()
    ratio = ((query * c.exp()) @ (key * (-c).exp()).mT).tril() @ value
    assert ratio.isnan().any()
    wide = [x.double() for x in (query, key, value, log_decay)]
    inputs = query, key, value, log_decay
    assert_close(decayed_linear_attention(*inputs), plain(*inputs), plain(*wide))


def test_differences_lose_digits(device: str) -> None:
    strong = -20 - normal("strong", 4096, device=device).abs()
    x = torch.cat([strong, torch.full((8,), -0.01, dtype=torch.float64, device=device)]).float()
    c = x.cumsum(0)[-8:]
    exact = products(x[-8:].double())
    differences = (c[:, None] - c).exp().tril()
    assert (differences - exact).abs().max() > 1e-3
    sums = segment_sum(x[-8:]).exp()
    assert (sums - exact).abs().max() < 1e-7


class Exponents(TorchDispatchMode):
    """The largest number whose exponential was taken."""

    largest = -math.inf

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.exp.default and args[0].numel():
            self.largest = max(self.largest, args[0].max().item())
        return func(*args, **(kwargs or {}))


@each_form
def test_no_exponent_is_positive(form: str, device: str) -> None:
    query, key, value = Case("text", t=97, s=97).inputs(torch.float32, device)
    for size in (1e-4, 1.0, 1e4):
        log_decay = -size * normal("gates", 2, 3, 97, dtype=torch.float32, device=device).abs()
        with Exponents() as seen:
            output = decayed_linear_attention(query, key, value, log_decay, form=form, chunk_size=32)
        assert seen.largest <= 0
        assert output.isfinite().all()


@each_form
def test_a_shut_gate_is_a_wall(form: str, device: str) -> None:
    inputs = inputs_of(Case("text", t=11, s=11), device=device)
    inputs[3][:, :, 4] = inputs[3][:, :, 9] = -math.inf
    leaves = [x.requires_grad_() for x in inputs]
    packed = decayed_linear_attention(*leaves, form=form, chunk_size=3)
    texts = zip(*(x.detach().split([4, 5, 2], dim=2) for x in inputs), strict=True)
    exact = torch.cat([plain(*text) for text in texts], dim=2)
    assert_close(packed, exact, exact)
    gradients = torch.autograd.grad(packed[:, :, 4:].sum(), leaves)
    assert all(x.isfinite().all() for x in gradients)
    assert all((x[:, :, :4] == 0).all() for x in gradients)


def test_half_life(device: str) -> None:
    log_decay = torch.tensor([-math.log(2) / 7], dtype=torch.float64, device=device)
    assert half_life(log_decay).item() == pytest.approx(7)
    assert half_life(torch.zeros(1)).item() == math.inf
    column = segment_sum(log_decay.expand(71)).exp()[:, 0]
    assert column[7].item() == pytest.approx(1 / 2)
    assert column[70].item() == pytest.approx(1 / 1024)


def test_half_lives_of_retnet() -> None:
    lives = half_life(retention_log_decay(16, dtype=torch.float64))
    assert lives[[0, 7, 15]].round().tolist() == [22, 2839, 726_817]
    assert ((lives[1:] / lives[:-1] - 2).abs() < 0.02).all()
    slopes = half_life(-alibi_slopes(8, dtype=torch.float64))
    assert slopes[0].item() == pytest.approx(1.386, abs=1e-3)
    assert slopes[-1].item() == pytest.approx(177.4, abs=0.1)
    # In float32 too: `log1p` knows what 1 - 2 ** -20 has forgotten.
    assert ((half_life(retention_log_decay(16)) / lives - 1).abs() < 2e-7).all()
    with pytest.raises(ValueError, match="n_heads is 0: it must be at least 1"):
        retention_log_decay(0)


def test_effective_window() -> None:
    for h, x in enumerate(retention_log_decay(8, dtype=torch.float64)):
        weights = (x * torch.arange(2**18, dtype=torch.float64)).exp()
        assert weights.sum().item() == pytest.approx(2 ** (5 + h), rel=1e-9)


@given(a=st.floats(0.01, 0.9999), w=st.integers(0, 50))
def test_what_lies_beyond_a_window_is_bounded(a: float, w: int) -> None:
    row = segment_sum(torch.full((53,), math.log(a), dtype=torch.float64)).exp()[-1].flip(0)
    assert row[w:].sum() <= (1 + 1e-12) * a**w * row.sum()


def test_without_decay_it_is_a_sum(device: str) -> None:
    query, key, value = SQUARE.inputs(device=device)
    exact = (query @ key.mT).tril() @ value
    ours = decayed_linear_attention(query, key, value, torch.zeros_like(value[..., 0]), chunk_size=3)
    assert_close(ours, exact, exact)


def test_a_one_in_the_value_is_the_denominator(device: str) -> None:
    query, key, value = SQUARE.inputs(device=device)
    q, k, ones = elu_plus_one(query), elu_plus_one(key), torch.ones_like(value[..., :1])
    both = decayed_linear_attention(q, k, torch.cat([value, ones], -1), torch.zeros_like(value[..., 0]))
    exact = linear_attention(query, key, value)
    assert_close(both[..., :-1] / both[..., -1:], exact, exact)


@pytest.mark.parametrize("dtype", proof.DTYPES[:3], ids=["float64", "float32", "bfloat16"])
def test_a_summary_is_where_decoding_begins(dtype: torch.dtype, device: str) -> None:
    inputs = inputs_of(Case("text", t=13, s=13), dtype, device)
    wide = torch.promote_types(dtype, torch.float32)
    state = summarise(*(x[:, :, :6].to(wide) for x in inputs[1:]))
    outputs = [decayed_linear_attention(*(x[:, :, :6] for x in inputs))]
    for i in range(6, 13):
        output, state = decayed_linear_attention_step(*(x[:, :, i : i + 1] for x in inputs), state)
        outputs.append(output)
        assert state.dtype == wide
    start = [x[:, :, :1] for x in inputs]
    first, _ = decayed_linear_attention_step(*start)
    assert_close(first, plain(*start), plain(*(x.double() for x in start)))
    exact = plain(*(x.double() for x in inputs))
    assert_close(torch.cat(outputs, 2), plain(*inputs), exact)


@each_form
def test_future_and_neighbours_move_nothing(form: str, device: str) -> None:
    inputs = inputs_of(SQUARE, torch.float32, device)
    ours = partial(decayed_linear_attention, form=form, chunk_size=2)
    before = ours(*inputs)
    for dim, at in ((2, 4), (0, 1), (1, 1)):
        after = ours(*(changed(x, dim, at, at + 1) for x in inputs))
        moved = (before != after).transpose(0, dim).flatten(1).any(1).tolist()
        assert moved == [n >= at if dim == 2 else n == at for n in range(len(moved))]


def test_wrong_input_is_refused() -> None:
    query, key, value, log_decay = inputs_of(SQUARE)
    ours, text = proof.bare(decayed_linear_attention), (query, key, value)
    wrong = [
        ((query[0], key, value, log_decay), {}, "query is"),
        ((*text, log_decay[:, :2]), {}, r"log_decay has shape \(2, 2, 7\): as many, and \(2, 3, 7\), are"),
        ((query[:, :, :5], key, value, log_decay), {}, "key has 7 positions, query 5"),
        ((*text, log_decay), {"form": "chunk"}, "form is 'chunk', chunk_size is 64: one of parallel, "),
        ((*text, log_decay), {"chunk_size": 0}, "chunk_size is 0"),
    ]
    for arguments, more, message in wrong:
        with pytest.raises(ValueError, match=message):
            ours(*arguments, **more)
    step, one = proof.bare(decayed_linear_attention_step), [x[:, :, :1] for x in (*text, log_decay)]
    for words, kept, message in (
        ((*text, log_decay), None, r"query has 7 tokens, key 7, log_decay has shape \(2, 3, 7\)"),
        ((*one[:3], one[3][..., 0]), None, r"log_decay has shape \(2, 3\)"),
        (one, step(*one)[1][:1], r"state \(1, 3, 11, 13\): 1, 1, b h 1 and b h d e are wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            step(*words, kept)


@pytest.mark.parametrize(("t", "u"), [(40, 8), (37, 8), (5, 8), (8, 2), (11, 11)])
def test_cost_counts_products(t: int, u: int) -> None:
    inputs = inputs_of(Case("text", b=1, g=1, t=t, s=t, d=3, e=5))
    ours = partial(decayed_linear_attention, chunk_size=u)
    assert flops(ours, *inputs) == 2 * decay_cost(t, 3, 5, u)


def faded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """With gates that come from the keys, in chunks of 16."""
    return decayed_linear_attention(query, key, value, -key[..., 0].square(), chunk_size=16)


def test_work_is_linear() -> None:
    for function in (faded, lambda *text: faded(*text).sum().backward()):
        texts = ((normal("text", 1, 2, t, 8).requires_grad_() for _ in range(3)) for t in (128, 256, 512))
        short, middle, long = (flops(function, *text) for text in texts)
        assert long - middle == 2 * (middle - short)


def test_memory_is_linear(device: str) -> None:
    for t in (512, 1024):
        text = 2 * t * 8 * 4
        forward, backward = allocated(faded, t, device)
        assert max(forward.largest, backward.largest) <= text
        assert forward.total + backward.total < 100 * text


def test_a_norm_hides_any_factor(device: str) -> None:
    query, key, value, log_decay = inputs_of(SQUARE, device=device)
    plainly = decayed_linear_attention(query, key, value, log_decay)
    decay = products(log_decay)
    scores = query @ key.mT * 11**-0.5 * decay / decay.sum(-1, keepdim=True).sqrt()
    retained = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1) @ value
    assert (retained - plainly).abs().max() > 0.1
    ours, exact = (F.layer_norm(x, x.shape[-1:], eps=0.0) for x in (retained, plainly))
    assert_close(ours, exact, exact)


def test_slopes_of_minimax() -> None:
    minimax = pytest.importorskip("transformers.models.minimax.modeling_minimax")
    config = minimax.MiniMaxConfig(
        hidden_size=64, num_attention_heads=8, num_hidden_layers=5, num_key_value_heads=8
    )
    for layer in range(5):
        found = minimax.MiniMaxLightningAttention(config, layer).get_slope_rate().flatten()
        factor = 1 - layer / (4 + 1e-5) + 1e-5
        assert_close(found, alibi_slopes(8) * factor, alibi_slopes(8, dtype=torch.float64) * factor)


def test_forms_are_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def watched(x: Tensor) -> Tensor:
        sizes.append(x.shape[-1])
        return segment_sum(x)

    monkeypatch.setattr("annotated_attention.linear_decay.segment_sum", watched)
    for form in ("parallel", "recurrent", "chunked"):
        decayed_linear_attention(*inputs_of(SQUARE), form=form, chunk_size=3)
    assert sizes == [7] + [1] * 7 + [3, 3, 1]
