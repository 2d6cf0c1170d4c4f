"""The proof of `alibi`: each test is a claim that its page makes."""

import itertools
import math
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import SQUARE, Case, assert_agrees, assert_close, causal, changed, normal, plain_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from annotated_attention.alibi import AlibiBias, alibi_attention, alibi_bias, alibi_score_mod, alibi_slopes

both_directions = pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
lengths, offsets = st.integers(1, 23), st.integers(-7, 31)


def slope(h: int, n: int) -> float:
    """The slope of head `h = 1, ..., n`, from a formula for the single head."""
    power = 2 ** math.floor(math.log2(n))
    exponent = 8 * h / power if h <= power else 4 * (2 * (h - power) - 1) / power
    return 2.0**-exponent


def paper_bias(n: int, t: int, s: int, offset: int = 0, is_causal: bool = False) -> Tensor:
    """The bias entry by entry, in float64."""

    def entry(h: int, i: int, j: int) -> float:
        return -math.inf if is_causal and j > i else -slope(h, n) * abs(i - j)

    rows = range(offset, offset + t)
    values = [[[entry(h, i, j) for j in range(s)] for i in rows] for h in range(1, n + 1)]
    return torch.tensor(values, dtype=torch.float64).reshape(n, t, s)


def plain_alibi(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, offset: int = 0) -> Tensor:
    h, t, s = query.shape[1], query.shape[2], key.shape[2]
    bias = paper_bias(h, t, s, offset, is_causal).to(query.device)
    return plain_attention(query, key, value, bias)


def test_eight_heads() -> None:
    assert alibi_slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


@pytest.mark.parametrize("n", [*range(1, 41), 56, 71, 96, 112, 128])
def test_any_head_count(n: int) -> None:
    expected = torch.tensor([slope(h, n) for h in range(1, n + 1)], dtype=torch.float64)
    assert torch.equal(alibi_slopes(n, dtype=torch.float64), expected)
    assert torch.equal(alibi_slopes(n), expected.float())
    # No slope is used twice, all belong to the series of the next power of two, and twelve begin as eight do.
    power = 2 ** math.floor(math.log2(n))
    assert len(set(expected.tolist())) == n
    assert set(alibi_slopes(n).tolist()) <= set(alibi_slopes(2 * power).tolist())
    assert torch.equal(alibi_slopes(n)[:power], alibi_slopes(power))


def test_gentlest_slope_is_always_1_over_256() -> None:
    assert {alibi_slopes(n).min().item() for n in range(1, 129)} == {1 / 256}


def test_short_cut_is_wrong_at_12_heads() -> None:
    short_cut = 2.0 ** (-8 * torch.arange(1, 13) / 12)
    error = (short_cut - alibi_slopes(12)).abs()
    assert error.argmax() == 8
    assert error.max() == pytest.approx(0.69, abs=0.005)
    assert torch.equal(2.0 ** (-8 * torch.arange(1, 17) / 16), alibi_slopes(16))


@given(t=lengths, s=lengths, offset=offsets, n=st.integers(1, 13))
def test_bias_is_minus_slope_times_distance(t: int, s: int, offset: int, n: int) -> None:
    bias = alibi_bias(n, t, s, offset=offset, dtype=torch.float64)
    assert torch.equal(bias, paper_bias(n, t, s, offset))


def test_offset_picks_rows() -> None:
    whole = alibi_bias(3, 101, 101)
    assert torch.equal(alibi_bias(3, 1, 101, offset=100), whole[:, 100:])
    assert torch.equal(alibi_bias(3, 7, 101, offset=11), whole[:, 11:18])


@given(t=lengths, s=lengths, offset=offsets, shift=st.integers(0, 13))
def test_bias_is_relative(t: int, s: int, offset: int, shift: int) -> None:
    moved = alibi_bias(3, t, s + shift, offset=offset + shift)
    assert torch.equal(moved[:, :, shift:], alibi_bias(3, t, s, offset=offset))


def test_row_constants_cancel(device: str) -> None:
    query, key, value = SQUARE.inputs(torch.float64, device)
    slopes = alibi_slopes(3, dtype=torch.float64, device=device)
    positions = (slopes[:, None, None] * torch.arange(7, device=device)).expand(3, 7, 7)
    by_position = plain_attention(query, key, value, positions.masked_fill(~causal(7, 7, device), -torch.inf))
    assert_close(alibi_attention(query, key, value), by_position, plain_alibi(query, key, value, True))
    # Without the mask the two part ways: |i - j| is not i - j.
    both_ways = plain_attention(query, key, value, positions) - plain_alibi(query, key, value, False)
    assert both_ways.abs().max() > 0.01


