"""More of the proof of `bigbird`: the cases that every mechanism passes, and the plans that are something else."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.annotated_attention.test_bigbird import RAGGED, by_plan, masked
from tests.proof import Case, assert_agrees, changed, plain_attention

from annotated_attention.bigbird import bigbird_plan, plan_mask


@pytest.mark.parametrize(
    "case",
    [
        RAGGED,
        replace(RAGGED, r=1, name="all-heads"),
        replace(RAGGED, g=1, r=6, name="one-head"),
        replace(RAGGED, strided=True, name="strided"),
        replace(RAGGED, b=0, name="empty-batch"),
    ],
    ids=str,
)
@proof.each_dtype
def test_every_case_in_every_dtype(case: Case, dtype: torch.dtype, device: str) -> None:
    inputs = case.inputs(dtype, device)
    assert_agrees(by_plan(), masked(16, device=device), inputs)


@proof.each_dtype
def test_large_scores_do_not_overflow(dtype: torch.dtype, device: str) -> None:
    # Whole numbers and a power of two: scores of up to 1e4 are exact, in any order and any dtype.
    inputs = [(4 * x).round().to(dtype) for x in RAGGED.inputs(device=device)]
    peer = partial(masked(16, device=device), scale=64.0)
    assert (64 * inputs[0].double() @ inputs[1].double().repeat_interleave(2, 1).mT).abs().max() > 1e4
    assert_agrees(by_plan(scale=64.0), peer, inputs)


@pytest.mark.parametrize("sizes", [(11, 0, 0), (1, 6, 0), (1, 0, 6), (3, 1, 4)], ids=str)
def test_a_plan_with_everything_is_dense_attention(sizes: tuple[int, int, int], device: str) -> None:
    n_window, n_global, n_random = sizes
    plan = bigbird_plan(6, n_window=n_window, n_global=n_global, n_random=n_random, seed=0)
    assert plan_mask(plan).all()
    ours = by_plan(plan, 3, 0, scale=0.7)
    peer = partial(F.scaled_dot_product_attention, enable_gqa=True, scale=0.7)
    assert_agrees(
        ours, peer, RAGGED.inputs(torch.float32, device), oracle=partial(plain_attention, scale=0.7)
    )


@pytest.mark.parametrize("n_window", [1, 3, 5])
def test_a_window_alone_is_a_band_of_blocks(n_window: int, device: str) -> None:
    plan = bigbird_plan(6, n_window=n_window, n_global=0, n_random=0, seed=0)
    block = torch.arange(16, device=device) // 3
    band = (block[:, None] - block).abs() < (n_window + 1) / 2
    assert_agrees(by_plan(plan, 3, 0), partial(plain_attention, mask=band), RAGGED.inputs(device=device))


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_neighbours_move_nothing(dim: int, device: str) -> None:
    inputs = query, key, value = RAGGED.inputs(torch.float32, device)
    after = by_plan()(query, changed(key, dim, 1, 2), changed(value, dim, 1, 2))
    moved = (by_plan()(*inputs) != after).transpose(0, dim).flatten(1).any(1)
    # Key head 1 is that of query heads 2 and 3.
    assert moved.nonzero()[:, 0].tolist() == ([1] if dim == 0 else [2, 3])
