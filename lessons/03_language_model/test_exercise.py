"""The checks of the exercise on the language model. They speak to the student's code through the fixture
`student` and to the reference by import."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from annotated_attention.language_model import Block, LanguageModel, LanguageModelConfig

STREAM = "text token width"
LOGITS = "text token candidate"
# Heads and the width of the stream.
SIZES = {"one head": (1, 7), "three heads": (3, 6), "two heads": (2, 10)}
each_size = pytest.mark.parametrize(("h", "m"), SIZES.values(), ids=SIZES)


def refused(expect, student, name, *args, what, **options):
    expect.raises("ValueError", partial(student.call, name, *args, **options), what=what)


def draw_text(draw, b, t, v, scale=1.0):
    """Logits, and texts that do not begin with the same token twice."""
    logits, tokens = draw(b, t, v, scale=scale), draw.integers(0, v, b, t)
    tokens[:, 1] = (tokens[:, 0] + 1) % v
    return logits, tokens


def nats_of(logits, tokens):
    return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")


@pytest.mark.task(
    "What a text costs",
    hints=[
        "The logits at place i are about the token at place i + 1. Cut both so that what belongs together "
        "stands at the same place: which loses its first, which its last?",
        "ln softmax is z minus the logarithm of a sum: `log_softmax` never leaves the logarithms. `gather` picks "
        "one number for each token, with `tokens[:, 1:, None]` as its index.",
        "Of a text of n tokens n - 1 were asked for. Sum over all texts, then divide once: by their number, "
        "and by ln 2.",
    ],
)
class TestLoss:
    @pytest.mark.parametrize(
        ("b", "t", "v"), [(1, 2, 3), (2, 7, 5), (3, 7, 7)], ids=["a pair", "two texts", "three texts"]
    )
    def test_nats(self, student, draw, expect, b, t, v):
        logits, tokens = draw_text(draw, b, t, v, scale=2.0)

        nats = student.call("next_token_nats", logits, tokens)
        own = -logits.log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]

        def explain(index):
            n, i = index["text"], index["token"]
            if np.isclose(nats[n, i], own[n, i : i + 2]).any():
                return "this is what a token costs that the model has just read"
            return f"after this token comes one with the number {tokens[n, i + 1]}: its cost is wanted here"

        expect.close(nats, nats_of(logits, tokens), axes="text token", what="-ln P", explain=explain)

    def test_large_logits(self, student, draw, expect):
        logits, tokens = draw_text(draw, 2, 5, 7, scale=3000.0)
        nats, expected = student.call("next_token_nats", logits, tokens), nats_of(logits, tokens)
        expect.close(nats, expected, axes="text token", what="-ln P for logits in the thousands", largest=1e4)

    def test_gradient(self, student, draw, expect):
        (logits, tokens), grad = draw_text(draw, 2, 5, 7, scale=900.0), draw(2, 4)
        logits.requires_grad_()
        (wanted,) = torch.autograd.grad(nats_of(logits, tokens), logits, grad)
        ours, _ = student.vjp("next_token_nats", (logits, tokens), grad)
        expect.close(ours, wanted, axes=LOGITS, what="gradient of the logits", factor=3)

    @pytest.mark.parametrize("lengths", [[5, 5], [3, 5, 2], [2, 7, 6, 2]], ids=str)
    def test_bits(self, student, draw, expect, lengths):
        logits, tokens = draw_text(draw, len(lengths), max(lengths) + 2, 5, scale=2.0)
        nats = [nats_of(z[None, :n], x[None, :n])[0] for z, x, n in zip(logits, tokens, lengths, strict=True)]
        bits = student.call("bits_per_byte", logits, tokens, torch.tensor(lengths))
        expected = torch.cat(nats).mean() / math.log(2)
        expect.close(bits, expected, what=f"bits per byte of texts of {lengths} tokens, padded")


def draw_weights(draw, module):
    """New weights for a module of the reference: matrices that keep sizes, norms with a weight around 1."""
    weights = {}
    for name, old in module.state_dict().items():
        is_norm, is_table = "norm.weight" in name, "embedding" in name
        scale = 0.3 if old.ndim == 1 or is_table else old.shape[1] ** -0.5
        weights[name] = draw(*old.shape, scale=scale) + (1.0 if is_norm else 0.0)
    module.double().load_state_dict(weights)
    return weights


def draw_block(draw, h, m):
    reference = Block(LanguageModelConfig(d_model=m, n_heads=h), 0)
    return reference, draw_weights(draw, reference)


@pytest.mark.task(
    "One half of a layer",
    hints=[
        "Mean and variance belong to one vector: `dim=-1`, and `keepdim=True` so that they can be subtracted and "
        "divided by. You need x minus its mean anyway: square that.",
        "Φ(z) is (1 + erf(z / √2)) / 2, with `torch.erf`. `x @ W.mT + b` is what `nn.Linear` does.",
        "Give the norm a name of its own: x itself is needed once more, for the sum at the end.",
    ],
)
class TestMlpHalf:
    @pytest.mark.parametrize(
        ("kind", "scale", "mean"),
        [("usual", 1.0, 0.0), ("small", 0.003, 0.0), ("a large mean", 1.0, 1e6)],
        ids=["usual", "small", "a large mean"],
    )
    def test_norm(self, student, draw, expect, kind, scale, mean):
        x, weight, bias = draw(2, 5, 7, scale=scale) + mean, draw(7), draw(7)
        ours, expected = student.call("layer_norm", x, weight, bias), F.layer_norm(x, (7,), weight, bias)
        what, largest = f"LN of vectors ({kind})", max(1 / scale, mean)
        expect.close(ours, expected, axes=STREAM, what=what, largest=largest)

    def test_eps(self, student, draw, expect):
        x, weight, bias = draw(2, 3, 5), draw(5), draw(5)
        ours = student.call("layer_norm", x, weight, bias, 0.5)
        expected = F.layer_norm(x, (5,), weight, bias, 0.5)
        expect.close(ours, expected, axes=STREAM, what="LN with eps = 0.5")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("m", [5, 8], ids=["width 5", "width 8"])
    def test_half(self, student, draw, expect, m):
        (reference, weights), x = draw_block(draw, 1, m), draw(2, 3, m, scale=2.0)
        expected = x + reference.mlp(reference.mlp_norm(x))
        expect.close(student.call("mlp_half", x, weights), expected, axes=STREAM, what="x + MLP(LN(x))")


@pytest.mark.task(
    "A whole layer",
    hints=[
        'The projections are `b t m`: `rearrange(..., "b t (h d) -> b h t d", h=n_heads)` cuts them into heads. '
        "Read it backwards for what was found.",
        "`torch.ones(t, t, dtype=torch.bool).triu(1)` is True in the future. Where does `masked_fill` put the "
        "minus infinities: before or after the softmax?",
        "Two sums, one after the other: the second half gets the x that already has what attention found.",
    ],
)
class TestBlock:
    @pytest.mark.points(2)
    @each_size
    def test_output(self, student, draw, expect, h, m):
        (reference, weights), x = draw_block(draw, h, m), draw(2, 5, m, scale=2.0)

        def explain(index):
            i = index["token"]
            return "token 0 sees itself and nothing else" if i == 0 else f"token {i} sees the tokens 0 to {i}"

        output = student.call("block", x, weights, h)
        expect.close(output, reference(x), axes=STREAM, what="output", explain=explain)

    def test_future_moves_nothing(self, student, draw, expect):
        (reference, weights), x = draw_block(draw, 2, 6), draw(2, 7, 6)
        changed = torch.cat([x[:, :4], draw(2, 3, 6, scale=5.0)], dim=1)
        output = student.call("block", changed, weights, 2)
        expect.equal(getattr(output, "shape", None), (2, 7, 6), what="the shape of the output")
        what, expected = "output of the first 4 tokens, after the check changed the others", reference(x)
        expect.close(output[:, :4], expected[:, :4], axes=STREAM, what=what)


def draw_model(draw, h, m, n_layers, v=11, places=7):
    """The reference, and the same weights as the exercise wants them."""
    config = LanguageModelConfig(v, places, m, n_layers, h)
    model = LanguageModel(config)
    weights = draw_weights(draw, model)
    blocks = [{k: w.detach() for k, w in block.state_dict().items()} for block in model.blocks]
    norm = {name: weights[f"norm.{name}"] for name in ("weight", "bias")}
    return model, (weights["embedding.weight"], weights["position_embedding.weight"], blocks, norm, h)


@pytest.mark.task(
    "The model",
    hints=[
        "`embedding[tokens]` looks up all vectors at once, `b t m`. The places of a text of t tokens are the "
        "first t rows of their table, the same for every text of the batch.",
        "To compare a vector with all v rows of the table is one product: `x @ embedding.mT`. What comes right "
        "before it?",
        "If the logits are right and the gradient is not: is the same tensor used at both ends, without "
        "`detach`, `.data` or `no_grad`?",
    ],
)
class TestModel:
    @pytest.mark.points(2)
    @pytest.mark.parametrize("t", [7, 4, 1], ids=["all places", "4 of 7 places", "one token"])
    @pytest.mark.parametrize("n_layers", [1, 3], ids=["one layer", "three layers"])
    def test_logits(self, student, draw, expect, t, n_layers):
        (model, weights), tokens = draw_model(draw, 2, 6, n_layers), draw.integers(0, 11, 2, t)
        logits = student.call("language_model", tokens, *weights)
        expect.close(logits, model(tokens), axes=LOGITS, what="logits", largest=10.0)

    @pytest.mark.points(2)
    def test_gradients(self, student, draw, expect):
        (model, weights), tokens, grad = draw_model(draw, 2, 6, 2), draw.integers(0, 5, 3, 4), draw(3, 4, 11)
        tables = [model.embedding.weight, model.position_embedding.weight]
        wanted = torch.autograd.grad(model(tokens), tables, grad)
        ours = student.vjp("language_model", (tokens, *weights), grad)[1:3]

        def explain(index):
            times = (tokens == index["row"]).sum()
            return f"row {index['row']} is read for all logits, and begins the stream {times} times"

        for name, got, table in zip(("table", "places"), ours, wanted, strict=True):
            options = {"factor": 3, "largest": 100.0, "explain": explain if name == "table" else None}
            expect.close(got, table, axes="row width", what=f"gradient of the {name}", **options)

    def test_a_table_has_an_end(self, student, draw, expect):
        (_, weights), tokens = draw_model(draw, 1, 3, 1), draw.integers(0, 11, 1, 8)
        refused(expect, student, "language_model", tokens, *weights, what="8 tokens and 7 places")


def nucleus(logits, temperature, top_p):
    """The distribution, a row and a token at a time."""
    rows = []
    for row in logits.numpy():
        shares = np.exp((row - row.max()) / temperature)
        shares, kept = shares / shares.sum(), np.zeros(len(row))
        for token in sorted(range(len(row)), key=lambda n: -shares[n]):
            if kept.sum() < top_p:
                kept[token] = shares[token]
        rows.append(kept / kept.sum())
    return np.stack(rows)


@pytest.mark.task(
    "What is drawn from",
    hints=[
        "Subtract the largest logit before you divide: the softmax does not notice, and nothing can overflow. 0 "
        "is a case of its own.",
        "`sort(dim=-1, descending=True, stable=True)` returns the values and where they came from. "
        "`cumsum(dim=-1)` minus the values themselves is the sum of those *before* each.",
        "`torch.zeros_like(kept).scatter(-1, index, kept)` puts the values back where they came from.",
    ],
)
class TestSampling:
    @pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0], ids="temperature {}".format)
    @pytest.mark.parametrize("top_p", [1.0, 0.8, 0.4], ids="top-p {}".format)
    def test_distribution(self, student, draw, expect, temperature, top_p):
        logits, options = draw(4, 11, scale=2.0), {"temperature": temperature, "top_p": top_p}
        ours, what = student.call("sampling_probabilities", logits, **options), f"P for {options}"
        expected = nucleus(logits, **options)

        def explain(index):
            n = (expected[index["text"]] > 0).sum()
            return f"{n} of 11 tokens are kept" if top_p < 1 else None

        expect.close(ours, expected, axes="text candidate", what=what, explain=explain)

    @pytest.mark.parametrize("top_p", [0.01, 1.0], ids="top-p {}".format)
    @pytest.mark.parametrize("temperature", [0, 1e-307, 1e-3], ids="temperature {}".format)
    def test_the_cold(self, student, draw, expect, temperature, top_p):
        logits = draw(4, 7, scale=3000.0)
        expected = F.one_hot(logits.argmax(dim=-1), 7).double()
        options = {"temperature": temperature, "top_p": top_p}
        ours, what = student.call("sampling_probabilities", logits, **options), f"P for {options}"
        expect.close(ours, expected, axes="text candidate", what=what)

    def test_ties(self, student, expect):
        logits = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]).double() * 2000
        for temperature, top_p, n in [(1.0, 1.0, 3), (1.0, 0.5, 2), (1.0, 0.2, 1), (0, 1.0, 1)]:
            options, expected = {"temperature": temperature, "top_p": top_p}, np.zeros((1, 5))
            expected[0, [1, 2, 4][:n]] = 1 / n
            ours = student.call("sampling_probabilities", logits, **options)
            what = f"P of three equal tokens for {options}"
            expect.close(ours, expected, axes="text candidate", what=what)

    def test_what_is_refused(self, student, draw, expect):
        for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
            what = str(options)[1:-1]
            refused(expect, student, "sampling_probabilities", draw(2, 5), what=what, **options)


PAIRS = torch.tensor([[3, 1], [1, 1]])
TEXTS = {"the example": [0, 0, 1], "one token": [1], "zeros": [0, 0, 0, 0, 0, 0], "ones": [0, 1, 1, 1, 1]}
TEXTS |= {"a half, twice": [1, 0, 1], "mixed": [1, 1, 0, 0, 0, 1, 0]}


def draw_pairs(draw, v, n, *, zeros=False):
    """Counts, maybe with zeros among them, and a text that they allow."""
    counts = draw.integers(1, 50, v, v)
    if zeros:
        counts[:, 1:] *= draw.integers(0, 2, v, v - 1)
    tokens = [draw.integers(0, v)]
    for _ in range(n):
        row = counts[tokens[-1]]
        # One of all that were counted, each equally likely.
        tokens.append(int((row.cumsum(0) <= draw.integers(0, int(row.sum()))).sum()))
    return counts, tokens


def code_of(tokens, counts):
    """The code, and what the model promises, in bits."""
    low, size, total, bits = 0, 1, 1, 0.0
    for previous, token in pairwise(tokens):
        row = counts[previous].tolist()
        low, total = low * sum(row) + size * sum(row[:token]), total * sum(row)
        size, bits = size * row[token], bits - math.log2(row[token] / sum(row))
    for n in range(math.ceil(bits) + 3):
        first = -(-(low << n) // total)
        if (first + 1) * total <= (low + size) << n:
            return format(first, f"0{n}b") if n else "", bits
    raise AssertionError("no code of two bits more than promised")


@pytest.mark.task(
    "The bits are real",
    hints=[
        "A part has a beginning and a length, `low` and `size`. What does a token with the shares before it, and "
        "its own, make of them? Write it with fractions on paper.",
        "Let all be whole numbers over one denominator, and let that grow by the sum of the row each time. Python's "
        "`int` has no end, but a tensor's numbers have 64 bits: `counts[x].tolist()`.",
        "For n = 0, 1, 2, ...: the first multiple of 2⁻ⁿ that is not below `low` is ⌈low 2ⁿ⌉ 2⁻ⁿ. Does its part "
        "end in time? Decoding is the same way, with the number of the code to say which part to take.",
    ],
)
class TestCode:
    @pytest.mark.parametrize("name", TEXTS)
    def test_short_texts(self, student, expect, name):
        (wanted, bits), tokens = code_of(TEXTS[name], PAIRS), TEXTS[name]
        code = student.call("encode", tokens, PAIRS)
        expect.equal(code, wanted, what=f"the code of {tokens} (it has {bits:.3f} bits)")

    @pytest.mark.points(3)
    @pytest.mark.parametrize(("v", "n"), [(5, 20), (7, 60), (11, 300)], ids=["20", "60", "300 tokens"])
    def test_long_texts(self, student, draw, expect, v, n):
        counts, tokens = draw_pairs(draw, v, n)
        (wanted, bits), code = code_of(tokens, counts), student.call("encode", tokens, counts)
        part = f"the code of {n} tokens, whose part is 2^-{bits:.1f} long"
        expect.true(isinstance(code, str), "the code is not a text of the letters 0 and 1")
        expect.equal(code[:40], wanted[:40], what=f"the beginning of {part}")
        expect.equal(len(code), len(wanted), what=f"the length of {part}")
        expect.true(code == wanted, f"the code of {n} tokens is right at first, but not to its end")

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("v", "n"), [(2, 6), (5, 20), (11, 300)], ids=["6", "20", "300 tokens"])
    @pytest.mark.parametrize("rest", ["", "0000", "1111"], ids=["alone", "zeros follow", "ones follow"])
    def test_decode(self, student, draw, expect, v, n, rest):
        counts, tokens = draw_pairs(draw, v, n, zeros=True)
        code, _ = code_of(tokens, counts)
        text = student.call("decode", code + rest, counts, tokens[0], n)
        expect.equal(np.array(text), np.array(tokens), what=f"the decoded text of {n} tokens")
