"""The checks of the exercise on the ring. They are its network too: they make the ranks, and carry what is sent.
Each rank is handed what the one before should have sent, so that a mistake is told where it is made."""

import math
from functools import partial
from itertools import product

import pytest
import torch

from annotated_attention.scaled_dot_product import scaled_dot_product_attention

LOG2, LOG3, NOTHING = math.log(2), math.log(3), -math.inf
# The parts of an answer, and their axes.
RESULT = {"output": "batch head query width", "lse": "batch head query"}
KEYS = {"key": "batch head key width", "value": "batch head key width"}
GRADS = {"dq": RESULT["output"], "dk": KEYS["key"], "dv": KEYS["value"]}
OF_QUERIES = ("output", "output", "lse", "lse", "output")
PARCEL = dict(zip(("query", "grad_output", "lse", "delta", "dq"), map(RESULT.get, OF_QUERIES), strict=True))
f64 = partial(torch.tensor, dtype=torch.float64)


def each(names, cases):
    """A check that is made with each of these cases."""
    return pytest.mark.parametrize(names.split(), cases.values(), ids=cases)


each_ring = each("n u", {"1 rank": (1, 6), "2 ranks": (2, 6), "4 ranks": (4, 4)})


def cut(n, t):
    """Row r: where the tokens of rank r stand, in zigzag."""
    pieces = torch.arange(t).chunk(2 * n)
    return torch.stack([torch.cat([pieces[r], pieces[2 * n - 1 - r]]) for r in range(n)])


CUTS = {
    "the example": (torch.arange(4).view(2, 2),),
    "zigzag": (cut(3, 18),),
    "stripes": (torch.arange(20).view(5, 4).T,),
    "text order": (torch.arange(20).view(4, 5),),
    "any cut": (torch.tensor([[7, 2, 5], [0, 8, 4], [3, 1, 6]]),),
}


def pairs_of(order):
    """Visible pairs of each rank at each step."""
    n = len(order)
    sees = [[order[(r - k) % n] <= order[r][:, None] for k in range(n)] for r in range(n)]
    return torch.tensor([[int(x.sum()) for x in row] for row in sees])


def from_scores(scores, value):
    """Output and lse of attention with these scores; 0 and -inf where a query sees nothing."""
    return scores.softmax(dim=-1).nan_to_num(0.0) @ value, scores.logsumexp(dim=-1)


def plain(query, key, value, i=None, j=None):
    """Output and lse with all scores in one table; without positions, of a text that one device has."""
    i, j = (torch.arange(query.shape[2]) if x is None else x for x in (i, j))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return from_scores(scores.masked_fill(j > i[:, None], NOTHING), value)


def in_order(*rows):
    """A text of one head, and of width 1, from its numbers."""
    return [f64(row)[None, None, :, None] for row in rows]


def agree(expect, answer, wanted, axes, told, *, largest=10.0, rows=None, **bound):
    """Each part of the answer is what it should be, or its `rows` are."""
    answer = expect.unpack(answer, *axes)
    for (name, words), got, value in zip(axes.items(), answer, wanted, strict=True):
        if rows is not None and getattr(got, "shape", ()) == value.shape:
            got, value = got[:, :, rows], value[:, :, rows]
        expect.close(got, value, axes=words, what=f"{name} ({told})", largest=largest, **bound)


def dtypes_of(expect, answer, names):
    return tuple(str(getattr(x, "dtype", None)) for x in expect.unpack(answer, *names))


@pytest.mark.task(
    "Who holds what",
    hints=[
        "At each step rank r gets what rank r - 1 held at the step before. How often, up to step k, has what it "
        "holds now been handed on?",
        "Before rank 0 comes the last rank: `%` turns -1 into n - 1.",
    ],
)
class TestWho:
    @pytest.mark.parametrize("n", [1, 3, 4])
    def test_held(self, student, expect, n):
        for rank, step in product(range(n), range(n + 1)):
            what = f"the share that rank {rank} of {n} holds at step {step}"
            expect.equal(student.call("held", rank, step, n), (rank - step) % n, what=what)

    @pytest.mark.parametrize("n", [1, 3, 4])
    def test_arrives(self, student, expect, n):
        for rank, share in product(range(n), range(n)):
            what = f"the step at which rank {rank} of {n} holds share {share}"
            expect.equal(student.call("arrives", rank, share, n), (rank - share) % n, what=what)


