"""The proof of `attention_sinks_full`: each test is a claim that its page makes."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_agrees, assert_close, assert_gradcheck, normal, plain_attention
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from annotated_attention.alibi import alibi_attention, alibi_slopes
from annotated_attention.attention_sinks import (
    SinkKVCache,
    alibi_by_position,
    streaming_alibi,
    streaming_mask,
    streaming_rotary,
)
from annotated_attention.attention_sinks_full import streaming_tiles
from annotated_attention.language_model import SelfAttention
from annotated_attention.rotary import apply_rotary, rotary_angles, rotary_attention
from coursekit.experiments.memory import Peak

N, W = 2, 3
FULL: dict[str, Callable] = {
    "rotary": partial(streaming_rotary, n_sinks=N, window=W),
    "alibi": partial(streaming_alibi, n_sinks=N, window=W),
}
PLAIN: dict[str, Callable] = {"rotary": rotary_attention, "alibi": alibi_by_position}
each_scheme = pytest.mark.parametrize("scheme", FULL)
# Queries at the end of the keys, as many as there are, more than there are; grouped; one; none.
CASES = [
    Case("t=s", t=11, s=11, d=12),
    Case("chunk", t=5, s=13, d=12),
    Case("t>s", t=13, s=5, d=12),
    Case("grouped", r=2, t=11, s=11, d=12),
    Case("t=1", t=1, s=11, d=12),
    Case("strided", t=11, s=11, d=12, strided=True),
    Case("empty-batch", b=0, t=11, s=11, d=12),
    Case("large-scores", t=11, s=11, d=12, largest_score=1e4),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def places(case: Case, device: str) -> tuple[Tensor, Tensor]:
    i = torch.arange(case.t, device=device) + max(case.s - case.t, 0)
    return i, torch.arange(case.s, device=device)


def paper(scheme: str, query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Row by row: what the query finds in a cache of sinks and window, at its places there."""
    (h, d), r = (query.shape[1], query.shape[3]), query.shape[1] // key.shape[1]
    key, value, rows = key.repeat_interleave(r, 1), value.repeat_interleave(r, 1), []
    for row, newest in enumerate(i.tolist()):
        held = [s for s in j.tolist() if s <= newest and (s < N or newest - s < W)]
        end = torch.tensor([min(newest, N + W - 1)], device=query.device)
        place = torch.tensor([s if s < N else s - newest + int(end) for s in held], device=query.device)
        one, some, bias = query[:, :, row : row + 1], key[:, :, held], None
        if scheme == "rotary":
            one, some = (apply_rotary(x, rotary_angles(at, d)) for x, at in ((one, end), (some, place)))
        else:
            wide = torch.promote_types(query.dtype, torch.float32)
            bias = -alibi_slopes(h, dtype=wide, device=query.device)[:, None, None] * (end - place)
        rows.append(plain_attention(one, some, value[:, :, held], bias))
    return torch.cat(rows, 2)


def in_one_kernel(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """PyTorch's kernel on vectors that say each query twice."""
    d, e = query.shape[3], value.shape[3]
    turned = [apply_rotary(query, rotary_angles(at, d)) for at in (i, i.clamp(max=N + W - 1))]
    near, far = (
        torch.where(mine[:, None], apply_rotary(key, rotary_angles(j, d)), 0.0) for mine in (j >= N, j < N)
    )
    distance = i[:, None] - j
    mask = (distance >= 0) & ((distance < W) | (j < N))
    value = torch.nn.functional.pad(value, (0, 2 * d - e))
    attend = torch.nn.functional.scaled_dot_product_attention
    wide = torch.cat(turned, 3), torch.cat([near, far], 3), value
    return attend(*wide, mask, scale=d**-0.5, enable_gqa=True)[..., :e]


@given(n=st.integers(0, 5), w=st.integers(1, 7), t=st.integers(0, 23), s=st.integers(0, 23))
def test_mask_keeps_sinks_and_window(n: int, w: int, t: int, s: int) -> None:
    i, j = torch.arange(t) + 3, torch.arange(s) - 1
    expected = [[0 <= k <= q and (k < n or q - k < w) for k in j.tolist()] for q in i.tolist()]
    mask = streaming_mask(i, j, n, w)
    assert torch.equal(mask, torch.tensor(expected, dtype=torch.bool).reshape(t, s))
    assert torch.equal(streaming_mask(i.expand(2, t), j, n, w), mask.expand(2, 1, t, s))


@each_case
@proof.each_dtype
def test_rotary_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, device: str) -> None:
    agrees("rotary", case, dtype, device)


@each_case
@proof.each_dtype
def test_alibi_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, device: str) -> None:
    agrees("alibi", case, dtype, device)


