"""The proof of `rotary`: each test is a claim that its page makes."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_rotary_cases import (
    D,
    GrowingCache,
    authors_yarn,
    complex_turn,
    each_case,
    each_layout,
    matrix,
    ours,
    plain_rotary,
    rotary_model,
    scores,
    theta,
    turn,
)
from tests.proof import Case, assert_agrees, assert_close, normal
from torch import Tensor

from annotated_attention.language_model import causal_attention
from annotated_attention.rotary import (
    apply_rotary,
    half_split_order,
    ntk_base,
    rotary_angles,
    rotary_attention,
    rotary_frequencies,
    yarn_frequencies,
    yarn_scale,
)


@each_layout
@proof.each_dtype
def test_turning_is_complex_multiplication(dtype: torch.dtype, interleaved: bool, device: str) -> None:
    x, positions = normal("x", 2, 3, 7, D, dtype=dtype, device=device), torch.arange(5, 12, device=device)
    result = apply_rotary(x, rotary_angles(positions, D), interleaved=interleaved)
    exact = complex_turn(x.double(), positions, interleaved)
    assert result.dtype == dtype
    assert_close(result, complex_turn(x, positions, interleaved, torch.complex64).to(dtype), exact)
    # One rounding at the end: half a unit of the last of 8 or 11 digits, and no more.
    digits = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 1e-6)
    assert ((result.double() - exact).abs() <= digits * exact.abs() * 1.001 + 1e-6).all()


@given(i=st.integers(-50, 50), j=st.integers(-50, 50))
def test_turning_is_a_matrix_of_blocks(i: int, j: int) -> None:
    x = normal("x", 1, 1, 1, D)
    turned = apply_rotary(x, rotary_angles(torch.tensor([i]), D), interleaved=True)
    exact = x @ matrix(i).T
    assert_close(turned, exact, exact)
    assert torch.allclose(matrix(i).T @ matrix(j), matrix(j - i), rtol=0, atol=1e-13)


@given(i=st.integers(0, 10**6), j=st.integers(0, 10**6), seed=st.integers(0, 99))
def test_scores_depend_on_the_distance_alone(i: int, j: int, seed: int) -> None:
    query, key = normal(f"q {seed}", D), normal(f"k {seed}", D)
    absolute = turn(query, i) @ turn(key, j)
    for relative in (query @ turn(key, j - i), turn(query, i - j) @ key):
        assert abs(absolute - relative) < 1e-7  # an angle of a million radians is known to 1e-10
    assert i == j or abs(absolute - query @ key) > 1e-9


def test_lengths_are_kept(device: str) -> None:
    x = normal("x", 2, 3, 7, D, device=device)
    turned = apply_rotary(x, rotary_angles(torch.arange(7, device=device) * 1000, D))
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), x.norm(dim=-1))


@given(shift=st.integers(0, 10**5))
def test_moving_the_text_changes_nothing(shift: int) -> None:
    inputs, at = Case("square", t=7, s=7, d=D).inputs(), torch.arange(7)
    moved = rotary_attention(*inputs, at + shift, at + shift)
    assert (moved - rotary_attention(*inputs, at, at)).abs().max() < 1e-9
    if shift:
        assert (rotary_attention(*inputs, at + shift, at) - moved).abs().max() > 1e-4


@pytest.mark.parametrize("n", [0, 1, 2, 5, 17])
def test_one_query_looks_back_n_tokens_everywhere(n: int) -> None:
    u = normal("u", 64)
    query, key = turn(u, -n), u
    for i in (n, 29, 1000):
        scores = torch.stack([turn(query, i) @ turn(key, j) for j in range(max(0, i - 60), i + 1)])
        assert scores.argmax() == len(scores) - 1 - n
        assert_close(scores.max(), u @ u, u @ u)


def test_agreeing_pairs_decay() -> None:
    ones = torch.cat([torch.ones(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)])
    scores = [float(ones @ turn(ones, r)) for r in (0, 100, 1000)]
    assert scores == pytest.approx([64, 31, 10], abs=0.5)
    # Equation 37: a score is at most the largest step between products of pairs times the sum of |S|, which
    # falls with distance. For the random vectors of the next test it is far above every score.
    for r in (0, 1, 10, 100, 1000):
        partial_sums = torch.polar(torch.ones(64, dtype=torch.float64), r * theta(128)).cumsum(0).abs()
        q, k = (torch.view_as_complex(normal(x, 64, 2)) for x in ("q", "k"))
        h = torch.cat([q.conj() * k, torch.zeros(1)])
        bound = h.diff().abs().max() * partial_sums.sum()
        score = (h[:-1] * torch.polar(torch.ones(64, dtype=torch.float64), r * theta(128))).sum().real
        assert abs(score) <= bound


def test_unrelated_scores_do_not_decay() -> None:
    # The covariance of a turned key with independent entries is R 1 R^T = 1, at every position.
    for r in (1, 100, 10000):
        assert torch.allclose(matrix(r) @ matrix(r).T, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-12)
    query, keys = normal("query", 20000, 64), normal("keys", 20000, 64)
    for r in (0, 100, 10000):
        scores = (query * turn(keys, r)).sum(-1) / 8
        assert abs(scores.mean()) < 0.03
        assert scores.var() == pytest.approx(1, abs=0.04)


def test_wavelengths() -> None:
    wavelengths = 2 * math.pi / rotary_frequencies(128)
    assert wavelengths[0] == 2 * math.pi
    assert wavelengths[-1] == pytest.approx(54_410, abs=0.5)
    assert abs(math.remainder(44, 2 * math.pi)) < 0.02
    assert min(abs(math.remainder(n, 2 * math.pi)) for n in range(1, 44) if n != 22) > 0.1
    assert_close(rotary_frequencies(128), theta(128), theta(128))


def test_float32_angles_drift() -> None:
    exact = rotary_angles(torch.tensor([100_000]), 128)
    assert exact.dtype == torch.float64
    float32 = torch.tensor([100_000.0]) * theta(128).float()
    assert (float32 - exact).abs().max() == pytest.approx(0.005, abs=0.0005)
    # Ours: an angle of 1e5 in float64 is exact to 1e-11.
    by_hand = torch.tensor([[100_000 * 10000.0 ** (-p / 64) for p in range(64)]], dtype=torch.float64)
    assert (exact - by_hand).abs().max() < 1e-10


def test_half_precision_ruins_angles() -> None:
    newest = torch.arange(99_993, 100_001)
    assert newest.bfloat16().unique().numel() == 1
    assert torch.tensor([99_840.0, 100_352.0]).bfloat16().double().diff() == 512
    assert newest.half().isinf().all()
    assert torch.finfo(torch.float16).max == 65504
    assert rotary_angles(newest, 2).unique().numel() == 8


@each_case
@proof.each_dtype
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, device: str) -> None:
    inputs = case.inputs(dtype, device)
    assert_agrees(ours, plain_rotary, inputs)
    # A chunk at the end of the keys.
    exact = plain_rotary(*(x.double() for x in inputs), 100)
    assert_close(ours(*inputs, 100), plain_rotary(*inputs, 100), exact)


def test_rounding_once_is_better(device: str) -> None:
    positions = torch.arange(512, device=device)
    x, angles = normal("x", 1, 3, 512, D, device=device).bfloat16(), rotary_angles(positions, D)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    first, second = x.chunk(2, -1)
    throughout = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    exact = complex_turn(x.double(), positions)
    once, often = ((y.double() - exact).square().mean().sqrt() for y in (apply_rotary(x, angles), throughout))
    assert often / once == pytest.approx(1.6, abs=0.1)


@each_layout
def test_partial_dimensions(interleaved: bool, device: str) -> None:
    x, positions = normal("x", 2, 3, 7, D, device=device), torch.arange(7, device=device)
    angles = rotary_angles(positions, 6)
    turned = apply_rotary(x, angles, interleaved=interleaved)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    exact = complex_turn(x[..., :6], positions, interleaved)
    assert_close(turned[..., :6], exact, exact)
    # By attention: frequencies of three pairs leave the other dimensions alone.
    query, key, value = Case("square", t=7, s=7, d=D).inputs(device=device)
    frequencies = rotary_frequencies(6, device=device)
    by_name = rotary_attention(query, key, value, positions, positions, frequencies=frequencies)
    q, k = apply_rotary(query, angles), apply_rotary(key, angles)
    assert torch.equal(by_name, causal_attention(q, k, value, positions, positions))


def test_each_text_may_have_its_positions(device: str) -> None:
    inputs = Case("two texts", t=7, s=7, d=D).inputs(device=device)
    at = torch.arange(7, device=device) + torch.tensor([[0], [100]], device=device)
    together = rotary_attention(*inputs, at, at)
    for n in range(2):
        alone = rotary_attention(*(x[n, None] for x in inputs), at[n], at[n])
        assert torch.equal(together[n, None], alone)


def test_a_chunk_is_a_slice_of_the_whole(device: str) -> None:
    query, key, value = Case("text", t=23, s=23, d=D).inputs(device=device)
    at = torch.arange(100, 123, device=device)
    whole = rotary_attention(query, key, value, at, at)
    for a, z in ((0, 1), (3, 11), (22, 23)):
        chunk = rotary_attention(query[:, :, a:z], key[:, :, :z], value[:, :, :z], at[a:z], at[:z])
        assert_close(chunk, whole[:, :, a:z], whole[:, :, a:z])
    forgotten = rotary_attention(query[:, :, -1:], key, value, at[:1], at)
    assert torch.equal(forgotten, value[:, :, :1])


def test_turned_values_feel_the_absolute_place() -> None:
    query, key, value = Case("square", t=7, s=7, d=D, e=D).inputs()

    def outputs(shift: int, turned: bool) -> Tensor:
        at = torch.arange(7) + shift
        v = apply_rotary(value, rotary_angles(at, D)) if turned else value
        return rotary_attention(query, key, v, at, at)

    assert (outputs(0, False) - outputs(10, False)).abs().max() < 1e-12
    assert (outputs(0, True) - outputs(10, True)).abs().max() > 0.1
    # Moved by 10, the outputs are turned by 10.
    exact = turn(outputs(0, True), 10)
    assert_close(outputs(10, True), exact, exact)


@torch.no_grad()
def test_language_model_with_a_cache() -> None:
    model = rotary_model()
    tokens = torch.randint(31, (2, 17))
    whole = model(tokens)
    caches = [GrowingCache() for _ in range(2)]
    steps = [model(part, caches=caches) for part in tokens.split([7, 1, 1, 5, 1, 1, 1], 1)]
    assert_close(torch.cat(steps, 1), whole, whole)
    # The model sees order, and only relative order.
    assert (model(tokens.flip(1)).flip(1) - whole).abs().max() > 0.01
    assert (model(tokens, positions=torch.arange(500, 517)) - whole).abs().max() < 1e-10


def test_slow_pairs_meet_new_angles() -> None:
    turns = 4095 * theta(128) / (2 * math.pi)
    unfinished = turns < 1
    assert unfinished.sum() == 18
    # What was never an angle in training, as a part of a turn, lies between the last of training and 1.
    at_8000 = (8000 * theta(128) / (2 * math.pi)) % 1
    assert (at_8000 > turns)[unfinished].sum() == 14


@given(f=st.integers(2, 64), length=st.integers(2, 999))
def test_interpolation_stays_within_training(f: int, length: int) -> None:
    positions = torch.arange(length * f, dtype=torch.float64)[:: f - 1]
    longer = rotary_angles(positions / f, D)
    assert (longer < length * theta(D)).all()
    # The same, said by the frequencies.
    slower = rotary_angles(positions, D, frequencies=rotary_frequencies(D) / f)
    assert (longer - slower).abs().max() < 1e-9


@given(f=st.floats(1.5, 64), d=st.integers(2, 64).map(lambda half: 2 * half))
def test_ntk_slows_the_last_pair_by_the_factor(f: float, d: int) -> None:
    slower = rotary_frequencies(d) / rotary_frequencies(d, base=ntk_base(10000.0, f, d))
    exact = torch.tensor([f ** (2 * p / (d - 2)) for p in range(d // 2)], dtype=torch.float64)
    assert torch.allclose(slower, exact, rtol=1e-12, atol=0)
    assert slower[0] == 1
    assert float(slower[-1]) == pytest.approx(f, rel=1e-12)


def test_ntk_goes_beyond_training() -> None:
    unfinished = 4095 * theta(128) < 2 * math.pi
    reached = (8 * 4096 - 1) * rotary_frequencies(128, base=ntk_base(10000.0, 8.0, 128))
    beyond = reached > 4096 * theta(128)
    assert beyond[unfinished][:-1].all()
    assert reached[-1] <= 4096 * theta(128)[-1]


@given(
    d=st.sampled_from([8, 22, 64, 128]),
    f=st.floats(1, 64),
    length=st.integers(64, 2**17),
    base=st.sampled_from([1e2, 1e4, 5e5]),
    fast=st.floats(8, 64),
)
@example(d=8, f=4.0, length=20_000, base=1e2, fast=128.0)
def test_yarn_agrees_with_the_authors_code(d: int, f: float, length: int, base: float, fast: float) -> None:
    exact = authors_yarn(d, f, length, base, fast, 1.0)
    assert torch.allclose(
        yarn_frequencies(d, f, length, base=base, beta_fast=fast), exact, rtol=1e-12, atol=0
    )


def test_paper_and_code_have_two_ramps() -> None:
    turns = 4096 * theta(128) / (2 * math.pi)
    gamma = ((turns - 1) / 31).clamp(0, 1)
    paper = gamma * theta(128) + (1 - gamma) * theta(128) / 8
    code = yarn_frequencies(128, 8.0, 4096)
    assert torch.equal(code[turns > 34], theta(128)[turns > 34])
    assert torch.allclose(code[turns < 1], theta(128)[turns < 1] / 8, rtol=1e-12, atol=0)
    assert float((code / paper).max()) == pytest.approx(2.3, abs=0.05)


@given(f=st.floats(1, 100))
def test_temperature_multiplies_the_scores(f: float) -> None:
    query, key, value = Case("square", t=7, s=7, d=D).inputs()
    at, root = torch.arange(7), yarn_scale(f)
    assert root == pytest.approx(0.1 * math.log(f) + 1)
    both = plain_rotary(root * query, root * key, value)
    one = rotary_attention(root**2 * query, key, value, at, at)
    assert_close(one, both, both)


def test_layouts_differ_by_a_permutation(device: str) -> None:
    x, order = normal("x", 2, 3, 7, D, device=device), half_split_order(D, device=device)
    assert half_split_order(8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    angles = rotary_angles(torch.arange(7, device=device), D)
    neighbours = apply_rotary(x, angles, interleaved=True)
    assert torch.equal(apply_rotary(x[..., order], angles), neighbours[..., order])
    assert torch.equal(x[..., order][..., order.argsort()], x)


def test_permuted_rows_convert_a_checkpoint() -> None:
    h, d, m = 3, D, 13
    x, w_q, w_k = normal("x", 2, 7, m), normal("w_q", h * d, m), normal("w_k", h * d, m)
    converted = [w.unflatten(0, (h, d))[:, half_split_order(d)].flatten(0, 1) for w in (w_q, w_k)]
    trained = scores(x, w_q, w_k, interleaved=True)
    assert_close(scores(x, *converted, interleaved=False), trained, trained)
    # Transformers' conversion, by a view.
    assert torch.equal(converted[0], w_q.view(h, d // 2, 2, m).transpose(1, 2).reshape(h * d, m))


def test_wrong_layout_is_silent() -> None:
    x, w_q, w_k = normal("x", 2, 7, 13), normal("w_q", 3 * D, 13), normal("w_k", 3 * D, 13)
    right, wrong = (scores(x, w_q, w_k, interleaved=layout) for layout in (True, False))
    difference = (right - wrong).abs()
    assert difference.diagonal(dim1=-2, dim2=-1).max() < 1e-10
    assert (difference + 10 * torch.eye(7) > 1e-3).all()


def test_wrong_input_is_refused() -> None:
    x, angles = normal("x", 2, 3, 7, D), rotary_angles(torch.arange(7), D)
    for make in (rotary_frequencies, half_split_order):
        with pytest.raises(ValueError, match="d is 7: an even number"):
            make(7)
    with pytest.raises(ValueError, match="d is 2: an even number >= 4"):
        ntk_base(10000.0, 8.0, 2)
    with pytest.raises(ValueError, match="frequencies has 4 numbers, d is 22"):
        rotary_angles(torch.arange(7), D, frequencies=rotary_frequencies(8))
    for bad in (angles[:5], angles[:, None], angles.expand(3, 7, 11), rotary_angles(torch.arange(7), 24)):
        with pytest.raises(ValueError, match="t r or b t r is wanted"):
            proof.bare(apply_rotary)(x, bad)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="float32 or float64 is wanted"):
            apply_rotary(x, angles.to(dtype))
