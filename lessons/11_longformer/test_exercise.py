"""The checks of the exercise on Longformer. They speak to the student's code through the fixture `student`
and to the reference by import."""

import numpy as np
import pytest
import torch

from annotated_attention.longformer import longformer_attention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

AXES = "text head query width"
NAMES = ("query", "key", "value")
# Three texts, a string each: a global token is G, any other token is a dot, and padding is a blank, or a g
# where `global_mask` calls it global although it is padding. The number is the window.
BATCHES = {
    "one global token": (["G......", ".G.....", "......G"], 3),
    "window only": ([".......", ".......", "......."], 3),
    "different numbers": (["G..G.G.", "....G..", "......."], 2),
    "neighbours": (["GGG....", "...GG..", "G.....G"], 1),
    "padding": (["G...G  ", ".......", "..G    "], 3),
    "padding that is called global": (["G...  g", ".G. g  ", ".....g "], 2),
    "nothing but padding": (["..G....", "       ", "G..... "], 9),
}
each_batch = pytest.mark.parametrize(("texts", "window"), BATCHES.values(), ids=BATCHES)
KINDS = {"G": "a global token", ".": "a token", " ": "padding", "g": "padding that is called global"}


def masks(texts):
    """The two masks of these texts: which tokens are called global, and which are tokens."""
    letters = np.array([list(text) for text in texts])
    return torch.tensor(np.isin(letters, ["G", "g"])), torch.tensor(np.isin(letters, ["G", "."]))


def sees(texts, window, asking=True):
    """Who sees whom, `b t t`. Without `asking` a global token is seen by all, but sees its window and other
    global tokens only."""

    def one(i, j, text):
        is_global = text[j] == "G" or (asking and text[i] == "G")
        return text[i] in "G." and text[j] in "G." and (abs(i - j) < window or is_global)

    t = range(len(texts[0]))
    return torch.tensor([[[one(i, j, text) for j in t] for i in t] for text in texts])


def slots(texts):
    """Positions and real, as task 3 wants them."""
    found = [[j for j, letter in enumerate(text) if letter == "G"] for text in texts]
    k = max(map(len, found))
    positions = torch.tensor([row + [0] * (k - len(row)) for row in found], dtype=torch.long)
    return positions, torch.arange(k) < torch.tensor([[len(row)] for row in found])


def stands(texts):
    """Tells what the text of the first wrong entry looks like, and who stands there."""

    def explain(at):
        text = texts[at["text"]]
        told = [f"{word} {at[word]} is {KINDS[text[at[word]]]}" for word in ("query", "key") if word in at]
        return f"in the text '{text}' " + " and ".join(told)

    return explain


@pytest.mark.task(
    "The pattern",
    hints=[
        "Three questions for each pair: is it near, is one of the two global, are both tokens? Which of "
        "them are joined by `and`, which by `or`?",
        "`i[:, None] - i` has all differences, `t t`. `mask[:, :, None]` asks the query, `mask[:, None]` "
        "the key.",
    ],
)
class TestMask:
    @pytest.mark.points(2)
    @each_batch
    def test_mask(self, student, expect, texts, window):
        mask, expected = student.call("longformer_mask", window, *masks(texts)), sees(texts, window)
        what = f"mask for window {window}"
        expect.close(mask, expected, axes="text query key", what=what, explain=stands(texts))


