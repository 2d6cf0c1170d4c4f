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
# A mask of five queries and seven keys that hides all from query 2.
EMPTY_ROW = (torch.arange(5) != 2)[:, None].repeat(1, 7)
HEADS = {"two heads": (1, 2, 2, 2), "three heads": (2, 3, 5, 7), "one token": (2, 7, 1, 3)}
SIZES = {"as many keys": (5, 5), "more keys": (5, 7), "more queries": (7, 5)}
LAYERS = {"self-attention": (3, 7, 5), "cross-attention": (2, 5, 11), "one head": (1, 3, 5)}
GIVEN = {"both": (True, True), "attn_mask": (True, False), "key_padding_mask": (False, True)}
EIGHT = "the eight names are those of your layer's weights"
REMOVED = {"one head": [1], "two heads": [0, 3], "all but one": [4, 2, 1, 0], "none": []}


def draw_state(draw, m):
    """Random weights for a layer of width m, under the names of the exercise and of the reference."""
    parts = {f"{name}.weight": draw(m, m, scale=m**-0.5) for name in ("w_q", "w_k", "w_v", "w_o")}
    return parts | {f"{name}.bias": draw(m) for name in ("w_q", "w_k", "w_v", "w_o")}


def by_name(expect, owner, parts, like, remark):
    """The student's `parts`, of `owner`, as tensors, once their names and shapes are those of `like`."""
    expect.names(parts, like, what=owner, remark=remark)
    for name, part in like.items():
        shape = getattr(parts[name], "shape", None)
        expect.equal(shape, tuple(part.shape), what=f"{owner}: the shape of {name}")
    return {name: torch.as_tensor(part).double() for name, part in parts.items()}


def student_layer(student, expect, state, n_heads, dropout=0.0):
    """The student's layer in float64 with these weights."""
    layer = student.new("MultiHeadAttention", state["w_o.bias"].shape[0], n_heads, dropout=dropout)
    layer.call("double")
    remark = "the four projections are `nn.Linear` with bias, named `w_q`, `w_k`, `w_v`, `w_o`"
    by_name(expect, "Your layer", layer.call("state_dict"), state, remark)
    layer.call("load_state_dict", state)
    return layer


