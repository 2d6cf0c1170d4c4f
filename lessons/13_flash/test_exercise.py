"""The checks of the exercise on flash attention. They speak to the student's code through the fixture
`student`; the reference is attention with all scores at hand, in float64."""

import math

import pytest
import torch

from annotated_attention.scaled_dot_product import scaled_dot_product_attention

LOG3, LOG6 = math.log(3), math.log(6)
STATE, STATE_AXES = ("m", "l", "o"), ("text query", "text query", "text query width")
RESULT, RESULT_AXES = ("output", "lse"), ("batch head query width", "batch head query")
GRADIENTS = ("dq", "dk", "dv")
# t, s, block_q, block_k.
SHAPES = {
    "by hand": (5, 7, 2, 3),
    "one tile": (5, 7, 8, 8),
    "tiles of one": (5, 3, 1, 1),
    "wide tiles": (11, 13, 2, 5),
    "high tiles": (13, 11, 5, 2),
    "more queries": (17, 5, 4, 3),
}
SOME_SHAPES = {name: SHAPES[name] for name in ("by hand", "wide tiles", "high tiles")}
each_kind = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])


def each(names, cases):
    """A check that is made with each of these cases."""
    return pytest.mark.parametrize(names.split(), cases.values(), ids=cases)


def f64(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def from_scores(scores, value):
    """Output and lse of attention with these scores; 0 and -inf where a query sees nothing."""
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    return weights @ value, scores.logsumexp(dim=-1)


def whole(query, key, value, is_causal=False):
    """Output and lse of attention with all scores in one table."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if is_causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
    return from_scores(scores, value)


def inputs(draw, t, s, dtype=torch.float64, scale=1.5):
    shapes = ((2, 3, t, 5), (2, 3, s, 5), (2, 3, s, 7))
    return [draw(*shape, dtype=dtype, scale=scale) for shape in shapes]


@pytest.mark.task(
    "One more block",
    hints=[
        "The new m first: the larger one of the old m and the block's largest. Every exponent is then taken "
        "relative to the new m, and none can be above 0.",
        "What was summed against the old m is too large by exp(m_new - m_old): multiply by one over that. It "
        "is the same for l and for o, but `o` has one more axis.",
        "-inf - (-inf) is NaN. Where the new m is -inf take away 0 instead (`masked_fill`): exp(-inf) is 0, "
        "and that is just what is to be added.",
    ],
)
class TestBlocks:
    def demand(self, student, expect, draw, blocks, values, largest=1.0):
        """Feed the blocks, and compare what is remembered after each with all scores so far."""
        shape = blocks[0].shape[:2]
        zeros = torch.zeros(*shape, 7, dtype=torch.float64)
        state = zeros[..., 0] - torch.inf, zeros[..., 0], zeros
        for n, (scores, value) in enumerate(zip(blocks, values, strict=True)):
            answer = expect.unpack(student.call("add_block", *state, scores, value), *STATE)
            seen, v = torch.cat(blocks[: n + 1], dim=-1), torch.cat(values[: n + 1], dim=-2)
            m = seen.amax(dim=-1)
            shares = torch.exp(seen - m.masked_fill(m == -torch.inf, 0.0)[..., None])
            wanted = m, shares.sum(dim=-1), shares @ v
            for name, axes, got, expected in zip(STATE, STATE_AXES, answer, wanted, strict=True):
                what = f"{name} after {n + 1} block{'s' * (n > 0)}"
                expect.close(got, expected, axes=axes, what=what, largest=largest)
            state = wanted
        answer = expect.unpack(student.call("finish", *state), *RESULT)
        wanted, axes = from_scores(seen, v), STATE_AXES[:0:-1]
        for name, axis, got, expected in zip(RESULT, axes, answer, wanted, strict=True):
            expect.close(got, expected, axes=axis, what=f"the {name} after the last block", largest=largest)

    def test_by_hand(self, student, expect):
        state, block = (f64([LOG3]), f64([4 / 3]), f64([[28 / 3]])), (f64([[LOG6]]), f64([[2]]))
        answer = expect.unpack(student.call("add_block", *state, *block), *STATE)
        wanted = f64([LOG6]), f64([5 / 3]), f64([[20 / 3]])
        for name, axes, got, expected in zip(STATE, STATE_AXES, answer, wanted, strict=True):
            expect.close(got, expected, axes=axes.removeprefix("text "), what=f"{name} of the example")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("sizes", [(5,), (2, 3, 1)], ids=["one block", "three blocks"])
    def test_blocks(self, student, expect, draw, sizes):
        blocks = [draw(2, 3, a, scale=2) for a in sizes]
        self.demand(student, expect, draw, blocks, [draw(2, a, 7) for a in sizes])

    @pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
    def test_large_scores(self, student, expect, draw, order):
        blocks = [draw(2, 3, 5) + far for far in (-10_000.0, 0.0, 10_000.0)[::order]]
        self.demand(student, expect, draw, blocks, [draw(2, 5, 7) for _ in blocks], largest=1e4)

    @pytest.mark.points(2)
    def test_hidden_keys(self, student, expect, draw):
        blocks = [draw(2, 3, 5) for _ in range(4)]
        # Query 0 sees nothing at first, query 1 nothing later on, query 2 of text 0 never anything.
        blocks[0][:, 0] = blocks[2][:, 1] = blocks[3][:, 1] = -torch.inf
        for block in blocks:
            block[0, 2] = block[1, 2, 3] = -torch.inf
        self.demand(student, expect, draw, blocks, [draw(2, 5, 7) for _ in blocks])


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
        """Two results: some queries have seen nothing on one side, some on both."""
        a, b = draw(2, 3, 5, 3, scale=2), draw(2, 3, 5, 4, scale=2) + far
        a[:, :, 0] = b[:, :, 1] = a[:, 1, 2] = b[:, 1, 2] = -torch.inf
        values = draw(2, 3, 3, 7), draw(2, 3, 4, 7)
        both = from_scores(torch.cat([a, b], dim=-1), torch.cat(values, dim=-2))
        return (*from_scores(a, values[0]), *from_scores(b, values[1])), both

    def demand(self, expect, answer, wanted, told, largest=1.0):
        answer = expect.unpack(answer, *RESULT)
        for name, axes, got, expected in zip(RESULT, RESULT_AXES, answer, wanted, strict=True):
            expect.close(got, expected, axes=axes, what=f"the {name} {told}", largest=largest)

    def test_by_hand(self, student, expect):
        a, b, both = ((f64([[[[x]]]]), f64([[[math.log(n)]]])) for x, n in ((4, 10), (9, 15), (7, 25)))
        self.demand(expect, student.call("merge_attention", *a, *b), both, "of the example")

    @pytest.mark.points(2)
    def test_merge(self, student, expect, draw):
        parts, both = self.parts(draw)
        # First without the queries that saw nothing, which are the first three.
        some = [part[:, :, 3:] for part in parts]
        self.demand(
            expect, student.call("merge_attention", *some), [x[:, :, 3:] for x in both], "of two results"
        )
        some = [part[:, :, :2] for part in parts]
        told = "where one side saw nothing"
        self.demand(expect, student.call("merge_attention", *some), [x[:, :, :2] for x in both], told)

    @pytest.mark.parametrize("far", [-1e4, 1e4])
    def test_far_apart(self, student, expect, draw, far):
        parts, both = self.parts(draw, far)
        parts, both = ([x[:, :, 3:] for x in xs] for xs in (parts, both))
        self.demand(expect, student.call("merge_attention", *parts), both, f"of scores {far:.0f} apart", 1e4)

    def test_nothing_on_both_sides(self, student, expect, draw):
        parts, both = self.parts(draw)
        told = "where query 2 of head 1 saw nothing on both sides"
        self.demand(expect, student.call("merge_attention", *parts), both, told)

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
        names = ("output_a", "lse_a", "output_b", "lse_b")
        for name, got, expected in zip(names, ours, wanted, strict=True):
            axes = RESULT_AXES[name.startswith("lse")]
            expect.close(got, expected, axes=axes, what=f"the gradient of {name}", factor=3)


@pytest.mark.task(
    "Which tiles are needed",
    hints=[
        "A tile has a first and a last query, and a first and a last key. Which two of these four decide "
        "whether anything is seen in it? And which two whether all is?",
        "Something is seen if the last query sees the first key. All is seen if the first query sees the last "
        "key. The last of a tile at the end is not where a full tile would end.",
        "`torch.arange(0, t, block_q)[:, None]` against `torch.arange(0, s, block_k)` compares every row of "
        "tiles with every column.",
    ],
)
class TestPlan:
    @each_kind
    @each("t s block_q block_k", SHAPES | {"as many": (5, 6, 2, 3), "a last whole tile": (5, 5, 2, 3)})
    def test_plan(self, student, expect, t, s, block_q, block_k, is_causal):
        plan = student.call("tile_plan", t, s, block_q, block_k, is_causal=is_causal)
        seen = torch.ones(t, s, dtype=torch.bool)
        seen = seen.tril() if is_causal else seen
        rows = [rows.split(block_k, dim=1) for rows in seen.split(block_q)]
        wanted = torch.tensor([[int(x.any()) * (2 - int(x.all())) for x in row] for row in rows])

        def explain(index):
            i, j = index["row"] * block_q, index["column"] * block_k
            return f"queries {i} to {min(i + block_q, t) - 1}, keys {j} to {min(j + block_k, s) - 1}"

        what = f"the plan ({t} queries, {s} keys, tiles of {block_q} by {block_k})"
        expect.close(plan, wanted, axes="row column", what=what, explain=explain)


@pytest.mark.task(
    "Flash attention",
    hints=[
        "Two loops. The outer one is over tiles of queries; each begins with -inf, 0 and 0, and ends with "
        "`finish`. The inner one is over tiles of keys, and calls `add_block`.",
        "`query.split(block_q, dim=2)` cuts the queries; the last piece may be short. The outputs are joined "
        "again with `torch.cat`.",
        "A tile of kind 2 needs to know where it stands: its queries begin at n · block_q and its keys at "
        "column · block_k. Where j > i the score is -inf.",
    ],
)
class TestForward:
    def demand(self, expect, answer, wanted, told, **bound):
        answer = expect.unpack(answer, *RESULT)
        for name, axes, got, expected in zip(RESULT, RESULT_AXES, answer, wanted, strict=True):
            expect.close(got, expected, axes=axes, what=f"the {name} ({told})", **bound)

    @pytest.mark.points(2)
    @each_kind
    @each("t s block_q block_k", SHAPES)
    def test_results(self, student, expect, draw, t, s, block_q, block_k, is_causal):
        given, blocks = inputs(draw, t, s), {"block_q": block_q, "block_k": block_k}
        answer = student.call("flash_attention", *given, is_causal=is_causal, **blocks)
        told = f"{t} queries, {s} keys, tiles of {block_q} by {block_k}"
        self.demand(expect, answer, whole(*given, is_causal), told, largest=10)

    def test_large_scores(self, student, expect, draw):
        given = inputs(draw, 5, 11, scale=100)
        answer = student.call("flash_attention", *given, block_q=2, block_k=3)
        self.demand(expect, answer, whole(*given), "scores up to 10,000", largest=1e4)

    @pytest.mark.points(2)
    def test_what_is_left_out_is_not_read(self, student, expect, draw):
        given = inputs(draw, 11, 11)
        wanted = [x[:, :, :6] for x in whole(*given, is_causal=True)]
        for x in given[1:]:
            x[:, :, 8] = torch.nan
        answer = student.call("flash_attention", *given, is_causal=True, block_q=3, block_k=4)
        answer = expect.unpack(answer, *RESULT)
        shapes = tuple(getattr(x, "shape", None) for x in answer)
        expect.equal(shapes, ((2, 3, 11, 7), (2, 3, 11)), what="the shapes of output and lse")
        told = "queries 0 to 5, after key and value 8 became NaN: tiles of 3 by 4"
        self.demand(expect, [x[:, :, :6] for x in answer], wanted, told, largest=10)

    @pytest.mark.points(2)
    def test_half_precision(self, student, expect, draw):
        # Many small tiles: what is rounded after each of them adds up.
        given = inputs(draw, 5, 97, torch.float16)
        answer = student.call("flash_attention", *given, block_q=3, block_k=8)
        output, lse = expect.unpack(answer, *RESULT)
        exact = whole(*(x.double() for x in given))
        peer = scaled_dot_product_attention(*given)
        what = "the output in float16 (97 keys, tiles of 3 by 8)"
        expect.close(output, exact[0], axes=RESULT_AXES[0], what=what, peer=peer)
        dtypes = tuple(str(getattr(x, "dtype", None)) for x in (output, lse))
        expect.equal(dtypes, ("float16", "float32"), what="the dtypes of output and lse, for float16,")
        expect.close(lse, exact[1], axes=RESULT_AXES[1], what="the lse for float16", largest=10)


@pytest.mark.task(
    "The way back",
    hints=[
        "Begin with D, which needs no tiles. Then one loop over all tiles that the plan does not leave out, "
        "and three results that begin as zeros.",
        "exp(score - lse) is a weight, and final: it needs neither a maximum nor a sum. In a tile of kind 2 "
        "the weights of hidden keys are 0.",
        "A tile adds Pᵀ grad_output to dv, dS key · scale to dq and dSᵀ query · scale to dk, each in its own "
        "rows: `dk[:, :, j] += ...`.",
    ],
)
class TestBackward:
    def backward(self, student, expect, given, result, grad, **options):
        answer = student.call("flash_backward", *given, *result, grad, **options)
        return expect.unpack(answer, *GRADIENTS)

    def wanted(self, given, grad, is_causal=False):
        leaves = [x.clone().requires_grad_() for x in given]
        return torch.autograd.grad(whole(*leaves, is_causal)[0], leaves, grad)

    def demand(self, expect, answer, wanted, told, names=GRADIENTS):
        for name, got, expected in zip(GRADIENTS, answer, wanted, strict=True):
            if name in names:
                axes = f"batch head {'query' if name == 'dq' else 'key'} width"
                expect.close(got, expected, axes=axes, what=f"{name} ({told})", factor=3, largest=10)

    @pytest.mark.parametrize("name", ["dv", "dk", "dq"])
    def test_by_hand(self, student, expect, name):
        query, key, value = f64([[2, 0, 0, 0]]), f64([[0, 0, 0, 0], [LOG3, 0, 0, 0]]), f64([[4], [8]])
        given, grad = [x[None, None] for x in (query, key, value)], f64([[[[1]]]])
        answer = self.backward(student, expect, given, whole(*given), grad)
        self.demand(expect, answer, self.wanted(given, grad), "the example", [name])

    @pytest.mark.points(2)
    @each_kind
    @each("t s block_q block_k", SOME_SHAPES)
    def test_gradients(self, student, expect, draw, t, s, block_q, block_k, is_causal):
        given, grad = inputs(draw, t, s), draw(2, 3, t, 7)
        options = {"is_causal": is_causal, "block_q": block_q, "block_k": block_k}
        answer = self.backward(student, expect, given, whole(*given, is_causal), grad, **options)
        told = f"{t} queries, {s} keys, tiles of {block_q} by {block_k}"
        self.demand(expect, answer, self.wanted(given, grad, is_causal), told)

    @pytest.mark.points(2)
    def test_pieces_of_a_text(self, student, expect, draw):
        given, grad = inputs(draw, 5, 11), draw(2, 3, 5, 7)
        result, wanted = whole(*given), self.wanted(given, grad)
        parts = []
        for piece in (slice(0, 6), slice(6, 11)):
            some = given[0], *(x[:, :, piece] for x in given[1:])
            answer = self.backward(student, expect, some, result, grad, block_q=2, block_k=4)
            told = f"keys {piece.start} to {piece.stop - 1} of 11, output and lse of all"
            # What one piece contributes to dq is judged with the other.
            expected = wanted[0], *(x[:, :, piece] for x in wanted[1:])
            self.demand(expect, answer, expected, told, GRADIENTS[1:])
            parts.append(answer[0])
        expect.close(
            sum(parts),
            wanted[0],
            axes="batch head query width",
            what="the sum of both dq",
            factor=3,
            largest=10,
        )

    def test_what_is_left_out_is_not_read(self, student, expect, draw):
        given, grad = inputs(draw, 11, 11), draw(2, 3, 11, 7)
        result, wanted = whole(*given, is_causal=True), self.wanted(given, grad, True)
        for x in (*given[1:], *result[:1]):
            x[:, :, 8] = torch.nan
        options = {"is_causal": True, "block_q": 3, "block_k": 4}
        answer = self.backward(student, expect, given, result, grad, **options)
        told = "queries 0 to 5, after key and value 8 became NaN: tiles of 3 by 4"
        dq = [x[:, :, :6] for x in (answer[0], wanted[0])]
        expect.close(*dq, axes="batch head query width", what=f"dq ({told})", factor=3, largest=10)


@pytest.mark.task(
    "A thousand texts with one beginning",
    hints=[
        "Two results for each query, and you know how to merge them. For the first, let the texts' queries "
        "stand in a row, as if they were those of one text: which axes must change places?",
        "`query.transpose(0, 2)` is `1 h b d`, and `prefix_key[None]` is `1 h s d`. What comes back is turned "
        "back in the same way.",
        "For the second, one `add_block` from an empty start and `finish`. Hidden keys score -inf, and their "
        "values are filled with 0: a weight of 0 times NaN is NaN.",
    ],
)
class TestPrefix:
    def demand(self, student, expect, draw, lengths, garbage=0.0, s=5):
        b, a = len(lengths), max(lengths) + 2
        query, prefix = draw(b, 3, 1, 5), (draw(3, s, 5), draw(3, s, 7))
        own, lengths = (draw(b, 3, a, 5), draw(b, 3, a, 7)), torch.tensor(lengths)
        wanted = []
        for n, length in enumerate(lengths.tolist()):
            text = [torch.cat([x, y[n, :, :length]], dim=1)[None] for x, y in zip(prefix, own, strict=True)]
            wanted.append(whole(query[n : n + 1], *text)[0])
            for x in own:
                x[n, :, length:] += garbage
        output = student.call("prefix_attention", query, *prefix, *own, lengths)

        def explain(index):
            return f"this text has {int(lengths[index['text']])} keys of its own"

        what = "the output" + (" with NaN behind the texts" if garbage else "")
        expect.close(
            output, torch.cat(wanted), axes="text head query width", what=what, explain=explain, largest=10
        )

    def test_one_length(self, student, expect, draw):
        self.demand(student, expect, draw, [4, 4, 4])

    @pytest.mark.points(2)
    def test_lengths(self, student, expect, draw):
        self.demand(student, expect, draw, [3, 1, 7, 2], s=97)

    @pytest.mark.points(2)
    def test_nothing_of_its_own(self, student, expect, draw):
        self.demand(student, expect, draw, [3, 0, 2])

    @pytest.mark.points(2)
    def test_what_was_in_memory(self, student, expect, draw):
        self.demand(student, expect, draw, [3, 1, 0, 2], garbage=math.nan)