def test_bias_is_one_more_coordinate(device: str) -> None:
    query, key, value = SQUARE.inputs(torch.float64, device)
    slopes = alibi_slopes(3, dtype=torch.float64, device=device)
    coordinate = torch.einsum("h, s -> h s", slopes, torch.arange(7.0, dtype=torch.float64, device=device))
    wider_query = torch.cat([query, query.new_full((2, 3, 7, 1), 11**0.5)], -1)
    wider_key = torch.cat([key, coordinate[..., None].expand(2, 3, 7, 1)], -1)
    without_bias = F.scaled_dot_product_attention(
        wider_query, wider_key, value, is_causal=True, scale=11**-0.5
    )
    assert_close(alibi_attention(query, key, value), without_bias, plain_alibi(query, key, value, True))


@pytest.mark.parametrize("length", [64, 1024, 4096, 65536])
def test_bfloat16_spares_distances(length: int) -> None:
    def moved(exact: Tensor, bits: int) -> Tensor:
        fraction, exponent = torch.frexp(exact)
        rounded = torch.ldexp((fraction * 2**bits).round() / 2**bits, exponent)
        assert bits != 8 or torch.equal(rounded, exact.bfloat16().double())
        return (rounded.softmax(-1) - exact.softmax(-1)).abs().max()

    # 17 heads, because no rounding moves the powers of two that are the slopes of 8.
    bias = [-slope(h, 17) * torch.arange(length - 1, -1, -1, dtype=torch.float64) for h in range(1, 18)]
    assert max(moved(x, 8) for x in bias) < 2**-10
    assert all(max(moved(x, bits) for x in bias) > 2**-10 for bits in range(3, 8))
    assert all(max(moved(x, bits) for x in bias) > 2**-8 for bits in (3, 4))
    assert all(-(x.softmax(-1) * x).sum() < 1 for x in bias)


def test_bfloat16_ruins_positions() -> None:
    exact = alibi_slopes(8)[0].double() * torch.arange(4096)
    rounded = exact.bfloat16().double()
    assert (rounded.softmax(-1) - exact.softmax(-1)).abs().max() > 0.2
    assert rounded[-4:].unique().numel() == 1


@both_directions
@proof.each_case
@proof.each_dtype
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    # 17 heads: most of their slopes are irrational, so that a bias computed in too narrow a dtype shows.
    assert_agrees(
        partial(alibi_attention, is_causal=is_causal),
        partial(plain_alibi, is_causal=is_causal),
        replace(case, g=17).inputs(dtype, device),
    )