@pytest.mark.task(
    "A fair cut",
    hints=[
        "`torch.arange(t).view(2 * n, -1)` has a piece in each row. Which two of its rows are those of rank 0, and "
        "which those of the last rank?",
        "The second pieces are the rows from n on, from the last to the first: `flip(0)`.",
        "Joined, the shares are the text in the order of `zigzag(n, t).flatten()`. Which index puts an order "
        "right again? `argsort` knows.",
    ],
)
class TestZigzag:
    @each("n t", {"the example": (2, 8), "one rank": (1, 6), "three": (3, 12), "four": (4, 40)})
    def test_zigzag(self, student, expect, n, t):
        def explain(index):
            r = index["rank"]
            return f"rank {r} has the pieces {r} and {2 * n - 1 - r}, of {t // (2 * n)} tokens each"

        what = f"the zigzag of {t} tokens (n = {n})"
        expect.close(student.call("zigzag", n, t), cut(n, t), axes="rank token", what=what, explain=explain)

    def test_what_cannot_be_cut(self, student, expect):
        for n, t in ((2, 6), (3, 16)):
            call = partial(student.call, "zigzag", n, t)
            expect.raises("ValueError", call, what=f"{t} tokens in {2 * n} pieces")

    @pytest.mark.points(2)
    @each("n u", {"one rank": (1, 4), "two": (2, 6), "four": (4, 4)})
    def test_unshard(self, student, expect, draw, n, u):
        text = draw(2, 3, n * u, 5)
        answer = student.call("unshard", [text[:, :, row] for row in cut(n, n * u)])
        expect.close(answer, text, axes="batch head token width", what=f"the text of {n} shares")


@pytest.mark.task(
    "The work of each step",
    hints=[
        "Two loops, over ranks and steps. `held` of task 1 says whose keys are there: which row of `order` are "
        "the queries, and which the keys?",
        "`key_order <= query_order[:, None]` is the table of who sees whom. How many of its entries are True?",
        "A step takes as long as the rank that has the most to do in it: the largest of a column. Add up the "
        "columns, and compare with all pairs.",
    ],
)
class TestWork:
    @pytest.mark.points(2)
    @each("order", CUTS)
    def test_work(self, student, expect, order):
        n = len(order)

        def explain(index):
            r, k = index.values()
            return f"rank {r} holds the keys of rank {(r - k) % n} then"

        told = {"what": "the pairs of each rank at each step", "explain": explain}
        expect.close(student.call("work", order), pairs_of(order), axes="rank step", **told)

    @pytest.mark.parametrize("n", [2, 4])
    def test_duration(self, student, expect, draw, n):
        for pairs in (torch.tensor([[3, 0], [3, 4]]), draw.integers(1, 90, n, n)):
            what = f"the duration of {pairs.tolist()}, a list for each rank"
            expect.equal(student.call("duration", pairs), int(pairs.amax(dim=0).sum()), what=what)


