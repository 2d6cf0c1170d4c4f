"""The proof of `bigbird_graph`: each test is a claim that its page makes."""

import math
from collections import deque
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.proof import assert_close, normal

from annotated_attention.bigbird import BigBirdPlan, bigbird_attention, bigbird_plan, plan_mask
from annotated_attention.bigbird_graph import clustering, path_lengths, random_walk, spectral_gap

sizes = st.fixed_dictionaries(
    {
        "n_blocks": st.integers(1, 19),
        "n_window": st.sampled_from([1, 3, 5]),
        "n_global": st.integers(0, 2),
        "n_random": st.integers(0, 3),
        "seed": st.integers(0, 99),
    }
)


def draw(n: int, n_window: int = 3, n_global: int = 0, n_random: int = 0) -> BigBirdPlan:
    return bigbird_plan(n, n_window=n_window, n_global=n_global, n_random=n_random, seed=0)


def to_the_start(n: int, first: int = 16) -> BigBirdPlan:
    """A window of three, and three random blocks of the first 16 in each row."""
    plan, sample = draw(n), Random(0).sample
    rows = [[j for j in range(first) if j not in plan.row(i)] for i in range(n)]
    return replace(plan, n_random=3, random_blocks=tuple(tuple(sorted(sample(row, 3))) for row in rows))


@given(sizes=sizes)
def test_path_lengths_are_those_of_a_queue(sizes: dict) -> None:
    plan = bigbird_plan(**sizes)
    n = plan.n_blocks
    for i in range(n):
        known, queue = {i: 0.0}, deque([i])
        while queue:
            block = queue.popleft()
            for j in plan.row(block):
                if j not in known:
                    known[j] = known[block] + 1
                    queue.append(j)
        assert path_lengths(plan)[i].tolist() == [known.get(j, math.inf) for j in range(n)]


