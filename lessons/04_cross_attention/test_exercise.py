"""The checks of the exercise on cross-attention. They speak to the student's code through the fixture `student`
and to the reference by import."""

from functools import partial

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from annotated_attention.cross_attention import CrossAttention, VisionProjector, insert_features
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

WIDTHS = ["a context as wide", "a wider context", "a narrower context"]
NAMES = ("query", "key", "value")
HEADS = ["one head", "c above d", "c below d"]
PAIR_AXES = "text head position width"
HEAD_AXES = "text head query width"
X_AXES = "text query width"
SIZES = ["as many keys", "more keys", "more queries"]
# Queries, and real keys of each text out of 5.
PADDING = {"two texts": (3, [5, 2]), "as many texts as queries": (3, [4, 1, 5])}
PADDING |= {"as many keys as queries": (5, [2, 4]), "a text without keys": (3, [0, 3])}
IMAGE = -200
TEXTS = {
    "one image each": [[5, IMAGE, 7], [6, 0, IMAGE, 2, 9]],
    "no image, two images": [[4, 8], [IMAGE, 3, IMAGE, 1]],
    "neighbours": [[IMAGE, IMAGE, 10], [2], [IMAGE]],
}


def mask_of(lengths, s=5):
    return torch.arange(s) < torch.tensor(lengths)[:, None]


def attention(query, key, value, padding_mask=None):
    mask = None if padding_mask is None else padding_mask[:, None, None]
    return scaled_dot_product_attention(query, key, value, mask)


def draw_layer(draw, m, c, n_heads):
    """The reference's layer with drawn weights."""
    layer = CrossAttention(m, c, n_heads).double()
    layer.load_state_dict({name: draw(*w.shape, scale=m**-0.5) for name, w in layer.state_dict().items()})
    return layer


def weights_of(layer):
    return tuple(layer.state_dict()[f"w_{name}.weight"] for name in "qkvo")


def with_weights(expect, handle, state):
    """The student's module in float64 with these weights, once it has such."""
    handle.call("double")
    own = handle.call("state_dict")
    expect.names(own, state, what="your layer's state_dict()")
    for name, weight in state.items():
        expect.equal(own[name].shape, tuple(weight.shape), what=f"the shape of {name}, as it is stored,")
    handle.call("load_state_dict", state)
    return handle


def both_layers(student, draw, expect, m=6, c=11):
    """The student's layer of three heads and the reference's, with the same weights."""
    reference = draw_layer(draw, m, c, 3)
    layer = with_weights(expect, student.new("CrossAttention", m, c, 3), reference.state_dict())
    return layer, reference


