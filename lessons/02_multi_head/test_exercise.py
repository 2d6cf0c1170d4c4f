"""The checks of the exercise on multi-head attention.

They speak to the student's code through the fixture `student` and to the reference by import.
"""

from functools import partial

import pytest
import torch
from torch import nn

from annotated_attention.multi_head import MultiHeadAttention, merge_heads, split_heads
from annotated_attention.scaled_dot_product import attention_weights

WEIGHT_AXES = "batch head query key"
OUTPUT_AXES = "batch query width"
HEADS = {"two heads": (1, 2, 2, 2), "three heads": (2, 3, 5, 7), "one token": (2, 7, 1, 3)}
SIZES = {"as many keys": (5, 5), "more keys": (5, 7), "more queries": (7, 5)}
LAYERS = {"self-attention": (3, 7, 5), "cross-attention": (2, 5, 11), "one head": (1, 3, 5)}
GIVEN = {"both": (True, True), "attn_mask": (True, False), "key_padding_mask": (False, True)}
REMOVED = {"one head": [1], "two heads": [0, 3], "all but one": [4, 2, 1, 0], "none": []}


def draw_state(draw, m):
    """Random weights for a layer of width m, under the names of the exercise and of the reference."""
    parts = {f"{name}.weight": draw(m, m, scale=m**-0.5) for name in ("w_q", "w_k", "w_v", "w_o")}
    return parts | {f"{name}.bias": draw(m) for name in ("w_q", "w_k", "w_v", "w_o")}


def student_layer(student, state, n_heads, dropout=0.0):
    """The student's layer in float64 with these weights."""
    layer = student.new("MultiHeadAttention", state["w_o.bias"].shape[0], n_heads, dropout=dropout)
    layer.call("double")
    layer.call("load_state_dict", state)
    return layer


def reference_layer(state, n_heads):
    layer = MultiHeadAttention(state["w_o.bias"].shape[0], n_heads).double()
    layer.load_state_dict(state)
    return layer


def agrees(expect, answer, wanted, largest=1.0):
    """The answer is the pair of output and weights that is wanted."""
    output, weights = expect.unpack(answer, "output", "weights")
    expect.close(weights, wanted[1], axes=WEIGHT_AXES, what="weights")
    expect.close(output, wanted[0], axes=OUTPUT_AXES, what="output", largest=largest)


