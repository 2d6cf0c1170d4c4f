"""The checks of the exercise on real models. That what they expect is what Transformers computes is proven in
`tests/annotated_attention/test_real_models_exercise.py`."""

import itertools
import math

import pytest
import torch

from annotated_attention.alibi import alibi_slopes
from annotated_attention.rotary import apply_rotary, half_split_order, rotary_angles
from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from annotated_attention.sliding_window import sliding_window_mask

MATRICES = ("queries", "keys", "values")
# Queries, keys and options.
SEAMS = {"a text": (5, 5, {}), "into an empty cache": (3, 7, {}), "one token and a cache": (1, 7, {})}
SEAMS |= {"an encoder": (5, 7, {"is_causal": False}), "T5's scaling": (5, 5, {"scaling": 1.0})}
MASKS = {"True may see": "bool", "added": "float", "one for all heads": "shared", "padding asks": "empty"}
# h, g, d, m.
FUSED = {"phi3": [(2, 2, 1, 3), (6, 2, 4, 5), (3, 1, 2, 5)], "gpt2": [(2, 2, 3, 5), (5, 5, 2, 7)]}
FUSED |= {"falcon": [(4, 2, 1, 3), (6, 3, 4, 5)], "bloom": [(2, 2, 1, 3), (5, 5, 2, 7)]}
# Buckets, `max_distance` and distances, none of which is a power of anything: rounding decides nothing.
DISTANCES = {
    "by hand": (8, 16, [-20, -6, -3, -2, -1, 0, 1, 2, 3, 6, 20]),
    "T5": (32, 128, [-500, -127, -90, -31, -20, -17, -9, -8, -7, -1, 0, 1, 2, 7, 8, 15, 17, 33, 127, 300]),
    "an odd number": (14, 50, [*range(-60, 61, 7), 4, 5, 6, 7, -5, -6, -7]),
}
PADDED = {"by hand": ["  xxx"], "three texts": ["xxxxxxx", "   xxxx", "      x"], "none": ["xxxxx", "xxxxx"]}
# h, g, d, t and the window; then the right reading.
RECORDS = {
    "Phi-3": (6, 3, 4, 7, 3, ("phi3", "halves", "neighbours", 3)),
    "Falcon": (6, 3, 4, 7, 3, ("falcon", "halves", "neighbours", 3)),
    "pairs": (4, 2, 6, 5, 2, ("falcon", "pairs", "neighbours", 2)),
    "rounds": (6, 2, 4, 7, 4, ("phi3", "halves", "rounds", 5)),
}
KINDS = {"layout": ("phi3", "falcon"), "pairing": ("halves", "pairs"), "sharing": ("neighbours", "rounds")}
# The same, and what this model or this text cannot tell.
SILENT = {
    "one token": (6, 3, 4, 1, 3, ("phi3", "halves", "neighbours", 3), "pairing window"),
    "a text as long as the window": (6, 3, 4, 3, 3, ("falcon", "pairs", "rounds", 4), "window"),
    "a single pair": (4, 2, 2, 5, 3, ("falcon", "pairs", "neighbours", 4), "pairing"),
    "one key head": (4, 1, 4, 5, 2, ("falcon", "halves", "rounds", 2), "layout sharing"),
}
ODD = {"small": ({"size": 1e-4}, True), "large": ({"size": 100.0}, True), "scaled": ({"loud": 1.1}, False)}
ODD |= {"one nearby": ({"off": 3.0}, True), "one too far": ({"off": 6.0, "size": 1e-4}, False)}


def each(names, cases):
    return pytest.mark.parametrize(names.split(), cases.values(), ids=cases)


def three(draw, t, s):
    return draw(2, 6, t, 5), draw(2, 3, s, 5), draw(2, 3, s, 7)


def attend(inputs, mask=None, **options):
    """Lesson 1's attention, with time before heads."""
    return scaled_dot_product_attention(*inputs, mask, enable_gqa=True, **options).transpose(1, 2)


