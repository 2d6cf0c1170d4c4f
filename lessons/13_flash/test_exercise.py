"""The checks of the exercise on flash attention: the reference has all scores in one table, in float64."""

import math
from functools import partial

import pytest
import torch

from annotated_attention.scaled_dot_product import scaled_dot_product_attention

LOG3, LOG6, NOTHING = math.log(3), math.log(6), -math.inf
# The parts of an answer, and their axes.
STATE = {"m": "text query", "l": "text query", "o": "text query width"}
SUMMED = {"output": "text query width", "lse": "text query"}
RESULT = {"output": "batch head query width", "lse": "batch head query"}
BACK = {"dq": "batch head query width", "dk": "batch head key width", "dv": "batch head key width"}
SHAPES = {  # t, s, block_q, block_k
    "by hand": (5, 7, 2, 3),
    "wide tiles": (11, 13, 2, 5),
    "high tiles": (13, 11, 5, 2),
    "more queries": (17, 5, 4, 8),
}
MORE_SHAPES = SHAPES | {"one key less": (5, 6, 2, 3), "as many": (5, 5, 2, 3), "more keys": (5, 11, 4, 2)}
f64 = partial(torch.tensor, dtype=torch.float64)
CUT = {"is_causal": True, "block_q": 3, "block_k": 4}
AFTER = "queries 0 to 5, after key and value 8 became NaN; tiles of 3 by 4"
each_kind = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])


def each(names, cases):
    """A check that is made with each of these cases."""
    return pytest.mark.parametrize(names.split(), cases.values(), ids=cases)


def from_scores(scores, value):
    """Output and lse of attention with these scores; 0 and -inf where a query sees nothing."""
    return scores.softmax(dim=-1).nan_to_num(0.0) @ value, scores.logsumexp(dim=-1)


