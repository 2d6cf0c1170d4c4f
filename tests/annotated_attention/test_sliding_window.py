"""The proof of `sliding_window`: each test is a claim that its page makes. In models: `_stack`."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_grouped_query import inputs_of
from tests.annotated_attention.test_sliding_window_details import (
    FUSED,
    GROUPED,
    allocated,
    dense,
    flops,
    in_window,
)
from tests.proof import Case, assert_agrees, assert_close, changed, plain_attention
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from annotated_attention.sliding_window import (
    causal_window_attention,
    receptive_field,
    sliding_window_attention,
    sliding_window_cost,
    sliding_window_mask,
    window_tiles,
)

both_directions = pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
sdpa = partial(F.scaled_dot_product_attention, enable_gqa=True)
CASES = [*proof.CASES, GROUPED, FUSED]


@given(
    t=st.integers(0, 13),
    s=st.integers(0, 13),
    window=st.integers(1, 15),
    offset=st.integers(-7, 17),
    is_causal=st.booleans(),
)
def test_mask_is_the_inequality(t: int, s: int, window: int, offset: int, is_causal: bool) -> None:
    rows = [[in_window(i, j, window, is_causal) for j in range(s)] for i in range(offset, offset + t)]
    mask = sliding_window_mask(t, s, window, is_causal=is_causal, offset=offset)
    assert torch.equal(mask, torch.tensor(rows, dtype=torch.bool).reshape(t, s))


@pytest.mark.parametrize("w", [1, 2, 5])
def test_others_count_otherwise(w: int) -> None:
    i, j = torch.arange(13)[:, None], torch.arange(13)
    causal, two_sided = (sliding_window_mask(13, 13, w, is_causal=c) for c in (True, False))
    # `sliding_window` of Transformers: `kv_idx > q_idx - sliding_window` and `kv_idx <= q_idx`.
    assert torch.equal((j > i - w) & (j <= i), causal)

    def flash_attn(left: int, right: int) -> Tensor:
        """`window_size`: keys between `i - left` and `i + right`, inclusive."""
        return (i - left <= j) & (j <= i + right)

    assert torch.equal(flash_attn(w - 1, 0), causal)
    assert torch.equal(flash_attn(w - 1, w - 1), two_sided)
    assert flash_attn(w, 0).sum() > causal.sum()
    # `attention_window` of Transformers' Longformer: half of it to each side, and the token itself.
    one_sided = 2 * (w - 1) // 2
    assert torch.equal((i - j).abs() <= one_sided, two_sided)


@given(
    t=st.integers(0, 17),
    s=st.integers(0, 13),
    window=st.integers(1, 15),
    offset=st.integers(-11, 17),
    block_size=st.integers(1, 7),
    is_causal=st.booleans(),
)
def test_tiles_hold_what_is_in_sight(
    t: int, s: int, window: int, offset: int, block_size: int, is_causal: bool
) -> None:
    where = {"is_causal": is_causal, "offset": offset}
    found = torch.zeros(t, s, dtype=torch.bool)
    asked: list[int] = []
    for rows, (run,), mask in window_tiles(t, s, window, block_size=block_size, **where):
        asked += range(rows.start, rows.stop)
        # Not a key more than somebody in the block could see, in a text without ends.
        reach = range(offset + rows.start - (window - 1), offset + rows.start + block_size)
        reach = reach if is_causal else range(reach.start, reach.stop + window - 1)
        assert not run.stop - run.start or {run.start, run.stop - 1} <= set(reach) & set(range(s))
        assert mask is not None
        found[rows, run] = mask
    assert asked == list(range(t))
    assert torch.equal(found, sliding_window_mask(t, s, window, **where))


@pytest.mark.parametrize("case", CASES, ids=str)
@proof.each_dtype
@both_directions
def test_agrees_with_pytorch(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    mask = dense(case, 3, is_causal, device)
    ours = partial(sliding_window_attention, window=3, is_causal=is_causal, block_size=2)
    oracle = partial(plain_attention, mask=mask)
    assert_agrees(ours, partial(sdpa, attn_mask=mask), inputs_of(case, dtype, device), oracle=oracle)


@given(
    t=st.integers(1, 29),
    s=st.integers(1, 29),
    window=st.integers(1, 37),
    block_size=st.integers(1, 31),
    offset=st.integers(-11, 37),
    is_causal=st.booleans(),
)
def test_block_size_is_irrelevant(
    t: int, s: int, window: int, block_size: int, offset: int, is_causal: bool, device: str
) -> None:
    inputs = Case("any", b=1, g=1, r=2, t=t, s=s, d=4, e=4).inputs(device=device)
    where = {"is_causal": is_causal, "offset": offset}
    mask = sliding_window_mask(t, s, window, **where, device=device)
    tiled = partial(sliding_window_attention, window=window, block_size=block_size, **where)
    for outputs in zip(
        *(proof.with_gradients(f, inputs) for f in (tiled, partial(plain_attention, mask=mask))), strict=True
    ):
        # One vector: where a query has a single key its gradient is 0, and has no size to be measured by.
        ours, exact = (torch.cat([x.flatten() for x in parts]) for parts in outputs)
        assert_close(ours, exact, exact)


@both_directions
@pytest.mark.parametrize("offset", [0, 2])
def test_gradcheck(is_causal: bool, offset: int) -> None:
    case = Case("small", b=1, g=2, r=2, t=5, s=7, d=2, e=3)
    ours = partial(sliding_window_attention, window=2, is_causal=is_causal, offset=offset, block_size=3)
    proof.assert_gradcheck(ours, case.inputs())


@both_directions
@pytest.mark.parametrize("block_size", [1, 4, 128])
def test_only_the_window_moves_a_query(is_causal: bool, block_size: int, device: str) -> None:
    query, key, value = Case("text", t=11, s=11).inputs(torch.float32, device)
    ours = partial(sliding_window_attention, window=3, is_causal=is_causal, block_size=block_size)
    before = ours(query, key, value)
    for j in range(11):
        after = ours(query, changed(key, 2, j, j + 1), changed(value, 2, j, j + 1))
        moved = (before != after).any(-1)
        assert (
            moved == torch.tensor([in_window(i, j, 3, is_causal) for i in range(11)], device=device)
        ).all()


@proof.each_dtype
@pytest.mark.parametrize("e", [11, 13])
def test_rows_without_a_key_are_zero(dtype: torch.dtype, e: int, device: str) -> None:
    inputs = [x.requires_grad_() for x in Case("beyond", r=2, t=11, s=3, e=e).inputs(dtype, device)]
    output = sliding_window_attention(*inputs, 2, block_size=3)
    assert (output[:, :, 4:] == 0).all()
    assert (output[:, :, :4] != 0).any(-1).all()
    gradients = torch.autograd.grad(output[:, :, 4:].sum(), inputs, retain_graph=True)
    assert all((x == 0).all() for x in gradients)
    gradients = torch.autograd.grad(output.sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)
    assert (gradients[0][:, :, 4:] == 0).all()
    for t, s in ((0, 3), (3, 0)):
        query, key, value = (x.detach() for x in inputs)
        assert not sliding_window_attention(query[:, :, :t], key[:, :, :s], value[:, :, :s], 2).any()


@both_directions
@pytest.mark.parametrize("window", [7, 10**9])
def test_a_wide_window_is_causal_attention(window: int, is_causal: bool, device: str) -> None:
    inputs = Case("text", t=7, s=7).inputs(device=device)
    exact = plain_attention(*inputs, proof.causal(7, 7, device) if is_causal else None)
    assert_close(sliding_window_attention(*inputs, window, is_causal=is_causal), exact, exact)


def test_wrong_input_is_refused() -> None:
    query, key, value = GROUPED.inputs()
    ours = proof.bare(sliding_window_attention)
    wrong = [
        ((query[0], key, value, 3), {}, "query is"),
        ((query, key[:, :2], value[:, :2][:, :, :4], 3), {}, "value has shape"),
        ((query[:, :5], key, value, 3), {}, "key has 3 heads, query has 5"),
        ((query, key.float(), value, 3), {}, "key is torch.float32"),
        ((query, key, value, 0), {}, "window is 0, block_size is None: at least 1 is wanted"),
        ((query, key, value, 3), {"block_size": 0}, "window is 3, block_size is 0: at least 1 is wanted"),
    ]
    for arguments, more, message in wrong:
        with pytest.raises(ValueError, match=message):
            ours(*arguments, **more)
    for sizes in ((-1, 5, 3), (5, -1, 3), (5, 5, 0)):
        with pytest.raises(ValueError, match=f"t is {sizes[0]}, s is {sizes[1]}, window is {sizes[2]}"):
            sliding_window_mask(*sizes)
    i = torch.arange(7)
    for queries in (1, 5):  # by its mask, and as a band
        with pytest.raises(ValueError, match="window is 0: it must be at least 1"):
            causal_window_attention(query[:, :, :queries], key, value, i[:queries], i, window=0)
    for n_layers, window in ((-1, 3), (2, 0)):
        with pytest.raises(ValueError, match=f"n_layers is {n_layers}, window is {window}"):
            receptive_field(n_layers, window)


@both_directions
@pytest.mark.parametrize(("t", "window", "u"), [(80, 8, 4), (37, 8, 5), (40, 13, 64), (7, 11, 3), (5, 1, 2)])
def test_cost_counts_scores(t: int, window: int, u: int, is_causal: bool) -> None:
    wanted, computed = sliding_window_cost(t, window, u, is_causal=is_causal)
    assert wanted == sliding_window_mask(t, t, window, is_causal=is_causal).sum()
    inputs = Case("text", b=1, g=1, t=t, s=t, d=3, e=5).inputs()
    ours = partial(sliding_window_attention, window=window, is_causal=is_causal, block_size=u)
    assert flops(ours, *inputs) == 2 * (3 + 5) * computed
    # Away from the ends of the text, each row has u - 1 scores too many.
    a = (window - 1) * (1 if is_causal else 2) + u
    assert computed <= t * a
    if 3 * a < t:
        longer = sliding_window_cost(t + u, window, u, is_causal=is_causal)[1]
        assert longer - computed == u * a
    inner = sliding_window_mask(u, a, window, is_causal=is_causal, offset=window - 1)
    assert 1 - inner.double().mean().item() == pytest.approx((u - 1) / a)


def test_cost_of_long_texts() -> None:
    assert sliding_window_cost(100_000, 100_000, 1)[0] == 5_000_050_000


@both_directions
def test_work_is_linear(is_causal: bool) -> None:
    def both(query: Tensor, key: Tensor, value: Tensor) -> None:
        sliding_window_attention(query, key, value, 8, is_causal=is_causal, block_size=4).sum().backward()

    counts = []
    for t in (40, 80, 160):
        inputs = Case("text", b=1, g=1, t=t, s=t, d=3, e=3).inputs()
        forward = flops(
            partial(sliding_window_attention, window=8, is_causal=is_causal, block_size=4), *inputs
        )
        whole = flops(both, *(x.requires_grad_() for x in inputs))
        # There, there again, and back.
        assert whole == 4 * forward
        counts.append(forward)
    # All but a few tiles at the ends of the text.
    once, twice, fourfold = counts
    assert fourfold - twice == 2 * (twice - once)


def test_a_mask_saves_nothing() -> None:
    inputs = FUSED.inputs()
    masked = partial(sdpa, attn_mask=sliding_window_mask(13, 11, 2))
    assert flops(masked, *inputs) == flops(sdpa, *inputs) == 2 * 2 * 6 * 13 * 11 * (16 + 16)


def test_memory_is_linear(device: str) -> None:
    ours = partial(sliding_window_attention, window=64, block_size=16)
    for t in (512, 1024):
        keys = 4 * 2 * t * 8
        forward, backward = allocated(ours, t, device)
        assert forward.largest == backward.largest == keys
        assert forward.total + backward.total < 40 * keys
    dense_mask = partial(sdpa, attn_mask=sliding_window_mask(1024, 1024, 64, device=device))
    assert allocated(dense_mask, 1024, device)[0].largest >= 1024 * 1024


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_flex_attention_agrees(dtype: torch.dtype, device: str) -> None:
    inputs, w = GROUPED.inputs(dtype, device), 3
    block_mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < w), None, None, 5, 7, device=device)
    flex = flex_attention(*inputs, block_mask=block_mask, enable_gqa=True)
    assert isinstance(flex, Tensor)
    exact = plain_attention(*GROUPED.inputs(device=device), dense(GROUPED, 3, True, device))
    assert_close(flex, sliding_window_attention(*inputs, w), exact)
