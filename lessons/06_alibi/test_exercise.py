"""The checks of the exercise on attention with linear biases.

They speak to the student's code through the fixture `student` and to the reference by import.
"""

import numpy as np
import pytest
import torch

from annotated_attention.alibi import alibi_attention, alibi_bias, alibi_slopes


@pytest.mark.task(
    "Slopes for a power of two",
    hints=[
        "For 8 heads the exponents are -1, -2, ... -8. What are they for 4 heads, if the last is -8 again?",
        "Slope k of n, counted from 1, is 2 to the power -8 k / n. Counted from 0 it would start at 1.",
        "`torch.arange(1, n_heads + 1, dtype=torch.float64)` are the k; `torch.exp2` does the rest.",
    ],
)
class TestPowerOfTwoSlopes:
    @pytest.mark.parametrize("n_heads", [8, 4, 16, 1])
    def test_slopes(self, student, expect, n_heads):
        slopes = student.call("power_of_two_slopes", n_heads)
        expected = alibi_slopes(n_heads, dtype=torch.float64)
        expect.close(slopes, expected, axes="head", what=f"the slopes of {n_heads} heads")
        expect.equal(str(slopes.dtype), "float64", what="the dtype of the slopes")


@pytest.mark.task(
    "Slopes for any number of heads",
    hints=[
        "For 12 heads: 8 slopes come from the series of 8 heads. Which series do the other 4 come from?",
        "They come from the series of 16 heads, every other one from its first: those lie between the slopes "
        "that are already there, so no slope appears twice.",
        "`1 << (n_heads.bit_length() - 1)` is the largest power of two that is not above `n_heads`, and "
        "`series[::2]` is every other entry. Join with `torch.cat` and leave the order as it comes.",
    ],
)
class TestSlopes:
    def test_a_power_of_two_stays_itself(self, student, expect):
        expect.close(
            student.call("alibi_slopes", 8),
            alibi_slopes(8, dtype=torch.float64),
            axes="head",
            what="the slopes of 8 heads",
        )

    @pytest.mark.points(2)
    @pytest.mark.parametrize("n_heads", [12, 3, 25])
    def test_other_counts(self, student, expect, n_heads):
        closest = 1 << (n_heads.bit_length() - 1)

        def explain(index):
            if index["head"] < closest:
                return f"the first {closest} heads have the slopes of {closest} heads"
            return (
                f"from head {closest} on, every other slope of {2 * closest} heads is taken, from the first"
            )

        slopes = student.call("alibi_slopes", n_heads)
        what = f"the slopes of {n_heads} heads"
        expect.close(
            slopes, alibi_slopes(n_heads, dtype=torch.float64), axes="head", what=what, explain=explain
        )

    def test_no_heads_is_an_error(self, student, expect):
        expect.raises("ValueError", student.call, "alibi_slopes", 0, what="0 heads")


@pytest.mark.task(
    "The bias",
    hints=[
        "Two rows of positions are enough: where the queries stand, where the keys stand. Their difference "
        "is a table `t s`.",
        "`positions[:, None] - torch.arange(s)` is that table. Only the queries know of the offset.",
        "The slopes are `h` and the table is `t s`: `slopes[:, None, None]` lines them up. Further away is "
        "lower, in both directions.",
    ],
)
class TestBias:
    @pytest.mark.parametrize(
        ("n_heads", "t", "s", "offset"),
        [(8, 5, 5, 0), (12, 5, 7, 0), (3, 7, 5, 0), (4, 1, 11, 10), (5, 3, 11, 8)],
        ids=["square", "more keys", "more queries", "one new token", "three new tokens"],
    )
    def test_bias(self, student, expect, n_heads, t, s, offset):
        def explain(index):
            query, key = index["query"], index["key"]
            position = query + offset
            return f"query {query} stands at position {position}, {abs(position - key)} away from key {key}"

        bias = student.call("alibi_bias", n_heads, t, s, offset=offset)
        expected = alibi_bias(n_heads, t, s, offset=offset, dtype=torch.float64)
        expect.close(bias, expected, axes="head query key", what="bias", explain=explain)

    def test_far_into_a_text(self, student, expect):
        bias = student.call("alibi_bias", 12, 2, 3, offset=100_003)
        expected = alibi_bias(12, 2, 3, offset=100_003, dtype=torch.float64)
        expect.close(bias, expected, axes="head query key", what="bias of token 100003 and the oldest keys")


