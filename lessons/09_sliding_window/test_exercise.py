"""The checks of the exercise on sliding windows. They speak to the student's code through the fixture
`student` and to the reference by import."""

import numpy as np
import pytest
import torch

from annotated_attention.sliding_window import sliding_window_attention, sliding_window_mask

NAMES = ("key", "value")
OUTPUT_AXES = "batch head query width"
SPAN_AXES = "batch head block place width"
HELD_AXES = "batch head token width"
CAUSAL, TWO_SIDED = {}, {"is_causal": False}
# t, s, window and the options of a mask.
MASKS = {"causal": (5, 5, 3, CAUSAL), "only itself": (5, 5, 1, CAUSAL), "more queries": (7, 3, 2, CAUSAL)}
TWO_SIDED_MASKS = {"two-sided": (7, 7, 3, TWO_SIDED), "an even window": (5, 11, 4, TWO_SIDED)}
OFFSETS = {
    "new tokens": (2, 11, 3, {"offset": 5}),
    "beyond the keys": (5, 3, 3, {"offset": 2}),
    "before the keys": (5, 3, 2, {"offset": -3, "is_causal": False}),
}
# Length of the text, window, block size.
SHAPES = {
    "by hand": (5, 3, 2),
    "a partial block": (11, 5, 3),
    "a window of several blocks": (11, 7, 2),
    "only itself": (7, 1, 3),
    "a window beyond the text": (5, 11, 7),
}
SOME_SHAPES = {name: SHAPES[name] for name in list(SHAPES)[1:4]}
# Windows, length, position, options.
STACKS = {
    "by hand": ([3, 2], 12, 10, CAUSAL),
    "by hand, two-sided": ([3, 2], 12, 10, TWO_SIDED),
    "Mistral 7B": ([4096] * 32, 200_000, 150_000, CAUSAL),
    "growing windows": ([2, 3, 5, 7], 97, 40, TWO_SIDED),
    "windows of one": ([1, 1, 1], 31, 17, TWO_SIDED),
    "near the beginning": ([4, 4, 4], 31, 5, CAUSAL),
    "a layer without a window": ([4, None, 4], 31, 17, CAUSAL),
}
# Window and draft; then how many tokens come in each step, how many are taken back (-), or what is an
# error (!).
DRAFTS = {"by hand": (3, 2, "2 2 2"), "many": (5, 3, "3 3 3 3 2 3")}
TAKEN_BACK = {
    "by hand": (3, 2, "2 2 2 -2"),
    "now and then": (5, 3, "3 3 3 -1 2 3 -3 3 -2 1"),
    "all of a short text": (5, 3, "3 2 -5 3 -1 2"),
}
ERRORS = {
    "too many at once": (5, 3, "3 !4 2 3"),
    "too far back": (5, 3, "3 3 3 3 -2 !-2 -1 !-1 3"),
    "before the beginning": (3, 2, "2 !-3 -1 2"),
}


def sees(window, options):
    """Tells where the first wrong query stands and which keys it looks for."""

    def explain(index):
        i = index["query"] + options.get("offset", 0)
        last = i if options.get("is_causal", True) else i + window - 1
        return f"the query stands at {i}: it looks for keys {i - window + 1} to {last}"

    return explain


def each(names, cases):
    """A check that is made with each of these cases."""
    return pytest.mark.parametrize(names.split(), cases.values(), ids=cases)


@pytest.mark.task(
    "The mask",
    hints=[
        "How far behind a query does a key stand? That is one number for each pair: a table `t s`.",
        "`torch.arange(t)[:, None] + offset - torch.arange(s)` is that table; behind is positive. Which of "
        "its numbers are allowed, if the query's own key is one of the window?",
    ],
)
class TestMask:
    def demand(self, student, expect, t, s, window, options):
        mask = student.call("sliding_window_mask", t, s, window, **options)
        wanted = sliding_window_mask(t, s, window, **options)
        what = f"the mask of a window of {window}"
        expect.close(mask, wanted, axes="query key", what=what, explain=sees(window, options))

    @each("t s window options", MASKS)
    def test_causal(self, student, expect, t, s, window, options):
        self.demand(student, expect, t, s, window, options)

    @each("t s window options", TWO_SIDED_MASKS)
    def test_two_sided(self, student, expect, t, s, window, options):
        self.demand(student, expect, t, s, window, options)

    @each("t s window options", OFFSETS)
    def test_offset(self, student, expect, t, s, window, options):
        self.demand(student, expect, t, s, window, options)


