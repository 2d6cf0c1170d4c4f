"""The proof of `ring_costs`: each test is a claim that its page makes."""

from collections.abc import Iterator

import pytest
import torch
from tests import proof
from tests.annotated_attention.test_flash_details import plain_lse
from tests.annotated_attention.test_ring_details import decode, handed
from tests.proof import Case, assert_close, plain_attention
from tests.ranks import MEMBERS, Ranks

from annotated_attention.ring_costs import least_tokens, ring_bytes, ways

CACHE = Case("cache", r=2, t=2, s=29)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as pool:
        yield pool


@pytest.mark.parametrize("n", list(MEMBERS))
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@proof.each_dtype
def test_bytes_are_foretold(ranks: Ranks, n: int, is_causal: bool, dtype: torch.dtype) -> None:
    """Of two texts, six heads on three, six tokens a rank, keys of width 5 and values of width 7."""
    foretold = ring_bytes(2, 3, 6, 5, 7, n, size=dtype.itemsize)
    found = ranks.run(n, handed, is_causal, dtype)
    assert [(forward, backward) for _, forward, _, backward in found] == [foretold] * n
    assert foretold[0] == (n - 1) * 2 * 3 * 6 * (5 + 7) * dtype.itemsize


def test_lengths_that_hide() -> None:
    # Both sides of the inequality, at the length that the function returns.
    b, h, g, d, e, size, flops, bandwidth = 2, 32, 8, 128, 96, 2, 989e12, 50e9
    for is_causal in (False, True):
        forward, backward = least_tokens(flops, bandwidth, h, g, d, e, size=size, is_causal=is_causal)
        for t, products, width in ((forward, d + e, size), (backward, 3 * d + 2 * e, size + 4)):
            computing = 2 * b * h * t * t * products / (2 if is_causal else 1) / flops
            sending = b * g * t * (d + e) * width / bandwidth
            assert computing == pytest.approx(sending)
    # With as many heads of keys and two bytes, the paper's ratio.
    assert least_tokens(312e12, 300e9, 8, 8, 64, 64)[0] == pytest.approx(312e12 / 300e9)
    forward, backward = least_tokens(989e12, 450e9, 32, 8, 128, 128, is_causal=True)
    assert backward / forward == pytest.approx(1.2)
    assert forward == pytest.approx(1100, abs=10)
    assert least_tokens(989e12, 50e9, 32, 8, 128, 128, is_causal=True)[0] == pytest.approx(9900, abs=20)
    assert least_tokens(989e12, 50e9, 64, 8, 128, 128)[0] == least_tokens(989e12, 50e9, 8, 8, 128, 128)[0] / 8


@pytest.mark.parametrize("n", [2, 3, 6])
def test_ways_count_what_moves(n: int) -> None:
    """Number by number: who has it, and who needs it."""
    b, h, g, t, d, e, size = 2, 12, 6, 4, 5, 7, 2
    found, held = dict.fromkeys(("gather", "all to all"), 0), 0
    for token in range(n * t):
        owner = token // t
        for head in range(g):
            # Keys and values: to all, or to the rank that gets this head.
            found["gather"] += (n - 1) * (d + e)
            found["all to all"] += (d + e) * (head // (g // n) != owner)
            held += (d + e) * (head // (g // n) == 0)
        for head in range(h):
            # Queries on their way there, outputs on their way back.
            found["all to all"] += (d + e) * (head // (h // n) != owner)
    foretold = ways(b, h, g, t, d, e, n, size=size)
    for way, numbers in found.items():
        assert foretold[way][0] * n == b * size * numbers
    assert foretold["all to all"][1] == b * size * held
    assert foretold["gather"][1] == b * size * n * t * g * (d + e)
    assert foretold["ring"] == (foretold["gather"][0], 2 * b * size * t * g * (d + e))
    assert foretold["ring"][0] == ring_bytes(b, g, t, d, e, n, size=size)[0]


def test_ring_or_all_to_all() -> None:
    def ratio(h: int, g: int, n: int) -> float:
        found = ways(1, h, g, 1024, 128, 128, n)
        return found["ring"][0] / found["all to all"][0]

    for h, g, n in ((32, 32, 4), (64, 8, 8), (64, 8, 4), (32, 8, 2)):
        assert ratio(h, g, n) == pytest.approx(n * g / (h + g))
    assert ratio(32, 32, 4) == 2
    assert ratio(64, 8, 8) < 1


@proof.each_dtype
@pytest.mark.parametrize("n", list(MEMBERS))
def test_decoding_agrees(ranks: Ranks, n: int, dtype: torch.dtype) -> None:
    query, key, value = CACHE.inputs(dtype)
    results = ranks.run(n, decode, (query, key, value))
    assert all(map(torch.equal, results[0] * (n - 1), [x for result in results[1:] for x in result]))
    output, lse = results[0]
    exact = plain_attention(*(x.double() for x in (query, key, value)))
    assert output.dtype == dtype
    assert_close(output, plain_attention(query, key, value), exact)
    wide = torch.promote_types(dtype, torch.float32)
    peer, exact = (plain_lse(query.to(x), key.to(x)) for x in (wide, torch.float64))
    assert_close(lse, peer, exact)


def test_an_answer_is_smaller() -> None:
    answer, keys = 32 * (128 + 1) * 4, 8 * 2**18 * (128 + 128) * 2
    assert answer == pytest.approx(16 * 2**10, rel=0.01)
    assert keys == 2**30
