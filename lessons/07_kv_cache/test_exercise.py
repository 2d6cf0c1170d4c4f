"""The checks of the exercise on the KV cache. They speak to the student's code through the fixture `student`
and to the reference by import."""

import pytest
import torch

from annotated_attention.kv_cache import KVCache, kv_cache_bytes
from annotated_attention.language_model import causal_mask
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

NAMES = ("key", "value")
PAIR_AXES = "text head slot width"
OUTPUT_AXES = "text head query width"
PAGES_AXES, MASK_AXES = "head token width", "text head query key"
LLAMA_2, LLAMA_3 = (32, 32, 128), (32, 8, 128)  # layers, heads, width
MODELS = {"by hand": ((2, 3, 5), 7, {}), "Llama-2-7B": (LLAMA_2, 4096, {})}
MODELS |= {"three texts": (LLAMA_3, 9, {"batch": 3}), "float32": ((4, 4, 32), 256, {"dtype": torch.float32})}
# Where the keys of each text stand, and how many of them are new.
POSITIONS = {
    "a prompt": ([[0, 1, 2, 3]], 4),
    "one new token": ([[0, 1, 2, 3, 4]], 1),
    "three new tokens": ([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]], 3),
    "texts of different lengths": ([[0, 1, -1, -1, -1], [0, 1, 2, 3, 4], [0, 1, 2, -1, -1]], 2),
    "the oldest keys overwritten": ([[5, 6, 2, 3, 4], [0, 1, 2, 3, -1]], 2),
}
PIECES = {"at once": [7], "one by one": [1] * 7, "a prompt, then tokens": [4, 1, 1, 1], "chunks": [2, 3, 2]}
# Tokens that come for each of three texts, or the lengths to which these are cut.
TURNS = {"equal lengths": [4, 1, 1], "three prompts": [5, [5, 2, 4], 1, 1]}
TURNS |= {"two turns": [3, [1, 3, 2], 4, [5, 3, 6], 2], "a new text in a row": [4, [4, 0, 2], 3]}
# A number of pages, of 4 tokens each; then the steps, each with the number of free pages after it.
STEPS = {
    "one text": "5, append 0 6: 3, append 0 1: 3, append 0 1: 3, append 0 1: 2",
    "two texts": "8, append 7 3: 7, append 2 5: 5, append 7 6: 3, append 2 3: 3, drop 7: 6, append 2 9: 3",
    "a shared page": "4, append 0 6: 2, fork 0 1: 2, append 1 1: 1, append 0 1: 1, append 0 1: 1",
    "three texts": "9, append 0 6: 7, fork 0 1: 7, fork 0 2: 7, append 1 1: 6, append 2 1: 5, append 0 1: 5, "
    "append 1 4: 4, fork 1 3: 4, append 3 3: 2, append 1 2: 1",
    "full pages": "6, append 0 8: 4, fork 0 1: 4, append 1 1: 3, append 0 5: 1",
    "drop": "5, append 0 6: 3, fork 0 1: 3, append 1 1: 2, drop 0: 3, append 2 9: 0, drop 1: 2, drop 2: 5",
    "no room": "3, append 0 6: 1, refuse 0 7: 1, refuse 1 5: 1, fork 0 1: 1, refuse 1 3: 1, append 1 1: 0, "
    "append 0 2: 0, fork 1 2: 0, refuse 2 1: 0, drop 0: 1, append 2 1: 0",
}


def pair_agrees(expect, ours, wanted, told, terms=0, axes=PAIR_AXES):
    """A tuple (key, value) as it should be, to the last bit: a cache computes nothing."""
    for name, got, expected in zip(NAMES, expect.unpack(ours, *NAMES), wanted, strict=True):
        expect.close(got, expected, axes=axes, what=f"{name} {told}", terms=terms)


def stands(i):
    """Tells where the query of the first wrong entry stands; `i` is `b t`."""
    told = "query {1} of text {0} stands at position {2}"
    return lambda at: told.format(at["text"], at["query"], int(i[at["text"], at["query"]]))


def check_of(*names, points=2):
    """A check of pages that runs these of `STEPS`."""

    @pytest.mark.points(points)
    @pytest.mark.parametrize("steps", [STEPS[name] for name in names], ids=names)
    def check(self, student, draw, expect, steps):
        self.run(student, draw, expect, steps)

    return check


