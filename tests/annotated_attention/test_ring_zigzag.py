"""The proof of `ring_zigzag`: each test is a claim that its page makes."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.annotated_attention.test_flash_details import Products
from tests.annotated_attention.test_ring_details import operations
from tests.proof import Case, normal
from tests.ranks import Ranks
from torch import Tensor

from annotated_attention.flash import flash_attention
from annotated_attention.ring_zigzag import (
    check_share,
    keys_seen,
    seen_by,
    zigzag_positions,
    zigzag_shard,
    zigzag_unshard,
)

several = pytest.mark.parametrize("n", [1, 2, 3, 4, 8])


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as pool:
        yield pool


def straight(t: int, rank: int, n: int) -> Tensor:
    return torch.arange(t) + rank * t


def stripes(t: int, rank: int, n: int) -> Tensor:
    return torch.arange(t) * n + rank


def cut(how: Callable[[int, int, int], Tensor], t: int, n: int) -> Tensor:
    """The positions of all ranks, `n t`. Each token has one place."""
    positions = torch.stack([how(t, rank, n) for rank in range(n)])
    assert positions.flatten().sort().values.equal(torch.arange(n * t))
    return positions


def busiest(seen: Tensor) -> float:
    return (seen.max() / seen.double().mean()).item()


@given(n=st.integers(1, 7), half=st.integers(0, 5), dim=st.integers(0, 2))
def test_there_and_back(n: int, half: int, dim: int) -> None:
    shape = [2, 3, 5]
    shape[dim] = 2 * half * n
    text = normal("text", *shape)
    shards = [zigzag_shard(text, rank, n, dim) for rank in range(n)]
    assert torch.equal(zigzag_unshard(shards, dim), text)
    for rank, x in enumerate(shards):
        assert torch.equal(x, text.index_select(dim, zigzag_positions(2 * half, rank, n)))


def test_wrong_cuts_are_refused() -> None:
    text = normal("text", 2, 3, 20, 4)
    with pytest.raises(ValueError, match=r"x has 20 tokens in dim 2: a multiple of 2 n_ranks = 8 is wanted"):
        zigzag_shard(text, 0, 4)
    for rank in (-1, 5):
        with pytest.raises(ValueError, match=f"rank is {rank} of n_ranks 5: 0 to 4 is wanted"):
            zigzag_shard(text, rank, 5)


@pytest.mark.parametrize(("t", "s"), [(5, 5), (6, 4), (4, 6)])
def test_what_cannot_be_shared_is_refused(t: int, s: int) -> None:
    came = f"with is_causal, query has {t} tokens and key {s}: an even number, the same for both, is wanted"
    with pytest.raises(ValueError, match=came):
        check_share(t, s, True)
    check_share(t, s, False)
    check_share(t + t % 2, t + t % 2, True)


@several
def test_a_straight_cut_waits(n: int) -> None:
    t = 240
    assert busiest(keys_seen(cut(straight, t, n))) == pytest.approx(2 - 1 / n, abs=1 / t)
    # Step by step: half a square in the first, and then a whole one for somebody, where half of one is the mean.
    positions = cut(straight, t, n)
    slowest = 0
    for step in range(n):
        sources = positions.roll(step, 0)
        pairs = (positions[:, :, None] >= sources[:, None, :]).sum((1, 2))
        slowest += int(pairs.max())
    assert slowest / (n * t * (n * t + 1) / 2 / n) == pytest.approx(2 - 1 / n, abs=1 / t)


@several
def test_folding_is_exact(n: int) -> None:
    t = 12
    assert keys_seen(cut(zigzag_positions, t, n)).tolist() == [t * (n * t + 1) // 2] * n


@several
def test_every_step_is_half_a_square(n: int) -> None:
    t = 12
    positions = cut(zigzag_positions, t, n)
    for rank in range(n):
        for source in range(n):
            visible = positions[rank][:, None] >= positions[source]
            rows, columns = seen_by(rank, source, t, True)
            inside = torch.zeros_like(visible)
            inside[rows, columns] = True
            if source == rank:
                assert torch.equal(visible, torch.ones(t, t, dtype=torch.bool).tril())
                assert inside.all()
            else:
                # All that is visible, nothing else, and half of all.
                assert torch.equal(visible, inside)
                assert inside.sum() == t * t / 2
            assert seen_by(rank, source, t, False) == (slice(0, t), slice(None))


@several
def test_own_keys_need_no_other_mask(n: int) -> None:
    query, key, value = Case("share", t=8, s=8).inputs()
    for rank in range(n):
        i = zigzag_positions(8, rank, n)
        by_positions = (query @ key.mT * 11**-0.5).masked_fill(i[:, None] < i, float("-inf"))
        exact = by_positions.softmax(-1) @ value
        assert torch.allclose(flash_attention(query, key, value, is_causal=True)[0], exact, atol=1e-12)


@several
def test_squares_and_triangles(n: int) -> None:
    for rank in range(n):
        mine = rank, 2 * n - 1 - rank
        squares = sum(p > other for p in mine for other in range(2 * n))
        assert (squares, len(mine)) == (2 * n - 1, 2)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_nothing_masked_is_computed(ranks: Ranks, n: int, is_causal: bool) -> None:
    """The products of each step, forward and back, of two texts in six heads of width 5 and 7."""
    t, pairs = 6, 2 * 6
    for found in ranks.run(n, operations, is_causal):
        assert len(found) == 2 * n
        for step, (count, masks) in enumerate(found):
            products = 2 * (5 + 7) if step < n else 2 * (3 * 5 + 2 * 7)
            is_own = step % n == 0
            # A tile is larger than these shares, so the own keys are one tile, which the diagonal crosses.
            share = t * t if is_own or not is_causal else t * t // 2
            assert count == pairs * share * products
            assert masks == (is_causal and is_own)


@pytest.mark.parametrize("n", [2, 4])
def test_stripes_cross_more_tiles(n: int) -> None:
    t, u = 64, 8
    crossed = {}
    for how in (zigzag_positions, stripes):
        positions, crossed[how] = cut(how, t, n), 0
        for source in range(n):
            visible = positions[0][:, None] >= positions[source]
            tiles = visible.unflatten(0, (-1, u)).unflatten(2, (-1, u)).float().mean((1, 3))
            crossed[how] += int(((tiles > 0) & (tiles < 1)).sum())
    assert crossed[stripes] == n * crossed[zigzag_positions]
    assert busiest(keys_seen(cut(stripes, t, n))) < 1.02


def test_pytorch_cuts_so_too() -> None:
    module = pytest.importorskip("torch.distributed.tensor.experimental._attention")
    balancer = getattr(module, "_HeadTailLoadBalancer", None)
    if balancer is None:
        pytest.skip("this PyTorch keeps its balancer elsewhere")
    indices = balancer(24, 3, "cpu")._generate_indices()
    ours = torch.cat([zigzag_positions(8, rank, 3) for rank in range(3)])
    assert torch.equal(indices.flatten(), ours)


def test_padding_at_the_end_is_seen_by_nobody() -> None:
    case = Case("text", t=11, s=11)
    query, key, value = case.inputs()
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 1), value=3.0) for x in (query, key, value)]
    with Products():
        short, long = (flash_attention(*x, is_causal=True)[0] for x in ((query, key, value), padded))
    assert torch.allclose(long[:, :, :11], short, atol=1e-12)