@pytest.mark.task(
    "The attention",
    hints=[
        "Four steps: scores, bias, mask, softmax. In which order do the scale and the bias come?",
        "A future key must weigh exactly 0 after the softmax, so its score before it is minus infinity.",
        "`torch.arange(s) > torch.arange(t)[:, None] + offset` is True for the future; see `masked_fill`. If "
        "that is True for a whole row, its softmax is 0 / 0: fill those weights with 0.",
    ],
)
class TestAttention:
    @pytest.mark.parametrize(
        ("h", "t", "s", "options"),
        [
            (3, 7, 7, {}),
            (12, 5, 5, {}),
            (2, 7, 7, {"is_causal": False}),
            (5, 7, 11, {"is_causal": False}),
            (3, 7, 5, {"is_causal": True}),
            (3, 7, 7, {"scale": 0.3}),
        ],
        ids=["causal", "12 heads", "both directions", "more keys", "more queries", "own scale"],
    )
    def test_output(self, student, draw, expect, h, t, s, options):
        query, key, value = draw(2, h, t, 5, scale=2), draw(2, h, s, 5, scale=2), draw(2, h, s, 3)
        output = student.call("alibi_attention", query, key, value, **options)
        expected = alibi_attention(query, key, value, **options)

        def explain(index):
            if options.get("is_causal", True) and index["query"] == 0:
                return "query 0 sees key 0 and nothing else, so its output is value 0"
            return None

        expect.close(output, expected, axes="batch head query width", what="output", explain=explain)

    @pytest.mark.parametrize(("t", "s"), [(1, 7), (3, 11)], ids=["one token", "three tokens"])
    def test_new_tokens_at_an_offset(self, student, draw, expect, t, s):
        query, key, value = draw(2, 3, t, 5), draw(2, 3, s, 5), draw(2, 3, s, 7)
        output = student.call("alibi_attention", query, key, value, offset=s - t)
        expected = alibi_attention(query, key, value, offset=s - t)
        what = f"output of the last {t} of {s} tokens"
        expect.close(output, expected, axes="batch head query width", what=what)

    def test_queries_before_every_key(self, student, draw, expect):
        query, key, value = draw(2, 3, 5, 7), draw(2, 3, 5, 7), draw(2, 3, 5, 2)
        output = student.call("alibi_attention", query, key, value, offset=-2)
        expected = alibi_attention(query, key, value, offset=-2)

        def explain(index):
            return (
                f"query {index['query']} stands before every key and sees none"
                if index["query"] < 2
                else None
            )

        what = "output at offset -2"
        expect.close(output, expected, axes="batch head query width", what=what, explain=explain)

    def test_the_future_changes_nothing(self, student, draw, expect):
        query, key, value = draw(2, 3, 7, 5), draw(2, 3, 7, 5), draw(2, 3, 7, 5)
        now = 3
        other_key, other_value = key.clone(), value.clone()
        other_key[:, :, now + 1 :] = draw(2, 3, 7 - now - 1, 5, scale=30)
        other_value[:, :, now + 1 :] = draw(2, 3, 7 - now - 1, 5, scale=30)
        axes = "batch head query width"
        before = student.call("alibi_attention", query, key, value)
        expected = alibi_attention(query, key, value)
        expect.close(before, expected, axes=axes, what="output before the change")

        def explain(index):
            query = index["query"]
            return f"query {query} must not feel keys that come after it" if query <= now else None

        after = student.call("alibi_attention", query, other_key, other_value)
        expected = alibi_attention(query, other_key, other_value)
        what = f"output after changing the keys and values behind position {now}"
        expect.close(after, expected, axes=axes, what=what, explain=explain, largest=1e3)

    def test_large_scores(self, student, draw, expect):
        query, key, value = draw(1, 2, 5, 3, scale=100), draw(1, 2, 5, 3, scale=100), draw(1, 2, 5, 3)
        output = student.call("alibi_attention", query, key, value)
        expected = alibi_attention(query, key, value)
        what = "output for scores in the thousands"
        expect.close(output, expected, axes="batch head query width", what=what, largest=1e5)

    @pytest.mark.points(2)
    def test_gradients(self, student, draw, expect):
        inputs = draw(2, 3, 5, 7), draw(2, 3, 5, 7), draw(2, 3, 5, 2)
        grad = draw(2, 3, 5, 2)
        ours = student.vjp("alibi_attention", inputs, grad)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        wanted = torch.autograd.grad(alibi_attention(*leaves), leaves, grad)
        for name, got, expected in zip(("query", "key", "value"), ours, wanted, strict=True):
            expect.close(
                got, expected, axes="batch head position width", what=f"gradient of {name}", factor=3
            )