def whole(query, key, value, is_causal=False):
    """Output and lse of attention with all scores in one table."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if is_causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), NOTHING)
    return from_scores(scores, value)


def tiled(t, s, block_q, block_k):
    return f"{t} queries, {s} keys, tiles of {block_q} by {block_k}"


def inputs(draw, t, s, dtype=torch.float64, scale=1.5):
    shapes = (2, 3, t, 5), (2, 3, s, 5), (2, 3, s, 7)
    return [draw(*shape, dtype=dtype, scale=scale) for shape in shapes]


def agree(expect, answer, wanted, axes, told, *, only="", first=None, largest=10.0, **bound):
    """Each part of the answer is what it should be, or `only` some, or the `first` few queries."""
    answer = expect.unpack(answer, *axes)
    for (name, words), *both in zip(axes.items(), answer, wanted, strict=True):
        got, expected = (x[:, :, :first] if first and getattr(x, "ndim", 0) > 2 else x for x in both)
        if name in only.split() or not only:
            expect.close(got, expected, axes=words, what=f"{name} ({told})", largest=largest, **bound)
    return answer


@pytest.mark.task(
    "One more block",
    hints=[
        "The new m first: the larger one of the old m and the block's largest. Every exponent is then taken "
        "relative to the new m, and none can be above 0.",
        "What was summed relative to the old m shrinks by the factor exp(m - m_new). It is the same for l and "
        "for o, but `o` has one more axis.",
        "-inf - (-inf) is NaN. Where the new m is -inf take away 0 instead (`masked_fill`): exp(-inf) is 0, "
        "and that is just what is to be added.",
    ],
)
class TestBlocks:
    def demand(self, student, expect, blocks, values, largest=10.0):
        """Feed the blocks, and compare what is remembered after each with all scores so far."""
        zeros = torch.zeros(*blocks[0].shape[:2], 7, dtype=torch.float64)
        state = zeros[..., 0] + NOTHING, zeros[..., 0], zeros
        for n, (scores, value) in enumerate(zip(blocks, values, strict=True)):
            answer = student.call("add_block", *state, scores, value)
            seen, v = torch.cat(blocks[: n + 1], dim=-1), torch.cat(values[: n + 1], dim=-2)
            m = seen.amax(dim=-1)
            shares = torch.exp(seen - m.masked_fill(m == NOTHING, 0.0)[..., None])
            state = m, shares.sum(dim=-1), shares @ v
            agree(expect, answer, state, STATE, f"after block {n + 1} of {len(blocks)}", largest=largest)
        answer = student.call("finish", *state)
        agree(expect, answer, from_scores(seen, v), SUMMED, "after the last block", largest=largest)

    def test_by_hand(self, student, expect):
        state, block = (f64([[LOG3]]), f64([[4 / 3]]), f64([[[28 / 3]]])), (f64([[[LOG6]]]), f64([[[2]]]))
        answer = student.call("add_block", *state, *block)
        agree(expect, answer, (f64([[LOG6]]), f64([[5 / 3]]), f64([[[20 / 3]]])), STATE, "the example")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("sizes", [(5,), (2, 3, 1)], ids=["one block", "three blocks"])
    def test_blocks(self, student, expect, draw, sizes):
        blocks = [draw(2, 3, a, scale=2) for a in sizes]
        self.demand(student, expect, blocks, [draw(2, a, 7) for a in sizes])

    @pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
    def test_large_scores(self, student, expect, draw, order):
        blocks = [draw(2, 3, 5) + far for far in (-1e4, 0.0, 1e4)[::order]]
        self.demand(student, expect, blocks, [draw(2, 5, 7) for _ in blocks], largest=1e4)

    @pytest.mark.points(2)
    def test_hidden_keys(self, student, expect, draw):
        blocks = [draw(2, 3, 5) for _ in range(4)]
        # Query 0 sees nothing at first, query 1 nothing later on, query 2 of text 0 never anything.
        blocks[0][:, 0] = blocks[2][:, 1] = blocks[3][:, 1] = NOTHING
        for block in blocks:
            block[0, 2] = block[1, 2, 3] = NOTHING
        self.demand(student, expect, blocks, [draw(2, 5, 7) for _ in blocks])


@pytest.mark.task(
    "Two results make one",
    hints=[
        "The denominators of the two softmaxes are exp(lse_a) and exp(lse_b), and that of all keys is their "
        "sum. What share of it has each side?",
        "Take the larger lse away from both before `exp`, and add it again after `log`. Where both are -inf, "
        "take away 0.",
        "Forward it may be right to put zeros over the NaN of 0/0. Backward, 0 times NaN is NaN. Let none "
        "arise: fill a sum that is 0 with 1 *before* you divide by it and take its log.",
    ],
)
class TestMerge:
    def parts(self, draw, far=0.0):
        """Two results, and that of all keys. Queries 0 and 1 see one side only, 2 of head 1 sees none."""
        a, b = draw(2, 3, 5, 3, scale=2), draw(2, 3, 5, 4, scale=2) + far
        a[:, :, 0] = b[:, :, 1] = a[:, 1, 2] = b[:, 1, 2] = NOTHING
        values = draw(2, 3, 3, 7), draw(2, 3, 4, 7)
        both = from_scores(torch.cat([a, b], dim=-1), torch.cat(values, dim=-2))
        return (*from_scores(a, values[0]), *from_scores(b, values[1])), both

    def demand(self, student, expect, parts, both, told, queries=slice(None), **bound):
        answer = student.call("merge_attention", *(x[:, :, queries] for x in parts))
        agree(expect, answer, [x[:, :, queries] for x in both], RESULT, told, **bound)

    def test_by_hand(self, student, expect):
        a, b, both = ((f64([[[[x]]]]), f64([[[math.log(n)]]])) for x, n in ((4, 10), (9, 15), (7, 25)))
        self.demand(student, expect, (*a, *b), both, "the example")

    @pytest.mark.points(2)
    def test_merge(self, student, expect, draw):
        parts, both = self.parts(draw)
        self.demand(student, expect, parts, both, "of two results", slice(3, None))
        self.demand(student, expect, parts, both, "where one side saw nothing", slice(2))

    @pytest.mark.parametrize("far", [-1e4, 1e4])
    def test_far_apart(self, student, expect, draw, far):
        parts, both = self.parts(draw, far)
        self.demand(student, expect, parts, both, f"b near {far:.0f}", slice(3, None), largest=1e4)

    def test_nothing_on_both_sides(self, student, expect, draw):
        self.demand(student, expect, *self.parts(draw), "query 2 of head 1 saw nothing on both sides")

    @pytest.mark.points(2)
    def test_gradients(self, student, expect, draw):
        (output_a, lse_a, output_b, lse_b), (output, lse) = parts, _ = self.parts(draw)
        grads = draw(2, 3, 5, 7), draw(2, 3, 5)
        ours = student.vjp("merge_attention", parts, grads)
        wanted = []
        for out, log in ((output_a, lse_a), (output_b, lse_b)):
            share = torch.exp(log - lse).nan_to_num(0.0)
            wanted += [share[..., None] * grads[0]]
            wanted += [share * (((out - output) * grads[0]).sum(dim=-1) + grads[1])]
        axes = {f"{name}_{side}": words for side in "ab" for name, words in RESULT.items()}
        agree(expect, ours, wanted, axes, "its gradient", factor=3)


@pytest.mark.task(
    "Which tiles are needed",
    hints=[
        "A tile has a first and a last query, and a first and a last key. Which two of these four decide "
        "whether anything is seen in it? And which two whether all is?",
        "Something is seen if the last query sees the first key. All is seen if the first query sees the last "
        "key. The last of a tile at the end is not where a full tile would end.",
    ],
)
class TestPlan:
    def test_full(self, student, expect):
        plan = student.call("tile_plan", 5, 7, 2, 3)
        expect.close(plan, torch.full((3, 3), 2), axes="row column", what="the plan of all")

    @pytest.mark.points(3)
    @each("t s block_q block_k", MORE_SHAPES)
    def test_causal(self, student, expect, t, s, block_q, block_k):
        plan = student.call("tile_plan", t, s, block_q, block_k, is_causal=True)
        rows = torch.ones(t, s, dtype=torch.bool).tril().split(block_q)
        tiles = [[(x.any(), x.all()) for x in row.split(block_k, dim=1)] for row in rows]
        wanted = torch.tensor([[int(some) + int(every) for some, every in row] for row in tiles])
        what = f"the plan ({tiled(t, s, block_q, block_k)})"
        expect.close(plan, wanted, axes="row column", what=what)


@pytest.mark.task(
    "Flash attention",
    hints=[
        "Two loops. The outer one is over tiles of queries; each begins with -inf, 0 and 0, and ends with "
        "`finish`. The inner one is over tiles of keys, and calls `add_block`.",
        "`query.split(block_q, dim=2)` cuts the queries; the last piece may be short. The outputs are joined "
        "again with `torch.cat`.",
        "A tile of kind 1 needs to know where it stands: its queries begin at row · block_q and its keys at "
        "column · block_k. Where j > i the score is -inf.",
    ],
)
class TestForward:
    @pytest.mark.points(2)
    @each_kind
    @each("t s block_q block_k", SHAPES)
    def test_results(self, student, expect, draw, t, s, block_q, block_k, is_causal):
        given = inputs(draw, t, s)
        answer = student.call(
            "flash_attention", *given, is_causal=is_causal, block_q=block_q, block_k=block_k
        )
        agree(expect, answer, whole(*given, is_causal), RESULT, tiled(t, s, block_q, block_k))

    def test_large_scores(self, student, expect, draw):
        given = inputs(draw, 5, 11, scale=100)
        answer = student.call("flash_attention", *given, block_q=2, block_k=3)
        agree(expect, answer, whole(*given), RESULT, "scores up to 10,000", largest=1e4)

    @pytest.mark.points(3)
    def test_what_is_left_out_is_not_read(self, student, expect, draw):
        given = inputs(draw, 11, 11)
        wanted = whole(*given, is_causal=True)
        given[1][:, :, 8] = given[2][:, :, 8] = torch.nan
        answer = student.call("flash_attention", *given, **CUT)
        agree(expect, answer, wanted, RESULT, AFTER, first=6)

    @pytest.mark.points(2)
    def test_half_precision(self, student, expect, draw):
        # Many small tiles: what is rounded after each of them adds up.
        given = inputs(draw, 5, 97, torch.float16)
        answer = student.call("flash_attention", *given, block_q=3, block_k=8)
        dtypes = tuple(str(getattr(x, "dtype", None)) for x in expect.unpack(answer, *RESULT))
        expect.equal(dtypes, ("float16", "float32"), what="the dtypes of output and lse for float16")
        wanted, told = whole(*(x.double() for x in given)), "float16, 97 keys, tiles of 3 by 8"
        agree(expect, answer, wanted, RESULT, told, only="lse")
        peer = scaled_dot_product_attention(*given)
        agree(expect, answer, wanted, RESULT, told, only="output", peer=peer)


@pytest.mark.task(
    "The way back",
    hints=[
        "Begin with D, which needs no tiles. Then one loop over all tiles that the plan does not leave out, "
        "and three results that begin as zeros.",
        "exp(score - lse) is a weight, and final: it needs neither a maximum nor a sum. In a tile of kind 1 "
        "the weights of hidden keys are 0.",
        "A tile adds Pᵀ grad_output to dv, dS key · scale to dq and dSᵀ query · scale to dk, each in its own "
        "rows: `dk[:, :, j] += ...`.",
    ],
)
class TestBackward:
    def wanted(self, given, grad, is_causal=False):
        leaves = [x.clone().requires_grad_() for x in given]
        return torch.autograd.grad(whole(*leaves, is_causal)[0], leaves, grad)

    @pytest.mark.parametrize("name", ["dv", "dk", "dq"])
    def test_by_hand(self, student, expect, name):
        query, key, value = f64([[2, 0, 0, 0]]), f64([[0, 0, 0, 0], [LOG3, 0, 0, 0]]), f64([[4], [8]])
        given, grad = [x[None, None] for x in (query, key, value)], f64([[[[1]]]])
        answer = student.call("flash_backward", *given, *whole(*given), grad)
        agree(expect, answer, self.wanted(given, grad), BACK, "the example", only=name, factor=3)

    @pytest.mark.points(2)
    @each_kind
    @each("t s block_q block_k", SHAPES)
    def test_gradients(self, student, expect, draw, t, s, block_q, block_k, is_causal):
        given, grad = inputs(draw, t, s), draw(2, 3, t, 7)
        options = {"is_causal": is_causal, "block_q": block_q, "block_k": block_k}
        answer = student.call("flash_backward", *given, *whole(*given, is_causal), grad, **options)
        wanted = self.wanted(given, grad, is_causal)
        agree(expect, answer, wanted, BACK, tiled(t, s, block_q, block_k), factor=3)

    @pytest.mark.points(2)
    def test_pieces_of_a_text(self, student, expect, draw):
        given, grad = inputs(draw, 5, 11), draw(2, 3, 5, 7)
        result, (dq, *rest), parts = whole(*given), self.wanted(given, grad), []
        for first, last in ((0, 5), (6, 10)):
            piece = slice(first, last + 1)
            some = given[0], given[1][:, :, piece], given[2][:, :, piece]
            answer = student.call("flash_backward", *some, *result, grad, block_q=2, block_k=4)
            told = f"of keys {first} to {last} out of 11, with output and lse of all"
            wanted = dq, *(x[:, :, piece] for x in rest)
            parts.append(agree(expect, answer, wanted, BACK, told, only="dk dv", factor=3)[0])
        what = "dq, added up over two pieces of the keys"
        expect.close(sum(parts), dq, axes=BACK["dq"], what=what, factor=3, largest=10)

    @pytest.mark.points(2)
    def test_what_is_left_out_is_not_read(self, student, expect, draw):
        given, grad = inputs(draw, 11, 11), draw(2, 3, 11, 7)
        result, wanted = whole(*given, True), self.wanted(given, grad, True)
        given[1][:, :, 8] = given[2][:, :, 8] = torch.nan
        answer = student.call("flash_backward", *given, *result, grad, **CUT)
        agree(expect, answer, wanted, BACK, AFTER, only="dq", first=6, factor=3)


@pytest.mark.task(
    "Without each of them",
    hints=[
        "Can a document be taken away from the result of all? Try 1e16 + 1 - 1e16. What was never added need "
        "not be taken away.",
        "The others of document k are those before it and those after it. Both grow by one document at a "
        "time: one list from the left, one from the right.",
        "Both lists begin with nothing, which is output 0 and lse -inf. Your merge of task 2 takes it.",
    ],
)
class TestLeaveOneOut:
    def demand(self, student, expect, scores, values, told, **bound):
        parts = zip(*(from_scores(*pair) for pair in zip(scores, values, strict=True)), strict=True)
        answer = student.call("leave_one_out", *(torch.stack(x) for x in parts))
        wanted = []
        for k in range(len(scores)):
            # Hidden: its keys are there, but nobody sees them.
            rest = [x + NOTHING if n == k else x for n, x in enumerate(scores)]
            wanted.append(from_scores(torch.cat(rest, dim=-1), torch.cat(values, dim=-2)))
        axes = {f"{name}s": f"document {words}" for name, words in RESULT.items()}
        agree(expect, answer, [torch.stack(x) for x in zip(*wanted, strict=True)], axes, told, **bound)

    def documents(self, draw, *lengths):
        return [[draw(2, 3, 5, n, scale=2) for n in lengths], [draw(2, 3, n, 7) for n in lengths]]

    def test_by_hand(self, student, expect):
        scores = [f64([[[[math.log(n)]]]]) for n in (1, 2, 3)]
        self.demand(student, expect, scores, [f64([[[[n]]]]) for n in (6, 3, 2)], "the example")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("lengths", [(3, 2), (2, 3, 1, 4, 2)], ids=["2 documents", "5 documents"])
    def test_documents(self, student, expect, draw, lengths):
        self.demand(student, expect, *self.documents(draw, *lengths), f"{len(lengths)} documents")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("far", [30.0, 1e4])
    def test_one_that_has_it_all(self, student, expect, draw, far):
        scores, values = self.documents(draw, 2, 3, 1, 4)
        scores[2] += far
        self.demand(student, expect, scores, values, f"document 2 by {far:.0f} above all", largest=far)

    @pytest.mark.points(2)
    def test_nothing_to_see(self, student, expect, draw):
        scores, values = self.documents(draw, 2, 3, 1)
        scores[0][:, :, 1] = scores[1][:, :, :2] = NOTHING
        self.demand(student, expect, scores, values, "some see nothing in documents 0 and 1")
        self.demand(student, expect, scores[2:], values[2:], "one document alone")