def gradients_agree(expect, ours, function, inputs, grad):
    """The gradients are those of the reference `function` at `inputs`, a dict of tensors by name."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs.values()]
    wanted = torch.autograd.grad(function(*leaves), leaves, grad)
    for name, got, expected in zip(inputs, ours, wanted, strict=True):
        axes = PAIR_AXES if expected.ndim == 4 else "text position width"
        expect.close(got, expected, axes=axes, what=f"gradient of {name}", factor=3)


def padded(expect, answer, rows, what):
    """The answer is these rows, padded, and the mask that says so."""
    contexts, mask = expect.unpack(answer, what, "padding mask")
    lengths = [len(row) for row in rows]
    longest = max(lengths)

    def explain(index):
        return f"{lengths[index['text']]} of its {longest} positions are real"

    wanted, real = pad_sequence(rows, batch_first=True), mask_of(lengths, longest)
    expect.close(contexts, wanted, axes="text position width", what=what, explain=explain)
    expect.close(mask, real, axes="text position", what="the padding mask", explain=explain)


@pytest.mark.task(
    "Contexts of different lengths",
    hints=[
        "Two things are needed: a rectangle of zeros into which the contexts are written, and a rectangle "
        "that knows the lengths. The second needs to know nothing else.",
        "`torch.arange(s) < lengths[:, None]` compares every position with every length: `b s`.",
        "`row.new_zeros(b, s, c)` has the dtype of `row`.",
    ],
)
class TestPad:
    @pytest.mark.parametrize("lengths", [[3, 1], [2, 5, 0, 5], [4]], ids=["two", "one is empty", "only one"])
    def test_rows(self, student, draw, expect, lengths):
        rows = [draw(length, 3) for length in lengths]
        padded(expect, student.call("pad", rows), rows, "contexts")

    def test_a_real_vector_of_zeros(self, student, draw, expect):
        rows = [draw(4, 2), draw(3, 2).triu()]  # the last vector of the second is 0
        padded(expect, student.call("pad", rows), rows, "contexts")


@pytest.mark.task(
    "The attention",
    hints=[
        "Only keys can be padding. Which axis of the scores, `b h t s`, are they, and which axis of the mask?",
        "`padding_mask[:, None, None, :]` is `b 1 1 s`: one line for all heads and queries of a text. Where "
        "it is False the score becomes minus infinity.",
        "Minus infinity in the whole row is 0 / 0. Give such rows scores of 0 before the softmax and weights "
        "of 0 after it: then no NaN arises, on the way back neither.",
    ],
)
class TestAttention:
    def inputs(self, draw, b=2, t=3, s=5, scale=1.0):
        return draw(b, 3, t, 7, scale=scale), draw(b, 3, s, 7, scale=scale), draw(b, 3, s, 2)

    @pytest.mark.parametrize(("t", "s"), [(5, 5), (3, 7), (7, 5)], ids=SIZES)
    def test_no_padding(self, student, draw, expect, t, s):
        inputs = self.inputs(draw, t=t, s=s, scale=2.0)
        output = student.call("cross_attention", *inputs)
        expect.close(output, attention(*inputs), axes=HEAD_AXES, what="output")

    @pytest.mark.parametrize(("t", "lengths"), PADDING.values(), ids=PADDING)
    def test_padding(self, student, draw, expect, t, lengths):
        inputs, mask = self.inputs(draw, b=len(lengths), t=t), mask_of(lengths)
        output, expected = student.call("cross_attention", *inputs, mask), attention(*inputs, mask)

        def explain(index):
            return f"{lengths[index['text']]} of the 5 keys of text {index['text']} are real"

        expect.close(output, expected, axes=HEAD_AXES, what="output with padding", explain=explain)

    def test_padding_anywhere(self, student, draw, expect):
        inputs, mask = self.inputs(draw, scale=30.0), draw(2, 5) > 0
        output, expected = student.call("cross_attention", *inputs, mask), attention(*inputs, mask)
        what = "output for a mask with gaps and scores of a thousand"
        expect.close(output, expected, axes=HEAD_AXES, what=what, largest=1e4)

    @pytest.mark.points(2)
    def test_gradients(self, student, draw, expect):
        inputs, mask, grad = self.inputs(draw), mask_of([0, 3]), draw(2, 3, 3, 2)
        ours = student.vjp("cross_attention", inputs, grad, padding_mask=mask)
        named = dict(zip(NAMES, inputs, strict=True))
        gradients_agree(expect, ours, partial(attention, padding_mask=mask), named, grad)


@pytest.mark.task(
    "The layer",
    hints=[
        "Which of the four projections read the context? Their weights are `m c`, the other two `m m`.",
        '`rearrange(self.w_k(context), "b s (h d) -> b h s d", h=n_heads)` makes keys, and keys that are '
        "given are that already: what is left to do with them?",
        "`(context is None) == (keys_values is None)` is True in both cases that are an error.",
    ],
)
class TestLayer:
    @pytest.mark.parametrize(("m", "c"), [(6, 6), (6, 11), (15, 4)], ids=WIDTHS)
    def test_project(self, student, draw, expect, m, c):
        (layer, reference), context = both_layers(student, draw, expect, m, c), draw(2, 5, c)
        ours = expect.unpack(layer.call("project", context), *NAMES[1:])
        for name, got, wanted in zip(NAMES[1:], ours, reference.project(context), strict=True):
            expect.close(got, wanted, axes=PAIR_AXES, what=f"{name} of project(context)")

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("m", "c", "s"), [(6, 6, 5), (6, 11, 7), (15, 4, 3)], ids=WIDTHS)
    def test_context(self, student, draw, expect, m, c, s):
        layer, reference = both_layers(student, draw, expect, m, c)
        x, context = draw(2, 5, m), draw(2, s, c)
        expect.close(layer(x, context), reference(x, context), axes=X_AXES, what="output")
        mask = mask_of([s, 2], s)
        output, expected = layer(x, context, padding_mask=mask), reference(x, context, padding_mask=mask)
        expect.close(output, expected, axes=X_AXES, what="output with padding")

    def test_keys_and_values(self, student, draw, expect):
        layers, x = both_layers(student, draw, expect), draw(2, 5, 6)
        pair, what = (draw(2, 3, 7, 2), draw(2, 3, 7, 2)), "output for given keys and values"
        for mask in (None, mask_of([0, 4], 7)):
            output, expected = (layer(x, keys_values=pair, padding_mask=mask) for layer in layers)
            expect.close(output, expected, axes=X_AXES, what=what)
            what += ", with padding"

    def test_both_or_neither_is_an_error(self, student, draw, expect):
        (layer, _), pair = both_layers(student, draw, expect), (draw(2, 3, 7, 2), draw(2, 3, 7, 2))
        x, context = draw(2, 5, 6), draw(2, 7, 11)
        expect.raises("ValueError", layer, x, what="neither context nor keys_values")
        expect.raises("ValueError", layer, x, context, keys_values=pair, what="context and keys_values")

    @pytest.mark.points(2)
    def test_gradients(self, student, draw, expect):
        (layer, reference), mask = both_layers(student, draw, expect), mask_of([0, 3])
        inputs, grad = {"x": draw(2, 7, 6), "context": draw(2, 5, 11)}, draw(2, 7, 6)
        ours = layer.vjp("__call__", tuple(inputs.values()), grad, padding_mask=mask)
        gradients_agree(expect, ours, partial(reference, padding_mask=mask), inputs, grad)


@pytest.mark.task(
    "One context, many steps, several beams",
    hints=[
        "Project in `__init__`, and never again. What does the layer take in place of a context?",
        "Copies of the keys are not needed: in cross-attention no query knows of another, so r beams of t "
        "tokens ask what one text of r t tokens would ask.",
        '`rearrange(x, "(b r) t m -> b (r t) m", b=...)` makes one text of the beams, and the same pattern '
        "backwards undoes it. Three things have a row for each text: `keep` selects in all of them.",
    ],
)
class TestCache:
    def start(self, student, draw, expect, lengths):
        """A student's cache over contexts of these lengths, what is demanded of its answers, and the keys and
        values that it should hold."""
        layer, reference = both_layers(student, draw, expect)
        context, mask = draw(len(lengths), 7, 11), mask_of(lengths, 7)
        cache = student.new("ContextCache", layer, context, mask)

        def demand(what, x, texts=slice(None), mark=0.0):
            key, value = reference.project(context[texts])
            r = len(x) // len(key)
            pair = key.repeat_interleave(r, 0), value.repeat_interleave(r, 0) + mark
            expected = reference(x, keys_values=pair, padding_mask=mask[texts].repeat_interleave(r, 0))

            def explain(index):
                return f"row {index['row']} is beam {index['row'] % r} of text {index['row'] // r}"

            axes = "row query width"
            expect.close(cache.call("attend", x), expected, axes=axes, what=what, explain=explain)

        return cache, demand, reference.project(context)

    def test_token_by_token(self, student, draw, expect):
        _, demand, _ = self.start(student, draw, expect, [7, 3])
        for now in range(5):
            demand(f"output of token {now}", draw(2, 1, 6))

    @pytest.mark.points(2)
    def test_beams(self, student, draw, expect):
        _, demand, _ = self.start(student, draw, expect, [7, 3, 0])
        for r, t in [(2, 1), (4, 5), (1, 3)]:
            demand(f"output of {r} beams for each of 3 texts", draw(3 * r, t, 6))

    @pytest.mark.points(2)
    def test_what_is_kept(self, student, draw, expect):
        cache, demand, pair = self.start(student, draw, expect, [7, 3])
        cache.call("attend", draw(6, 1, 6))
        for name, expected in zip(NAMES[1:], pair, strict=True):
            what = f"`{name}` after three beams of each text have asked"
            expect.close(cache.get(name), expected, axes=PAIR_AXES, what=what)
        # A mark on what is kept must show in the next answer.
        cache.call("value.__iadd__", 1.0)
        demand("output after the check added 1 to all of `value`", draw(2, 1, 6), mark=1.0)

    @pytest.mark.points(2)
    def test_keep(self, student, draw, expect):
        cache, demand, _ = self.start(student, draw, expect, [2, 7, 3, 5])
        cache.call("keep", torch.tensor([3, 0, 1]))
        demand("output after keep([3, 0, 1])", draw(6, 2, 6), texts=[3, 0, 1])
        cache.call("keep", torch.tensor([1]))
        demand("output after keep([3, 0, 1]) and then keep([1])", draw(6, 2, 6), texts=[0])

    def test_rows_that_do_not_fit(self, student, draw, expect):
        cache, _, _ = self.start(student, draw, expect, [7, 3])
        expect.raises("ValueError", cache.call, "attend", draw(3, 1, 6), what="3 rows for 2 texts")


@pytest.mark.task(
    "Images as tokens",
    hints=[
        "Build each text as a list of pieces, then join the pieces. A word is a piece of one row.",
        "The images form one queue for the whole batch: `rest = iter(images)` and `next(rest)`.",
        "`embedding[token, None]` is `1 m`, one image is `s m`: `torch.cat` joins them, and `pad` does the "
        "rest. Compare the number of places with `len(images)` before.",
    ],
)
class TestImages:
    def test_projector(self, student, draw, expect):
        state = {"w_in.weight": draw(6, 11), "w_in.bias": draw(6)}
        state |= {"w_out.weight": draw(6, 6), "w_out.bias": draw(6)}
        ours = with_weights(expect, student.new("VisionProjector", 11, 6), state)
        reference, x = VisionProjector(11, 6).double(), draw(2, 5, 11)
        reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
        expect.close(ours(x), reference(x), axes="image position width", what="projected", largest=50.0)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
    def test_insertion(self, student, draw, expect, texts):
        embedding, texts = draw(211, 3), [torch.tensor(text) for text in texts]
        counts = [int((text == IMAGE).sum()) for text in texts]
        images, rows = draw(sum(counts), 2, 3), []
        for text, own in zip(texts, images.split(counts), strict=True):
            tokens = text.repeat_interleave(1 + (text == IMAGE).long())
            words = embedding[tokens.clamp(min=0)][None]
            rows += insert_features(words, own.reshape(1, -1, 3), tokens[None] == IMAGE)
        padded(expect, student.call("insert_images", texts, embedding, images), rows, "the texts with images")

    @pytest.mark.parametrize("n_images", [1, 3], ids=["too few", "too many"])
    def test_images_that_do_not_fit(self, student, draw, expect, n_images):
        texts = [torch.tensor(text) for text in TEXTS["one image each"]]
        call = partial(student.call, "insert_images", texts, draw(211, 3), draw(n_images, 2, 3))
        expect.raises("ValueError", call, what=f"2 places and {n_images} in `images`")


@pytest.mark.task(
    "A layer that stores nothing",
    hints=[
        "Write one score out: the query times a matrix times a vector of the context. In which order can the "
        "products be taken? Then the same for one output: weights, vectors of the context, a matrix.",
        "Each head has its own rows of `w_k` and of `w_v`: cut them with "
        '`rearrange(w, "(h d) c -> h d c", h=n_heads)`.',
        "By which root does `cross_attention` divide when queries and keys are c wide, and by which root "
        "would the layer of task 3 have divided?",
    ],
)
@pytest.mark.parametrize(("h", "d", "c"), [(1, 3, 7), (3, 2, 11), (2, 5, 3)], ids=HEADS)
class TestBareContext:
    def test_ask(self, student, draw, expect, h, d, c):
        (w_q, w_k, _, _), x = weights_of(draw_layer(draw, h * d, c, h)), draw(2, 5, h * d)
        asked = student.call("ask", x, w_q, w_k, h)
        parts = zip(w_q.split(d), w_k.split(d), strict=True)
        expected = torch.stack([x @ q.mT @ k for q, k in parts], dim=1) * (c / d) ** 0.5
        expect.close(asked, expected, axes=HEAD_AXES, what="ask(x)")

    def test_answer(self, student, draw, expect, h, d, c):
        (_, _, w_v, w_o), found = weights_of(draw_layer(draw, h * d, c, h)), draw(2, h, 5, c)
        output = student.call("answer", found, w_v, w_o)
        parts = zip(found.unbind(1), w_v.split(d), w_o.split(d, dim=1), strict=True)
        expected = sum(part @ v.mT @ o.mT for part, v, o in parts)
        expect.close(output, expected, axes=X_AXES, what="answer(found)")

    @pytest.mark.points(2)
    def test_together(self, student, draw, expect, h, d, c):
        layer, x, context = draw_layer(draw, h * d, c, h), draw(3, 5, h * d), draw(3, 7, c)
        mask, (w_q, w_k, w_v, w_o) = mask_of([4, 0, 7], 7), weights_of(layer)
        asked = student.call("ask", x, w_q, w_k, h)
        expect.equal(getattr(asked, "shape", None), (3, h, 5, c), what="the shape of ask(x)")
        bare = context[:, None].expand(-1, h, -1, -1)
        found = attention(torch.from_numpy(asked), bare, bare, mask)
        output = student.call("answer", found, w_v, w_o)
        expected = layer(x, context, padding_mask=mask)
        expect.close(output, expected, axes=X_AXES, what="output without keys and values", largest=30.0)