@pytest.mark.task(
    "A bias that grows",
    hints=[
        "Keep one tensor `h size`: row h holds -m, times 0, 1, 2, ... Start with `size` 0.",
        "A table of distances picks the bias: `row[:, distance]` is `h t s` when `distance` is `t s`.",
        "Keep the row in float64 for ever, and cast only what you hand out. `1 << (n - 1).bit_length()` is "
        "the smallest power of two that is at least n.",
    ],
)
class TestGrowingBias:
    def expected(self, scores, offset):
        _, h, t, s = scores.shape
        return scores.double() + alibi_bias(h, t, s, offset=offset, dtype=torch.float64)

    @pytest.mark.points(2)
    def test_prompt_then_tokens(self, student, draw, expect):
        bias = student.new("GrowingBias", 3)
        for t, offset in [(5, 0), (1, 5), (1, 6), (3, 7), (5, 0)]:
            scores = draw(2, 3, t, t + offset)
            result = bias.call("add_to", scores, offset=offset)
            what = f"scores + bias, {t} queries at offset {offset}"
            expect.close(result, self.expected(scores, offset), axes="batch head query key", what=what)

    def test_dtype_may_change(self, student, draw, expect):
        bias = student.new("GrowingBias", 12)
        for name in ("float32", "float64"):
            scores = draw(1, 12, 5, 5, dtype=getattr(torch, name))
            result = bias.call("add_to", scores)
            what = f"scores + bias in {name}"
            expect.close(result, self.expected(scores, 0), axes="batch head query key", what=what)
            expect.equal(str(result.dtype), name, what=f"dtype of the result for scores in {name}")

    def test_size(self, student, draw, expect):
        bias = student.new("GrowingBias", 3)
        expect.equal(bias.get("size"), 0, what="size of a new GrowingBias")
        for t, offset, size in [(3, 0, 4), (1, 5, 8), (3, 0, 8), (1, 8, 16), (2, 13, 16)]:
            bias.call("add_to", draw(1, 3, t, t + offset), offset=offset)
            expect.equal(bias.get("size"), size, what=f"size after {t} queries at offset {offset}")

    @pytest.mark.points(2)
    def test_the_row_is_kept(self, student, draw, expect):
        bias, scores = student.new("GrowingBias", 3), draw(2, 3, 5, 5)
        bias.call("add_to", draw(2, 3, 1, 8), offset=7)
        row = alibi_bias(3, 1, 8, dtype=torch.float64)[:, 0]
        expect.close(bias.get("row"), row, axes="head distance", what="row, the bias at distances 0 to 7,")
        # A mark on the row must show in a call that needs no new one, and must outlast it.
        bias.call("row.__iadd__", 1.0)
        result = bias.call("add_to", scores)
        what = "scores + row, after the check added 1 to all of `row`,"
        expect.close(result, self.expected(scores, 0) + 1, axes="batch head query key", what=what)
        what = "`row` after a call that needed no other distances, with the 1 that the check added,"
        expect.close(bias.get("row"), row + 1, axes="head distance", what=what)

    def test_objects_share_nothing(self, student, draw, expect):
        one, other = student.new("GrowingBias", 3), student.new("GrowingBias", 5)
        one.call("add_to", draw(1, 3, 7, 7))
        expect.equal(other.get("size"), 0, what="size of a second GrowingBias that was not used yet")
        scores = draw(1, 5, 3, 3)
        result = other.call("add_to", scores)
        expect.close(result, self.expected(scores, 0), axes="batch head query key", what="scores + bias")


