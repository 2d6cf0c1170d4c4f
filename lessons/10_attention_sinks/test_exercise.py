"""The checks of the exercise on attention sinks.

They speak to the student's code through the fixture `student` and to the reference by import.
"""

import math
from functools import cache

import numpy as np
import pytest
import torch

from annotated_attention.attention_sinks import SinkKVCache, sink_attention, streaming_rotary
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

INF = float("inf")
OUTPUT_AXES = "batch head query width"
CACHE_AXES = "batch head position width"
# How many tokens are read; how many of them are sinks, and how many the window holds.
SIZES = {
    "by hand": (7, 2, 3),
    "not full": (4, 2, 3),
    "just full": (5, 2, 3),
    "four sinks": (15, 4, 3),
    "a longer window": (11, 2, 6),
    "a window of one": (6, 3, 1),
    "no sinks": (9, 0, 4),
    "fewer tokens than sinks": (2, 3, 2),
}
STREAMS = {"two sinks": (11, 2, 3), "more sinks": (8, 3, 2), "no sinks": (6, 0, 4)}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
every_stream = pytest.mark.parametrize("size", STREAMS.values(), ids=STREAMS)


@cache
def stands(n_read, n_sinks, window):
    """Where token j stands inside the reference's cache when i has come, -1 if it is not held: row i."""
    places, store = torch.full((n_read, n_read), -1), SinkKVCache(n_sinks, window)
    for i, key in enumerate(torch.arange(float(n_read)).view(n_read, 1, 1, 1, 1)):
        held, _ = store.update(key, key)
        places[i, held.flatten().long()] = store.positions
    return places


def at_once(words, n_sinks, window):
    """What the queries of a text find, by the reference."""
    i = torch.arange(words[0].shape[2])
    return streaming_rotary(*words, i, i, n_sinks=n_sinks, window=window)


def text(draw, t, b=2, h=3):
    """Queries, keys and values of a text. Large enough that it matters where they stand."""
    return draw(b, h, t, 6, scale=2.0), draw(b, h, t, 6, scale=2.0), draw(b, h, t, 5)


@pytest.mark.task(
    "One more in the denominator",
    hints=[
        "The 1 is exp(0): the weights are those of a softmax with one more key, whose score is 0. What "
        "becomes of the weight of that key?",
        "exp(10,000) is infinite. Subtract something from all exponents, the 0 included, so that none is "
        "above 0. If all scores are -∞, it must not be -∞.",
        "With `top` the larger of 0 and the largest score: exp(score - top) above, and below the sum of "
        "these and exp(0 - top).",
    ],
)
class TestSoftmaxOffByOne:
    def demand(self, student, expect, scores, what, largest=1.0):
        weights = student.call("softmax_off_by_one", scores)
        s = scores.shape[-1]
        nothing, keys = scores.new_zeros(1, 1, math.prod(scores.shape[:-1]), 2), scores.new_zeros(1, 1, s, 2)
        one_by_one = torch.eye(s, dtype=scores.dtype)[None, None]
        expected = sink_attention(nothing, keys, one_by_one, scores.new_zeros(1), scores.reshape(-1, s))
        axes = "batch head query key" if scores.ndim == 4 else "query key"
        expect.close(weights, expected.view(scores.shape), axes=axes, what=what, largest=largest)

    def test_by_hand(self, student, expect):
        for scores in ([0.0, 0.0], [math.log(2), 0.0]):
            scores = torch.tensor([scores], dtype=torch.float64)
            self.demand(student, expect, scores, f"weights for the scores {scores[0].tolist()}")

    def test_weights(self, student, draw, expect):
        self.demand(student, expect, draw(5, 7), "weights")
        self.demand(student, expect, draw(2, 3, 5, 7, scale=3.0) - 2, "weights")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("shift", [0.0, 1e4, -1e4], ids=["both", "high", "low"])
    def test_large_scores(self, student, draw, expect, shift):
        scores = draw(5, 7, scale=1e3 if shift == 0 else 2.0) + shift
        self.demand(student, expect, scores, f"weights for scores around {shift:.0f}", largest=1e4)

    def test_masked(self, student, draw, expect):
        scores = draw(4, 5)
        scores[1, 2:] = scores[3] = -INF
        self.demand(student, expect, scores, "weights for scores of which some are -∞, in row 3 all,")

    def test_dtype(self, student, draw, expect):
        weights = student.call("softmax_off_by_one", draw(3, 5, dtype=torch.float32))
        expect.equal(str(getattr(weights, "dtype", None)), "float32", what="dtype for scores in float32")