@pytest.mark.task(
    "How many scores there are",
    hints=[
        "Count the band first. In the middle of a text each row has 2 * window - 1. How many are missing at "
        "the beginning and at the end? What if the window is wider than the text?",
        "What does one global token add? The keys that it did not see yet, and the queries that did not see "
        "it.",
        "Of two global tokens, the pair may have been counted twice, with one of them and with the other. "
        "When?",
    ],
)
class TestCount:
    def count(self, student, expect, texts):
        for text, window in texts:
            positions = [j for j, letter in enumerate(text) if letter == "G"][::-1]
            count = student.call("count_scores", len(text), window, positions)
            where = f" (global tokens: {positions})" if positions else ""
            what = f"the number of scores of {len(text)} tokens with window {window}{where}"
            expect.equal(count, int(sees([text], window).sum()), what=what)

    def test_window_only(self, student, expect):
        self.count(student, expect, [(".....", 1), (".......", 3), (".....", 5), ("...", 7), (".", 4)])

    def test_one_global_token(self, student, expect):
        self.count(student, expect, [("G......", 2), ("...G...", 3), (".........G.", 4), ("..G..", 9)])

    def test_global_tokens(self, student, expect):
        self.count(student, expect, [("GG.......", 3), ("..G......G.", 2), ("G....G.G..G", 3), ("GGG.G", 1)])

    def test_a_long_text(self, student, expect):
        # The band; then what lies outside of it for the first token and for the middle one; then their pair.
        wanted = 10_000_000 * 513 - 256 * 257 + 2 * (10_000_000 - 257) + 2 * (10_000_000 - 513) - 2
        count = student.call("count_scores", 10_000_000, 257, [0, 5_000_000])
        expect.equal(count, wanted, what="the number of scores of ten million tokens, two of them global,")


@pytest.mark.task(
    "Where the global tokens are",
    hints=[
        "How many global tokens has each text, and which number is the largest? Slot n of a text is real if "
        "n is less than its own number.",
        "A stable sort brings the True to the front and keeps their order: "
        "`(~global_mask).long().argsort(dim=1, stable=True)`. Or go through the texts and use `nonzero`.",
        "If text and position are the first two axes, as in `x.transpose(1, 2)`, then `x[texts, positions]` "
        "picks for all slots at once; `texts` is `b 1`.",
    ],
)
class TestPack:
    @pytest.mark.parametrize("name", ["one global token", "window only", "different numbers", "neighbours"])
    def test_positions(self, student, expect, name):
        texts = BATCHES[name][0]
        answer = expect.unpack(student.call("pack_globals", masks(texts)[0]), "positions", "real")
        for what, got, expected in zip(("positions", "real"), answer, slots(texts), strict=True):
            expect.close(
                got,
                expected,
                axes="text slot",
                what=what,
                explain=lambda at: f"the text is '{texts[at['text']]}'",
            )

    @pytest.mark.parametrize("name", ["window only", "different numbers"])
    def test_take(self, student, draw, expect, name):
        x, (positions, _) = draw(3, 2, 7, 5), slots(BATCHES[name][0])
        taken = student.call("take_tokens", x, positions)
        expected = torch.stack([text[:, row] for text, row in zip(x, positions, strict=True)])

        def explain(at):
            return f"this slot of text {at['text']} holds position {int(positions[at['text'], at['slot']])}"

        expect.close(taken, expected, axes="text head slot width", what="the result", explain=explain)


@pytest.mark.task(
    "What the global tokens find",
    hints=[
        "Take the queries of the global tokens, `b h k d`. Then it is attention as you know it, with k "
        "queries and t keys. Which keys must be hidden?",
        "A slot that is not real holds the position 0. If its row is written back, what becomes of token 0?",
        "`text, slot = real.nonzero(as_tuple=True)` lists the real slots, and `rows[text, positions[text, "
        "slot]] = found[text, slot]` writes them, where text and token (or slot) are the first two axes.",
    ],
)
class TestGlobalRows:
    @pytest.mark.points(2)
    @each_batch
    def test_rows(self, student, draw, expect, texts, window):
        query, key, value, output = (draw(3, 2, 7, width) for width in (5, 5, 3, 3))
        global_mask, padding_mask = masks(texts)
        given = query, key, value, output, global_mask, padding_mask
        dense = scaled_dot_product_attention(query, key, value, padding_mask[:, None, None])
        asked = (global_mask & padding_mask)[:, None, :, None]
        rows, what = student.call("global_rows", *given), "the output with the rows of the global tokens"
        expect.close(rows, dense.where(asked, output), axes=AXES, what=what, explain=stands(texts))