@pytest.mark.task(
    "A part of the answer",
    hints=[
        "The mask compares where things stand, `j > i[:, None]`, and not which place they have in their share. What "
        "is hidden has the score -inf.",
        "exp(score - lse) is a weight. Where the lse is -inf, take 0 away instead: `logsumexp` of nothing is -inf, "
        "while `amax` of nothing is an error.",
        "exp(lse) is how much there was to attend to. Each part has the weight exp(lse_part - lse), "
        "and `torch.logaddexp` makes the new lse without overflow.",
    ],
)
class TestParts:
    def given(self, draw, t, s, dtype=torch.float64, scale=1.5):
        return [draw(2, 3, *shape, dtype=dtype, scale=scale) for shape in ((t, 5), (s, 5), (s, 7))]

    def demand(self, student, expect, given, i, j, told, **bound):
        i, j = f64(i).long(), f64(j).long()
        agree(expect, student.call("attend", *given, i, j), plain(*given, i, j), RESULT, told, **bound)

    def test_by_hand(self, student, expect):
        given = in_order([0], [0, 0, 0], [6, 7, 2])
        self.demand(student, expect, given, [2], [0, 3, 1], "attend, the example")
        parts = *in_order([4]), f64([[[LOG2]]]), *in_order([10]), f64([[[0]]])
        wanted = *in_order([6]), f64([[[LOG3]]])
        agree(expect, student.call("merge", *parts), wanted, RESULT, "merge, the example")

    @pytest.mark.points(2)
    def test_attend(self, student, expect, draw):
        for told, scale in (("attend", 1.5), ("attend, large scores", 60)):
            given, bound = self.given(draw, 4, 5, scale=scale), {"largest": 10 * scale**2}
            self.demand(student, expect, given, [5, 9, 7, 6], [4, 0, 8, 3, 6], told, **bound)

    @pytest.mark.points(2)
    def test_nothing_to_see(self, student, expect, draw):
        told = "attend; query 0 sees nothing"
        self.demand(student, expect, self.given(draw, 3, 4), [2, 9, 4], [4, 3, 7, 3], told)
        self.demand(student, expect, self.given(draw, 3, 0), [2, 9, 4], [], "attend; there are no keys")

    def test_half_precision(self, student, expect, draw):
        given = self.given(draw, 4, 40, torch.float16)
        answer = student.call("attend", *given, torch.full((4,), 40), torch.arange(40))
        dtypes = dtypes_of(expect, answer, RESULT)
        expect.equal(dtypes, ("float32", "float32"), what="the dtypes of output and lse for float16")
        wanted = plain(*(x.double() for x in given), f64([40] * 4), torch.arange(40))
        agree(expect, answer, wanted, RESULT, "attend, float16")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("far", [0, -1e4, 1e4])
    def test_merge(self, student, expect, draw, far):
        a, b = draw(2, 3, 5, 3, scale=2), draw(2, 3, 5, 4, scale=2) + far
        # Query 0 sees nothing on the one side, query 1 on the other, query 2 of head 1 on both.
        a[:, :, 0] = b[:, :, 1] = a[:, 1, 2] = b[:, 1, 2] = NOTHING
        values = draw(2, 3, 3, 7), draw(2, 3, 4, 7)
        parts = *from_scores(a, values[0]), *from_scores(b, values[1])
        both = from_scores(torch.cat([a, b], dim=-1), torch.cat(values, dim=-2))
        answer, near = student.call("merge", *parts), f", b near {far:.0f}" if far else ""
        rows = {"merge": [3, 4], "merge; one side saw nothing": [0, 1], "merge; neither saw anything": [2]}
        for told, some in rows.items():
            agree(expect, answer, both, RESULT, told + near, rows=some, largest=max(10, abs(far)))


@pytest.mark.task(
    "The keys travel",
    hints=[
        "When a rank is made it can attend to its own keys at once. Each `receive` then is one `attend` to what has "
        "come and one `merge` with what there is. Count the steps: `held` says whose keys these are.",
        "The positions of the queries are those of this rank and stay. Those of the keys are of the rank whose "
        "share it is: another row of the zigzag.",
        "`seen = j <= i[:, None]` is the whole table. `seen.any(dim=1)` says which queries see anything, "
        "`seen.any(dim=0)` which keys are seen: attend with these alone, and merge into those rows.",
    ],
)
class TestKeysTravel:
    def run(self, student, text, n, check=lambda *_: None):
        """Carry keys and values round the ring; `check` sees all that is sent, and what should be."""
        order, results = cut(n, text[0].shape[2]), []
        shares = [[x[:, :, row] for x in text] for row in order]
        for rank in range(n):
            ours = student.new("PassKeys", rank, n, *shares[rank])
            for step in range(n - 1):
                check(rank, step, ours.call("send"), shares[(rank - step) % n][1:])
                ours.call("receive", *shares[(rank - step - 1) % n][1:])
            results.append((rank, order[rank], ours.call("result")))
        return results

    def demand(self, student, expect, text, n, told=""):
        def check(rank, step, sent, share):
            after = f"sent by rank {rank} of {n} after step {step}, when it holds share {(rank - step) % n}"
            agree(expect, sent, share, KEYS, after)

        wanted = plain(*text)
        for rank, row, answer in self.run(student, text, n, check):
            agree(expect, answer, [x[:, :, row] for x in wanted], RESULT, f"of rank {rank} of {n}{told}")

    def text(self, draw, t, dtype=torch.float64, scale=1.5):
        return [draw(1, 2, t, width, dtype=dtype, scale=scale) for width in (5, 5, 3)]

    def test_by_hand(self, student, expect):
        self.demand(student, expect, in_order([0] * 4, [1, 2, 3, 4], [1, 2, 3, 6]), 2, ", the example")

    @pytest.mark.points(3)
    @each_ring
    def test_rounds(self, student, expect, draw, n, u):
        self.demand(student, expect, self.text(draw, n * u), n)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("place", [0, 2], ids=["of an early piece", "of a late piece"])
    def test_what_is_hidden_is_not_read(self, student, expect, draw, place):
        text, owner = self.text(draw, 16), 2
        wanted, at = plain(*text), int(cut(4, 16)[owner, place])
        text[1][:, :, at] = text[2][:, :, at] = torch.nan
        told = f"queries before {at}, after key and value {at} of rank {owner} became NaN"
        for rank, row, answer in self.run(student, text, 4):
            if rank != owner:
                own = [x[:, :, row] for x in wanted]
                agree(expect, answer, own, RESULT, f"of rank {rank}; {told}", rows=row < at)

    @pytest.mark.points(2)
    def test_half_precision(self, student, expect, draw):
        def check(rank, step, sent, share):
            what = f"the dtypes of what rank {rank} sends after step {step}, for float16"
            expect.equal(dtypes_of(expect, sent, KEYS), ("float16", "float16"), what=what)

        text = self.text(draw, 48, torch.float16)
        wanted, peer = plain(*(x.double() for x in text)), scaled_dot_product_attention(*text, is_causal=True)
        for rank, row, answer in self.run(student, text, 4, check):
            dtypes = dtypes_of(expect, answer, RESULT)
            expect.equal(dtypes, ("float16", "float32"), what="the dtypes of output and lse for float16")
            output, told = {"output": RESULT["output"]}, f"of rank {rank}, float16"
            agree(expect, answer[:1], [wanted[0][:, :, row]], output, told, peer=peer[:, :, row])