@pytest.mark.parametrize("widths", [(3, 0, 0), (3, 0, 1), (1, 0, 2), (1, 1, 1)], ids=str)
def test_gradients_reach_as_far_as_paths(widths: tuple[int, int, int], device: str) -> None:
    plan = draw(13, *widths)
    lengths = path_lengths(plan)
    x = normal("x", 1, 1, 26, 3, device=device).requires_grad_()
    y, deepest = x, int(lengths[lengths.isfinite()].max())
    for layer in range(1, min(deepest, 6) + 1):
        y = bigbird_attention(y, y, y, 2, plan)
        reached = []
        for i in range(13):
            upstream = torch.zeros_like(y)
            upstream[:, :, 2 * i : 2 * i + 2] = 1 + normal("upstream", 1, 1, 2, 3, device=device).abs()
            (gradient,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
            reached.append((gradient.reshape(13, 6) != 0).any(1).tolist())
        assert reached == (lengths <= layer).tolist()


@given(n=st.integers(1, 40), n_window=st.sampled_from([3, 5, 7]))
def test_window_needs_n_layers(n: int, n_window: int) -> None:
    assert path_lengths(draw(n, n_window)).max() == math.ceil((n - 1) / (n_window // 2))


@given(sizes=sizes)
def test_no_plan_beats_the_logarithm(sizes: dict) -> None:
    plan = bigbird_plan(**{**sizes, "n_global": 0})
    lengths, width = path_lengths(plan), plan.n_window + plan.n_random
    for layer in range(4):
        assert ((lengths <= layer).sum(1) <= width**layer).all()
    if lengths.isfinite().all():
        assert width ** lengths.max().item() >= plan.n_blocks


TABLE = {
    (3, 0, 0): ([63, 255], ["0.0008", "0.00005"]),
    (3, 0, 1): ([8, 11, 13], ["0.21", "0.15"]),
    (3, 0, 3): ([5, 6, 7], ["0.44", "0.37"]),
    (3, 1, 0): ([2, 2, 2], ["0.25", "0.25"]),
    (3, 2, 3): ([2, 2, 2], ["0.57", "0.52"]),
}


@pytest.mark.parametrize("widths", TABLE, ids=str)
def test_table_of_path_lengths(widths: tuple[int, int, int]) -> None:
    longest, gaps = TABLE[widths]
    # 1,023 for the window at 1,024 blocks is `test_window_needs_n_layers`; 1,023 products would take too long.
    for n, expected in zip([64, 256, 1024], longest, strict=False):
        assert path_lengths(draw(n, *widths)).max() == expected
    for n, gap in zip([64, 256], gaps, strict=True):
        digits = len(gap) - 2
        assert f"{spectral_gap(draw(n, *widths)):.{digits}f}" == gap


def test_some_blocks_are_never_drawn() -> None:
    plan = draw(512, n_window=1, n_random=3)
    unseen = plan_mask(plan).sum(0) == 1
    assert 0.04 < unseen.double().mean() < 0.06
    assert abs((1 - 3 / 511) ** 511 / math.exp(-3) - 1) < 0.01
    assert path_lengths(plan)[0, unseen].isinf().all()
    assert path_lengths(draw(512, n_random=3)).isfinite().all()


def test_small_world() -> None:
    for widths, mean, share in [((7, 0, 0), 28.9, 0.61), ((5, 0, 2), 3.6, 0.14), ((1, 0, 6), 3.2, 0.04)]:
        plan = draw(256, *widths)
        lengths = path_lengths(plan)
        apart = lengths[lengths.isfinite() & (lengths > 0)]
        assert round(apart.mean().item(), 1) == mean
        assert round(clustering(plan), 2) == share


@given(sizes=sizes)
def test_a_hub_needs_two_layers(sizes: dict) -> None:
    plan = bigbird_plan(**{**sizes, "n_global": 1})
    assert path_lengths(plan).max() <= 2


@pytest.mark.parametrize("n_global", [1, 2])
def test_all_ways_lead_through_the_hubs(n_global: int) -> None:
    plan = draw(40, n_global=n_global)
    sees = plan_mask(plan).double()
    ways = sees @ sees
    block = torch.arange(40)
    far = ((block[:, None] - block).abs() > 2) & (block >= n_global) & (block[:, None] >= n_global)
    assert (ways[far] == n_global).all()
    # Without them it is a window again.
    alone = replace(plan, global_blocks=((),) * 40)
    assert path_lengths(alone)[n_global, 39] == 39 - n_global


def test_full_attention_finds_the_furthest(device: str) -> None:
    x = F.normalize(normal("points", 1, 1, 50, 7, device=device), dim=-1)
    furthest = torch.cdist(x[0, 0], x[0, 0]).argmax(1)
    assert len(furthest.unique()) > 10
    found = F.scaled_dot_product_attention(-x, x, x, scale=1e6)
    assert_close(found[0, 0], x[0, 0, furthest], x[0, 0, furthest])
    # A plan finds the furthest of those that it sees, which is another for most of the vectors.
    plan = draw(25, n_global=1, n_random=1)
    seen = bigbird_attention(-x, x, x, 2, plan, scale=1e6)
    assert ((seen - found).abs().amax(-1) > 0.01).double().mean() > 0.5


def test_arcs_to_the_start_bring_nothing_back() -> None:
    lengths = path_lengths(to_the_start(64))
    assert lengths[:, 0].max() == 3
    assert lengths[0, -1] == 49
    assert path_lengths(draw(64, n_random=3))[0, -1] < 6


def test_a_gap_may_be_forgetting() -> None:
    plan = to_the_start(64)
    assert round(spectral_gap(plan), 2) == 0.42
    mixture = torch.linalg.matrix_power(random_walk(plan), 1000)
    assert (mixture - mixture[0]).abs().max() < 1e-9
    assert mixture[0, 16:].sum() < 0.01
    everywhere = torch.linalg.matrix_power(random_walk(draw(64, n_random=3)), 1000)
    assert everywhere[0, 16:].sum() > 0.6


@given(sizes=sizes, layers=st.integers(1, 5))
def test_equal_scores_are_a_random_walk(sizes: dict, layers: int) -> None:
    plan = bigbird_plan(**sizes)
    n = plan.n_blocks
    silent = torch.zeros(1, 1, 2 * n, 1, dtype=torch.float64)
    value = torch.eye(n, dtype=torch.float64).repeat_interleave(2, 0)[None, None]
    for _ in range(layers):
        value = bigbird_attention(silent, silent, value, 2, plan)
    power = torch.linalg.matrix_power(random_walk(plan), layers)
    assert_close(value[0, 0, ::2], power, power)


@pytest.mark.parametrize("widths", [(3, 0, 0), (3, 0, 3), (3, 1, 0), (3, 2, 3)], ids=str)
def test_differences_shrink_by_the_second_eigenvalue(widths: tuple[int, int, int]) -> None:
    plan = draw(16, *widths)
    walk = random_walk(plan)
    mixture = torch.linalg.matrix_power(walk, 10_000)
    assert (mixture - mixture[0]).abs().max() < 1e-9
    value, shrunk = normal("start", 16, 1), []
    for _ in range(1000):
        difference = walk @ (value - mixture @ value)
        shrunk.append(difference.norm())
        value = difference / difference.norm()
    # A mean over many layers: with complex eigenvalues the difference turns as it shrinks.
    rate = torch.stack(shrunk[500:]).log().mean().exp().item()
    assert rate == pytest.approx(1 - spectral_gap(plan), rel=0.01)


@pytest.mark.parametrize("n", [32, 64])
def test_gap_of_a_window_closes(n: int) -> None:
    assert spectral_gap(draw(n)) / spectral_gap(draw(4 * n)) == pytest.approx(16, rel=0.05)
    for widths in [(3, 0, 3), (3, 1, 0)]:
        assert spectral_gap(draw(4 * n, *widths)) > 0.2


@given(sizes=sizes)
def test_clustering_counts_triangles(sizes: dict) -> None:
    plan = bigbird_plan(**{**sizes, "n_blocks": sizes["n_blocks"] + 2, "n_window": 3})
    sees = plan_mask(plan) | plan_mask(plan).mT
    shares = []
    for i in range(plan.n_blocks):
        pairs = list(combinations([j for j in range(plan.n_blocks) if j != i and sees[i, j]], 2))
        if pairs:
            shares.append(sum(bool(sees[pair]) for pair in pairs) / len(pairs))
    assert clustering(plan) == pytest.approx(sum(shares) / len(shares))