def draw_scores(draw, texts, window):
    """What `shared_softmax` is given, and its answer: softmax of all pairs, taken apart. A score that means
    nothing is larger than all the rest."""
    scores, pattern = draw(3, 2, 7, 7), sees(texts, window, asking=False)[:, None]
    weights = scores.masked_fill(~pattern, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    (positions, real), (_, padding_mask), side = slots(texts), masks(texts), window - 1
    i = torch.arange(7)[:, None]
    outside = (positions[:, None] - i).abs() >= window
    both = []
    for table, counts, nothing in [(scores, real[:, None], 50.0), (weights, real[:, None] & outside, 0.0)]:
        padded = torch.nn.functional.pad(table, (side, side), value=nothing)
        near = padded[:, :, i, i + torch.arange(side + window)]
        far = torch.stack([text[..., row] for text, row in zip(table, positions, strict=True)])
        both.append((near, far.where(counts[:, None], nothing)))
    return (*both[0], positions, real, padding_mask), both[1]


def draw_inputs(draw, texts, window):
    """Query, key and value; window and global mask; and the rest of the arguments."""
    (own, others) = ((draw(3, 2, 7, 5), draw(3, 2, 7, 5), draw(3, 2, 7, 3)) for _ in range(2))
    global_mask, padding_mask = masks(texts)
    masked = {"window": window, "global_mask": global_mask}
    return own, masked, {"global_qkv": others, "padding_mask": padding_mask}


@pytest.mark.task(
    "One softmax for both",
    hints=[
        "Put both kinds of scores beside each other, `torch.cat(..., dim=-1)`, hide what does not count "
        "with minus infinity, take one softmax, and cut it apart again. What is left to find is what "
        "counts.",
        "Number c of query i belongs to key `i + c - (window - 1)`, a table `t a`. Is this key in the text, "
        "and is it a token? A slot counts if it is real and its position is at least `window` away from i.",
        "In the whole, local queries meet the keys of global tokens in `key`, and global queries meet all "
        "keys in `global_qkv[1]`. Do the first for all rows; then `global_rows` replaces those of the "
        "second.",
    ],
)
class TestTogether:
    @pytest.mark.points(2)
    @each_batch
    def test_weights(self, student, draw, expect, texts, window):
        given, wanted = draw_scores(draw, texts, window)
        _, _, positions, real, _ = given
        answer = expect.unpack(student.call("shared_softmax", *given), "window weights", "global weights")

        def of_place(at):
            j = at["query"] + at["place"] - window + 1
            told = f"this place stands for key {j} of '{texts[at['text']]}'"
            return told if 0 <= j < 7 else f"{told}, which does not exist"

        def of_slot(at):
            which = at["text"], at["slot"]
            told = f"with position {int(positions[which])}" if real[which] else "that is not real"
            return f"it is a slot of '{texts[at['text']]}' {told}, and the window is {window}"

        kinds = zip(answer, wanted, ("window", "global"), ("place", "slot"), (of_place, of_slot), strict=True)
        for got, expected, kind, axis, explain in kinds:
            axes, what = f"text head query {axis}", f"{kind} weights"
            expect.close(got, expected, axes=axes, what=what, explain=explain)

    @pytest.mark.points(2)
    @each_batch
    def test_output(self, student, draw, expect, texts, window):
        inputs, masked, options = draw_inputs(draw, texts, window)
        output = student.call("longformer_attention", *inputs, *masked.values(), **options)
        expected, what = longformer_attention(*inputs, **masked, **options), f"output for window {window}"
        expect.close(output, expected, axes=AXES, what=what, explain=stands(texts))

    def test_defaults(self, student, draw, expect):
        texts, window = BATCHES["different numbers"]
        inputs, masked, _ = draw_inputs(draw, texts, window)
        output = student.call("longformer_attention", *inputs, *masked.values())
        what = "output with one projection, without padding"
        expect.close(output, longformer_attention(*inputs, **masked), axes=AXES, what=what)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("name", ["different numbers", "nothing but padding"])
    def test_gradients(self, student, draw, expect, name):
        inputs, masked, options = draw_inputs(draw, *BATCHES[name])
        grad, leaves = draw(3, 2, 7, 3), [tensor.clone().requires_grad_() for tensor in inputs]
        ours = student.vjp("longformer_attention", inputs, grad, **masked, **options)
        wanted = torch.autograd.grad(longformer_attention(*leaves, **masked, **options), leaves, grad)
        for name, got, expected in zip(NAMES, ours, wanted, strict=True):
            expect.close(got, expected, axes="text head token width", what=f"gradient of {name}", factor=3)


# Tokens, layers and global tokens; then source, target and the layers needed.
ROADS = {
    "one head": (100, 3 * [[(3, 1)]], [], "10 10 0, 10 11 1, 10 12 1, 10 13 2, 14 10 2, 10 4 3, 10 17 -"),
    "a dilated head": (100, 2 * [[(3, 2)]], [], "10 14 1, 10 11 -, 10 18 2, 10 2 2, 10 17 -, 10 19 -"),
    "two heads": (100, 2 * [[(3, 1), (3, 2)]], [], "10 11 1, 10 13 2, 10 14 1, 10 15 2, 18 10 2, 10 19 -"),
    "mixed": (30, [[(2, 1)], [(2, 5)], [(3, 1)]], [], "10 14 2, 10 15 2, 10 16 2, 10 13 3, 4 12 3, 4 13 -"),
    "a short text": (7, [[(2, 1)], [(2, 3)]], [], "0 2 -, 0 4 2, 1 3 2, 6 4 -, 5 3 2, 2 0 2"),
    "a global token": (50, 3 * [[(3, 1)]], [20], "0 20 1, 20 49 1, 0 49 2, 0 2 1, 0 3 2, 30 0 2, 7 7 0"),
    "one layer": (50, [[(3, 1)]], [20], "0 49 -, 0 20 1, 20 0 1, 18 22 -"),
    "two global tokens": (50, 2 * [[(2, 7)]], [0, 9], "0 9 1, 3 4 2, 3 10 1, 9 31 1"),
    "no layer, or none that reaches": (9, 2 * [[(1, 1), (1, 3)]], [], "3 3 0, 3 4 -, 3 6 -"),
    "a window wider than the text": (9, 2 * [[(12, 1)]], [], "0 8 1, 8 0 1"),
    # Longformer-base, eight times smaller: 12 layers reach 12 * 32 tokens of 512.
    "12 layers": (512, 12 * [[(33, 1)]], [], "0 384 12, 0 385 -, 0 511 -"),
    "12 layers and [CLS]": (512, 12 * [[(33, 1)]], [0], "1 511 2, 511 0 1, 1 33 1"),
}


@pytest.mark.task(
    "How deep it must be",
    hints=[
        "Before the first layer only the source has felt the change. Whom does each layer add?",
        "One True or False for each token is all there is to remember. A head with (window, dilation) "
        "shifts them by dilation, 2 * dilation, ... to both sides; what leaves the text is lost.",
        "A global token feels the change as soon as anybody has felt it, and from the next layer on "
        "everybody does. Ask the tokens as they were before the layer, not those that it has just added.",
    ],
)
class TestLayers:
    @pytest.mark.points(3)
    @pytest.mark.parametrize("name", ROADS)
    def test_roads(self, student, expect, name):
        t, layers, positions, roads = ROADS[name]
        for road in roads.split(", "):
            source, target, wanted = (None if word == "-" else int(word) for word in road.split())
            needed = student.call("layers_needed", source, target, t, layers, positions)
            what = f"{name}: the number of layers from token {source} to token {target} of {t}"
            # None is an answer here. A lone one would be taken for a missing return.
            given, right = ([needed], [wanted]) if needed is None else (needed, wanted)
            expect.equal(given, right, what=what)
