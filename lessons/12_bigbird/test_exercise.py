"""The checks of the exercise on BigBird. They speak to the student's code through the fixture `student` and
to the reference by import."""

from functools import partial
from itertools import compress

import pytest
import torch

from annotated_attention.bigbird import bigbird_attention, bigbird_cost, bigbird_plan, plan_mask
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

AXES = "batch head query width"
NAMES = ("query", "key", "value")
# Blocks, window, global blocks.
MASKS = {
    "window": (7, 3, 0),
    "wide window": (9, 5, 0),
    "one global block": (7, 1, 1),
    "two global blocks": (9, 3, 2),
    "a window as wide as the text": (3, 7, 1),
}
# The same and random blocks.
PLANS = {
    "random only": (7, 1, 0, 2),
    "window": (7, 5, 0, 1),
    "global": (9, 1, 2, 3),
    "all three": (11, 3, 2, 3),
    "few left": (5, 3, 1, 2),
}
# Tokens, extra tokens, global blocks; blocks of 3.
TEXTS = {
    "whole blocks": (21, 0, 0),
    "partial block": (19, 0, 0),
    "global": (20, 0, 2),
    "extra": (23, 2, 0),
    "all of it": (21, 1, 1),
}


def fixed_mask(n, window, n_global):
    """Who sees whom before anything is drawn."""
    return plan_mask(bigbird_plan(n, n_window=window, n_global=n_global, n_random=0, seed=0))


def draw_plan(draw, n, window, n_global, n_random):
    """A plan, and as the table that task 2 asks for."""
    sizes = {"n_window": window, "n_global": n_global, "n_random": n_random}
    plan = bigbird_plan(n, **sizes, seed=draw.integers(0, 10**6))
    table = torch.full((n, sum(sizes.values())), -1)
    for i in range(n_global, n):
        table[i, : len(plan.row(i))] = torch.tensor(plan.row(i))
    return plan, table


def in_words(numbers):
    return " ".join(map(str, numbers.tolist()))


def draw_inputs(draw, t):
    return draw(2, 3, t, 5, scale=1.5), draw(2, 3, t, 5, scale=1.5), draw(2, 3, t, 2)


def by_mask(inputs, table):
    """Attention by a table that is no plan, in blocks of 3, with a mask of all tokens."""
    t = inputs[0].shape[2]
    blocks = (table[..., None] == torch.arange(len(table))).any(dim=1)
    tokens = blocks.repeat_interleave(3, 0).repeat_interleave(3, 1)
    return scaled_dot_product_attention(*inputs, tokens[:t, :t])


@pytest.mark.task(
    "The part that is not drawn",
    hints=[
        "A window of 3 reaches one block to the left and one to the right. How far does one of 5 reach?",
        "`(block[:, None] - block).abs()` says how far apart two blocks are. To be global works in both "
        "directions: a whole row and a whole column.",
    ],
)
class TestBlockMask:
    @pytest.mark.parametrize(("n", "window", "n_global"), MASKS.values(), ids=MASKS)
    def test_mask(self, student, expect, n, window, n_global):
        def explain(index):
            i, j = index.values()
            if min(i, j) < n_global:
                return f"block {min(i, j)} is global"
            return f"the blocks are {abs(i - j)} apart, and the window reaches {window // 2} to each side"

        mask = student.call("block_mask", n, n_window=window, n_global=n_global)
        what = f"the mask of {n} blocks (window {window}, global {n_global})"
        wanted = fixed_mask(n, window, n_global)
        expect.close(mask, wanted, axes="row column", what=what, explain=explain)

    def test_windows_without_a_middle(self, student, expect):
        for window in (4, 0, -1):
            call = partial(student.call, "block_mask", 7, n_window=window, n_global=1)
            expect.raises("ValueError", call, what=f"a window of {window}")


