"""The checks of the exercise on scaled dot-product attention.

They speak to the student's code through the fixture `student` and to the reference by import. The axes are
primes, and different ones where a check does not say otherwise, so that none passes for another.
"""

import numpy as np
import pytest
import torch

from annotated_attention import scaled_dot_product as reference

LOG3, KEYS = float(np.log(3)), "batch head query key"
WIDTH, KEY_WIDTH = "batch head query width", "batch head key width"
# The tiny case of the exercise's text: one query, two keys.
TINY = (
    np.array([2.0, 0, 0, 0]).reshape(1, 1, 1, 4),
    np.array([[0.0, 0, 0, 0], [LOG3, 0, 0, 0]]).reshape(1, 1, 2, 4),
    np.array([4.0, 8.0]).reshape(1, 1, 2, 1),
)


def drawn(draw, t=5, s=7, b=2, h=3, d=11, e=13, g=None, scale=1.0):
    """Query, key and value as tensors."""
    return draw(b, h, t, d, scale=scale), draw(b, g or h, s, d), draw(b, g or h, s, e)


def arrays(*tensors):
    return tuple(tensor.numpy() for tensor in tensors)


def some_hidden(draw, *shape):
    """A boolean mask with hidden keys in every row, and with row 2 hidden as a whole."""
    mask = draw(*shape) > -0.3
    mask[..., 0, 1] = mask[..., 2, :] = False
    return mask


def as_float(mask):
    """The float mask that says the same: 0 or -inf, to be added to the scores."""
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)


def hidden(mask, inputs):
    """An `explain` for weights: why the expected weight is 0."""
    shape = (*inputs[0].shape[:3], inputs[1].shape[2])
    allowed = np.broadcast_to(True if mask is None else mask, shape)

    def explain(index):
        *row, key = index.values()
        if not allowed[tuple(row)].any():
            return f"query {row[-1]} may see no key, so all its weights are 0"
        return None if allowed[(*row, key)] else f"key {key} is hidden from query {row[-1]}"

    return explain


def causal(index):
    """An `explain` for outputs: a wrong causal mask already shows in the first query."""
    return None if index["query"] else "query 0 sees key 0 alone, so its output is the value of key 0"


@pytest.mark.task(
    "A softmax that cannot overflow",
    hints=[
        "Adding one number to all scores of a row changes no weight. Which number makes every exponent safe?",
        "The largest score of the row, subtracted: `scores.max(axis=-1, keepdims=True)`. One for each row, "
        "since the largest of another row may be far away.",
        "If the largest score is -inf the subtraction is inf - inf. Subtract 0 in such a row, and divide "
        "its sum, which is 0, by 1: `np.where(condition, this, that)` chooses entry by entry.",
    ],
)
class TestSoftmax:
    @staticmethod
    def demand(student, expect, scores, what, largest=1.0):
        expected, axes = torch.softmax(scores, dim=-1).nan_to_num(0.0), {1: "key", 2: "row key", 4: KEYS}
        weights = student.call("softmax", scores.numpy())
        expect.close(weights, expected, axes=axes[scores.ndim], what=what, largest=largest)

    def test_two_scores_on_paper(self, student, expect):
        self.demand(student, expect, torch.tensor([0.0, LOG3], dtype=torch.float64), "softmax([0, ln 3])")

    @pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 5, 5)], ids=str)
    def test_last_axis(self, student, draw, expect, shape):
        self.demand(student, expect, draw(*shape, scale=2), f"softmax of scores of shape {shape}")

    def test_large_scores(self, student, draw, expect):
        scores = draw(5, 7, scale=3) + 10_000 * torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0])[:, None]
        self.demand(student, expect, scores, "softmax of rows near 10000, -10000 and 0", largest=1e4)

    def test_minus_infinity_weighs_nothing(self, student, draw, expect):
        scores = draw(5, 7).masked_fill(draw(5, 7) > 1, -torch.inf)
        scores[:, 0], scores[:, 3] = 1.0, -torch.inf
        self.demand(student, expect, scores, "softmax of scores of which some are -inf")

    def test_nothing_to_choose_from(self, student, draw, expect):
        scores = draw(5, 7)
        scores[2] = -torch.inf
        self.demand(student, expect, scores, "softmax with a row of -inf")