@pytest.mark.task(
    "A sink for every head",
    hints=[
        "It is a softmax with one more score in each row. What does that key give to the output?",
        "`sink_logits[:, None, None].expand(b, h, t, 1)` is a column that `torch.cat` can put beside the "
        "scores. When, before the scale or after it? After the softmax the column has done its work.",
        "Rows of nothing but -∞, the column included, must be found before the softmax: fill them with 0 "
        "before it, and their weights with 0 after it.",
    ],
)
class TestSinkAttention:
    def demand(self, student, expect, inputs, what="output", largest=10.0, explain=None, **options):
        output, expected = (
            student.call("sink_attention", *inputs, **options),
            sink_attention(*inputs, **options),
        )
        expect.close(output, expected, axes=OUTPUT_AXES, what=what, largest=largest, explain=explain)

    def inputs(self, draw, b=3, h=3, t=5, s=7, scale=1.0, logits=2.0):
        query, key = draw(b, h, t, 5, scale=scale), draw(b, h, s, 5, scale=scale)
        return query, key, draw(b, h, s, 2), draw(h, scale=logits)

    def test_by_hand(self, student, expect):
        value = torch.tensor([3.0, 6.0, 9.0]).double().view(1, 1, 3, 1)
        for logit in (0.0, math.log(3)):
            inputs = value.new_zeros(1, 1, 1, 4), value.new_zeros(1, 1, 3, 4), value
            inputs = *inputs, torch.tensor([logit]).double()
            self.demand(student, expect, inputs, f"output of the example with the logit {logit:.3f}")

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("h", "scale"), [(3, None), (4, None), (2, 0.3)], ids=["3", "4", "own scale"])
    def test_output(self, student, draw, expect, h, scale):
        self.demand(student, expect, self.inputs(draw, h=h), scale=scale)

    @pytest.mark.parametrize("shape", [(5, 7), (3, 1, 5, 7), (3, 5, 7)], ids=["t s", "b 1 t s", "h t s"])
    def test_mask(self, student, draw, expect, shape):
        mask = draw(*shape) < 0.5
        mask[..., 2, :] = False

        def explain(index):
            return "query 2 sees no key, and the sink has no value" if index["query"] == 2 else None

        inputs = self.inputs(draw)
        self.demand(student, expect, inputs, "output with a mask", explain=explain, attn_mask=mask)

    def test_no_sink(self, student, draw, expect):
        query, key, value, logits = self.inputs(draw)
        logits[1] = -INF
        mask = torch.ones(5, 7, dtype=torch.bool)
        mask[3] = False
        inputs, what = (query, key, value, logits), "output, logit -∞ in head 1"
        self.demand(student, expect, inputs, what)
        self.demand(student, expect, inputs, f"{what} and query 3 masked", attn_mask=mask)

    @pytest.mark.parametrize(
        ("scale", "logits"), [(60.0, 1.0), (1.0, 2e3), (60.0, 2e3)], ids=["scores", "logits", "both"]
    )
    def test_large(self, student, draw, expect, scale, logits):
        inputs = self.inputs(draw, scale=scale, logits=logits)
        self.demand(student, expect, inputs, "output for large scores or logits", largest=2e4)

    @pytest.mark.points(2)
    def test_gradients(self, student, draw, expect):
        inputs, grad = self.inputs(draw), draw(3, 3, 5, 2)
        mask = draw(5, 7) < 0.5
        mask[2] = False
        ours = student.vjp("sink_attention", inputs, grad, attn_mask=mask)
        leaves = [x.clone().requires_grad_() for x in inputs]
        wanted = torch.autograd.grad(sink_attention(*leaves, attn_mask=mask), leaves, grad)
        for name, got, expected in zip(("query", "key", "value", "sink_logits"), ours, wanted, strict=True):
            axes = "head" if name == "sink_logits" else CACHE_AXES
            expect.close(got, expected, axes=axes, what=f"gradient of {name}", factor=3, largest=10.0)