@pytest.mark.parametrize("dtype", proof.DTYPES[2:], ids=["bfloat16", "float16"])
def test_bias_is_never_rounded_below_float32(dtype: torch.dtype, device: str) -> None:
    # The score of each key is slope * distance, in two coordinates that every dtype holds exactly: it cancels
    # the bias, and the output is the plain mean of the values.
    distance = torch.arange(8191, -1, -1, device=device)
    key = torch.stack([distance // 256, distance % 256], -1).to(dtype).expand(1, 8, 8192, 2)
    query = torch.einsum("h, d -> h d", alibi_slopes(8), torch.tensor([256.0, 1.0])).to(device, dtype)[
        None, :, None
    ]
    value = normal("value", 1, 8, 8192, 3, dtype=dtype, device=device)
    mean = value.double().mean(2, keepdim=True)
    assert_close(alibi_attention(query, key, value, scale=1.0, offset=8191), mean.to(dtype), mean)


@both_directions
def test_gradcheck(is_causal: bool) -> None:
    inputs = Case("small", t=3, s=5, d=2, e=7).inputs()
    proof.assert_gradcheck(partial(alibi_attention, is_causal=is_causal, offset=1), inputs)


@pytest.mark.parametrize("scale", [0.13, 1.0, 3.0])
def test_scale_spares_the_bias(scale: float, device: str) -> None:
    query, key, value = SQUARE.inputs(torch.float64, device)
    exact = plain_attention(query, key, value, paper_bias(3, 7, 7).to(device), scale=scale)
    assert_close(alibi_attention(query, key, value, is_causal=False, scale=scale), exact, exact)
    scaled_bias = plain_attention(query, key, value, scale * paper_bias(3, 7, 7).to(device), scale=scale)
    assert scale == 1 or (scaled_bias - exact).abs().max() > 0.01


@given(score=st.floats(0.1, 6.0), seed=st.integers(0, 999))
def test_weight_is_bounded_by_distance(score: float, seed: int) -> None:
    # Keys and queries of one coordinate; identity values make the output the matrix of weights.
    n, length = 3, 43
    query = normal(f"signs {seed}", 1, n, length, 1).sign()
    key = score * normal(f"scores {seed}", 1, n, length, 1).tanh()
    value = torch.eye(length, dtype=torch.float64).expand(1, n, length, length)
    weights = alibi_attention(query, key, value, scale=1.0)
    assert (weights <= torch.exp(2 * score + paper_bias(n, length, length)) * (1 + 1e-12)).all()
    for m, horizon in [(1 / 2, 30), (1 / 256, 3817)]:
        assert math.exp(8 - m * horizon) < 1e-3 <= math.exp(8 - m * (horizon - 1))


@pytest.mark.parametrize("start", range(1, 7))
def test_future_moves_nothing(start: int, device: str) -> None:
    query, key, value = SQUARE.inputs(torch.float32, device)
    after = alibi_attention(query, changed(key, 2, start), changed(value, 2, start))
    moved = (alibi_attention(query, key, value) != after).any(-1)
    assert (moved == (torch.arange(7, device=device) >= start)).all()


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_neighbours_move_nothing(dim: int, device: str) -> None:
    inputs = SQUARE.inputs(torch.float32, device)
    before = alibi_attention(*inputs)
    after = alibi_attention(*(changed(x, dim, 1, 2) for x in inputs))
    moved = (before != after).transpose(0, dim).flatten(1).any(1)
    assert moved.tolist() == [n == 1 for n in range(before.shape[dim])]


@pytest.mark.parametrize("dtype", proof.DTYPES[:3], ids=["float64", "float32", "bfloat16"])
@given(cuts=st.sets(st.integers(1, 22)))
def test_decoding_equals_prefill(dtype: torch.dtype, cuts: set[int], device: str) -> None:
    query, key, value = Case("text", t=23, s=23).inputs(dtype, device)
    marks = [0, *sorted(cuts), 23]
    steps = [
        alibi_attention(query[:, :, a:z], key[:, :, :z], value[:, :, :z], offset=a)
        for a, z in itertools.pairwise(marks)
    ]
    exact = plain_alibi(*(x.double() for x in (query, key, value)), True)
    assert_close(torch.cat(steps, 2), alibi_attention(query, key, value), exact)


def test_decoding_needs_the_offset(device: str) -> None:
    query, key, value = Case("last token", t=1, s=100).inputs(torch.float64, device)
    assert torch.equal(alibi_attention(query, key, value), value[:, :, :1])
    exact = plain_alibi(query, key, value, True, 99)
    assert_close(alibi_attention(query, key, value, offset=99), exact, exact)
    assert (exact - value[:, :, :1]).abs().max() > 0.1


@proof.each_dtype
def test_bidirectional_cannot_tell_direction(dtype: torch.dtype, device: str) -> None:
    inputs = SQUARE.inputs(dtype, device)
    forwards = alibi_attention(*inputs, is_causal=False)
    backwards = alibi_attention(*(x.flip(2) for x in inputs), is_causal=False)
    assert_close(backwards.flip(2), forwards, plain_alibi(*(x.double() for x in inputs), False))


@proof.each_dtype
def test_queries_before_all_keys_return_zero(dtype: torch.dtype, device: str) -> None:
    inputs = [x.requires_grad_() for x in Case("t<s").inputs(dtype, device)]
    output = alibi_attention(*inputs, offset=-3)
    gradients = torch.autograd.grad(output[:, :, :3].sum(), inputs)
    assert (output[:, :, :3] == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)
    exact = plain_alibi(*(x.double() for x in inputs), True, -3)
    assert_close(output, plain_alibi(*inputs, True, -3), exact)
    assert (output[:, :, 3:] != 0).any(-1).all()
    assert (alibi_attention(*inputs, is_causal=False, offset=-3) != 0).any(-1).all()


def test_wrong_input_is_refused() -> None:
    query, key, value = Case("t<s").inputs()
    with pytest.raises(ValueError, match="query is"):
        proof.bare(alibi_attention)(query[0, 0], key, value)
    with pytest.raises(ValueError, match="key has 2 heads, query has 3"):
        proof.bare(alibi_attention)(query, key[:, :2], value[:, :2])
    with pytest.raises(ValueError, match="value"):
        proof.bare(alibi_attention)(query, key, value.float())
    with pytest.raises(ValueError, match="n_heads is 0"):
        alibi_slopes(0)
    with pytest.raises(ValueError, match="t is -1 and s is 7"):
        alibi_bias(3, -1, 7)
    with pytest.raises(ValueError, match="query has 3 heads, the cache has slopes for 8"):
        AlibiBias(8)(query, key)


def sized(h: int, t: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return normal("sized", 1, h, t, 2, dtype=dtype, device=device)


@both_directions
@given(calls=st.lists(st.tuples(lengths, lengths, offsets), min_size=1, max_size=5))
def test_cache_equals_the_bias(calls: list[tuple[int, int, int]], is_causal: bool, device: str) -> None:
    cache = AlibiBias(3, is_causal=is_causal)
    for t, s, offset in calls:
        expected = paper_bias(3, t, s, offset, is_causal).float()
        answer = cache(sized(3, t, device=device), sized(3, s, device=device), offset=offset)
        assert torch.equal(answer.cpu(), expected)


def test_cache_survives_casts(device: str) -> None:
    cache = AlibiBias(3)
    cache(sized(3, 7), sized(3, 7))
    for move in (cache.half, cache.float, cache.double, lambda: cache.to("meta"), lambda: cache.to(device)):
        move()
        for dtype in proof.DTYPES:
            answer = cache(sized(3, 11, dtype, device), sized(3, 13, dtype, device), offset=2)
            wide = torch.promote_types(dtype, torch.float32)
            assert answer.dtype == wide
            assert torch.equal(answer.cpu(), paper_bias(3, 11, 13, 2, True).to(wide))
        assert cache(sized(3, 5, device="meta"), sized(3, 5, device="meta")).device.type == "meta"
    assert not cache.state_dict()


def test_cache_is_linear_in_length() -> None:
    cache = AlibiBias(3)
    bias = cache(sized(3, 1024), sized(3, 1024))
    assert cache.line.untyped_storage().nbytes() == 3 * 2 * 1024 * 4
    assert bias.untyped_storage().nbytes() == 3 * 1024 * 1024 * 4
    row = cache(sized(3, 1), sized(3, 1024), offset=1023)
    assert row.untyped_storage().nbytes() == 3 * 1024 * 4


def test_cache_grows_by_doubling() -> None:
    cache, lines = AlibiBias(3), []
    for position in range(500):
        cache(sized(3, 1), sized(3, position + 1), offset=position)
        assert 2 <= cache.line.shape[1] / (position + 1) < 4
        if not lines or lines[-1] is not cache.line:
            lines.append(cache.line)
    assert [line.shape[1] // 2 for line in lines] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_flex_attention_agrees(dtype: torch.dtype, device: str) -> None:
    query, key, value = Case("t<s").inputs(dtype, device)
    block_mask = create_block_mask(lambda b, h, i, j: j <= i + 2, None, None, 5, 7, device=device)
    score_mod = proof.bare(alibi_score_mod(3, offset=2, device=device))
    flex = flex_attention(query, key, value, score_mod=score_mod, block_mask=block_mask)
    assert isinstance(flex, Tensor)
    exact = plain_alibi(*Case("t<s").inputs(device=device), True, 2)
    assert_close(flex, alibi_attention(query, key, value, offset=2), exact)


@both_directions
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_torch_sdpa_agrees(dtype: torch.dtype, is_causal: bool, device: str) -> None:
    def torch_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = alibi_bias(3, 7, 7, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(~causal(7, 7, device), -torch.inf) if is_causal else bias
        return F.scaled_dot_product_attention(query, key, value, bias)

    ours = partial(alibi_attention, is_causal=is_causal)
    assert_agrees(ours, torch_sdpa, SQUARE.inputs(dtype, device))


def test_fused_kernel_wants_an_axis_for_the_batch() -> None:
    # On a CPU. The kernel takes values of the queries' width alone.
    query = torch.randn(2, 3, 7, 16)
    bias = alibi_bias(3, 7, 7)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says why a kernel does not fit
        F.scaled_dot_product_attention(query, query, query, bias[None])
        with pytest.raises(RuntimeError, match="No available kernel"):
            F.scaled_dot_product_attention(query, query, query, bias)


@both_directions
def test_padding_joins_the_bias(is_causal: bool, device: str) -> None:
    query, key, value = SQUARE.inputs(device=device)
    padding = torch.arange(7, device=device) < torch.tensor([7, 4], device=device)[:, None, None, None]
    bias = alibi_bias(3, 7, 7, dtype=torch.float64, device=device)
    bias = bias.masked_fill(~causal(7, 7, device), -torch.inf) if is_causal else bias
    joined = F.scaled_dot_product_attention(query, key, value, bias.masked_fill(~padding, -torch.inf))
    for n, length in enumerate([7, 4]):  # each text alone, without its padding
        exact = plain_alibi(query[n, None], key[n, None, :, :length], value[n, None, :, :length], is_causal)
        assert_close(joined[n, None], exact, exact)