@pytest.mark.task(
    "The seam",
    hints=[
        "It is lesson 8's attention with the axes of its result in another order. Which of the rules has "
        "nothing to do with a mask? Do that first.",
        "Three cases: a mask came (then nothing else hides anything); none came and the text is causal and "
        "has more than one query; none came otherwise.",
        "A row of nothing but minus infinity makes 0 / 0. What may it hold instead, and what is its weight "
        "afterwards? `others.get(name)` is None if nothing of this name came.",
    ],
)
class TestSeam:
    def demand(self, student, expect, inputs, mask, wanted, told, **options):
        answer = student.call("attention_forward", *inputs, mask, **options)
        output, _ = expect.unpack(answer, "result", "weights")
        expect.close(output, wanted, axes="batch query head width", what=f"the result ({told})", largest=10)

    @each("t s options", SEAMS)
    def test_without_a_mask(self, student, expect, draw, t, s, options):
        inputs, is_causal = three(draw, t, s), options.get("is_causal", True) and t > 1
        wanted = attend(inputs, is_causal=is_causal, scale=options.get("scaling"))
        self.demand(student, expect, inputs, None, wanted, f"t = {t}, s = {s}, no mask", **options)

    @each("kind", {name: [kind] for name, kind in MASKS.items()})
    def test_mask(self, student, expect, draw, kind):
        inputs, mask = three(draw, 4, 7), draw(2, 1 if kind in ("shared", "empty") else 6, 4, 7)
        if kind != "float":
            # Each query sees something, of the future too.
            mask = (mask > 0) | torch.eye(4, 7, dtype=torch.bool).flip(1)
        if kind == "empty":
            mask[0, :, :2] = False
        told = f"{'float' if kind == 'float' else 'boolean'} mask {tuple(mask.shape)}"
        told += ", queries 0 and 1 of text 0 see nothing" if kind == "empty" else ""
        self.demand(student, expect, inputs, mask, attend(inputs, mask), told)

    def test_harmless_keywords(self, student, expect, draw):
        inputs, mask = three(draw, 5, 5), torch.ones(2, 1, 5, 5).tril().bool()
        others = {"dropout": 0.0, "sliding_window": 2, "s_aux": None, "position_ids": torch.arange(5)[None]}
        told = "besides, dropout=0.0, sliding_window=2, s_aux=None came"
        self.demand(student, expect, inputs, mask, attend(inputs, mask), told, **others)

    def test_keywords_that_change_the_numbers(self, student, expect, draw):
        call = student.call, "attention_forward", *three(draw, 5, 5), None
        for name, value in {"position_bias": draw(1, 6, 5, 5), "s_aux": draw(6), "softcap": 50.0}.items():
            others = {"dropout": 0.0, "softcap": None, name: value}
            expect.raises("ValueError", *call, match=name, what=f"{name} came", **others)


