"""The proof of `ring`: each test is a claim that its page makes."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests import proof
from tests.annotated_attention.test_flash_details import (
    is_causal_or_not,
    of_one_vector,
    one_vector,
    plain_lse,
)
from tests.annotated_attention.test_grouped_query import inputs_of
from tests.annotated_attention.test_ring_details import (
    asks_twice,
    by,
    handed,
    kinds_of_error,
    peaks,
    rooms,
    shares_as_they_come,
    under_autocast,
    without_a_group,
    without_lse,
)
from tests.proof import Case, assert_agrees, assert_close, causal, plain_attention
from tests.ranks import Failure, Ranks
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from annotated_attention.flash import flash_attention
from annotated_attention.ring import held_bytes

# A text of 24 for up to four ranks; of 24 keys for 12 queries.
TEXT = Case("text", r=2, t=24, s=24, d=8, e=8)
CASES = [
    replace(TEXT, name="e!=d", e=13),
    replace(TEXT, name="g=h", r=1),
    replace(TEXT, name="strided", strided=True),
    replace(TEXT, name="empty-batch", b=0),
    replace(TEXT, name="large-scores", largest_score=1e4),
]
OTHER = [
    replace(TEXT, name="odd-shares", t=20, s=20),
    replace(TEXT, name="t<s", t=12),
    replace(TEXT, name="t>s", s=12),
    replace(TEXT, name="one-query-a-rank", t=4),
]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as pool:
        yield pool


def assert_is_attention(
    ranks: Ranks, n: int, case: Case, dtype: torch.dtype, is_causal: bool, device: str
) -> None:
    inputs = inputs_of(case, dtype, device)
    mask = causal(case.t, case.s, device) if is_causal else None

    def peer(*inputs: Tensor) -> Tensor:
        return scaled_dot_product_attention(*inputs, is_causal=is_causal, enable_gqa=True)

    def oracle(*inputs: Tensor) -> Tensor:
        return plain_attention(*inputs, mask)

    ours = without_lse(by(ranks, n, is_causal=is_causal))
    functions = [of_one_vector(x, case, inputs) for x in (ours, peer, oracle)]
    assert_agrees(functions[0], functions[1], one_vector(inputs), oracle=functions[2], names=["the inputs"])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@proof.each_dtype
@is_causal_or_not
def test_agrees_with_pytorch(ranks: Ranks, n: int, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    assert_is_attention(ranks, n, TEXT, dtype, is_causal, device)


@pytest.mark.parametrize("case", CASES, ids=str)
@is_causal_or_not
def test_agrees_in_every_case(ranks: Ranks, case: Case, is_causal: bool, device: str) -> None:
    assert_is_attention(ranks, 4, case, torch.float32, is_causal, device)


@pytest.mark.parametrize("case", OTHER, ids=str)
def test_other_shares_without_causality(ranks: Ranks, case: Case, device: str) -> None:
    assert_is_attention(ranks, 4, case, torch.float32, False, device)


@proof.each_dtype
@is_causal_or_not
def test_the_logarithm_is_a_result(ranks: Ranks, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    mask = causal(24, 24, device) if is_causal else None
    query, key, value = TEXT.inputs(dtype, device)

    def ours(query: Tensor, key: Tensor) -> Tensor:
        return by(ranks, 4, is_causal=is_causal)(query, key, value)[1]

    def formula(query: Tensor, key: Tensor) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        return plain_lse(query.to(wide), key.to(wide), mask)

    assert_agrees(ours, formula, (query, key), names=("query", "key"))


@is_causal_or_not
def test_gradcheck(ranks: Ranks, is_causal: bool) -> None:
    case = Case("small", b=1, g=1, r=2, t=4, s=4, d=2, e=1)
    proof.assert_gradcheck(by(ranks, 2, is_causal=is_causal), case.inputs())


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sums_come_home_in_as_many_hops(ranks: Ranks, n: int) -> None:
    for forward, _, backward, _ in ranks.run(n, handed, True, torch.float32):
        assert forward == n - 1
        # Those of the keys again, and those of the sums.
        assert backward == 2 * (n - 1)


@is_causal_or_not
@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale_is_that_of_flash(ranks: Ranks, scale: float, is_causal: bool, device: str) -> None:
    inputs = TEXT.inputs(device=device)
    exact = flash_attention(*inputs, is_causal=is_causal, scale=scale)
    for pair in zip(by(ranks, 2, is_causal=is_causal, scale=scale)(*inputs), exact, strict=True):
        assert_close(*pair, pair[1])


@is_causal_or_not
def test_one_rank_is_flash_attention(ranks: Ranks, is_causal: bool, device: str) -> None:
    inputs = TEXT.inputs(torch.float32, device)
    found = proof.with_gradients(by(ranks, 1, is_causal=is_causal), inputs)
    exact = proof.with_gradients(lambda *x: flash_attention(*x, is_causal=is_causal), inputs)
    for pairs in zip(found, exact, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(*pairs, strict=True))


def test_no_group_is_the_default_group(ranks: Ranks) -> None:
    assert ranks.run(4, without_a_group) == [True] * 4


def test_autocast_does_not_reach_the_tiles(ranks: Ranks) -> None:
    assert ranks.run(2, under_autocast) == [True] * 2


def test_every_rank_sums_in_its_own_order(ranks: Ranks, device: str) -> None:
    """The same queries on all ranks, and all the same text: their answers differ in their last bits."""
    case = replace(TEXT, t=12, s=96)
    query, key, value = case.inputs(torch.float32, device)
    queries = torch.cat([query] * 4, dim=2)
    answers = by(ranks, 4)(queries, key, value)[0].chunk(4, dim=2)
    exact = plain_attention(*(x.double() for x in (query, key, value)))
    for answer in answers:
        assert_close(answer, plain_attention(query, key, value), exact)
    assert not all(torch.equal(answer, answers[0]) for answer in answers)


def test_the_same_bits_every_time(ranks: Ranks, device: str) -> None:
    inputs = TEXT.inputs(torch.float32, device)
    runs = [proof.with_gradients(by(ranks, 4, is_causal=True), inputs) for _ in range(3)]
    for outputs, gradients in runs[1:]:
        assert all(map(torch.equal, outputs + gradients, runs[0][0] + runs[0][1]))


def test_another_cut_gives_another_answer(ranks: Ranks, device: str) -> None:
    inputs = TEXT.inputs(device=device)
    exact = flash_attention(*inputs, is_causal=True)[0]
    assert_close(by(ranks, 4, is_causal=True)(*inputs)[0], exact, exact)
    straight = torch.cat(ranks.run(4, shares_as_they_come, tuple(x.cpu() for x in inputs)), dim=2)
    assert straight.isfinite().all()
    assert (straight - exact.cpu()).abs().max() > 0.1


def test_not_twice_differentiable(ranks: Ranks) -> None:
    wanted = "create_graph=True asks for a gradient of the gradient, which ring_attention lacks"
    assert ranks.run(2, asks_twice) == [wanted, wanted]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (
            "length",
            "query is torch.float32 (2, 6, 6, 5) on cpu on rank 0, torch.float32 (2, 6, 8, 5) on cpu on rank 2: the",
        ),
        (
            "odd",
            "rank 2: with is_causal, query has 5 tokens and key 5: an even number, the same for both, is wanted",
        ),
        ("keys", "rank 2: with is_causal, query has 6 tokens and key 4: an even number"),
        ("heads", "rank 2: key has 3 heads, query has 4: query heads must be a multiple of key heads"),
        ("dtype", "query is torch.float32 (2, 6, 6, 5) on cpu on rank 0, torch.float64 (2, 6, 6, 5) on cpu"),
        ("rank", "rank 2: query is torch.float32 of shape (6, 6, 5): b h t d"),
        ("scale", "scale is None on rank 0, 0.5 on rank 2: the same on all ranks is wanted"),
        ("is_causal", "is_causal is True on rank 0, False on rank 2: the same on all ranks is wanted"),
        (
            "device",
            "query is torch.float32 (2, 6, 6, 5) on cpu on rank 0, torch.float32 (2, 6, 6, 5) on meta on rank 2",
        ),
        ("none", "rank 2: 'NoneType' object has no attribute"),
        ("grad", "requires_grad is False on rank 0, True on rank 2: the same on all ranks is wanted"),
    ],
)
def test_wrong_input_is_refused_by_all(ranks: Ranks, which: str, message: str) -> None:
    outcomes = ranks.outcomes(3, kinds_of_error, which)
    assert all(isinstance(x, Failure) and x.kind == "ValueError" for x in outcomes), outcomes
    assert {x.message for x in outcomes} == {outcomes[0].message}
    assert outcomes[0].message.startswith(message)


def test_memory_does_not_grow_with_the_ring(ranks: Ranks) -> None:
    found = {n: ranks.run(n, peaks, 64) for n in (2, 3, 4)}
    assert len({peak for each in found.values() for peak in each}) == 1
    # With what a rank has, it does, in proportion.
    short, long = (ranks.run(2, peaks, t)[0] for t in (512, 1024))
    for x, y in zip(short, long, strict=True):
        assert x < y <= 2 * x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rooms_are_foretold(ranks: Ranks, dtype: torch.dtype) -> None:
    _, keys, sums = held_bytes(2, 6, 3, 6, 5, 7, size=dtype.itemsize)
    for n in (2, 3):
        for found in ranks.run(n, rooms, dtype):
            # A parcel has two rooms. The third of the sums is the one at home.
            assert found == {"keys": keys, "gradients": 2 * sums // 3}


def test_a_million_tokens() -> None:
    t = 2**20
    held, rooms, back = held_bytes(1, 32, 8, t, 128, 128)
    assert held == 20 * 2**30
    assert 32 * held == 640 * 2**30
    assert (rooms, back) == (8 * 2**30, 24 * 2**30)
    # Two products, half of the pairs.
    operations = 32 * 32 * 2 * t * t * (128 + 128) / 2
    assert operations / 989e12 / 60 == pytest.approx(5, abs=0.2)