def gradients_agree(expect, ours, function, inputs, grads):
    """The gradients are those of the reference `function` at `inputs`, a dict of tensors by name."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs.values()]
    wanted = torch.autograd.grad(function(*leaves), leaves, grads)
    for name, got, expected in zip(inputs, ours, wanted, strict=True):
        axes = "batch head position width" if expected.ndim == 4 else "batch position width"
        expect.close(got, expected, axes=axes, what=f"gradient of {name}", factor=3)


@pytest.mark.task(
    "Heads are a reshape",
    hints=[
        "Cut the axis m into two axes, then move one of them. Which of the two is the outer one?",
        "After the cut the axes are `b t h d`. A `view` straight to `b h t d` has the right shape, but deals "
        "the numbers out in the wrong order: axes are moved by a transpose.",
        '`einops.rearrange(x, "b t (h d) -> b h t d", h=n_heads)`, and the same pattern the other way round.',
    ],
)
@pytest.mark.parametrize(("b", "h", "t", "d"), HEADS.values(), ids=HEADS)
class TestHeads:
    # Numbers that count upwards show at a glance where each one has come from.
    def test_split(self, student, expect, b, h, t, d):
        x = torch.arange(b * t * h * d, dtype=torch.float64).view(b, t, h * d)

        def explain(index):
            first, token = index["head"] * d, index["token"]
            return f"head {index['head']} owns the numbers {first} to {first + d - 1} of token {token}"

        heads, axes = student.call("split_heads", x, h), "batch head token width"
        expect.close(heads, split_heads(x, h), axes=axes, what="split_heads(x)", explain=explain)

    def test_merge(self, student, expect, b, h, t, d):
        x = torch.arange(b * h * t * d, dtype=torch.float64).view(b, h, t, d)

        def explain(index):
            return "number {1} of head {0} belongs here".format(*divmod(index["width"], d))

        merged, axes = student.call("merge_heads", x), "batch token width"
        expect.close(merged, merge_heads(x), axes=axes, what="merge_heads(x)", explain=explain)


@pytest.mark.task(
    "The weights of every head",
    hints=[
        "Scores first, then the mask, then the softmax. A key that may not be seen must have a weight of "
        "exactly 0 *after* it, and the others must still sum to one.",
        "Where a boolean mask is False the score becomes minus infinity. Only a row in which every score is "
        "minus infinity needs more care.",
        "Find such rows with `(scores == float('-inf')).all(dim=-1, keepdim=True)`. Give them scores of 0 "
        "before the softmax, so that no NaN arises anywhere, and weights of 0 after it.",
    ],
)
class TestWeights:
    def inputs(self, draw, t=5, s=7):
        return draw(2, 3, t, 11, scale=2), draw(2, 3, s, 11, scale=2)

    @pytest.mark.parametrize(("t", "s"), SIZES.values(), ids=SIZES)
    def test_no_mask(self, student, draw, expect, t, s):
        q, k = self.inputs(draw, t, s)
        weights = student.call("attention_weights", q, k)
        expect.close(weights, attention_weights(q, k), axes=WEIGHT_AXES, what="weights")

    @pytest.mark.parametrize(("t", "s"), SIZES.values(), ids=SIZES)
    def test_causal(self, student, draw, expect, t, s):
        q, k = self.inputs(draw, t, s)

        def explain(index):
            future = index["key"] > index["query"]
            return f"key {index['key']} lies in the future of query {index['query']}" if future else None

        weights = student.call("attention_weights", q, k, is_causal=True)
        expected = attention_weights(q, k, is_causal=True)
        expect.close(weights, expected, axes=WEIGHT_AXES, what="causal weights", explain=explain)

    @pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (2, 1, 1, 7)], ids=["t s", "h t s", "b 1 1 s"])
    def test_boolean_mask(self, student, draw, expect, shape):
        q, k = self.inputs(draw)
        mask = draw(*shape) > 0
        mask[..., 0] = True  # here every query sees something

        def explain(index):
            seen = mask.expand(2, 3, 5, 7)[tuple(index.values())].item()
            return f"the mask is {seen} there"

        weights = student.call("attention_weights", q, k, mask)
        expected, what = attention_weights(q, k, mask), "masked weights"
        expect.close(weights, expected, axes=WEIGHT_AXES, what=what, explain=explain)

    def test_float_mask(self, student, draw, expect):
        q, k = self.inputs(draw)
        mask = draw(3, 5, 7)
        mask[:, :, 2] = -torch.inf
        weights = student.call("attention_weights", q, k, mask)
        expected = attention_weights(q, k, mask)
        expect.close(weights, expected, axes=WEIGHT_AXES, what="weights with a float mask")

    def test_a_query_that_sees_nothing(self, student, draw, expect):
        q, k = self.inputs(draw)
        mask = torch.ones(5, 7, dtype=torch.bool)
        mask[2] = False
        weights = student.call("attention_weights", q, k, mask)
        expected, what = attention_weights(q, k, mask), "weights, where query 2 may see nothing"
        expect.close(weights, expected, axes=WEIGHT_AXES, what=what)

    def test_mask_and_causal_is_an_error(self, student, draw, expect):
        q, k = self.inputs(draw)
        mask = torch.ones(5, 7, dtype=torch.bool)
        expect.raises("ValueError", student.call, "attention_weights", q, k, mask, is_causal=True)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("kind", ["bool", "float"])
    def test_gradients_beside_an_empty_row(self, student, draw, expect, kind):
        q, k = self.inputs(draw)
        grad = draw(2, 3, 5, 7)
        mask = torch.ones(5, 7, dtype=torch.bool)
        mask[2] = False
        if kind == "float":
            mask = torch.zeros(5, 7, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        ours = student.vjp("attention_weights", (q, k), grad, attn_mask=mask)
        reference = partial(attention_weights, attn_mask=mask)
        gradients_agree(expect, ours, reference, {"q": q, "k": k}, grad)


@pytest.mark.task(
    "The layer",
    hints=[
        "Three projections that are split into heads, the weights, the values' average, the merge, `w_o`.",
        "`query` goes through `w_q`, `key` through `w_k`, `value` through `w_v`. Only in self-attention are "
        "the three the same tensor.",
        'The average of the values is `torch.einsum("b h t s, b h s d -> b h t d", weights, v)`.',
    ],
)
class TestLayer:
    @pytest.mark.points(2)
    @pytest.mark.parametrize(("h", "d", "s"), LAYERS.values(), ids=LAYERS)
    def test_output_and_weights(self, student, draw, expect, h, d, s):
        state, query = draw_state(draw, h * d), draw(2, 5, h * d)
        key, value = (query, query) if s == 5 else (draw(2, s, h * d), draw(2, s, h * d))
        layer, reference = student_layer(student, state, h), reference_layer(state, h)
        for is_causal in (False, True):
            answer = layer(query, key, value, is_causal=is_causal)
            agrees(expect, answer, reference(query, key, value, is_causal=is_causal))

    def test_each_head_its_own_mask(self, student, draw, expect):
        state, x = draw_state(draw, 21), draw(2, 5, 21)
        mask = draw(3, 5, 5) > 0
        mask[:, 3] = False
        layer = student_layer(student, state, 3)
        agrees(expect, layer(x, x, x, mask), reference_layer(state, 3)(x, x, x, mask))

    @pytest.mark.points(2)
    def test_gradients(self, student, draw, expect):
        state = draw_state(draw, 6)
        inputs = {"query": draw(2, 5, 6), "key": draw(2, 7, 6), "value": draw(2, 7, 6)}
        grads = draw(2, 5, 6), draw(2, 3, 5, 7)
        ours = student_layer(student, state, 3).vjp("__call__", tuple(inputs.values()), grads)
        gradients_agree(expect, ours, reference_layer(state, 3), inputs, grads)


@pytest.mark.task(
    "Dropout",
    hints=[
        "What is dropped are connections between a query and a key, so one decision holds for a whole value.",
        "`nn.Dropout` knows whether the layer is in training, and scales what it keeps by 1 / (1 - p). Where "
        "in `forward` does it belong?",
        "Apply it to the weights just before they meet the values, and return the weights themselves.",
    ],
)
class TestDropout:
    def pieces(self, student, draw):
        """A layer whose output shows the weights that were used, twice: value j is 1 at j and at j + 13."""
        state = draw_state(draw, 26) | {name: torch.eye(26).double() for name in ("w_v.weight", "w_o.weight")}
        state |= {name: torch.zeros(26).double() for name in ("w_v.bias", "w_o.bias")}
        inputs = draw(7, 11, 26), draw(7, 13, 26), torch.eye(13).double().tile(7, 1, 2)
        _, weights = reference_layer(state, 1)(*inputs)
        return student_layer(student, state, 1, dropout=0.25), inputs, weights, weights[:, 0].tile(1, 1, 2)

    def test_training(self, student, draw, expect):
        layer, inputs, _, weights = self.pieces(student, draw)
        output, _ = expect.unpack(layer(*inputs), "output", "weights")
        dropped = torch.from_numpy(output).abs() < 1e-3 * weights
        share = dropped.double().mean().item()
        # 1001 weights: six standard deviations to either side.
        expect.true(0.17 < share < 0.33, f"dropout=0.25 must drop 25% of the weights, not {share:.0%}")
        what, used = "weights that the output was made with", (weights / 0.75).masked_fill(dropped, 0.0)
        expect.close(output, used, axes="batch query key", what=what)
        one_decision = (dropped[..., :13] == dropped[..., 13:]).all().item()
        expect.true(one_decision, "a weight was dropped in one dimension of the value and kept in another")

    def test_training_returns_all_weights(self, student, draw, expect):
        layer, inputs, weights, _ = self.pieces(student, draw)
        _, returned = expect.unpack(layer(*inputs), "output", "weights")
        expect.close(returned, weights, axes=WEIGHT_AXES, what="weights that are returned")

    def test_evaluation(self, student, draw, expect):
        layer, inputs, _, weights = self.pieces(student, draw)
        layer.call("eval")
        output, _ = expect.unpack(layer(*inputs), "output", "weights")
        what = "weights that the output was made with, in evaluation"
        expect.close(output, weights, axes="batch query key", what=what)


@pytest.mark.task(
    "Moving in from torch.nn.MultiheadAttention",
    hints=[
        "Three equal pieces: `in_proj_weight.chunk(3)`. For the mask, ask first where a key is forbidden.",
        "A key is forbidden if either mask forbids it. The result is the opposite of that.",
        "`key_padding_mask` is `b s` and must become `b 1 1 s` to meet `t s`. `|` is or, `~` is not.",
    ],
)
class TestFromTorch:
    def theirs(self, draw, m, h):
        """PyTorch's layer with drawn weights."""
        layer = nn.MultiheadAttention(m, h, batch_first=True, dtype=torch.float64)
        layer.load_state_dict({name: draw(*part.shape) for name, part in layer.state_dict().items()})
        return layer.eval()

    def test_weights(self, student, draw, expect):
        layer = self.theirs(draw, 10, 2)
        renamed = student.call("weights_from_torch", layer.state_dict())
        expected = MultiHeadAttention.from_torch(layer).state_dict()
        expect.true(isinstance(renamed, dict), "weights_from_torch must return a dict")
        for name, wanted in expected.items():
            expect.close(renamed.get(name), wanted, what=name)

    @pytest.mark.parametrize(("forbids", "pads"), GIVEN.values(), ids=GIVEN)
    def test_masks(self, student, draw, expect, forbids, pads):
        forbidden, padding = draw(5, 7) > 0.5, draw(2, 7) > 0.5
        mask = student.call("mask_from_torch", forbidden if forbids else None, padding if pads else None)
        expect.true(str(getattr(mask, "dtype", "")) == "bool", "the result must be a boolean mask")
        expected = ~(forbidden & forbids) & ~(padding & pads)[:, None, None]
        # Any shape that broadcasts will do: what the mask does to equal scores shows what it allows.
        zeros = torch.zeros(2, 3, 5, 11), torch.zeros(2, 3, 7, 11)
        allowed = attention_weights(*zeros, torch.as_tensor(mask)).numpy() > 0
        expect.close(allowed, expected.expand(2, 3, 5, 7), axes=WEIGHT_AXES, what="the mask")

    def test_no_mask(self, student, expect):
        expect.equal(student.call("mask_from_torch", None, None), None, what="the mask made of None and None")

    @pytest.mark.points(2)
    def test_the_two_layers_agree(self, student, draw, expect):
        theirs, x = self.theirs(draw, 10, 2), draw(3, 5, 10)
        forbidden, padding = torch.ones(5, 5).triu(1).bool(), torch.zeros(3, 5).bool()
        padding[1, 3:] = True
        renamed = student.call("weights_from_torch", theirs.state_dict())
        ours = student_layer(student, {name: torch.as_tensor(part) for name, part in renamed.items()}, 2)
        mask = torch.as_tensor(student.call("mask_from_torch", forbidden, padding))
        options = {"attn_mask": forbidden, "key_padding_mask": padding, "average_attn_weights": False}
        # PyTorch's weights are drawn without a scale, so the sums are larger here than elsewhere.
        agrees(expect, ours(x, x, x, mask), theirs(x, x, x, **options), largest=100.0)