@pytest.mark.task(
    "A head that need not look back",
    hints=[
        "The output is a quotient: a weighted sum of values over a sum of weights. What happens to each of "
        "the two sums when the text moves on by one token?",
        "Both sums shrink by exp(-m), and the new token adds its own part to both. Get the small scores "
        "right first.",
        "For large scores hold both sums relative to the largest exponent so far, which sinks by m with each "
        "step. When a larger one comes, both sums must be rescaled.",
    ],
)
class TestRunning:
    def text(self, draw, h, steps, scale=1.0):
        """Scores and values of a text, and the outputs at its tokens."""
        score, value = draw(2, h, steps, scale=scale), draw(2, h, steps, 5)
        # A query of ones and keys of width 1: then every query gives key j the score a(j).
        key = score[..., None]
        return score, value, alibi_attention(torch.ones_like(key), key, value, scale=1.0)

    def run(self, student, draw, expect, h, steps, scale):
        score, value, expected = self.text(draw, h, steps, scale)
        head = student.new("RunningAlibi", h)
        for now in range(steps):
            output = head.call("step", score[:, :, now], value[:, :, now])
            what = f"output of token {now}"
            expect.close(output, expected[:, :, now], axes="batch head width", what=what, largest=5 * scale)

    def test_a_short_text(self, student, draw, expect):
        self.run(student, draw, expect, h=2, steps=3, scale=1.0)

    def test_a_longer_text(self, student, draw, expect):
        self.run(student, draw, expect, h=3, steps=31, scale=1.0)

    @pytest.mark.points(2)
    def test_large_scores(self, student, draw, expect):
        self.run(student, draw, expect, h=3, steps=11, scale=2000.0)

    @pytest.mark.points(2)
    def test_state_is_small_and_complete(self, student, draw, expect):
        score, value, expected = self.text(draw, h=3, steps=17)
        first, most = student.new("RunningAlibi", 3), 2 * 3 * (5 + 2)
        for now in range(11):
            first.call("step", score[:, :, now], value[:, :, now])
            state = first.get("state")
            is_state = isinstance(state, tuple) and all(isinstance(part, np.ndarray) for part in state)
            expect.true(is_state, "state must be a tuple of tensors")
            size = sum(part.size for part in state)
            told = f"state holds {size} numbers after {now + 1} tokens, b h (e + 2) are 2 · 3 · 7 = {most}"
            expect.true(size <= most, told)
        second = student.new("RunningAlibi", 3, tuple(map(torch.from_numpy, state)))
        for now in range(11, 17):
            output = second.call("step", score[:, :, now], value[:, :, now])
            what = f"output of token {now}, in an object that went on from another's state after 11 tokens,"
            expect.close(output, expected[:, :, now], axes="batch head width", what=what)

    def test_two_texts(self, student, draw, expect):
        one, other = student.new("RunningAlibi", 3), student.new("RunningAlibi", 3)
        one.call("step", draw(2, 3), draw(2, 3, 5))
        value = draw(7, 3, 5)
        output = other.call("step", draw(7, 3), value)
        what = "first output of a second text, which is its own value,"
        expect.close(output, value, axes="batch head width", what=what)