@pytest.mark.task(
    "Attention weights",
    hints=[
        "Four steps, and their order matters: dot products, scale, mask, softmax.",
        'All dot products at once: `np.einsum("bhtd,bhsd->bhts", query, key)`. The axis that both have and '
        "the result lacks, d, is the one that is summed, and the one whose root you divide by.",
        "A hidden key is one whose score is -inf before the softmax: `np.where(attn_mask, scores, "
        "-np.inf)`. Your softmax of task 1 then does the rest, also for a row of -inf.",
    ],
)
class TestWeights:
    @staticmethod
    def demand(student, expect, inputs, what, mask=None, largest=1.0):
        weights = student.call("attention_weights", *inputs[:2], mask)
        expected, explain = reference.numpy_weights(*inputs[:2], mask), hidden(mask, inputs)
        expect.close(weights, expected, axes=KEYS, what=what, largest=largest, explain=explain)

    def test_two_keys_on_paper(self, student, expect):
        self.demand(student, expect, TINY, "weights of the tiny case")

    @pytest.mark.parametrize(("t", "s"), [(5, 7), (7, 5), (1, 3), (5, 5)])
    def test_weights(self, student, draw, expect, t, s):
        self.demand(student, expect, arrays(*drawn(draw, t, s)), f"weights of {t} queries and {s} keys")

    @pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (3, 5, 7)], ids=["t s", "b 1 t s", "h t s"])
    def test_mask(self, student, draw, expect, shape):
        mask = (draw(*shape) > -0.3).numpy()
        mask[..., 0], mask[..., 0, 1] = True, False
        self.demand(student, expect, arrays(*drawn(draw)), f"weights with a mask of shape {shape}", mask)

    @pytest.mark.points(2)
    def test_a_query_that_sees_nothing(self, student, draw, expect):
        mask = some_hidden(draw, 5, 7).numpy()
        self.demand(student, expect, arrays(*drawn(draw)), "weights", mask)

    def test_scores_in_the_thousands(self, student, draw, expect):
        inputs = arrays(*drawn(draw, scale=3000))
        self.demand(student, expect, inputs, "weights for scores up to 10000", largest=1e4)


@pytest.mark.task(
    "Attention",
    hints=[
        "`is_causal` is only a mask that you build yourself, `t s`, True where attention is allowed.",
        "Query 0 sees key 0, query 1 sees keys 0 and 1, whatever t and s are. Look up `np.tril`.",
        "`np.tril(np.ones((t, s), dtype=bool))`, with t from the query and s from the key. The values have "
        'a width of their own: `np.einsum("bhts,bhse->bhte", weights, value)`.',
    ],
)
class TestAttention:
    @staticmethod
    def demand(student, expect, inputs, what, explain=None, **options):
        output = student.call("attention", *inputs, **options)
        expected = reference.numpy_attention(*inputs, **options)
        expect.close(output, expected, axes=WIDTH, what=what, explain=explain)

    def test_two_keys_on_paper(self, student, expect):
        self.demand(student, expect, TINY, "output of the tiny case")

    def test_values_of_another_width(self, student, draw, expect):
        self.demand(student, expect, arrays(*drawn(draw)), "output")

    def test_mask(self, student, draw, expect):
        inputs, mask = arrays(*drawn(draw)), some_hidden(draw, 5, 7).numpy()
        self.demand(student, expect, inputs, "output with a mask that hides all from query 2", attn_mask=mask)

    @pytest.mark.parametrize(("t", "s"), [(7, 7), (5, 11), (11, 5), (1, 3)])
    def test_causal(self, student, draw, expect, t, s):
        inputs, what = arrays(*drawn(draw, t, s)), f"output of {t} causal queries on {s} keys"
        self.demand(student, expect, inputs, what, causal, is_causal=True)

    def test_mask_and_causal_is_an_error(self, student, draw, expect):
        inputs, mask = arrays(*drawn(draw)), np.ones((5, 7), dtype=bool)
        expect.raises("ValueError", student.call, "attention", *inputs, mask, True, what="mask and is_causal")