@pytest.mark.task(
    "The queries travel",
    hints=[
        "Two things move: what came with the queries, and dq, to which every rank adds. Two stay: dk and dv. Add all "
        "three in `send`, and `receive` has only to keep what came.",
        "The queries are those of rank `held(rank, step, n)`, so their positions are its row of the zigzag. The keys "
        "are always yours.",
        "The lse and D are of whole rows, over all keys of all ranks: they come with the queries, and no rank can "
        "make them of its own keys. After n sends each dq is at home; it has everything then.",
    ],
)
class TestQueriesTravel:
    def demand(self, student, expect, text, grad, n, told=""):
        """Carry the queries round the ring, and compare all that is sent and all that comes out."""
        query, key, value = text
        order, c = cut(n, query.shape[2]), query.shape[3] ** -0.5
        output, lse = plain(*text)
        hidden = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).triu(1)
        p = torch.exp(query @ key.mT * c - lse[..., None]).masked_fill(hidden, 0.0)
        delta = (grad * output).sum(dim=-1)
        ds = p * (grad @ value.mT - delta[..., None]) * c

        def parcel(share, last):
            """What travels with the queries of a share once `last` has added its own."""
            rows = order[share]
            ranks = [(share + k) % n for k in range((last - share) % n + 1)]
            dq = sum(ds[:, :, rows][..., order[r]] @ key[:, :, order[r]] for r in ranks)
            return *(x[:, :, rows] for x in (query, grad, lse, delta)), dq

        wanted = ds @ key, ds.mT @ query, p.mT @ grad
        for rank, rows in enumerate(order):
            given = [x[:, :, rows] for x in (query, key, value, output, lse, grad)]
            ours = student.new("PassQueries", rank, n, *given)
            for step in range(n):
                share = (rank - step) % n
                after = f"sent by rank {rank} of {n} at step {step}, when it holds the queries of share {share}{told}"
                agree(expect, ours.call("send"), parcel(share, rank), PARCEL, after, factor=3)
                ours.call("receive", *parcel((share - 1) % n, (rank - 1) % n))
            own = [x[:, :, rows] for x in wanted]
            agree(expect, ours.call("result"), own, GRADS, f"of rank {rank} of {n}{told}", factor=3)

    def test_by_hand(self, student, expect):
        *text, grad = in_order([0] * 4, [1, 2, 3, 4], [1, 2, 3, 6], [12] * 4)
        self.demand(student, expect, text, grad, 2, ", the example")

    @pytest.mark.points(5)
    @each_ring
    def test_rounds(self, student, expect, draw, n, u):
        text = [draw(1, 2, n * u, width) for width in (5, 5, 3)]
        self.demand(student, expect, text, draw(1, 2, n * u, 3), n)