@pytest.mark.task(
    "What a block can see",
    hints=[
        "Take one full block from the middle. How far back does its first query look? How far ahead does its "
        "last one look, causal and two-sided? The span is as long as all of that.",
        "Where the keys stand is a table `n a`: where the block begins, one row each, plus an `arange` that "
        "starts below 0. What is below 0 or not below s is no key.",
        "Two ways to gather. `x[:, :, j]` picks all spans at once, if no index is -1. Or pad `x` in front "
        "and behind, and `unfold(2, a, block_size)` cuts the spans. Look where it puts the axis of widths.",
    ],
)
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "two-sided"])
@each("s window block_size", SHAPES)
class TestSpans:
    @pytest.mark.points(2)
    def test_spans(self, student, expect, draw, s, window, block_size, is_causal):
        x = draw(2, 3, s, 2)
        before, after = window - 1, 0 if is_causal else window - 1
        starts = torch.arange(0, s, block_size)
        j = starts[:, None] + torch.arange(-before, block_size + after)
        real = (j >= 0) & (j < s)
        answer = student.call("key_spans", x, window, block_size, is_causal=is_causal)
        spans, positions = expect.unpack(answer, "spans", "positions")
        told = f"{s} keys, a window of {window}, blocks of {block_size}"

        def explain(index):
            first = block_size * index["block"]
            return f"the queries of this block are {first} to {min(first + block_size, s) - 1}"

        what = f"the positions ({told})"
        expect.close(positions, torch.where(real, j, -1), axes="block place", what=what, explain=explain)
        wanted = x[:, :, j.clamp(0, s - 1)] * real[:, :, None]
        expect.close(spans, wanted, axes=SPAN_AXES, what=f"the spans ({told})", terms=0, explain=explain)


@pytest.mark.task(
    "The attention",
    hints=[
        "Cut the queries as well: pad them to n · u places, then `unflatten(2, (n, u))`. Now scores are "
        "`b h n u a`, a small table for each block. Where do its rows and its columns stand?",
        "The mask of a block is task 1 again, made of positions: `i` is `n u`, `j` is `n a`. And a -1 is no "
        "key, however near it seems.",
        "In the last block, places after the end of the text may see nothing at all. What is their softmax? "
        "They are cut off, so the output is right; but look at the gradient of 0 / 0.",
    ],
)
class TestAttention:
    def inputs(self, draw, t, scale=1.0):
        return draw(2, 3, t, 5, scale=scale), draw(2, 3, t, 5, scale=scale), draw(2, 3, t, 7)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("options", [CAUSAL, TWO_SIDED], ids=["causal", "two-sided"])
    @each("t window block_size", SOME_SHAPES)
    def test_output(self, student, expect, draw, t, window, block_size, options):
        inputs = self.inputs(draw, t, scale=2.0)
        output = student.call("sliding_window_attention", *inputs, window, block_size=block_size, **options)
        wanted = sliding_window_attention(*inputs, window, **options)
        what = f"the output (window {window}, blocks of {block_size})"
        explain = sees(window, options)
        expect.close(output, wanted, axes=OUTPUT_AXES, what=what, explain=explain, largest=10)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "two-sided"])
    def test_no_block_reads_outside_its_span(self, student, expect, draw, is_causal):
        query, key, value = self.inputs(draw, 17)
        wanted = sliding_window_attention(query, key, value, 3, is_causal=is_causal)
        # Position 8 is in the third block of 4; no block that begins at 12 or ends at 3 sees it.
        key[:, :, 8] = value[:, :, 8] = torch.nan
        output = student.call(
            "sliding_window_attention", query, key, value, 3, block_size=4, is_causal=is_causal
        )
        shape = getattr(output, "shape", None)
        expect.equal(shape, (2, 3, 17, 7), what="the shape of the output")
        for first, last in ((0, 3), (12, 16)):
            what = f"the output of queries {first} to {last} after key and value 8 became NaN"
            places = slice(first, last + 1)

            def explain(index, first=first):
                return f"query {first + index['query']}'s block, of 4, has no key 8 in its span"

            expect.close(
                output[:, :, places], wanted[:, :, places], axes=OUTPUT_AXES, what=what, explain=explain
            )

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("t", "window", "block_size"), [(7, 3, 4), (5, 1, 4)])
    def test_gradients(self, student, expect, draw, t, window, block_size):
        inputs, grad = self.inputs(draw, t), draw(2, 3, t, 7)
        ours = student.vjp("sliding_window_attention", (*inputs, window), grad, block_size=block_size)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        wanted = torch.autograd.grad(sliding_window_attention(*leaves, window), leaves, grad)
        for name, got, expected in zip(("query", *NAMES), ours, wanted, strict=False):
            what = f"the gradient of {name} (t = {t}, window {window}, blocks of {block_size})"
            expect.close(got, expected, axes="batch head position width", what=what, factor=3)


