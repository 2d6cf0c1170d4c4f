"""The checks of the exercise on grouped-query attention. They speak to the student's code through the fixture
`student` and to the reference by import."""

from functools import partial

import numpy as np
import pytest
import torch

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    grouped_query_attention,
    mean_pool_kv_heads,
)
from annotated_attention.language_model import SelfAttention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

AXES = "batch head query width"
FOLDED = "batch group query width"
KEPT = "batch group position width"
NAMES = ("query", "key", "value")
WEIGHTS = ("w_q", "w_k", "w_v", "w_o")
# Query heads, key heads.
HEADS = {"multi-head": (4, 4), "groups of two": (6, 3), "groups of three": (6, 2), "multi-query": (4, 1)}
each_heads = pytest.mark.parametrize(("h", "g"), HEADS.values(), ids=HEADS)
each_shape = pytest.mark.parametrize("shape", [(11,), ()], ids=["weight", "bias"])
# Axes of a mask for 4 texts, 4 heads, 3 queries and 5 keys.
MASKS = {
    "t s": (3, 5),
    "h t s": (4, 3, 5),
    "b h t s": (4, 4, 3, 5),
    "b 1 1 s": (4, 1, 1, 5),
    "b 1 t s": (4, 1, 3, 5),
    "h 1 s": (4, 1, 5),
}
LAYERS = ["one head is left", "groups of two", "groups of three", "nothing to share"]


def draw_inputs(draw, h, g, b=2, t=3, s=5, scale=1.0):
    return draw(b, h, t, 7, scale=scale), draw(b, g, s, 7, scale=scale), draw(b, g, s, 2)


def reads(h, g):
    """An explanation for axes that begin with a batch and a query head."""
    return lambda index: (
        f"of {h} heads, head {index['head']} reads key head {index['head'] // (h // g)} of {g}"
    )


def refused(expect, student, name, *args, what):
    expect.raises("ValueError", partial(student.call, name, *args), what=what)