@pytest.mark.task(
    "How many bytes",
    hints=[
        "Count numbers first: one token, one head, one layer. Of what is there more than one?",
        "A number has `dtype.itemsize` bytes. There is a key and a value.",
        "What is left for the caches when the weights lie in memory, and what does one more token of each "
        "text take of it? `//` rounds down, and gives a negative number if the weights alone are too many.",
    ],
)
class TestBytes:
    @pytest.mark.parametrize(("model", "length", "options"), MODELS.values(), ids=MODELS)
    def test_bytes(self, student, expect, model, length, options):
        answer = student.call("cache_bytes", *model, length, **options)
        what = "the bytes of {} layers, {} heads of width {}".format(*model)
        expect.equal(answer, kv_cache_bytes(*model, length, **options), what=f"{what}, {length} tokens,")

    @pytest.mark.parametrize(
        ("memory", "n_parameters", "model", "options"),
        [
            (1000, 100, (2, 3, 5), {}),
            (24 * 2**30, 6_738_415_616, LLAMA_2, {}),
            (80 * 2**30, 8_030_261_248, LLAMA_3, {"batch": 16}),
            (920, 100, (2, 3, 5), {}),
            (919, 100, (2, 3, 5), {}),
            (1000, 100, (2, 1, 3), {"batch": 2, "dtype": torch.float32}),
            (8 * 2**30, 6_738_415_616, LLAMA_2, {}),
        ],
        ids=["by hand", "24 GiB", "16 texts", "just room", "one byte less", "float32", "no room"],
    )
    def test_longest(self, student, expect, memory, n_parameters, model, options):
        token = kv_cache_bytes(*model, 1, **options)
        weights = n_parameters * options.get("dtype", torch.bfloat16).itemsize
        answer = student.call("longest_text", memory, n_parameters, *model, **options)
        what = f"the longest text in {memory} bytes beside {n_parameters} parameters, {token} bytes a token,"
        expect.equal(answer, max(memory - weights, 0) // token, what=what)


@pytest.mark.task(
    "Who sees whom",
    hints=[
        "Where does the newest token of a text stand? No other key of that text has a larger number.",
        "`positions.amax(dim=-1, keepdim=True) + torch.arange(1 - t, 1)` is where the queries stand, `b t`.",
        "Compare `b t 1` with `b 1 s`, and mind what -1 would say of itself: -1 is not later than any query.",
    ],
)
@pytest.mark.parametrize(("positions", "t"), POSITIONS.values(), ids=POSITIONS)
class TestMask:
    @pytest.mark.points(2)
    def test_mask(self, student, expect, positions, t):
        j = torch.tensor(positions)
        i = torch.stack([row.sort().values[-t:] for row in j])
        mask = student.call("cache_mask", j, t)
        expect.close(mask, causal_mask(i, j), axes=MASK_AXES, what="mask", explain=stands(i))


@pytest.mark.task(
    "The cache",
    hints=[
        "One number is all that must be counted. Which slots are written, and which are returned?",
        "The first update knows the shapes: `key.new_zeros(b, g, capacity, d)` has the dtype of `key`. From "
        "then on `self.keys[:, :, start:end] = key` writes into the memory that is there.",
        "Look whether everything fits before anything else is done, the count included.",
    ],
)
class TestCache:
    def tokens(self, draw, t, b=2, dtype=torch.float64):
        return draw(b, 3, t, 5, dtype=dtype), draw(b, 3, t, 7, dtype=dtype)

    def demand(self, student, draw, expect, sizes, capacity=11):
        """A student's cache and the reference's, after updates of these sizes, looked at after each."""
        ours, reference = student.new("KVCache", capacity), KVCache(capacity)
        for t in sizes:
            self.update(expect, ours, reference, self.tokens(draw, t))
        return ours, reference

    def update(self, expect, ours, reference, pair):
        t, held = pair[0].shape[2], reference.longest
        told = f"after {t} came behind {held} tokens"
        pair_agrees(expect, ours.call("update", *pair), reference.update(*pair), told)
        expect.equal(ours.get("positions"), reference.positions, what=f"positions {told}")

    @pytest.mark.parametrize("sizes", [[4, 1, 1], [1, 1, 1], [3, 2, 6]], ids=["prompt", "tokens", "full"])
    def test_update(self, student, draw, expect, sizes):
        self.demand(student, draw, expect, sizes)

    def test_dtype(self, student, draw, expect):
        new = self.tokens(draw, 3, dtype=torch.float32)
        for got in expect.unpack(student.new("KVCache", 5).call("update", *new), *NAMES):
            dtype = str(getattr(got, "dtype", None))
            expect.equal(dtype, "float32", what="dtype of key and value that came in float32")

    @pytest.mark.points(2)
    def test_memory_is_taken_once(self, student, draw, expect):
        cache, reference = self.demand(student, draw, expect, [4])
        for name, shape in (("keys", (2, 3, 11, 5)), ("values", (2, 3, 11, 7))):
            got = getattr(cache.get(name), "shape", None)
            expect.equal(got, shape, what=f"the shape of `{name}` after the first update")
        for _ in range(3):
            before = cache.call("keys.data_ptr"), cache.call("values.data_ptr")
            self.update(expect, cache, reference, self.tokens(draw, 1))
            after = cache.call("keys.data_ptr"), cache.call("values.data_ptr")
            moved = "where it was" if before == after else "elsewhere"
            expect.equal(moved, "where it was", what="where the memory lies (data_ptr) after one more token")
        # A mark on the memory must show in what is returned.
        cache.call("keys.__iadd__", 1.0)
        pair = self.tokens(draw, 1)
        wanted = [each.clone() for each in reference.update(*pair)]
        wanted[0][:, :, :-1] += 1
        told = "after the check added 1 to all of `keys` and one more token came"
        pair_agrees(expect, cache.call("update", *pair), wanted, told, terms=8)

    @pytest.mark.points(2)
    @pytest.mark.parametrize(
        ("sizes", "t"), [([5], 1), ([3], 4), ([], 6)], ids=["full", "too few", "a prompt"]
    )
    def test_no_room(self, student, draw, expect, sizes, t):
        (cache, reference), held = self.demand(student, draw, expect, sizes, capacity=5), sum(sizes)
        what = f"update with t = {t} where {held} of 5 slots are taken"
        expect.raises("ValueError", cache.call, "update", *self.tokens(draw, t), what=what)
        if held:
            expect.equal(
                cache.get("positions"), reference.positions, what=f"positions after the error of {what}"
            )
        if held < 5:
            self.update(expect, cache, reference, self.tokens(draw, 5 - held))


@pytest.mark.task(
    "Reading in pieces",
    hints=[
        "The new tokens see each other as well as the old ones: what does the cache return?",
        "`cache_mask(cache.positions, t)` says who sees whom. When must `positions` be read, before the "
        "update or after?",
    ],
)
class TestAttention:
    @pytest.mark.points(2)
    @pytest.mark.parametrize("sizes", PIECES.values(), ids=PIECES)
    def test_pieces(self, student, draw, expect, sizes):
        """Each piece of a text has the outputs that a pass over all of it has there."""
        text = [draw(2, 3, 7, 5, scale=2.0), draw(2, 3, 7, 5, scale=2.0), draw(2, 3, 7, 11)]
        whole, cache = scaled_dot_product_attention(*text, is_causal=True), student.new("KVCache", 9)
        for places in torch.arange(7).split(sizes):
            output = student.call("cached_attention", *(x[:, :, places] for x in text), cache)
            what = f"output of {len(places)} behind {int(places[0])} tokens"
            explain = stands(places.expand(2, -1))
            expect.close(
                output, whole[:, :, places], axes=OUTPUT_AXES, what=what, explain=explain, largest=10
            )
        expect.equal(cache.get("positions"), torch.arange(7).expand(2, -1), what="positions in the end")


@pytest.mark.task(
    "Texts of different lengths",
    hints=[
        "Where is the next token of a text written? `self.lengths[:, None] + torch.arange(t)` is a row of "
        "slots for each text.",
        "`memory[rows, :, slots] = new.transpose(1, 2)`, with `rows` as `torch.arange(b)[:, None]`, writes "
        "each text to its own slots.",
        "`torch.arange(capacity) >= lengths[:, None]` is True for the slots that hold no token of a text: "
        "`masked_fill_` can empty them.",
    ],
)
class TestRagged:
    def tokens(self, draw, t, b=3):
        return draw(b, 2, t, 5), draw(b, 2, t, 7)

    def run(self, student, draw, expect, steps, capacity=11):
        """Updates (a number) and truncations (a list) in turn, the cache looked at after each."""
        ours, reference = student.new("RaggedCache", capacity), KVCache(capacity)
        for step in steps:
            self.step(draw, expect, ours, reference, step)
        return ours, reference

    def step(self, draw, expect, ours, reference, step):
        if isinstance(step, int):
            told = f"after texts of {reference.lengths.tolist()} tokens grew by {step}"
            pair = self.tokens(draw, step)
            pair_agrees(expect, ours.call("update", *pair), reference.update(*pair), told)
        else:
            told = f"after truncate({step})"
            ours.call("truncate", torch.tensor(step))
            reference.truncate(step)
        expect.equal(ours.get("lengths"), reference.lengths, what=f"lengths {told}")
        expect.equal(ours.get("positions"), reference.positions, what=f"positions {told}")

    @pytest.mark.parametrize("steps", TURNS.values(), ids=TURNS)
    def test_update_and_truncate(self, student, draw, expect, steps):
        self.run(student, draw, expect, steps)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("dirt", [1e3, float("nan")], ids=["large numbers", "NaN"])
    def test_as_if_alone(self, student, draw, expect, dirt):
        lengths, total = torch.tensor([5, 2, 4]), 8
        query, key, value = (draw(3, 2, total, width) for width in (5, 5, 7))
        whole = scaled_dot_product_attention(query, key, value, is_causal=True)
        padding = (torch.arange(5) >= lengths[:, None])[:, None, :, None]
        prompt = (x[:, :, :5].masked_fill(padding, dirt) for x in (key, value))
        cache = student.new("RaggedCache", 11)
        cache.call("update", *prompt)
        cache.call("truncate", lengths)
        for step in range(3):
            at = (lengths + step)[:, None, None, None]
            new = (x.take_along_dim(at, 2) for x in (query, key, value))
            output, wanted = student.call("cached_attention", *new, cache), whole.take_along_dim(at, 2)
            what = f"output of new token {step} in texts that began with {lengths.tolist()} tokens"
            expect.close(output, wanted, axes=OUTPUT_AXES, what=what, explain=stands(at[:, :, 0, 0]))

    @pytest.mark.parametrize(("held", "t"), [([2, 4, 3], 2), ([5, 0, 1], 1)], ids=["one text", "a full one"])
    def test_no_room(self, student, draw, expect, held, t):
        ours, reference = self.run(student, draw, expect, [5, held], capacity=5)
        what = f"update with t = {t} where {held} of 5 slots are taken"
        expect.raises("ValueError", ours.call, "update", *self.tokens(draw, t), what=what)
        self.step(draw, expect, ours, reference, [2, 0, 1])
        self.step(draw, expect, ours, reference, 3)

    @pytest.mark.parametrize("lengths", [[2, 3, 2], [2, -1, 2]], ids=["more than held", "negative"])
    def test_lengths_that_cannot_be(self, student, draw, expect, lengths):
        ours, reference = self.run(student, draw, expect, [4, [3, 2, 4]])
        what = f"truncate({lengths}) where [3, 2, 4] are held"
        expect.raises("ValueError", ours.call, "truncate", torch.tensor(lengths), what=what)
        self.step(draw, expect, ours, reference, 2)


@pytest.mark.task(
    "Pages",
    hints=[
        "Token n of a text lies in page `table[n // size]`, at place `n % size`. Begin with one text: "
        "`append` and `read`.",
        "A page is free if it is in no text's table. So `fork` and `drop` need not touch the memory: which "
        "few things must they copy or delete?",
        "Before `append` writes: is the last page partly full, and is it in another table? Then it needs a "
        "page more than the new tokens do. Count all of them before you take the first.",
    ],
)
class TestPages:
    def run(self, student, draw, expect, steps):
        """Does each step, then looks at all texts and at the number of free pages."""
        n_pages, *steps = steps.split(", ")
        # The memory is as it was found: full of NaN.
        memory = [torch.full((int(n_pages), 4, 2, width), torch.nan).double() for width in (3, 5)]
        cache, texts = student.new("PagedCache", *memory), {}
        expect.equal(cache.get("n_free"), int(n_pages), what="n_free of a new cache")
        for step in steps:
            what, _, free = step.partition(": ")
            verb, text, n, *_ = (*what.split(), 0)
            text, n = int(text), int(n)
            told, new = f"after text {text} grew by {n}", (draw(2, n, 3), draw(2, n, 5))
            match verb:
                case "append":
                    cache.call("append", text, *new)
                    old = texts.get(text, (draw(2, 0, 3), draw(2, 0, 5)))
                    texts[text] = [torch.cat(pair, dim=1) for pair in zip(old, new, strict=True)]
                case "refuse":
                    told = f"append to text {text} with t = {n}, too few free pages"
                    expect.raises("ValueError", cache.call, "append", text, *new, what=told)
                    told = f"after the error of {told}"
                case "fork":
                    told = f"after fork({text}, {n})"
                    cache.call("fork", text, n)
                    texts[n] = texts[text]
                case "drop":
                    told = f"after drop({text})"
                    cache.call("drop", text)
                    del texts[text]
            for name, wanted in texts.items():
                got = cache.call("read", name)
                pair_agrees(expect, got, wanted, f"of text {name} {told}", axes=PAGES_AXES)
            expect.equal(cache.get("n_free"), int(free), what=f"n_free {told}")
        return cache, texts

    test_pages = check_of("one text", "two texts", points=1)
    test_sharing = check_of("a shared page", "three texts", "full pages")
    test_drop = check_of("drop", points=1)
    test_no_room = check_of("no room")

    def test_the_memory_is_used(self, student, draw, expect):
        cache, texts = self.run(student, draw, expect, "5, append 0 6: 3, fork 0 1: 3")
        cache.call("keys.__iadd__", 1.0)
        for text, (key, value) in texts.items():
            told = f"of text {text} after the check added 1 to all of `keys`"
            pair_agrees(expect, cache.call("read", text), (key + 1, value), told, terms=8, axes=PAGES_AXES)