def agree(expect, pair, positions, text, held, told):
    """What a cache holds, in whatever order, is `text` at the positions `held`, each of them once."""
    got = dict(zip(NAMES, pair, strict=True))
    where = np.asarray(positions)
    slots = getattr(got["key"], "shape", (0, 0, 0))[2:3]
    expect.equal(where.shape, slots, what=f"the shape of `positions` {told}, with one entry for each key,")
    order = np.argsort(where, kind="stable")
    order = order[where[order] >= 0]
    expect.equal(tuple(where[order].tolist()), tuple(held), what=f"the positions, sorted, {told}")
    for (name, memory), wanted in zip(got.items(), text, strict=True):
        # To the last bit: a cache computes nothing.
        what = f"what stands as {name} at positions {held.start} to {held.stop - 1} {told}"
        expect.close(
            memory[:, :, order], wanted[:, :, held.start : held.stop], axes=HELD_AXES, what=what, terms=0
        )


def memory_has(expect, cache, shape, widths):
    """The memory has room for so many tokens, and no more."""
    for name, width in zip(("keys", "values"), widths, strict=True):
        got = getattr(cache.get(name), "shape", None)
        expect.equal(got, (*shape, width), what=f"the shape of `{name}`")


@pytest.mark.task(
    "The ring",
    hints=[
        "Number the tokens 0, 1, 2. Token 0 goes into slot 0. Where does token `window` go, and the next?",
        "`count % window` is the slot of the token that comes, if `count` came before. Write it first. "
        "Then return, but until all slots were written, only the first `count` of them.",
        "Slot r holds the newest token whose number leaves the remainder r. Or keep a tensor of positions "
        "beside the keys, and write it along with them.",
    ],
)
class TestRing:
    @pytest.mark.points(2)
    @pytest.mark.parametrize(("window", "steps"), [(3, 5), (5, 23), (1, 3)])
    def test_stream(self, student, expect, draw, window, steps):
        text, cache = (draw(2, 3, steps, 5), draw(2, 3, steps, 7)), student.new("RollingKVCache", window)
        for now in range(steps):
            pair = cache.call("update", *(x[:, :, now : now + 1] for x in text))
            pair = expect.unpack(pair, *NAMES)
            told = f"after token {now} (window {window})"
            agree(expect, pair, cache.get("positions"), text, range(max(0, now + 1 - window), now + 1), told)

    @pytest.mark.points(2)
    def test_an_update_writes_one_slot(self, student, expect, draw):
        text, cache = (draw(2, 3, 11, 5), draw(2, 3, 11, 7)), student.new("RollingKVCache", 4)
        before, places = None, None
        for now in range(11):
            cache.call("update", *(x[:, :, now : now + 1] for x in text))
            memory_has(expect, cache, (2, 3, 4), (5, 7))
            memory = np.nan_to_num(cache.get("keys"))  # unwritten memory may be NaN
            held = [cache.call(f"{x}.data_ptr") for x in ("keys", "values")]
            if before is not None:
                changed = int((memory != before).any(axis=(0, 1, 3)).sum())
                expect.equal(changed, 1, what=f"the number of slots of `keys` that token {now} changed")
                moved = "where it was" if held == places else "elsewhere"
                expect.equal(moved, "where it was", what="where the memory lies (data_ptr) after a token")
            before, places = memory, held

    def test_dtype(self, student, expect, draw):
        cache = student.new("RollingKVCache", 3)
        pair = cache.call("update", *(draw(1, 2, 1, 3, dtype=torch.float32) for _ in range(2)))
        for name, got in zip(NAMES, expect.unpack(pair, *NAMES), strict=True):
            dtype = str(getattr(got, "dtype", None))
            expect.equal(dtype, "float32", what=f"the dtype of {name}, which came in float32,")


