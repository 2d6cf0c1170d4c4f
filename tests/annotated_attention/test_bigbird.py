"""The proof of `bigbird`: each test is a claim that its page makes."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_agrees, assert_close, changed, normal, plain_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention.bigbird import (
    BigBirdPlan,
    bigbird_attention,
    bigbird_cost,
    bigbird_mask_mod,
    bigbird_plan,
    plan_mask,
)

plans = st.fixed_dictionaries(
    {
        "n_blocks": st.integers(1, 13),
        "n_window": st.sampled_from([1, 3, 5]),
        "n_global": st.integers(0, 3),
        "n_random": st.integers(0, 4),
        "seed": st.integers(0, 99),
    }
)
texts = st.fixed_dictionaries(
    {"plan": plans, "block_size": st.integers(1, 5), "short": st.integers(0, 4), "n_extra": st.integers(0, 3)}
)
# Five blocks of three tokens, of which the last has two, behind two extra tokens.
PLAN = bigbird_plan(5, n_window=1, n_global=1, n_random=1, seed=0)
RAGGED = Case("ragged", r=2, t=16, s=16)


def token_mask(plan: BigBirdPlan, block_size: int, t: int, n_extra: int = 0, device: str = "cpu") -> Tensor:
    """Which token sees which, one entry at a time, from the three lists of the plan."""

    def sees(i: int, j: int) -> bool:
        row, column = ((x - n_extra) // block_size for x in (i, j))
        kinds = plan.window_blocks, plan.global_blocks, plan.random_blocks
        return min(i, j) < n_extra or any(column in blocks[row] for blocks in kinds)

    return torch.tensor([[sees(i, j) for j in range(t)] for i in range(t)], device=device)


def by_plan(plan: BigBirdPlan = PLAN, block_size: int = 3, n_extra: int = 2, **options):
    return partial(bigbird_attention, block_size=block_size, plan=plan, n_extra=n_extra, **options)


def masked(t: int, plan: BigBirdPlan = PLAN, block_size: int = 3, n_extra: int = 2, device: str = "cpu"):
    return partial(plain_attention, mask=token_mask(plan, block_size, t, n_extra, device))


def built(text: dict) -> tuple[int, BigBirdPlan, int, int]:
    """The length of a text whose last block may be short, and plan, block size and extra tokens for it."""
    plan, block_size, n_extra = bigbird_plan(**text["plan"]), text["block_size"], text["n_extra"]
    return n_extra + plan.n_blocks * block_size - text["short"] % block_size, plan, block_size, n_extra


def test_a_window_needs_63_layers() -> None:
    sees = plan_mask(bigbird_plan(4096 // 64, n_window=3, n_global=0, n_random=0, seed=0)).double()
    heard = sees[-1]
    for _ in range(61):
        heard = ((heard @ sees) > 0).double()
    assert heard[0] == 0
    assert (heard @ sees)[0] > 0


@given(text=texts)
def test_agrees_with_the_masked_formula(text: dict, device: str) -> None:
    t, *sizes = built(text)
    # Products of numbers that bfloat16 holds are exact in float64, so that only the softmax can differ: among
    # many short texts, one would else break the bound by bad luck.
    inputs = [x.double() for x in Case("plan", r=2, t=t, s=t).inputs(torch.bfloat16, device)]
    assert_agrees(by_plan(*sizes), masked(t, *sizes, device=device), inputs)


def test_gradients_are_summed_wide(device: str) -> None:
    plan = bigbird_plan(300, n_window=1, n_global=1, n_random=0, seed=0)
    inputs = Case("many strips", b=1, g=1, t=600, s=600).inputs(torch.bfloat16, device)
    block = torch.arange(600, device=device) // 2
    mask = (block[:, None] == block) | (block == 0) | (block[:, None] == 0)
    assert_agrees(by_plan(plan, 2, 0), partial(plain_attention, mask=mask), inputs)


@pytest.mark.parametrize("n_extra", [0, 1])
def test_gradcheck(n_extra: int) -> None:
    plan = bigbird_plan(4, n_window=1, n_global=1, n_random=1, seed=0)
    t = n_extra + 7
    inputs = Case("small", b=1, g=1, r=2, t=t, s=t, d=2, e=3).inputs()
    proof.assert_gradcheck(by_plan(plan, 2, n_extra), inputs)


def test_unseen_blocks_move_nothing(device: str) -> None:
    inputs = query, key, value = RAGGED.inputs(torch.float32, device)
    before, mask = by_plan()(*inputs), token_mask(PLAN, 3, 16, 2, device)
    for j in range(16):
        for other in ((changed(key, 2, j, j + 1), value), (key, changed(value, 2, j, j + 1))):
            moved = (by_plan()(query, *other) != before).any(-1)
            assert (moved == mask[:, j]).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_block_counted_c_times(count: int, device: str) -> None:
    again = replace(PLAN, random_blocks=((), *(((0,) * (count - 1),) * 4)))
    assert again.row(2) == (0,) * count + (2,)
    bias = torch.zeros(16, 16, dtype=torch.float64, device=device)
    bias.masked_fill_(~token_mask(again, 3, 16, 2, device), -math.inf)
    # The global row sees each block once; extra tokens are in no block.
    bias[5:, 2:5] += math.log(count)
    inputs = RAGGED.inputs(device=device)
    exact = plain_attention(*inputs, bias)
    assert_close(by_plan(again)(*inputs), exact, exact)


def test_block_0_takes_half_in_eval(device: str) -> None:
    # First and last block global, a window of three, three random blocks: 16 blocks of 2 tokens.
    drawn = bigbird_plan(16, n_window=3, n_global=1, n_random=4, seed=0)
    trained = replace(drawn, random_blocks=tuple((*row[:3], 15) for row in drawn.random_blocks))
    assert set(trained.random_blocks[5][:3]).isdisjoint({0, 4, 5, 6, 15})
    evaluated = replace(drawn, random_blocks=((0, 0, 0, 15),) * 16)
    query, key = torch.zeros(2, 1, 1, 32, 1, device=device)
    value = torch.eye(16, device=device).repeat_interleave(2, 0)[None, None]
    for plan, share in ((trained, 1 / 8), (evaluated, 1 / 2)):
        weight_of_block = by_plan(plan, 2, 0)(query, key, value)
        assert weight_of_block[0, 0, 10, 0].item() == pytest.approx(share)


def test_a_plan_made_by_hand(device: str) -> None:
    # The layout of Google's code: the first and the last block global.
    drawn = bigbird_plan(6, n_window=3, n_global=1, n_random=0, seed=0)
    everything = tuple(range(6))
    plan = replace(
        drawn,
        n_global=2,
        window_blocks=((), *(tuple(j for j in row if j != 5) for row in drawn.window_blocks[1:5]), ()),
        global_blocks=(everything, *((0, 5),) * 4, everything),
    )
    drawing = str(plan).replace(" ", "").splitlines()
    assert drawing == ["gggggg", "gww··g", "gwww·g", "g·wwwg", "g··wwg", "gggggg"]
    assert plan_mask(plan).tolist() == [[letter != "·" for letter in row] for row in drawing]
    sizes = plan, 3, 0
    assert_agrees(by_plan(*sizes), masked(16, *sizes, device=device), RAGGED.inputs(device=device))


@given(sizes=plans)
def test_no_block_is_seen_twice(sizes: dict) -> None:
    plan = bigbird_plan(**sizes)
    n, first = plan.n_blocks, min(plan.n_global, plan.n_blocks)
    for i in range(n):
        window, everywhere, drawn = (
            kind[i] for kind in (plan.window_blocks, plan.global_blocks, plan.random_blocks)
        )
        assert len({*window, *everywhere, *drawn}) == len(window) + len(everywhere) + len(drawn)
        if i < first:
            assert everywhere == plan.row(i) == tuple(range(n))
            continue
        assert everywhere == tuple(range(first))
        reach = plan.n_window // 2
        assert window == tuple(j for j in range(first, n) if abs(i - j) <= reach)
        assert i in window
        assert len(drawn) == min(plan.n_random, n - first - len(window))
    rows = [[j in plan.row(i) for j in range(n)] for i in range(n)]
    assert plan_mask(plan).tolist() == rows


def test_plans_never_change() -> None:
    # Python's documentation promises the stream of `random()` from an integer seed for ever.
    draw = partial(bigbird_plan, 9, n_window=3, n_global=1, n_random=2)
    assert draw(seed=0) == draw(seed=0)
    assert len({draw(seed=seed) for seed in range(50)}) == 50
    assert repr(draw(seed=3)) == "BigBirdPlan(n_blocks=9, n_window=3, n_global=1, n_random=2, seed=3)"
    assert str(draw(seed=3)).replace(" ", "").split("\n") == [
        *["ggggggggg", "gww·r·r··", "gwww·r·r·", "grwww··r·", "gr·www··r"],
        *["grr·www··", "g·r··wwwr", "g·r··rwww", "gr··r··ww"],
    ]


def test_lots_are_fair() -> None:
    # Row 2 of 7 blocks has four candidates: 6 pairs of them.
    pairs = Counter(
        bigbird_plan(7, n_window=1, n_global=2, n_random=2, seed=seed).random_blocks[2]
        for seed in range(6000)
    )
    assert sorted(pairs) == [(3, 4), (3, 5), (3, 6), (4, 5), (4, 6), (5, 6)]
    # Chi-square with five degrees of freedom: above 20.5 in one of a thousand fair lotteries.
    assert sum((count - 1000) ** 2 / 1000 for count in pairs.values()) < 20.5


def test_wrong_plans_are_refused() -> None:
    right = {"n_blocks": 4, "n_window": 3, "n_global": 1, "n_random": 1, "seed": 0}
    for name, size in [("n_blocks", 0), ("n_window", 2), ("n_window", -1), ("n_global", -1)]:
        with pytest.raises(ValueError, match=f"{name} is {size}"):
            bigbird_plan(**{**right, name: size})
    for name in ("n_random", "seed"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            bigbird_plan(**{**right, name: -1})
    plan = bigbird_plan(**right)
    for rows in (((),) * 3, ((), (4,), (), ()), ((), (), (-1,), ())):
        with pytest.raises(
            ValueError, match=f"random_blocks has {len(rows)} rows of .*: 4, of blocks below 4"
        ):
            replace(plan, random_blocks=rows)


def test_wrong_input_is_refused() -> None:
    query, key, value = RAGGED.inputs()
    attention = proof.bare(bigbird_attention)
    for block_size, n_extra, message in [
        (3, 5, "plan has 5 blocks, t is 16, block_size is 3, n_extra is 5: 4 blocks"),
        (2, 2, "plan has 5 blocks, t is 16, block_size is 2, n_extra is 2: 7 blocks"),
        (4, 16, "plan has 5 blocks, t is 16, block_size is 4, n_extra is 16: 0 blocks"),
        (0, 2, "block_size is 0, n_extra is 2"),
        (3, -1, "block_size is 3, n_extra is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention(query, key, value, block_size, PLAN, n_extra=n_extra)
    with pytest.raises(ValueError, match="key has 15 positions, query 16"):
        attention(query, key[:, :, 1:], value[:, :, 1:], 3, PLAN, n_extra=2)
    with pytest.raises(ValueError, match="key has 2 heads, query has 5"):
        attention(query[:, :5], key[:, :2], value[:, :2], 3, PLAN, n_extra=2)
    with pytest.raises(ValueError, match="value"):
        attention(query, key, value.float(), 3, PLAN, n_extra=2)


def paper_plan(n_blocks: int) -> BigBirdPlan:
    return bigbird_plan(n_blocks, n_window=3, n_global=2, n_random=3, seed=0)


@given(text=texts)
def test_scores_are_counted(text: dict) -> None:
    t, plan, block_size, n_extra = built(text)
    case = Case("counted", b=2, g=1, r=3, t=t, s=t, d=5, e=7)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        by_plan(plan, block_size, n_extra)(*case.inputs(torch.float32))
    count = bigbird_cost(t, block_size, plan, n_extra=n_extra)
    assert counter.get_total_flops() == 2 * (5 + 7) * 2 * 3 * count
    assert count == token_mask(plan, block_size, t, n_extra).sum()


@given(sizes=plans, block_size=st.integers(1, 5))
def test_cost_is_linear_in_length(sizes: dict, block_size: int) -> None:
    plan = bigbird_plan(**sizes)
    t = plan.n_blocks * block_size
    widths = 2 * plan.n_global + plan.n_window + plan.n_random
    assert bigbird_cost(t, block_size, plan) <= block_size * t * widths


def test_share_of_all_scores() -> None:
    shares = [bigbird_cost(t, 64, paper_plan(t // 64)) / t**2 for t in (4096, 32768)]
    assert [f"{share:.1%}" for share in shares] == ["15.2%", "1.9%"]


class Allocated(TorchDispatchMode):
    """The elements of the largest tensor that was made, and of all that were made together."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                elements = x.untyped_storage().nbytes() // x.element_size()
                self.largest = max(self.largest, elements)
                self.total += elements
        return result


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_memory_is_linear_in_length(part: str, device: str) -> None:
    def allocated(n: int) -> Allocated:
        t = n * 4
        inputs = [normal(name, 1, 1, t, 2, dtype=torch.float32, device=device) for name in "qkv"]
        inputs = [x.requires_grad_(part == "backward") for x in inputs]
        with Allocated() as seen:
            output = by_plan(paper_plan(n), 4, 0)(*inputs)
            if part == "backward":
                output.sum().backward()
        # No tensor is larger than what a global row has: a few numbers for each key.
        assert seen.largest <= 8 * t
        return seen

    short, long = allocated(64), allocated(256)
    assert long.total <= 4.5 * short.total


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_flex_attention_agrees(dtype: torch.dtype, device: str) -> None:
    # No global block: were the extra tokens taken for block 0, it would show.
    plan = bigbird_plan(5, n_window=1, n_global=0, n_random=1, seed=0)
    query, key, value = replace(RAGGED, r=1).inputs(dtype, device)
    mask_mod = proof.bare(bigbird_mask_mod(plan, 3, n_extra=2, device=device))
    block_mask = create_block_mask(mask_mod, None, None, 16, 16, device=device)
    flex = flex_attention(query, key, value, block_mask=block_mask)
    assert isinstance(flex, Tensor)
    exact = masked(16, plan, device=device)(query.double(), key.double(), value.double())
    assert_close(flex, by_plan(plan)(query, key, value), exact)


def test_block_mask_is_the_plan(device: str) -> None:
    plan = paper_plan(11)
    mask_mod = proof.bare(bigbird_mask_mod(plan, 64, device=device))
    block_mask = create_block_mask(mask_mod, None, None, 704, 704, device=device, BLOCK_SIZE=64)
    assert torch.equal(block_mask.to_dense()[0, 0].bool().cpu(), plan_mask(plan))
    # All blocks are full: the kernel never asks `mask_mod` about a single token.
    assert block_mask.kv_num_blocks.sum() == 0
    assert block_mask.full_kv_num_blocks.sum() == plan_mask(plan).sum()