@pytest.mark.task(
    "Which tokens stay",
    hints=[
        "A token stays if it is one of the first, or one of the newest. While the text is short it may be both.",
        "`torch.arange(n_read)` is the text; two comparisons, joined by `|`, pick from it.",
        "For the second part: `places[held] = torch.arange(len(held))` counts those that are held.",
    ],
)
class TestKept:
    @every_size
    def test_kept(self, student, expect, size):
        what = "the tokens held after {} tokens, {} sinks and a window of {}".format(*size)
        expect.equal(student.call("kept", *size), (stands(*size)[-1] >= 0).nonzero()[:, 0], what=what)

    @every_size
    def test_inside(self, student, expect, size):
        what = "positions in the cache after {} tokens, {} sinks and a window of {}".format(*size)
        expect.close(student.call("inside", *size), stands(*size)[-1], axes="token", what=what)


@pytest.mark.task(
    "The cache",
    hints=[
        "The sinks keep the first slots. Behind them lies a ring of `window` slots: token n goes to slot "
        "n_sinks + (n - n_sinks) % window.",
        "The slot that is written next holds the oldest of the window, so it has the position `n_sinks`. The "
        "slot behind it comes next, and after the last slot the first of the ring.",
        "In `next_token`, update first. The new token is the one with the largest position, and the query "
        "stands where it does.",
    ],
)
class TestCache:
    def demand(self, expect, cache, words, step, size):
        """One more token: the cache holds what it should, in whatever slots."""
        words = dict(zip(("keys", "values"), words[1:], strict=True))
        held = (stands(words["keys"].shape[2], *size)[step] >= 0).nonzero()[:, 0]
        told = "after token {}, with {} sinks and a window of {}".format(step, *size)
        ours = expect.unpack(cache.call("update", *(x[:, :, [step]] for x in words.values())), *words)
        places = np.atleast_1d(cache.get("positions"))
        slots, what = places.argsort(), f"positions, put in ascending order, {told}"
        expect.equal(places[slots], torch.arange(len(held)), what=what)

        def explain(at):
            return f"there stands token {int(held[at['position']])} of the text"

        for got, (name, word) in zip(ours, words.items(), strict=True):
            expected, shape = word[:, :, held], getattr(got, "shape", None)
            expect.equal(shape, tuple(expected.shape), what=f"the shape of {name} {told}")
            got, what = got.take(slots, axis=2), f"{name}, put in the order of `positions`, {told}"
            expect.close(got, expected, axes=CACHE_AXES, what=what, terms=0, explain=explain)

    @pytest.mark.points(2)
    @every_stream
    def test_stream(self, student, draw, expect, size):
        n_read, *size = size
        words, cache = text(draw, n_read), student.new("SinkCache", *size)
        for step in range(n_read):
            self.demand(expect, cache, words, step, size)

    @pytest.mark.points(2)
    def test_memory(self, student, draw, expect):
        words, cache = text(draw, 9), student.new("SinkCache", 2, 3)
        self.demand(expect, cache, words, 0, (2, 3))
        for name, width in (("keys", 6), ("values", 5)):
            shape = getattr(cache.get(name), "shape", None)
            expect.equal(shape, (2, 3, 5, width), what=f"the shape of `{name}` after the first update")
        for step in range(1, 9):
            lay = cache.call("keys.data_ptr"), cache.call("values.data_ptr")
            before = np.nan_to_num(cache.get("keys"))  # unwritten memory may be NaN
            self.demand(expect, cache, words, step, (2, 3))
            same = lay == (cache.call("keys.data_ptr"), cache.call("values.data_ptr"))
            what = f"where the memory lies (data_ptr) after token {step}"
            expect.equal("where it was" if same else "elsewhere", "where it was", what=what)
            changed = int((np.nan_to_num(cache.get("keys")) != before).any(axis=(0, 1, 3)).sum())
            expect.equal(changed, 1, what=f"the number of slots of `keys` that token {step} changed")

    @pytest.mark.points(2)
    @every_stream
    def test_next_token(self, student, draw, expect, size):
        n_read, *size = size
        words, cache = text(draw, n_read), student.new("SinkCache", *size)
        expected = at_once(words, *size)
        for step in range(n_read):
            output = student.call("next_token", *(x[:, :, [step]] for x in words), cache)
            what = "output of token {}, with {} sinks and a window of {}".format(step, *size)
            expect.close(output, expected[:, :, [step]], axes=OUTPUT_AXES, what=what, largest=20.0)