@pytest.mark.task(
    "How far a stack of layers sees",
    hints=[
        "Go from the last layer down. Each layer adds how many steps back, when its window counts the "
        "query's own key?",
        "A layer without a window looks as far as the text goes. And no text goes on before 0 or behind "
        "`length - 1`.",
        "`layers_needed` turns the same formula round: the smallest L for which L layers reach far enough. "
        "`-(-a // b)` is a / b, rounded up.",
    ],
)
class TestReceptiveField:
    @each("windows length i options", STACKS)
    def test_field(self, student, expect, windows, length, i, options):
        # Layer by layer, as sets: position i sees what the positions in its window have seen.
        first = last = i
        for window in windows:
            reach = length if window is None else window - 1
            ahead = 0 if options is CAUSAL else reach
            first, last = max(first - reach, 0), min(last + ahead, length - 1)
        answer = student.call("receptive_field", windows, length, i, **options)
        shown = windows if len(windows) < 9 else f"{len(windows)} times {windows[0]}"
        what = f"what position {i} of {length} depends on (windows {shown})"
        expect.equal(answer, (first, last), what=what)

    @pytest.mark.parametrize(("window", "distance"), [(4, 6), (4, 5), (4, 12)])
    def test_layers(self, student, expect, window, distance):
        wanted = next(n for n in range(1, distance + 1) if n * (window - 1) >= distance)
        answer = student.call("layers_needed", window, distance)
        expect.equal(answer, wanted, what=f"layers with a window of {window} for a distance of {distance}")

    def test_never(self, student, expect):
        expect.raises("ValueError", student.call, "layers_needed", 1, 5, what="window 1, distance 5")


@pytest.mark.task(
    "A ring that takes back",
    hints=[
        "Begin with tokens that come and none that go: task 4 with `window - 1 + draft` slots, several "
        "tokens at a time, and a tensor of positions that starts as -1.",
        "`rewind` touches no key. Which entries of `positions` become -1, and where does the next token go?",
        "One more number must be remembered: how many tokens, from the first on, were ever overwritten. A "
        "rewind does not bring them back. The next query looks `window - 1` back: is that one still there?",
    ],
)
class TestRewind:
    def demand(self, student, expect, draw, window, draft, steps):
        cache, size = student.new("RewindableKVCache", window, draft), window - 1 + draft
        text, count, lost = (draw(2, 3, 0, 3), draw(2, 3, 0, 5)), 0, 0
        pair, done = None, []
        for step in steps.split():
            n, refused = int(step.removeprefix("!")), step[0] == "!"
            name = f"{n} more" if n > 0 else f"rewind({-n})"
            told = ", ".join([*done, name])
            new = draw(2, 3, max(n, 0), 3), draw(2, 3, max(n, 0), 5)
            call = ("update", *new) if n > 0 else ("rewind", -n)
            if refused:
                expect.raises("ValueError", cache.call, *call, what=f"window {window}, draft {draft}; {told}")
            elif n > 0:
                pair = expect.unpack(cache.call(*call), *NAMES)
                text = [torch.cat(both, dim=2) for both in zip(text, new, strict=True)]
            else:
                cache.call(*call)
                text = [x[:, :, :n] for x in text]
            done.append(f"{name} (an error)" if refused else name)
            count = text[0].shape[2]
            lost = max(lost, count - size)
            told = f"after {', '.join(done)} (window {window}, draft {draft})"
            agree(expect, pair, cache.get("positions"), text, range(lost, count), told)
        memory_has(expect, cache, (2, 3, size), (3, 5))

    @each("window draft steps", DRAFTS)
    def test_update(self, student, expect, draw, window, draft, steps):
        self.demand(student, expect, draw, window, draft, steps)

    @pytest.mark.points(2)
    @each("window draft steps", TAKEN_BACK)
    def test_rewind(self, student, expect, draw, window, draft, steps):
        self.demand(student, expect, draw, window, draft, steps)

    @pytest.mark.points(2)
    @each("window draft steps", ERRORS)
    def test_errors(self, student, expect, draw, window, draft, steps):
        self.demand(student, expect, draw, window, draft, steps)