def agrees(scheme: str, case: Case, dtype: torch.dtype, device: str) -> None:
    """Rotary beside PyTorch's kernel, on which it stands; ALiBi, which stands on ours, beside the formula."""
    i, j = places(case, device)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return FULL[scheme](query, key, value, i, j)

    def peer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if scheme == "rotary":
            return in_one_kernel(query, key, value, i, j)
        return paper(scheme, query, key, value, i, j)

    def oracle(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return paper(scheme, query, key, value, i, j)

    assert_agrees(ours, peer, case.inputs(dtype, device), oracle=oracle)


@each_scheme
def test_gradcheck(scheme: str, device: str) -> None:
    case = Case("small", b=1, t=7, s=7, d=2, e=2)
    i, j = places(case, device)
    assert_gradcheck(lambda *inputs: FULL[scheme](*inputs, i, j), case.inputs(device=device))


@each_scheme
def test_three_layers_equal_the_cache(scheme: str, device: str) -> None:
    """The output of a layer is the input of the next; 61 tokens are more than twelve windows."""

    def layers(attend: Callable, dtype: torch.dtype) -> list[SelfAttention]:
        torch.manual_seed(proof.SEED)
        return [SelfAttention(24, 3, attend=attend).to(device, dtype) for _ in range(3)]

    def whole(dtype: torch.dtype) -> Tensor:
        y = normal("x", 2, 61, 24, dtype=dtype, device=device)
        for layer in layers(FULL[scheme], dtype):
            y = y + 3 * layer(y)
        return y

    steps, caches = [], [SinkKVCache(N, W) for _ in range(3)]
    stack = layers(PLAIN[scheme], torch.float32)
    with torch.no_grad():
        for y in normal("x", 2, 61, 24, dtype=torch.float32, device=device).split(1, 1):
            for layer, cache in zip(stack, caches, strict=True):
                y = y + 3 * layer(y, cache=cache)
            steps.append(y)
        assert_close(torch.cat(steps, 1), whole(torch.float32), whole(torch.float64))


@each_scheme
def test_in_the_cache_nothing_changes(scheme: str, device: str) -> None:
    query, key, value = Case("stream", t=29, s=29, d=12).inputs(device=device)
    cache = SinkKVCache(N, W)
    for n in range(29):
        keys, values = cache.update(key[:, :, n : n + 1], value[:, :, n : n + 1])
        i, j = cache.positions.amax(0, keepdim=True), cache.positions
        inputs = query[:, :, n : n + 1], keys, values, i, j
        plain = PLAIN[scheme](*inputs)
        assert_close(FULL[scheme](*inputs), plain, plain)
        if scheme == "rotary":
            plain = rotary_attention(*inputs, base=100.0)
            assert_close(FULL[scheme](*inputs, base=100.0), plain, plain)


@pytest.mark.parametrize(("t", "s"), [(300, 300), (150, 413), (2, 290)])
@pytest.mark.parametrize(("n_sinks", "window"), [(0, 5), (4, 30), (140, 20), (3, 500)])
def test_tiles_are_the_whole(t: int, s: int, n_sinks: int, window: int, device: str) -> None:
    """A row of positions is no run: there all scores are made, under one mask."""
    query, key, value = Case("long", t=t, s=s, d=4, e=3).inputs(device=device)
    i, j = torch.arange(s - t, s, device=device), torch.arange(s, device=device)
    sizes = {"n_sinks": n_sinks, "window": window}

    def tiled(*inputs: Tensor) -> Tensor:
        return streaming_rotary(*inputs, i=i, j=j, **sizes)

    def whole(*inputs: Tensor) -> Tensor:
        return streaming_rotary(*inputs, i=i.expand(2, -1), j=j.expand(2, -1), **sizes)

    inputs = [x.requires_grad_() for x in (query, key, value)]
    exact = whole(*inputs)
    assert_close(tiled(*inputs), exact, exact)
    upstream = normal("upstream", *exact.shape, device=device)
    found, wanted = (torch.autograd.grad(f(*inputs), inputs, upstream) for f in (tiled, whole))
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, theirs, factor=proof.GRADIENT_FACTOR)


def test_tiles_hold_each_key_once() -> None:
    i = torch.arange(700)
    for rows, columns, mask in streaming_tiles(i, i, 9, 40):
        places = torch.cat([i[part] for part in columns])
        assert len(places.unique()) == len(places) == mask.shape[1]
        assert torch.equal(mask.sum(1), streaming_mask(i[rows], i, 9, 40).sum(1))


def test_time_and_memory_are_linear() -> None:
    """Scores that are made, and the most that tensors hold beside the inputs, for texts of some hundred windows."""
    made, held = [], []
    for t in (8192, 16384):
        i = torch.arange(t)
        made.append(sum(mask.numel() for _, _, mask in streaming_tiles(i, i, 4, 60)))
        inputs = torch.randn(3, 1, 1, t, 8).unbind()
        with Peak(inputs) as seen, torch.no_grad():
            streaming_rotary(*inputs, i=i, j=i, n_sinks=4, window=60)
        held.append(seen.most)
    assert made[1] / made[0] == pytest.approx(2, rel=0.01)
    assert held[1] / held[0] == pytest.approx(2, rel=0.05)
    assert made[1] < 16384 * (4 + 60 + 128)