def fuse(parts, layout, heads, groups):
    """The three, put together row by row, as the table of task 2 says."""
    query, key, value = (list(part.split(len(parts[0]) // heads)) for part in parts)
    r = heads // groups
    mixed = [x for n in range(groups) for x in (*query[n * r :][:r], key[n], value[n])]
    fused = torch.cat(query + key + value if layout in ("phi3", "gpt2") else mixed)
    return fused.T.contiguous() if layout == "gpt2" and fused.ndim == 2 else fused


@pytest.mark.task(
    "Three in one",
    hints=[
        "What is d? The matrix has (h + 2g)d rows. Two of the four layouts need only `split`.",
        '`"bloom"` is `"falcon"` with r = 1. Which axes has `fused.unflatten(0, (g, r + 2, d))`, and which '
        "places on the second are queries?",
        "Only one layout is stored the other way round, and its bias is not: a bias has no other way round.",
    ],
)
@pytest.mark.parametrize("layout", FUSED)
class TestSplit:
    @pytest.mark.points(2)
    def test_matrices(self, student, expect, draw, layout):
        for sizes in FUSED[layout]:
            self.demand(student, expect, draw, layout, *sizes)

    def test_biases(self, student, expect, draw, layout):
        for *sizes, _ in FUSED[layout]:
            self.demand(student, expect, draw, layout, *sizes)

    def demand(self, student, expect, draw, layout, h, g, d, *m):
        parts = [draw(n * d, *m) for n in (h, g, g)]
        answer = student.call("split_qkv", fuse(parts, layout, h, g), layout, h, g)
        kind, axes = ("matrix", "row column") if m else ("bias", "row")
        told = [f"row {n} is number {n % d} of head {n // d}" for n in range(h * d)]
        for name, got, wanted in zip(MATRICES, expect.unpack(answer, *MATRICES), parts, strict=True):
            what = f"the {kind} of the {name} ({layout}, {h} heads, {g} key heads of width {d})"
            expect.close(got, wanted, axes=axes, what=what, terms=0, explain=lambda at: told[at["row"]])


def llama(draw, layers, *, tied=False, h=6, g=2, d=6, m=5, f=7):
    """A Llama as Meta publishes it, and as Transformers wants it."""
    inner = {"attention.wq": ("self_attn.q_proj", h * d, m), "attention.wk": ("self_attn.k_proj", g * d, m)}
    inner |= {"attention.wv": ("self_attn.v_proj", g * d, m), "attention.wo": ("self_attn.o_proj", m, h * d)}
    inner |= {"feed_forward.w1": ("mlp.gate_proj", f, m), "feed_forward.w2": ("mlp.down_proj", m, f)}
    inner |= {"feed_forward.w3": ("mlp.up_proj", f, m), "attention_norm": ("input_layernorm", m)}
    inner |= {"ffn_norm": ("post_attention_layernorm", m)}
    table = {"tok_embeddings": ("model.embed_tokens", 11, m), "norm": ("model.norm", m)}
    table |= {} if tied else {"output": ("lm_head", 11, m)}
    for n in layers:
        table |= {f"layers.{n}.{k}": (f"model.layers.{n}.{v[0]}", *v[1:]) for k, v in inner.items()}
    ours, theirs = {"rope.freqs": draw(d // 2)}, {}
    for meta, (name, *shape) in table.items():
        ours[f"{meta}.weight"] = theirs[f"{name}.weight"] = tensor = draw(*shape)
        if meta.endswith(("wq", "wk")):
            rows = tensor.unflatten(0, (-1, d))[:, half_split_order(d)]
            theirs[f"{name}.weight"] = rows.flatten(0, 1)
    if tied:
        theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"]
    return ours, theirs


@pytest.mark.task(
    "A whole checkpoint",
    hints=[
        "Rename first, with a dict from old names to new ones, and let the numbers be. `name.split('.', 2)` "
        "takes `layers`, the number and the rest apart.",
        "Compare the two formulas of the feed-forward place by place: which matrix is inside of silu, and "
        "which comes last?",
        "What is turned? Not values. A head's rows, `d m`, are d/2 pairs: `(d/2, 2, m)`. The halves are all "
        "the firsts, then all the seconds. And how many heads has the matrix of the keys?",
    ],
)
class TestLlama:
    @pytest.mark.points(4)
    @pytest.mark.parametrize("layers", [[0, 1], [1, 11]], ids=["two layers", "layers 1 and 11"])
    def test_tensors(self, student, expect, draw, layers):
        self.demand(student, expect, llama(draw, layers), 6, 2)

    @pytest.mark.points(2)
    def test_tied(self, student, expect, draw):
        self.demand(student, expect, llama(draw, [0], tied=True, h=3, g=3, d=4), 3, 3)

    def demand(self, student, expect, both, h, g):
        state, wanted = both
        got = student.call("convert_llama", state, h, g)
        expect.names(got, wanted)
        for name, tensor in wanted.items():
            axes = "row column" if tensor.ndim == 2 else "place"
            expect.close(got[name], tensor, axes=axes, what=name, terms=0)


def bucket(relative, n, max_distance, bidirectional):
    """T5's bucket of one distance, in plain numbers."""
    n = n // 2 if bidirectional else n
    x = abs(relative) if bidirectional else max(-relative, 0)
    e, later = n // 2, n if bidirectional and relative > 0 else 0
    far = math.floor(math.log(max(x, e) / e) / math.log(max_distance / e) * (n - e))
    return later + (x if x < e else min(e + far, n - 1))


@pytest.mark.task(
    "T5's distances",
    hints=[
        "First make x and n, which depend on the direction; then the bucket; then add n where it is due.",
        "`torch.where(x < e, x, far)` chooses for each place. `far` is computed for near ones, too; what "
        "log(0) makes there is thrown away.",
        "For the bias: a table of j - i, `t s`, made of two `arange`; a table of buckets; and "
        "`table[buckets]` looks all of them up at once. Which axis comes last then?",
    ],
)
@pytest.mark.parametrize("bidirectional", [True, False], ids=["encoder", "decoder"])
class TestBuckets:
    @pytest.mark.points(2)
    @each("n_buckets max_distance distances", DISTANCES)
    def test_buckets(self, student, expect, n_buckets, max_distance, distances, bidirectional):
        wanted = torch.tensor([bucket(x, n_buckets, max_distance, bidirectional) for x in distances])
        options = {"n_buckets": n_buckets, "max_distance": max_distance, "bidirectional": bidirectional}
        got = student.call("t5_buckets", torch.tensor(distances), **options)
        what = f"the buckets (n_buckets={n_buckets}, max_distance={max_distance})"
        told = [f"there j - i is {x}" for x in distances]
        expect.close(got, wanted, axes="place", what=what, explain=lambda at: told[at["place"]])

    @pytest.mark.parametrize(("t", "s", "offset"), [(5, 7, 0), (1, 11, 10), (3, 13, 4)])
    def test_bias(self, student, expect, draw, t, s, offset, bidirectional):
        table = draw(10, 3)
        options = {"offset": offset, "max_distance": 9, "bidirectional": bidirectional}
        got = student.call("t5_bias", table, t, s, **options)
        places = [[bucket(j - i - offset, 10, 9, bidirectional) for j in range(s)] for i in range(t)]
        wanted = table[torch.tensor(places)].permute(2, 0, 1)[None]
        what = f"the bias (t = {t}, s = {s}, offset = {offset})"
        expect.close(got, wanted, axes="batch head query key", what=what, terms=0)


@pytest.mark.task(
    "Padding on the left",
    hints=[
        "A running sum over the attention mask counts the tokens up to each column. What is it at a text's "
        "first token, and what must be taken off?",
        "Two ways to count: positions count tokens of a text; causality and window compare columns, the "
        "same in all texts. In which column stands the first of t queries, when there are s?",
    ],
)
@each("texts", {name: [texts] for name, texts in PADDED.items()})
class TestPadding:
    def given(self, texts):
        """The attention mask, and how the texts are shown: `..xxx`."""
        shown = ", ".join(text.replace(" ", ".") for text in texts)
        return torch.tensor([[int(letter == "x") for letter in text] for text in texts]), shown

    @pytest.mark.points(2)
    def test_inputs(self, student, expect, texts):
        (given, shown), s = self.given(texts), len(texts[0])
        for window, t in itertools.product((None, 1, 3), (s, 2, 1)):
            options = {} if window is None else {"sliding_window": window}
            answer = student.call("padded_inputs", given, t, **options)
            positions, mask = expect.unpack(answer, "positions", "mask")
            told, columns = f"({shown}; t = {t}, window {window})", range(s - t, s)
            wanted = [[max(i - text.count(" "), 0) for i in columns] for text in texts]
            expect.close(positions, torch.tensor(wanted), axes="text query", what=f"the positions {told}")
            seen = sliding_window_mask(t, s, window or s, offset=s - t) & given.bool()[:, None, None]
            expect.close(mask, seen, axes="text head query key", what=f"the mask {told}")

    def test_alibi(self, student, expect, texts):
        (given, shown), slopes = self.given(texts), alibi_slopes(5, dtype=torch.float64)
        counted = [[max(j - text.count(" "), 0) for j in range(len(text))] for text in texts]
        wanted = torch.einsum("h, b s -> b h s", slopes, torch.tensor(counted).double())[:, :, None]
        got = student.call("bloom_alibi", given, slopes)
        expect.close(got, wanted, axes="text head query key", what=f"the bias ({shown})", terms=1)


def layer(draw, h, g, d, t, reading, *, size=1.0, loud=1.0):
    """A layer's input, its matrix, and what its heads say, in float64; scores are multiplied by `loud`."""
    layout, pairing, sharing, window = reading
    x, parts = draw(2, t, 5), [draw(n * d, 5, scale=0.7) for n in (h, g, g)]
    parts[2] *= size
    split = zip(parts, (h, g, g), strict=True)
    query, key, value = ((x @ w.T).unflatten(-1, (n, d)).transpose(1, 2) for w, n in split)
    angles = rotary_angles(torch.arange(t), d)
    query, key = (apply_rotary(y, angles, interleaved=pairing == "pairs") for y in (loud * query, key))
    if sharing == "rounds":
        key, value = (y.repeat(1, h // g, 1, 1) for y in (key, value))
    output = attend((query, key, value), sliding_window_mask(t, t, window))
    return x, fuse(parts, layout, h, g), output.flatten(2)


@pytest.mark.task(
    "What nobody wrote down",
    hints=[
        "Most of a layer is there: `split_qkv` makes three matrices, `x @ w.T` makes `b t hd`, and "
        "`attention_forward` with a mask does the rest. What is between: heads, and turns.",
        "`key[:, order]` gives every query head its key head, if `order` has h numbers. Then g = h for "
        "`attention_forward`. `arange(h) // r` and `arange(h) % g` are the two orders.",
        "A record in float16 is off by up to half of `eps` of each number. `torch.finfo(recorded.dtype).eps` "
        "knows; a fixed tolerance does not, and numbers may all be small.",
    ],
)
class TestReadings:
    @pytest.mark.points(2)
    @each("h g d t window reading", RECORDS)
    def test_output(self, student, expect, draw, h, g, d, t, window, reading):
        self.heads(student, expect, *layer(draw, h, g, d, t, reading), h, g, reading)

    def heads(self, student, expect, x, fused, wanted, h, g, reading):
        output = student.call("layer_output", x, fused, h, g, reading)
        what = f"what the heads say (h = {h}, g = {g}; {', '.join(map(str, reading))})"
        expect.close(output, wanted, axes="batch position place", what=what, largest=10)

    @pytest.mark.points(2)
    @each("h g d t window reading", RECORDS)
    def test_one_fits(self, student, expect, draw, h, g, d, t, window, reading):
        self.demand(student, expect, draw, (h, g, d, t), window, reading, [reading])

    @pytest.mark.points(2)
    @each("h g d t window reading free", SILENT)
    def test_what_a_record_cannot_tell(self, student, expect, draw, h, g, d, t, window, reading, free):
        kinds = zip([*KINDS, "window"], [*KINDS.values(), (window, window + 1)], reading, strict=True)
        left = [both if name in free else (x,) for name, both, x in kinds]
        self.demand(student, expect, draw, (h, g, d, t), window, reading, itertools.product(*left))

    @pytest.mark.points(2)
    @each("options fits", ODD)
    def test_odd_records(self, student, expect, draw, options, fits):
        reading = "phi3", "pairs", "neighbours", 3
        self.demand(student, expect, draw, (6, 3, 4, 7), 3, reading, [reading] * fits, **options)

    def demand(self, student, expect, draw, sizes, window, reading, wanted, off=0.0, **options):
        x, fused, output = layer(draw, *sizes, reading, **options)
        if wanted:  # Heads that say something else are no mistake of the search.
            self.heads(student, expect, x, fused, output, *sizes[:2], reading)
        dtype = torch.float16 if "falcon" in reading else torch.float32
        output[0, 0, 0] += off * torch.finfo(dtype).eps * output.abs().max()
        got = student.call("readings_that_fit", x, fused, output.to(dtype), *sizes[:2], window)
        told = [f"{name} = {n}" for name, n in zip("hgdt", sizes, strict=True)]
        told += [f"one number off by {off:.0f} eps"] * (off > 0)
        if isinstance(got, list | tuple) and all(isinstance(one, list | tuple) for one in got):
            got = tuple(sorted(map(tuple, got), key=repr))
        what = f"what fits this {dtype} record, sorted (window = {window}, {', '.join(told)}),"
        expect.equal(got, tuple(sorted(wanted, key=repr)), what=what)