@pytest.mark.task(
    "Who reads what",
    hints=[
        "How many query heads share a key head? Those are the first ones, for key head 0.",
        "`torch.arange(n_heads)` numbers the heads. By what do you divide, so that the first r become 0?",
    ],
)
class TestKeyHeads:
    @pytest.mark.parametrize(("h", "g"), [*HEADS.values(), (12, 4)], ids=[*HEADS, "four groups"])
    def test_heads(self, student, expect, h, g):
        heads = student.call("key_heads", h, g)
        expect.close(heads, torch.arange(h) // (h // g), axes="head", what=f"key heads of {h} heads on {g}")

    def test_heads_that_do_not_fit(self, student, expect):
        refused(expect, student, "key_heads", 6, 4, what="6 heads on 4 key heads")
        refused(expect, student, "key_heads", 2, 4, what="2 heads on 4 key heads")
        refused(expect, student, "key_heads", 6, 0, what="no key heads")


@pytest.mark.task(
    "A group is one head with more queries",
    hints=[
        "No number changes, only the axes do: h is cut into g and r, and r goes to the queries.",
        "In `rearrange`, the name that comes first in `( )` changes slowest. Which of g and r is it where "
        "neighbours form a group, and which of r and t where the queries of one head stay together?",
        '`rearrange(query, "b (g r) t d -> b g (r t) d", g=n_kv_heads)` folds. Read it backwards.',
    ],
)
class TestFold:
    @each_heads
    def test_fold(self, student, draw, expect, h, g):
        query, r = draw(2, h, 3, 5), h // g
        folded = student.call("fold_heads", query, g)
        groups = [query[:, u * r : u * r + r].flatten(1, 2) for u in range(g)]

        def explain(index):
            u, n = index["group"], index["query"]
            return f"query {n} of group {u} is query {n % 3} of head {u * r + n // 3}"

        what = f"{h} heads folded for {g}"
        expect.close(folded, torch.stack(groups, 1), axes=FOLDED, what=what, explain=explain)

    @each_heads
    def test_unfold(self, student, draw, expect, h, g):
        folded, r = draw(2, g, h // g * 3, 5), h // g
        heads = [folded[:, n // r, n % r * 3 : n % r * 3 + 3] for n in range(h)]
        output = student.call("unfold_heads", folded, h)
        expect.close(output, torch.stack(heads, 1), axes=AXES, what=f"{g} folded heads unfolded for {h}")

    def test_together(self, student, draw, expect):
        inputs = query, key, value = draw_inputs(draw, 6, 2)
        folded = student.call("fold_heads", query, 2)
        expect.equal(getattr(folded, "shape", None), (2, 2, 9, 7), what="the shape of the folded queries")
        answers = scaled_dot_product_attention(torch.tensor(folded), key, value)
        output = student.call("unfold_heads", answers, 6)
        what = "attention between fold and unfold"
        expect.close(output, grouped_query_attention(*inputs), axes=AXES, what=what, explain=reads(6, 2))


@pytest.mark.task(
    "One function for all three",
    hints=[
        "Fold, attend as if there were g heads, unfold. Only the scores between are new: `b g r*t s`.",
        "`attn_mask.expand(b, h, t, s)` gives every mask all its axes, and copies nothing. Then it has one row "
        "for each query of each head: what did you do with those?",
        "The causal mask belongs to t queries, not to r t: make it before you fold. Rows of nothing but minus "
        "infinity get scores of 0 before the softmax and weights of 0 after it.",
    ],
)
class TestAttention:
    @each_heads
    def test_output(self, student, draw, expect, h, g):
        inputs = draw_inputs(draw, h, g, scale=2.0)
        output, expected = student.call("grouped_attention", *inputs), grouped_query_attention(*inputs)
        expect.close(output, expected, axes=AXES, what="output", explain=reads(h, g))

    @pytest.mark.parametrize("s", [5, 3, 7], ids=["square", "fewer keys", "more keys"])
    def test_causal(self, student, draw, expect, s):
        inputs = draw_inputs(draw, 6, 2, t=5, s=s)
        output = student.call("grouped_attention", *inputs, is_causal=True)
        expected = grouped_query_attention(*inputs, is_causal=True)

        def explain(index):
            return f"query {index['query']} sees the keys 0 to {min(index['query'], s - 1)}, in every head"

        expect.close(output, expected, axes=AXES, what="causal output", explain=explain)

    @pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
    def test_mask(self, student, draw, expect, shape):
        inputs, mask = draw_inputs(draw, 4, 2, b=4), draw(*shape) > 0
        mask[..., 0] = True
        output = student.call("grouped_attention", *inputs, mask)
        expected, what = grouped_query_attention(*inputs, mask), f"output for a mask of shape {shape}"
        expect.close(output, expected, axes=AXES, what=what, explain=reads(4, 2))

    @pytest.mark.parametrize("added", [False, True], ids=["boolean", "added"])
    def test_queries_without_keys(self, student, draw, expect, added):
        inputs, may = draw_inputs(draw, 4, 2), torch.ones(4, 3, 5, dtype=torch.bool)
        may[1, 2] = may[2] = may[:, 1, 3:] = False
        mask = draw(4, 3, 5).masked_fill(~may, float("-inf")) if added else may
        output, expected = (
            student.call("grouped_attention", *inputs, mask),
            grouped_query_attention(*inputs, mask),
        )

        def explain(index):
            return None if may[index["head"], index["query"]].any() else "this query sees no key in this head"

        what = f"output for a mask that is {'added' if added else 'boolean'}"
        expect.close(output, expected, axes=AXES, what=what, explain=explain)

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("h", "g"), [(6, 2), (4, 1)], ids=["groups of three", "multi-query"])
    def test_gradients(self, student, draw, expect, h, g):
        inputs, mask, grad = draw_inputs(draw, h, g), draw(h, 3, 5) > 0, draw(2, h, 3, 2)
        mask[..., 0] = True
        mask[1, 2] = False
        ours = student.vjp("grouped_attention", inputs, grad, attn_mask=mask)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        wanted = torch.autograd.grad(grouped_query_attention(*leaves, mask), leaves, grad)
        for name, got, expected in zip(NAMES, ours, wanted, strict=True):
            axes = AXES if name == "query" else KEPT
            expect.close(got, expected, axes=axes, what=f"gradient of {name}", factor=3)

    def test_heads_that_do_not_fit(self, student, draw, expect):
        inputs = draw_inputs(draw, 6, 4)
        refused(expect, student, "grouped_attention", *inputs, what="6 heads on 4 key heads")


@pytest.mark.task(
    "What is kept",
    hints=[
        "Count numbers before bytes: one token, one layer, one key head. Which two vectors does it keep?",
        "At least one whole head is on every device: `max(..., 1)`. The width of a head does not change when "
        "heads of keys are taken away.",
        "Of s positions in the cache, the t new queries are the last. `tril(s - t)` moves the diagonal of a "
        "`t s` table so that it ends in the corner.",
    ],
)
class TestCache:
    @pytest.mark.parametrize(
        ("m", "layers", "h", "g"),
        [(4096, 32, 32, 32), (8192, 80, 64, 8), (4096, 32, 32, 8), (4544, 32, 71, 1)],
        ids=["Llama-2-7B", "Llama-2-70B", "Llama-3-8B", "Falcon-7B"],
    )
    def test_bytes(self, student, expect, m, layers, h, g):
        for tokens, size in [(10, 2), (4096, 2), (1000, 4)]:
            wanted = tokens * layers * 2 * g * (m // h) * size
            found = student.call("cache_bytes", tokens, m, layers, h, g, itemsize=size)
            expect.equal(found, wanted, what=f"the bytes of {tokens} tokens (itemsize={size})")

    @pytest.mark.parametrize(("devices", "heads"), [(2, 4), (8, 1), (32, 1)], ids=["2", "8", "32 devices"])
    def test_devices(self, student, expect, devices, heads):
        found = student.call("cache_bytes", 1000, 512, 3, 32, 8, n_devices=devices)
        expect.equal(found, 192_000 * heads, what=f"the bytes on each of {devices} devices")

    def test_devices_that_do_not_fit(self, student, expect):
        for n in (3, 12):
            call = partial(student.call, "cache_bytes", 1000, 512, 3, 32, 8, n_devices=n)
            expect.raises("ValueError", call, what=f"8 heads on {n} devices")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("pieces", [[1, 1, 1, 1], [5, 1, 1], [2, 3, 1, 4]], ids=str)
    @pytest.mark.parametrize(("h", "g"), [(6, 2), (4, 1)], ids=["groups of three", "multi-query"])
    def test_steps(self, student, draw, expect, h, g, pieces):
        inputs = draw_inputs(draw, h, g, t=sum(pieces), s=sum(pieces))
        whole, cache = grouped_query_attention(*inputs, is_causal=True), student.new("GroupedCache")
        parts = zip(*(tensor.split(pieces, dim=2) for tensor in (*inputs, whole)), strict=True)
        for now, (*step, expected) in enumerate(parts):
            output, what = cache.call("step", *step), f"output of step {now} (new tokens: {pieces[now]})"
            expect.close(output, expected, axes=AXES, what=what)

    @pytest.mark.points(2)
    def test_what_is_kept(self, student, draw, expect):
        query, key, value = draw_inputs(draw, 6, 2, t=6, s=6)
        cache = student.new("GroupedCache")
        for a, b in [(0, 3), (3, 4), (4, 5)]:
            cache.call("step", query[:, :, a:b], key[:, :, a:b], value[:, :, a:b])
            for name, tensor in [("key", key), ("value", value)]:
                expect.close(cache.get(name), tensor[:, :, :b], axes=KEPT, what=f"`{name}` after {b} tokens")
        # A mark on what is kept must show in the next answer.
        cache.call("value.__iadd__", 1.0)
        output = cache.call("step", query[:, :, 5:], key[:, :, 5:], value[:, :, 5:])
        marked = torch.cat([value[:, :, :5] + 1.0, value[:, :, 5:]], dim=2)
        expected = grouped_query_attention(query[:, :, 5:], key, marked)
        expect.close(output, expected, axes=AXES, what="output after the check added 1 to all of `value`")


@pytest.mark.task(
    "Convert a checkpoint",
    hints=[
        "Three axes hide in the rows: g groups of r heads of d rows. Which of them goes?",
        '`rearrange(weight, "(g r d) ... -> g r d ...", g=..., r=...)` shows them; the dots stand for m, or '
        "for nothing where it is a bias.",
        "The way back is the same pattern with r on the right only: `einops.repeat` does that.",
    ],
)
class TestConvert:
    @each_heads
    @each_shape
    def test_pool(self, student, draw, expect, h, g, shape):
        weight = draw(h * 5, *shape)
        pooled = student.call("mean_pool_kv_heads", weight, h, g)
        axes, what = "row column"[: 10 if shape else 3], f"{h} heads of 5 rows each, pooled to {g}"
        expect.close(pooled, mean_pool_kv_heads(weight, h, g), axes=axes, what=what)

    @each_heads
    @each_shape
    def test_repeat(self, student, draw, expect, h, g, shape):
        weight = draw(g * 5, *shape)
        heads = [weight[n * g // h * 5 :][:5] for n in range(h)]
        repeated = student.call("repeat_kv_heads", weight, h, g)
        axes, what = "row column"[: 10 if shape else 3], f"{g} heads of 5 rows each, repeated for {h}"
        expect.close(repeated, torch.cat(heads), axes=axes, what=what)

    @each_shape
    def test_rows_that_do_not_fit(self, student, draw, expect, shape):
        for h, g, what in [(4, 2, "30 rows for 4 heads"), (6, 4, "6 heads pooled to 4")]:
            refused(expect, student, "mean_pool_kv_heads", draw(30, *shape), h, g, what=what)


def draw_heads(draw, g, r, d, m, noise):
    """Asks and offers of g groups, `g r d m`. The heads of a group see y through the same d directions, each in
    a basis of its own, and noise of this size beside. Without noise they can share a head and lose nothing."""
    bases = torch.linalg.qr(draw(g, r, d, d)).Q * torch.arange(1, r + 1)[:, None, None]
    seen = torch.linalg.qr(draw(g, 1, m, d)).Q.mT * m**0.5
    return draw(g, r, d, m), bases @ seen + draw(g, r, d, m, scale=noise)


def closest(asks, offers):
    """The products of each head that a shared head can reach: those of the best directions of its group."""
    products = asks.mT @ offers
    best = torch.linalg.svd(products.flatten(1, 2)).Vh[:, None, : asks.shape[2]]
    return (products @ best.mT @ best).flatten(0, 1)


def draw_layer(draw, h, g, d, noise):
    """Two pairs of asks and offers, one of queries and keys, one of W_O and values; and the four weights."""
    pairs = [draw_heads(draw, g, h // g, d, h * d, noise) for _ in range(2)]
    w_q, w_k, w_o, w_v = (part.flatten(0, 2) for pair in pairs for part in pair)
    return pairs, dict(zip(WEIGHTS, (w_q, w_k, w_v, w_o.mT.contiguous()), strict=True))


def shared_weights(student, expect, weights, h, g):
    """The student's weights of a grouped layer, once they have the right shapes."""
    answer = expect.unpack(student.call("share_kv_heads", *weights.values(), h, g), *WEIGHTS)
    rows = len(weights["w_k"]) // h * g
    for name, weight in zip(WEIGHTS, answer, strict=True):
        wanted = (rows, weights[name].shape[1]) if name in ("w_k", "w_v") else tuple(weights[name].shape)
        expect.equal(getattr(weight, "shape", None), wanted, what=f"the shape of the new {name}")
    return [torch.tensor(weight) for weight in answer]


@pytest.mark.task(
    "A better head than the mean",
    hints=[
        "Put the matrices asks[n]ᵀ offers[n] on top of one another: `r*m m`. The sum is the squared distance "
        "of this one matrix to another. What rank has the other, whatever `new` and `shared` are?",
        "The closest matrix of rank d keeps the d largest singular values (Eckart and Young). Its rows are "
        "combinations of the first d rows of `Vh`, from `torch.linalg.svd`. For such a `shared`, new[n]ᵀ is "
        "asks[n]ᵀ offers[n] sharedᵀ.",
        "For the values, W_O takes the place of the asks: head n has d *columns* of `w_o`, and they are the "
        "rows of its asks.",
    ],
)
class TestSharedHead:
    @pytest.mark.points(2)
    @pytest.mark.parametrize("noise", [0.0, 0.3], ids=["other bases", "other heads"])
    @pytest.mark.parametrize(("r", "d", "m"), [(2, 2, 5), (3, 1, 7), (3, 4, 11)])
    def test_one_group(self, student, draw, expect, r, d, m, noise):
        asks, offers = draw_heads(draw, 1, r, d, m, noise)
        new, shared = expect.unpack(student.call("shared_head", asks[0], offers[0]), "new", "shared")
        expect.equal(getattr(new, "shape", None), (r, d, m), what="the shape of `new`")
        expect.equal(getattr(shared, "shape", None), (d, m), what="the shape of `shared`")
        products = np.swapaxes(new, 1, 2) @ shared
        expect.close(products, closest(asks, offers), axes="head x y", what="new[n]ᵀ shared", largest=400.0)

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("h", "g"), [(3, 1), (4, 2), (6, 2), (3, 3)], ids=LAYERS)
    def test_layer(self, student, draw, expect, h, g):
        pairs, weights = draw_layer(draw, h, g, 4, 0.2)
        w_q, w_k, w_v, w_o = shared_weights(student, expect, weights, h, g)
        scores = [q.mT @ w_k.split(4)[n * g // h] for n, q in enumerate(w_q.split(4))]
        moved = [o @ w_v.split(4)[n * g // h] for n, o in enumerate(w_o.split(4, dim=1))]
        for found, pair, what in zip((scores, moved), pairs, ("W_Qᵀ W_K", "W_O W_V"), strict=True):
            found, what = torch.stack(found).numpy(), f"{what} of each head"
            expect.close(found, closest(*pair), axes="head x y", what=what, largest=400.0)

    @pytest.mark.points(2)
    def test_nothing_is_lost(self, student, draw, expect):
        x, (_, weights) = draw(2, 5, 24, scale=0.1), draw_layer(draw, 6, 2, 4, 0.0)
        layer, shared = SelfAttention(24, 6).double(), GroupedQueryAttention(24, 6, 2).double()
        ours = shared_weights(student, expect, weights, 6, 2)
        for target, given in [(layer, weights.values()), (shared, ours)]:
            target.load_state_dict(dict(zip([f"{name}.weight" for name in WEIGHTS], given, strict=True)))
        output, what = shared(x).detach().numpy(), "output of a layer whose heads differ in their bases only"
        expect.close(output, layer(x), axes="batch query width", what=what, largest=400.0)
