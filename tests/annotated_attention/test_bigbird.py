"""The proof of `bigbird`: each test is a claim that its page makes."""

from functools import partial

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.proof import Case, assert_agrees, plain_attention
from torch import Tensor

from annotated_attention.bigbird import BigBirdPlan, bigbird_attention, bigbird_plan, plan_mask


def token_mask(plan: BigBirdPlan, block_size: int, t: int, n_extra: int = 0) -> Tensor:
    """Which token sees which, one entry at a time from the block mask."""
    blocks = plan_mask(plan)

    def sees(i: int, j: int) -> bool:
        if min(i, j) < n_extra:
            return True
        return bool(blocks[(i - n_extra) // block_size, (j - n_extra) // block_size])

    return torch.tensor([[sees(i, j) for j in range(t)] for i in range(t)]).reshape(t, t)


@given(
    t=st.integers(1, 23),
    block_size=st.integers(1, 5),
    extra=st.integers(0, 5),
    widths=st.tuples(st.sampled_from([1, 3, 5]), st.integers(0, 3), st.integers(0, 4)),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_masked_formula(t, block_size, extra, widths, seed, device):
    n_extra = min(extra, t - 1)
    n_window, n_global, n_random = widths
    n_blocks = -(-(t - n_extra) // block_size)
    plan = bigbird_plan(n_blocks, n_window=n_window, n_global=n_global, n_random=n_random, seed=seed)
    mask = token_mask(plan, block_size, t, n_extra).to(device)
    ours = partial(bigbird_attention, block_size=block_size, plan=plan, n_extra=n_extra)
    inputs = Case("blocks", r=2, t=t, s=t).inputs(torch.float32, device)
    assert_agrees(ours, partial(plain_attention, mask=mask), inputs)