@pytest.mark.task(
    "The backward pass by hand",
    hints=[
        "Go backwards through output = weights · values, weights = softmax(scores), scores = scale · "
        "query · key. In a product, each factor's gradient is the other factor times what comes back.",
        "For the softmax: raising one score takes weight from every other key of the row. So each key's "
        "gradient counts only as far as it exceeds the row's average, an average taken with the weights.",
        "`weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))` is the gradient by the "
        "scaled scores. The scale stands between these and the dot products: once in dq, once in dk.",
    ],
)
class TestBackward:
    @staticmethod
    def demand(student, draw, expect, names, inputs, mask=None):
        grad = draw(*inputs[0].shape[:-1], inputs[2].shape[-1]).numpy()
        answer = expect.unpack(student.call("attention_backward", grad, *inputs, mask), "dq", "dk", "dv")
        expected = reference.numpy_attention_backward(grad, *inputs, mask)
        for name, ours, wanted in zip(("dq", "dk", "dv"), answer, expected, strict=True):
            axes = WIDTH if name == "dq" else KEY_WIDTH
            if name in names:
                expect.close(ours, wanted, axes=axes, what=name, factor=3)

    def test_values(self, student, draw, expect):
        self.demand(student, draw, expect, ["dv"], arrays(*drawn(draw)))

    @pytest.mark.points(2)
    def test_query_and_keys_on_paper(self, student, expect):
        answer = student.call("attention_backward", np.ones((1, 1, 1, 1)), *TINY)
        dq, dk, _ = expect.unpack(answer, "dq", "dk", "dv")
        by_hand = np.array([3 / 8 * LOG3, 0, 0, 0]).reshape(1, 1, 1, 4)
        expect.close(dq, by_hand, axes=WIDTH, what="dq of the tiny case")
        by_hand = np.array([[-0.75, 0, 0, 0], [0.75, 0, 0, 0]]).reshape(1, 1, 2, 4)
        expect.close(dk, by_hand, axes=KEY_WIDTH, what="dk of the tiny case")

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("t", "s"), [(5, 7), (7, 5), (5, 5)])
    def test_all_three(self, student, draw, expect, t, s):
        self.demand(student, draw, expect, ["dq", "dk", "dv"], arrays(*drawn(draw, t, s)))

    def test_a_query_that_sees_nothing(self, student, draw, expect):
        inputs, mask = arrays(*drawn(draw)), some_hidden(draw, 5, 7).numpy()
        self.demand(student, draw, expect, ["dq", "dk", "dv"], inputs, mask)


@pytest.mark.task(
    "The contract of a library",
    hints=[
        "Bring keys and values to h heads first; after that nothing new happens to them. Which of `repeat` "
        "and `repeat_interleave` puts a head's copies next to each other?",
        "The two kinds of mask are told apart by `attn_mask.dtype`. Floats are added after the scale.",
        "Zeros written over NaN may be right forward and wrong backward: 0 times NaN is NaN. Let no NaN "
        "arise: subtract 0 from a row whose largest score is -inf, and divide by 1 where the sum is 0.",
    ],
)
class TestSdpa:
    @staticmethod
    def demand(student, expect, inputs, what, explain=None, **options):
        output = student.call("sdpa", *inputs, **options)
        expected = reference.scaled_dot_product_attention(*inputs, enable_gqa=True, **options)
        expect.close(output, expected, axes=WIDTH, what=what, explain=explain)

    @pytest.mark.parametrize(("h", "g"), [(3, 3), (6, 2), (6, 3), (5, 1)])
    def test_shared_heads(self, student, draw, expect, h, g):
        def explain(index):
            return f"query head {index['head']} uses key head {index['head'] // (h // g)}"

        what = f"output of {h} query heads on {g} key heads"
        self.demand(student, expect, drawn(draw, h=h, g=g), what, explain)

    def test_scale_and_causal(self, student, draw, expect):
        self.demand(student, expect, drawn(draw), "output with scale=0.7", scale=0.7)
        self.demand(student, expect, drawn(draw, 5, 11), "causal output", causal, is_causal=True)

    @pytest.mark.parametrize("shape", [(5, 7), (6, 5, 7), (2, 1, 5, 7)], ids=["t s", "h t s", "b 1 t s"])
    @pytest.mark.parametrize("kind", ["boolean", "float"])
    def test_masks(self, student, draw, expect, kind, shape):
        inputs, mask = drawn(draw, h=6, g=2), some_hidden(draw, *shape)
        if kind == "float":
            mask = draw(*shape) + as_float(mask)
        self.demand(student, expect, inputs, f"output with a {kind} mask of shape {shape}", attn_mask=mask)

    def test_large_scores(self, student, draw, expect):
        inputs = drawn(draw, scale=3000)
        output, expected = student.call("sdpa", *inputs), reference.scaled_dot_product_attention(*inputs)
        expect.close(output, expected, axes=WIDTH, what="output for scores up to 10000", largest=1e4)

    def test_heads_that_do_not_fit_are_an_error(self, student, draw, expect):
        expect.raises("ValueError", student.call, "sdpa", *drawn(draw, h=6, g=5), what="6 heads, 5 key heads")

    def test_mask_and_causal_is_an_error(self, student, draw, expect):
        mask = torch.ones(5, 7, dtype=torch.bool)
        expect.raises("ValueError", student.call, "sdpa", *drawn(draw), mask, True, what="mask and is_causal")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("kind", ["no mask", "boolean mask", "float mask"])
    def test_gradients(self, student, draw, expect, kind):
        inputs, grad, mask = drawn(draw, h=6, g=2), draw(2, 6, 5, 13), some_hidden(draw, 5, 7)
        masks = {"no mask": None, "boolean mask": mask, "float mask": as_float(mask)}
        ours = student.vjp("sdpa", inputs, grad, attn_mask=masks[kind])
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = reference.scaled_dot_product_attention(*leaves, attn_mask=masks[kind], enable_gqa=True)
        wanted = torch.autograd.grad(output, leaves, grad)
        for name, got, expected in zip(("query", "key", "value"), ours, wanted, strict=True):
            axes = WIDTH if name == "query" else KEY_WIDTH
            what = f"gradient of {name} ({kind})"
            expect.close(got, expected, axes=axes, what=what, factor=3)