def reference_layer(state, n_heads):
    # Its first weights are random, and the student's own draws are to stay what they are.
    with torch.random.fork_rng(devices=[]):
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

    def demand(self, student, expect, inputs, what, explain=None, **options):
        weights = student.call("attention_weights", *inputs, **options)
        expected = attention_weights(*inputs, **options)
        expect.close(weights, expected, axes=WEIGHT_AXES, what=what, explain=explain)

    @pytest.mark.parametrize(("t", "s"), SIZES.values(), ids=SIZES)
    def test_no_mask(self, student, draw, expect, t, s):
        self.demand(student, expect, self.inputs(draw, t, s), "weights")

    @pytest.mark.parametrize(("t", "s"), SIZES.values(), ids=SIZES)
    def test_causal(self, student, draw, expect, t, s):
        def explain(index):
            future = index["key"] > index["query"]
            return f"key {index['key']} lies in the future of query {index['query']}" if future else None

        self.demand(student, expect, self.inputs(draw, t, s), "causal weights", explain, is_causal=True)

    @pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (2, 1, 1, 7)], ids=["t s", "h t s", "b 1 1 s"])
    def test_boolean_mask(self, student, draw, expect, shape):
        mask = draw(*shape) > 0
        mask[..., 0] = True  # here every query sees something

        def explain(index):
            return f"the mask is {mask.expand(2, 3, 5, 7)[tuple(index.values())].item()} there"

        self.demand(student, expect, self.inputs(draw), "masked weights", explain, attn_mask=mask)

    def test_float_mask(self, student, draw, expect):
        mask = draw(3, 5, 7)
        mask[:, :, 2] = -torch.inf
        self.demand(student, expect, self.inputs(draw), "weights with a float mask", attn_mask=mask)

    def test_a_query_that_sees_nothing(self, student, draw, expect):
        self.demand(student, expect, self.inputs(draw), "weights, query 2 without keys", attn_mask=EMPTY_ROW)

    def test_mask_and_causal_is_an_error(self, student, draw, expect):
        call = partial(student.call, "attention_weights", *self.inputs(draw))
        expect.raises("ValueError", call, EMPTY_ROW, True, what="mask and is_causal")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("kind", ["bool", "float"])
    def test_gradients_beside_an_empty_row(self, student, draw, expect, kind):
        (q, k), grad = self.inputs(draw), draw(2, 3, 5, 7)
        mask = EMPTY_ROW if kind == "bool" else torch.zeros(5, 7).double().masked_fill(~EMPTY_ROW, -torch.inf)
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
        layer, reference = student_layer(student, expect, state, h), reference_layer(state, h)
        for option in ({"is_causal": False}, {"is_causal": True}):
            agrees(expect, layer(query, key, value, **option), reference(query, key, value, **option))

    def test_each_head_its_own_mask(self, student, draw, expect):
        state, x = draw_state(draw, 21), draw(2, 5, 21)
        mask = draw(3, 5, 5) > 0
        mask[:, 3] = False
        layer = student_layer(student, expect, state, 3)
        agrees(expect, layer(x, x, x, mask), reference_layer(state, 3)(x, x, x, mask))

    @pytest.mark.points(2)
    def test_gradients(self, student, draw, expect):
        state = draw_state(draw, 6)
        inputs = {"query": draw(2, 5, 6), "key": draw(2, 7, 6), "value": draw(2, 7, 6)}
        grads = draw(2, 5, 6), draw(2, 3, 5, 7)
        ours = student_layer(student, expect, state, 3).vjp("__call__", tuple(inputs.values()), grads)
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
    def run(self, student, draw, expect, training=True):
        """The answer of a layer whose output shows the weights that were used, twice, since value j is 1 at
        j and at j + 13; and the weights that are right."""
        state = draw_state(draw, 26) | {name: torch.eye(26).double() for name in ("w_v.weight", "w_o.weight")}
        state |= {name: torch.zeros(26).double() for name in ("w_v.bias", "w_o.bias")}
        inputs = draw(7, 11, 26), draw(7, 13, 26), torch.eye(13).double().tile(7, 1, 2)
        _, weights = reference_layer(state, 1)(*inputs)
        layer = student_layer(student, expect, state, 1, dropout=0.25)
        layer.call("train" if training else "eval")
        return *expect.unpack(layer(*inputs), "output", "weights"), weights

    def test_training(self, student, draw, expect):
        output, _, weights = self.run(student, draw, expect)
        expect.equal(getattr(output, "shape", None), (7, 11, 26), what="the shape of the output")
        weights = weights[:, 0].tile(1, 1, 2)
        dropped = torch.from_numpy(output).abs() < 1e-3 * weights
        share = dropped.double().mean().item()
        # 1001 weights: six standard deviations to either side.
        expect.true(0.17 < share < 0.33, f"dropout=0.25 must drop 25% of the weights, not {share:.0%}")
        what, used = "weights that the output was made with", (weights / 0.75).masked_fill(dropped, 0.0)
        expect.close(output, used, axes="batch query key", what=what)
        one_decision = (dropped[..., :13] == dropped[..., 13:]).all().item()
        expect.true(one_decision, "a weight was dropped in one dimension of the value and kept in another")

    def test_training_returns_all_weights(self, student, draw, expect):
        _, returned, weights = self.run(student, draw, expect)
        expect.close(returned, weights, axes=WEIGHT_AXES, what="weights that are returned")

    def test_evaluation(self, student, draw, expect):
        output, _, weights = self.run(student, draw, expect, training=False)
        used, what = weights[:, 0].tile(1, 1, 2), "weights that the output was made with, in evaluation"
        expect.close(output, used, axes="batch query key", what=what)


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

    def renamed(self, student, expect, layer):
        """The layer's weights under the exercise's names, by the student, and by the reference."""
        expected = MultiHeadAttention.from_torch(layer).state_dict()
        answer = student.call("weights_from_torch", layer.state_dict())
        return by_name(expect, "The result of weights_from_torch", answer, expected, EIGHT), expected

    def mask(self, student, expect, forbidden, padding, size):
        """The student's mask as it is broadcast to the `size` of the weights."""
        mask = student.call("mask_from_torch", forbidden, padding)
        expect.true(str(getattr(mask, "dtype", "")) == "bool", "the result must be a boolean mask")
        pairs = zip(mask.shape[::-1], size[::-1], strict=False)
        fits = mask.ndim <= len(size) and all(ours in (1, full) for ours, full in pairs)
        expect.true(fits, f"the mask's shape {mask.shape} does not broadcast to b h t s = {tuple(size)}")
        return torch.as_tensor(mask).expand(size)

    def test_weights(self, student, draw, expect):
        layer = self.theirs(draw, 10, 2)
        renamed, expected = self.renamed(student, expect, layer)
        for name, wanted in expected.items():
            expect.close(renamed[name].numpy(), wanted, what=name)

    @pytest.mark.parametrize(("forbids", "pads"), GIVEN.values(), ids=GIVEN)
    def test_masks(self, student, draw, expect, forbids, pads):
        forbidden, padding = draw(5, 7) > 0.5, draw(2, 7) > 0.5
        expected = (~(forbidden & forbids) & ~(padding & pads)[:, None, None]).expand(2, 3, 5, 7)
        given = forbidden if forbids else None, padding if pads else None
        mask = self.mask(student, expect, *given, expected.shape)
        expect.close(mask.numpy(), expected, axes=WEIGHT_AXES, what="the mask")

    def test_no_mask(self, student, expect):
        expect.equal(student.call("mask_from_torch", None, None), None, what="the mask made of None and None")

    @pytest.mark.points(2)
    def test_the_two_layers_agree(self, student, draw, expect):
        theirs, x = self.theirs(draw, 10, 2), draw(3, 5, 10)
        forbidden, padding = torch.ones(5, 5).triu(1).bool(), torch.zeros(3, 5).bool()
        padding[1, 3:] = True
        renamed, _ = self.renamed(student, expect, theirs)
        ours = student_layer(student, expect, renamed, 2)
        mask = self.mask(student, expect, forbidden, padding, (3, 2, 5, 5))
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
    @pytest.mark.points(3)
    @pytest.mark.parametrize("average", [0, 1], ids=["average 0", "any average"])
    @pytest.mark.parametrize("removed", REMOVED.values(), ids=REMOVED)
    def test_output(self, student, draw, expect, removed, average):
        state, x, fixed = draw_state(draw, 15), draw(2, 7, 15), draw(5, 3) * average
        n = 15 - 3 * len(removed)
        like = {name: part[:n] for name, part in state.items()}
        like |= {"w_o.weight": state["w_o.weight"][:, :n], "w_o.bias": state["w_o.bias"]}
        answer = student.call("remove_heads", state, 5, removed, fixed)
        smaller = by_name(expect, "The result of remove_heads", answer, like, EIGHT)
        output, expected = computed(smaller, 5 - len(removed), x), computed(state, 5, x, removed, fixed)
        expect.close(output.numpy(), expected, axes=OUTPUT_AXES, what=f"output without the heads {removed}")