@pytest.mark.task(
    "A plan, as a table",
    hints=[
        "`block_mask` says what a block sees already. Which cards of its deck are left, and how many of "
        "those does it keep?",
        "Pass over first, count then: `[j for j in deck if not sees[j]][:n_random]`.",
        "Start from `torch.full((n, k), -1)` and write each sorted row into its beginning. Leave out the "
        "first `n_global` rows.",
    ],
)
class TestKeyTable:
    @pytest.mark.points(2)
    @pytest.mark.parametrize(("n", "window", "n_global", "n_random"), PLANS.values(), ids=PLANS)
    def test_table(self, student, draw, expect, n, window, n_global, n_random):
        decks, fixed = draw(n, n).argsort(dim=-1), fixed_mask(n, window, n_global)
        wanted = torch.full((n, n_global + window + n_random), -1)
        for i in range(n_global, n):
            drawn = decks[i][~fixed[i, decks[i]]][:n_random]
            row = torch.cat([fixed[i].nonzero().flatten(), drawn]).sort().values
            wanted[i, : len(row)] = row

        def explain(index):
            i = index["row"]
            if i < n_global:
                return f"block {i} is global, so its row stays empty"
            sees = in_words(fixed[i].nonzero().flatten())
            return f"block {i} sees {sees} already, and its deck is {in_words(decks[i])}"

        found = student.call("key_table", decks, n_window=window, n_global=n_global, n_random=n_random)
        what = f"the table of {n} blocks (window {window}, global {n_global}, random {n_random})"
        expect.close(found, wanted, axes="row place", what=what, explain=explain)