@pytest.mark.task(
    "Keys that arrive one by one",
    hints=[
        "Without fear of overflow two sums would do: of exp(score), and of exp(score) times value. Their "
        "quotient is the output, and both can be added to for ever.",
        "With the largest score so far, m, keep the sums of exp(score - m). When a larger score m' comes, "
        "what was summed is too large by a known factor, the same for both sums.",
        "The factor is exp(m - m'). Start with m = -inf and both sums 0: exp(-inf) is 0, and 0/0 in `read` "
        "is to be 0. The second sum is `t e`, so there the factor needs a `[:, None]`.",
    ],
)
class TestRunning:
    @staticmethod
    def expected(query, key, value):
        return reference.numpy_attention(query[None, None], key[None, None], value[None, None])[0, 0]

    @staticmethod
    def fed(running, keys, values):
        for key, value in zip(keys, values, strict=True):
            running.call("update", key, value)

    def test_before_the_first_key(self, student, draw, expect):
        running = student.new("RunningAttention", draw(5, 7).numpy(), 3)
        expect.close(running.call("read"), np.zeros((5, 3)), axes="query width", what="read() before any key")

    @pytest.mark.points(2)
    def test_read_after_each_key(self, student, draw, expect):
        query, key, value = arrays(draw(5, 7), draw(11, 7), draw(11, 3))
        running = student.new("RunningAttention", query, 3)
        for n in range(1, 12):
            running.call("update", key[n - 1], value[n - 1])
            what = f"read() after {n} key{'s' * (n > 1)}"
            expected = self.expected(query, key[:n], value[:n])
            expect.close(running.call("read"), expected, axes="query width", what=what)

    @pytest.mark.parametrize("order", ["rising", "falling"])
    def test_large_scores(self, student, draw, expect, order):
        query, key, value = arrays(1 + draw(5, 7).abs(), draw(11, 7), draw(11, 3))
        key = key + np.linspace(-1000, 1000, 11)[:, None]
        # Two keys share the largest score, so that the output is a mix.
        key[-2] = key[-1]
        if order == "falling":
            key, value = key[::-1], value[::-1]
        running = student.new("RunningAttention", query, 3)
        self.fed(running, key, value)
        what = f"read() after 11 keys with {order} scores up to 10000"
        expected = self.expected(query, key, value)
        expect.close(running.call("read"), expected, axes="query width", what=what, largest=1e5)

    @pytest.mark.points(2)
    def test_state_is_small_and_complete(self, student, draw, expect):
        query, key, value = arrays(draw(5, 7), draw(23, 7), draw(23, 3))
        first = student.new("RunningAttention", query, 3)
        for n in range(17):
            first.call("update", key[n], value[n])
            state = first.get("state")
            is_state = isinstance(state, tuple) and all(isinstance(part, np.ndarray) for part in state)
            expect.true(is_state, "state must be a tuple of NumPy arrays")
            size = sum(part.size for part in state)
            told = f"state holds {size} numbers after {n + 1} keys, t (e + 2) are 5 · 5 = 25"
            expect.true(size <= 25, told)
        second = student.new("RunningAttention", query, 3, state)
        self.fed(second, key[17:], value[17:])
        what = "read() of an object that went on from the state of another, after 17 + 6 keys"
        expect.close(second.call("read"), self.expected(query, key, value), axes="query width", what=what)