def computed(state, n_heads, x, replaced=(), average=None):
    """The formula of the layer, for heads that may be fewer than the model is wide; what the heads of
    `replaced` find is replaced by `average`."""
    q, k, v = (
        split_heads(x @ state[f"{name}.weight"].mT + state[f"{name}.bias"], n_heads)
        for name in ("w_q", "w_k", "w_v")
    )
    heads = torch.einsum("b h t s, b h s d -> b h t d", attention_weights(q, k), v)
    for head in replaced:
        heads[:, head] = average[head]
    return merge_heads(heads) @ state["w_o.weight"].mT + state["w_o.bias"]


@pytest.mark.task(
    "A layer without some of its heads",
    hints=[
        "The output is a sum over heads: each adds its d numbers times its own part of `w_o`. Which part of "
        "each weight belongs to head h? `nn.Linear` computes x Wᵀ + b.",
        "Head h owns the rows h d to (h + 1) d of `w_q`, `w_k` and `w_v`, and as many *columns* of `w_o`.",
        "A head that always finds the same vector always adds the same vector to the output. There is a "
        "weight that does just that.",
    ],
)
class TestRemoveHeads:
    def test_shapes(self, student, draw, expect):
        smaller = student.call("remove_heads", draw_state(draw, 15), 5, [0, 3], draw(5, 3))
        expect.true(isinstance(smaller, dict), "remove_heads must return a dict")
        for name in ("w_q", "w_k", "w_v", "w_o"):
            wanted = ((15, 9), (15,)) if name == "w_o" else ((9, 15), (9,))
            shapes = tuple(
                getattr(smaller.get(f"{name}.{part}"), "shape", None) for part in ("weight", "bias")
            )
            expect.equal(
                shapes, wanted, what=f"the shapes of {name}, weight and bias, with 3 of 5 heads left"
            )

    @pytest.mark.points(3)
    @pytest.mark.parametrize("average", [0, 1], ids=["average 0", "any average"])
    @pytest.mark.parametrize("removed", REMOVED.values(), ids=REMOVED)
    def test_output(self, student, draw, expect, removed, average):
        state, x = draw_state(draw, 15), draw(2, 7, 15)
        fixed = draw(5, 3) * average
        smaller = student.call("remove_heads", state, 5, removed, fixed)
        tensors = {name: torch.as_tensor(part) for name, part in smaller.items()}
        output = computed(tensors, 5 - len(removed), x)
        expected = computed(state, 5, x, removed, fixed)
        what = f"output without the heads {removed}"
        expect.close(output.numpy(), expected, axes=OUTPUT_AXES, what=what)