def test_rotary_scale_is_that_of_d(device: str) -> None:
    """At place 0 no angle turns anything: there the scores are those of lesson 1."""
    query, key, value = Case("t=1", t=1, s=2, d=12).inputs(device=device)
    zero = torch.zeros(2, dtype=torch.long, device=device)
    plain = plain_attention(query, key, value)
    assert_close(streaming_rotary(query, key, value, zero[:1], zero, n_sinks=N, window=W), plain, plain)


@each_scheme
def test_true_distances_are_another_function(scheme: str, device: str) -> None:
    query, key, value = Case("t=s", t=11, s=11, d=12).inputs(device=device)
    i = torch.arange(11, device=device)
    mask = streaming_mask(i, i, N, W)
    if scheme == "rotary":
        turned = (apply_rotary(x, rotary_angles(i, 12)) for x in (query, key))
        true = plain_attention(*turned, value, mask)
    else:
        slopes = alibi_slopes(3, dtype=torch.float64, device=device)[:, None, None]
        bias = -slopes * (i[:, None] - i)
        true = plain_attention(query, key, value, bias.masked_fill(~mask, -torch.inf))
    difference = (FULL[scheme](query, key, value, i, i) - true).abs().amax((0, 1, 3))
    assert difference[: N + W].max() < 1e-14
    assert difference[N + W :].min() > 0.001


@each_scheme
def test_each_text_may_have_its_positions(scheme: str, device: str) -> None:
    """Texts padded on the left: negative places are no keys, and a query there gets 0."""
    query, key, value = Case("t=s", t=11, s=11, d=12).inputs(device=device)
    i = torch.arange(11, device=device) - torch.tensor([[0], [4]], device=device)
    for attend in (FULL[scheme], PLAIN[scheme]):
        output = attend(query, key, value, i, i)
        for row, padding in ((0, 0), (1, 4)):
            alone = [x[row : row + 1, :, padding:] for x in (query, key, value)]
            exact = attend(*alone, i[row, padding:], i[row, padding:])
            assert_close(output[row : row + 1, :, padding:], exact, exact)
        assert (output[1, :, :4] == 0).all()


@each_scheme
def test_order_in_memory_does_not_matter(scheme: str, device: str) -> None:
    query, key, value = Case("chunk", t=5, s=11, d=12).inputs(device=device)
    i, j = torch.arange(6, 11, device=device), torch.arange(11, device=device)
    order = torch.tensor([3, 0, 10, 6, 1, 9, 5, 2, 4, 8, 7], device=device)
    for attend in (FULL[scheme], PLAIN[scheme]):
        exact = attend(query, key, value, i, j)
        assert_close(attend(query, key[:, :, order], value[:, :, order], i, j[order]), exact, exact)


@each_case
@proof.each_dtype
def test_alibi_by_position_is_lesson_6(case: Case, dtype: torch.dtype, device: str) -> None:
    i, j = places(case, device)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return alibi_by_position(query, key, value, i, j)

    def lesson_6(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(case.r, dim=1) for x in (key, value))
        return alibi_attention(query, key, value, offset=max(case.s - case.t, 0))

    assert_agrees(ours, lesson_6, case.inputs(dtype, device))


def test_distances_are_never_rounded(device: str) -> None:
    """In bfloat16 the distances 300 and 301 are one number."""
    query = torch.zeros(1, 8, 1, 2, dtype=torch.bfloat16, device=device)
    key, value = torch.zeros(1, 1, 2, 2).to(query), torch.eye(2)[None, None].to(query)
    i, j = torch.tensor([1001], device=device), torch.tensor([700, 701], device=device)
    weights = alibi_by_position(query, key, value, i, j)[0, 0, 0].double()
    slope = alibi_slopes(8)[0].item()
    assert weights[0].item() == pytest.approx(1 / (1 + math.exp(slope)), abs=2**-9)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_agrees(device: str) -> None:
    query, key, value = Case("t=s", t=11, s=11).inputs(torch.float32, device)
    slopes = alibi_slopes(3, device=device)

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((j < N) | (i - j < W))

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        place = torch.where(j < N, i.clamp(max=N + W - 1), i)
        return score - slopes[h] * (place - j)

    block_mask = create_block_mask(mask_mod, None, None, 11, 11, device=device)
    flex = flex_attention(query, key, value, score_mod=score_mod, block_mask=block_mask)
    assert isinstance(flex, Tensor)
    i = torch.arange(11, device=device)
    exact = FULL["alibi"](query.double(), key.double(), value.double(), i, i)
    assert_close(flex, FULL["alibi"](query, key, value, i, i), exact)