@pytest.mark.task(
    "Fetch what is seen",
    hints=[
        "Bring the text to a whole number of blocks (`torch.nn.functional.pad`), then give the blocks an "
        "axis of their own: `b h j u d`. One index along that axis fetches them all.",
        "`blocks[:, :, table]` is `b h n k u d`. A -1 would fetch the last block: put any number in its "
        "place, and remember where it stood.",
        "Place u of block j is position j · block_size + u. Which of these positions exist?",
    ],
)
class TestGather:
    @pytest.mark.points(2)
    @pytest.mark.parametrize(("t", "block_size"), [(12, 4), (11, 3), (10, 4), (5, 1)], ids=str)
    @pytest.mark.parametrize("gaps", [False, True], ids=["full rows", "rows with gaps"])
    def test_fetched(self, student, draw, expect, t, block_size, gaps):
        n = -(-t // block_size)
        table = draw(n + 2, n).argsort(dim=-1)[:, :3]
        if gaps:
            table = torch.where(draw(*table.shape) > 0.3, -1, table)
        x = draw(2, 3, t, 5)
        places = (table[..., None] * block_size + torch.arange(block_size)).flatten(1)
        seen = (table >= 0).repeat_interleave(block_size, 1) & (places < t)
        wanted = x[:, :, places.clamp(0, t - 1)] * seen[..., None]

        def explain(index):
            j, u = table[index["row"], index["place"] // block_size].item(), index["place"] % block_size
            if j < 0:
                return "there the table says -1"
            there = "exists" if j * block_size + u < t else "is past the end of the text"
            return f"that is place {u} of block {j}, position {j * block_size + u}, which {there}"

        answer = student.call("gather_blocks", x, table, block_size)
        fetched, mask = expect.unpack(answer, "fetched", "seen")
        what = f"of {t} positions in blocks of {block_size}"
        axes = "batch head row place width"
        expect.close(fetched, wanted, axes=axes, what=f"`fetched` {what}", explain=explain)
        expect.close(mask, seen, axes="row place", what=f"`seen` {what}", explain=explain)


@pytest.mark.task(
    "The attention",
    hints=[
        "Three groups of queries: extra tokens, global blocks, all others. The first two see everything, and "
        "are plain attention. In which order do the answers come back?",
        "For the others: queries `b h n u d`, keys and values from `gather_blocks`, `b h n k*u d`. The extra "
        "tokens stand beside the fetched ones, so that one softmax sees them all.",
        "The last block of queries is padded too: cut its answers off. A row that saw nothing is 0 / 0 in "
        "the softmax: give it scores of 0 before, and weights of 0 after.",
    ],
)
class TestAttention:
    def check(self, student, draw, expect, t, n_extra, n_global, *, junk=False):
        plan, table = draw_plan(draw, -(-(t - n_extra) // 3), 3, n_global, 1)
        if junk:
            table[:n_global] = draw.integers(0, len(table), n_global, table.shape[1])
        inputs = draw_inputs(draw, t)

        def explain(index):
            i = (index["query"] - n_extra) // 3
            if index["query"] < n_extra:
                return "this is an extra token"
            row = "it is global" if i < n_global else f"its row of the table is {in_words(table[i])}"
            return f"this is a query of block {i}, and {row}"

        output = student.call("sparse_attention", *inputs, 3, table, n_global=n_global, n_extra=n_extra)
        wanted = bigbird_attention(*inputs, 3, plan, n_extra=n_extra)
        what = f"output of {t} tokens ({n_extra} extra, {n_global} global {'block' if n_global == 1 else 'blocks'})"
        what += ", with anything in the rows of global blocks" if junk else ""
        expect.close(output, wanted, axes=AXES, what=what, explain=explain)

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("t", "n_extra", "n_global"), TEXTS.values(), ids=TEXTS)
    def test_output(self, student, draw, expect, t, n_extra, n_global):
        self.check(student, draw, expect, t, n_extra, n_global)

    def test_rows_of_global_blocks_do_not_count(self, student, draw, expect):
        self.check(student, draw, expect, 20, 0, 2, junk=True)

    def test_queries_that_see_nothing(self, student, draw, expect):
        table, inputs = draw_plan(draw, 7, 3, 0, 1)[1], draw_inputs(draw, 20)
        table[[2, 6]] = -1
        output = student.call("sparse_attention", *inputs, 3, table)
        what = "output, where blocks 2 and 6 see nothing"
        expect.close(output, by_mask(inputs, table), axes=AXES, what=what)

    def test_what_nobody_sees_is_not_touched(self, student, draw, expect):
        table, (query, key, value) = draw_plan(draw, 7, 3, 0, 1)[1], draw_inputs(draw, 20)
        # Block 0 too: to fetch it where there is nothing, and multiply by 0, is to touch it.
        table[(table == 0) | (table == 4)] = -1
        wanted = by_mask((query, key, value), table)
        for block in (slice(0, 3), slice(12, 15)):
            key[:, :, block] = value[:, :, block] = float("nan")
        output = student.call("sparse_attention", query, key, value, 3, table)
        what = "output, where blocks 0 and 4 are in no row and their keys and values are NaN"
        expect.close(output, wanted, axes=AXES, what=what)

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("n_extra", "n_global"), [(0, 0), (2, 1)], ids=["blocks", "all of it"])
    def test_gradients(self, student, draw, expect, n_extra, n_global):
        plan, table = draw_plan(draw, 7, 3, n_global, 1)
        inputs, grad = draw_inputs(draw, 20 + n_extra), draw(2, 3, 20 + n_extra, 2)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        if n_extra:
            wanted = bigbird_attention(*leaves, 3, plan, n_extra=n_extra)
        else:
            table[5] = -1
            wanted = by_mask(leaves, table)
        given = {"n_global": n_global, "n_extra": n_extra}
        ours = student.vjp("sparse_attention", (*inputs, 3, table), grad, **given)
        for name, got, expected in zip(NAMES, ours, torch.autograd.grad(wanted, leaves, grad), strict=False):
            what = f"gradient of {name}" + ("" if n_extra else ", where block 5 sees nothing")
            expect.close(got, expected, axes="batch head position width", what=what, factor=3)


@pytest.mark.task(
    "The bill",
    hints=[
        "How many tokens has each block? Only the last differs: `clamp` what is left of the text at each "
        "block's beginning.",
        "Where the mask is true, block i and block j make sizes[i] · sizes[j] pairs. Summed, that is a "
        "vector times a matrix times a vector, all of whole numbers.",
        "Extra tokens see all t, and all others see them. Who is counted in both?",
    ],
)
class TestScoreEntries:
    @pytest.mark.points(2)
    @pytest.mark.parametrize("n_extra", [0, 3], ids=["no extra", "3 extra"])
    @pytest.mark.parametrize("t", [28, 26, 23])
    def test_pairs(self, student, draw, expect, t, n_extra):
        plan, _ = draw_plan(draw, -(-(t - n_extra) // 4), 3, 1, 1)
        found = student.call("score_entries", plan_mask(plan), t, 4, n_extra=n_extra)
        wanted = bigbird_cost(t, 4, plan, n_extra=n_extra)
        expect.equal(found, wanted, what=f"the number of pairs ({t} tokens, {n_extra} extra, blocks of 4)")

    def test_a_mask_that_is_not_symmetric(self, student, expect):
        mask = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]]).bool()
        found = student.call("score_entries", mask, 5, 2)
        expect.equal(found, 13, what="the number of pairs (5 tokens, blocks of 2, the last sees all)")

    def test_millions(self, student, draw, expect):
        plan, _ = draw_plan(draw, 11, 3, 1, 2)
        found = student.call("score_entries", plan_mask(plan), 10_485_777, 2**20, n_extra=5)
        wanted = bigbird_cost(10_485_777, 2**20, plan, n_extra=5)
        expect.equal(found, wanted, what="the number of pairs (10,485,777 tokens, 5 extra, blocks of 2²⁰)")


def draw_masks(draw, n, share, *, own=True):
    masks = draw(*n) > share
    return masks | torch.eye(n[-1], dtype=torch.bool) if own else masks


def heard(masks):
    """The layers until i knows of j, told as sets."""
    known = [{i} for i in range(masks.shape[-1])]
    apart = torch.eye(len(known)).long() - 1
    for layer, mask in enumerate(masks.tolist(), start=1):
        told = [own.union(*compress(known, row)) for own, row in zip(known, mask, strict=True)]
        for i, own in enumerate(known):
            apart[i, list(told[i] - own)] = layer
        known = told
    return apart


@pytest.mark.task(
    "Who has heard of whom",
    hints=[
        "Keep a table `known`, `n n`, true where i knows of j. What is it before the first layer?",
        "i knows of j after a layer if it sees there some k that knew of j before: that is a product of two "
        "tables. Which of them stands on the left?",
        "`(mask.float() @ known.float()) > 0`, together with what was known. Each entry that becomes true "
        "gets the number of its layer.",
    ],
)
class TestLayersApart:
    def check(self, student, expect, masks, what):
        wanted = heard(masks)

        def explain(index):
            i, j = index.values()
            layer = wanted[i, j].item()
            if layer <= 0:
                return "a block knows itself from the start" if i == j else "the news comes too late for it"
            told = masks[layer - 1, i] & (wanted[:, j] >= 0) & (wanted[:, j] < layer)
            return (
                f"in layer {layer}, block {i} sees block {told.nonzero()[0].item()}, which knew of {j} before"
            )

        found = student.call("layers_apart", masks)
        expect.close(found, wanted, axes="row column", what=what, explain=explain)

    def test_one_plan(self, student, draw, expect):
        mask = plan_mask(draw_plan(draw, 24, 3, 0, 1)[0])
        self.check(
            student, expect, mask.expand(6, -1, -1), "the layers in a plan of 24 blocks, 1 of them random"
        )

    @pytest.mark.points(2)
    def test_a_plan_for_each_layer(self, student, draw, expect):
        masks = draw_masks(draw, (4, 11, 11), 1.4)
        self.check(student, expect, masks, "the layers in 4 plans, one a layer")

    def test_layers_that_do_not_see_themselves(self, student, draw, expect):
        masks = draw_masks(draw, (4, 11, 11), 1.4, own=False)
        self.check(student, expect, masks, "the layers in 4 plans in which a block may not see itself")

    def test_a_long_way(self, student, expect):
        masks = fixed_mask(48, 3, 0).expand(47, -1, -1)
        self.check(student, expect, masks, "the layers in a window of 3, 48 blocks and 47 layers")