@pytest.mark.task(
    "The same, all at once",
    hints=[
        "Which keys has query i in sight: two cases, as in `kept`. In which of them is the distance that of "
        "the text?",
        "In the window, distances are those of the text. Towards the sinks, query i stands at i as long as "
        "the cache has room, and at its last position from then on.",
        "`all_at_once` needs two tables of scores: queries turned to i, and queries turned to where the sinks "
        "see them. `torch.where` takes for each key the one that it belongs to.",
    ],
)
class TestAllAtOnce:
    @every_size
    def test_distances(self, student, expect, size):
        places = stands(*size)
        i = places.diagonal()
        expected = torch.where(places < 0, -1, i[:, None] - places)
        told = "inside the cache query {0} stands at {1}"

        def explain(at):
            return told.format(at["query"], int(i[at["query"]]))

        what = "distances for {} tokens, {} sinks and a window of {}".format(*size)
        distances = student.call("distances", *size)
        expect.close(distances, expected, axes="query key", what=what, explain=explain)

    @pytest.mark.points(2)
    @every_stream
    def test_all_at_once(self, student, draw, expect, size):
        t, *size = size
        words = text(draw, t)
        output = student.call("all_at_once", *words, *size)
        what = "output of {} tokens at once, with {} sinks and a window of {}".format(t, *size)
        expect.close(output, at_once(words, *size), axes=OUTPUT_AXES, what=what, largest=20.0)


@pytest.mark.task(
    "For a kernel that has no sinks",
    hints=[
        "The sink is one more key, whose value is 0. Its score must be the logit for *every* query, and one "
        "key cannot do that with the d dimensions that are there.",
        "Give all queries one more dimension, with a 1 in it. What must ordinary keys have there, what the "
        "sink's key? Mind that the kernel multiplies by the scale, and that d has grown.",
        "In `merged`, each part is like a key with the score `lse` and the value `output`. The denominators "
        "add up, and the sink's share of the sum is there once.",
    ],
)
class TestKernel:
    def demand(self, student, expect, inputs, what, mask=None):
        answer = student.call("with_sink", *inputs, *([] if mask is None else [mask]))
        *arrays, scale = expect.unpack(answer, "query", "key", "value", "attn_mask", "scale")
        kind = "bool" if arrays[3] is None else str(getattr(arrays[3], "dtype", None))
        expect.equal(kind, "bool", what="the dtype of the mask for a kernel whose mask says yes or no")
        arrays = [x if x is None else torch.as_tensor(x) for x in arrays]
        output = scaled_dot_product_attention(*arrays, scale=float(scale))
        expected = sink_attention(*inputs, attn_mask=mask)
        what = f"what the kernel makes of your five arguments, {what}"
        expect.close(output.numpy(), expected, axes=OUTPUT_AXES, what=what, largest=20.0)

    @pytest.mark.parametrize(("h", "t", "s"), [(3, 5, 7), (4, 7, 5)], ids=["more keys", "more queries"])
    def test_no_mask(self, student, draw, expect, h, t, s):
        inputs = draw(3, h, t, 5), draw(3, h, s, 5), draw(3, h, s, 2), draw(h, scale=2.0)
        self.demand(student, expect, inputs, "without a mask")

    @pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (1, 7)], ids=["t s", "b 1 t s", "1 s"])
    def test_mask(self, student, draw, expect, shape):
        inputs, mask = (draw(2, 3, 5, 5), draw(2, 3, 7, 5), draw(2, 3, 7, 2), draw(3)), draw(*shape) < 0.5
        if shape[-2] > 1:
            mask[..., 2, :] = False
        self.demand(student, expect, inputs, f"with a mask of shape {shape}", mask=mask)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("scale", [1.0, 60.0], ids=["scores", "large scores"])
    def test_merged(self, student, draw, expect, scale):
        query, key, value = draw(3, 3, 5, 5, scale=scale), draw(3, 3, 11, 5), draw(3, 3, 11, 2)
        logits, mask = draw(3), draw(5, 11) < 0.7
        # Query 1 sees nothing in the first part, query 2 nothing at all, and head 0 has no sink.
        mask[1, :4] = mask[2] = False
        logits[0] = -INF
        scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * 5**-0.5
        scores, outputs, lses = scores.masked_fill(~mask, -INF), [], []
        for j in torch.arange(11).split([4, 1, 6]):
            outputs.append(scaled_dot_product_attention(query, key[:, :, j], value[:, :, j], mask[:, j]))
            lses.append(scores[..., j].logsumexp(dim=-1))
        output = student.call("merged", torch.stack(outputs), torch.stack(lses), logits)
        expected = sink_attention(query, key, value, logits, attn_mask=mask)
        expect.close(output, expected, axes=OUTPUT_AXES, what="the parts put together", largest=10 * scale)
