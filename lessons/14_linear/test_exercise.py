"""The checks of the exercise on linear attention. They speak to the student's code through the fixture
`student` and to the reference by import."""

import numpy as np
import pytest
import torch

from annotated_attention.linear import linear_attention
from annotated_attention.linear_decay import decayed_linear_attention

INF = torch.inf
NAMES = ("query", "key", "value", "log_decay")
OUTPUT_AXES = "batch head query width"
STATE_AXES = "batch head row column"
TEXT_AXES = "batch head token width"
# Length of the text, chunk size.
CUTS = {
    "two full chunks": (4, 2),
    "a partial chunk": (11, 3),
    "chunks of one": (5, 1),
    "a chunk beyond the text": (5, 11),
}
# Lengths of the pieces of a text.
PIECES = {"two": ([3, 5],), "many": ([2, 1, 4, 3],), "an empty one": ([3, 0, 2],)}


def each(names, cases):
    """A check that is made with each of these cases."""
    return pytest.mark.parametrize(names.split(), cases.values(), ids=cases)


def features(x):
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def sums(key, value):
    """What a text leaves: the plain sums of task 1."""
    return torch.einsum("b h s d, b h s e -> b h d e", features(key), value), features(key).sum(dim=2)


def faded(key, value, log_decay):
    """The same with decay, token by token."""
    state = key[:, :, :0].mT @ value[:, :, :0]
    for k, v, a in zip(key.unbind(2), value.unbind(2), log_decay.unbind(2), strict=True):
        state = a.exp()[..., None, None] * state + k[..., :, None] * v[..., None, :]
    return log_decay.sum(dim=-1), state


def text(draw, t, scale=1.0):
    return draw(2, 3, t, 5, scale=scale), draw(2, 3, t, 5, scale=scale), draw(2, 3, t, 7)


def decays(draw, t):
    return -draw(2, 3, t).abs()


def demand_state(expect, state, wanted, told, names=("S", "z"), axes=(STATE_AXES, "batch head row")):
    for name, got, right, words in zip(names, expect.unpack(state, *names), wanted, axes, strict=True):
        expect.close(got, right, axes=words, what=f"{name} {told}", largest=10)


def demand_piece(expect, answer, wanted, told):
    demand_state(expect, answer, wanted, told, ("log A", "S'"), ("batch head", STATE_AXES))


def not_reached(student, expect, name, inputs, wanted, chunk_size, place=8):
    """Chunks that end before `place` say the same when the value there is NaN."""
    value = inputs[2].clone()
    value[:, :, place] = torch.nan
    output = student.call(name, *inputs[:2], value, *inputs[3:], chunk_size=chunk_size)
    expect.equal(getattr(output, "shape", None), tuple(wanted.shape), what="the shape of the output")
    clean = place // chunk_size * chunk_size
    what = f"the output of tokens before {clean} after value {place} became NaN (chunks of {chunk_size})"
    expect.close(output[:, :, :clean], wanted[:, :, :clean], axes=OUTPUT_AXES, what=what)


def demand_gradients(student, expect, name, function, inputs, grad, **options):
    ours = student.vjp(name, inputs, grad, **options)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    wanted = torch.autograd.grad(function(*leaves, **options), leaves, grad)
    for name, got, expected in zip(NAMES, ours, wanted, strict=False):
        axes = TEXT_AXES if expected.ndim == 4 else "batch head token"
        expect.close(got, expected, axes=axes, what=f"the gradient of {name}", factor=3, largest=20)


@pytest.mark.task(
    "A state instead of a table",
    hints=[
        "`torch.where(x > 0, x + 1, x.exp())` is right, until exp overflows where it is not wanted: 0 times "
        "infinity is NaN in the gradient. What if x is cut off at 0, `x.clamp(max=0)`, before exp sees it?",
        "`store`: in `torch.einsum`, the letter s is in both inputs and not in the output. The batch and the "
        "head are in all three.",
        "`read`: the features of the query times S, and the same features times z, which is one number for "
        "each query. `[..., None]` lets it divide a row.",
    ],
)
class TestState:
    def test_features(self, student, draw, expect):
        x = torch.cat([torch.tensor([[2.0, 0.0, -1.0]]).double().T, draw(5, 1, scale=3.0)])
        expect.close(student.call("elu_plus_one", x), features(x), axes="row column", what="the features")

    def test_small_features(self, student, expect):
        x = torch.tensor([[-20.0, -40.0]]).double()
        answer = student.call("elu_plus_one", x)
        expect.close(answer, features(x), axes="row column", what="the features of -20 and -40")
        with np.errstate(all="ignore"):
            small = np.log(answer)
        expect.close(small, x, axes="row column", what="the logarithm of the features of -20 and -40")

    def test_large_features(self, student, expect):
        x = torch.tensor([1000.0, -1000.0, 3.0]).double()
        (gradient,) = student.vjp("elu_plus_one", (x,), torch.ones(3).double())
        what = "the gradient of the features of 1000, -1000, 3"
        expect.close(gradient, torch.tensor([1.0, 0.0, 1.0]), axes="entry", what=what)

    @pytest.mark.points(2)
    @pytest.mark.parametrize("s", [7, 1])
    def test_store(self, student, draw, expect, s):
        _, *keys_and_values = text(draw, s)
        state = student.call("store", *keys_and_values)
        demand_state(expect, state, sums(*keys_and_values), f"of {s} keys")

    @pytest.mark.points(2)
    @pytest.mark.parametrize(("t", "far"), [(3, 0.0), (11, -20.0)], ids=["", "all features small"])
    def test_read(self, student, draw, expect, t, far):
        query, (_, key, value) = draw(2, 3, t, 5) + far, text(draw, 7)
        key = key + far
        output = student.call("read", query, sums(key, value))
        wanted = linear_attention(query, key, value, is_causal=False, form="parallel")
        expect.close(output, wanted, axes=OUTPUT_AXES, what="what the queries find in the state of 7 keys")


@pytest.mark.task(
    "One token at a time",
    hints=[
        "`store` makes a state of this one token. How do two states become one?",
        "The token sees itself. So which comes first, adding to the state or reading it?",
    ],
)
class TestStep:
    def demand(self, student, expect, words, state, first):
        """Steps from a state, over all tokens from `first` on."""
        wanted = linear_attention(*words, form="parallel")
        for i in range(first, words[0].shape[2]):
            answer = student.call("linear_attention_step", *(x[:, :, [i]] for x in words), state)
            output, state = expect.unpack(answer, "output", "state")
            told = f"of token {i}, of which {first} were stored before" if first else f"of token {i}"
            expect.close(output, wanted[:, :, [i]], axes=OUTPUT_AXES, what=f"the output {told}")
            seen = sums(*(x[:, :, : i + 1] for x in words[1:]))
            demand_state(expect, state, seen, f"after token {i}")
            state = tuple(map(torch.as_tensor, state))

    @pytest.mark.points(2)
    def test_from_the_beginning(self, student, draw, expect):
        zeros = torch.zeros(2, 3, 5, 7).double(), torch.zeros(2, 3, 5).double()
        self.demand(student, expect, text(draw, 4), zeros, 0)

    def test_after_a_prompt(self, student, draw, expect):
        words = text(draw, 9)
        self.demand(student, expect, words, sums(*(x[:, :, :6] for x in words[1:])), 6)


@pytest.mark.task(
    "Chunk by chunk",
    hints=[
        "`x.split(chunk_size, dim=2)` cuts, the last piece may be shorter. For each chunk: a small table "
        "φ(q)ᵀφ(k), causal, without a softmax; and φ(q) times the state of all chunks *before*.",
        "Numerator and denominator have both a part from the table and one from the state. Add the parts "
        "first, divide once. Then the chunk itself joins the state.",
        "The denominator is what a value of 1 would give. So a column of ones beside the values saves half "
        "of the work: divide by that column at the end.",
    ],
)
class TestChunks:
    @pytest.mark.points(2)
    @each("t chunk_size", CUTS)
    def test_output(self, student, draw, expect, t, chunk_size):
        words = text(draw, t, scale=2.0)
        output = student.call("linear_attention", *words, chunk_size=chunk_size)
        wanted = linear_attention(*words, form="parallel")
        what = f"the output ({t} tokens, chunks of {chunk_size})"

        def explain(index):
            return f"its chunk begins at token {index['query'] // chunk_size * chunk_size}"

        expect.close(output, wanted, axes=OUTPUT_AXES, what=what, explain=explain, largest=10)

    @pytest.mark.points(2)
    def test_no_chunk_is_read_from_before_it(self, student, draw, expect):
        words = text(draw, 13)
        wanted = linear_attention(*words, form="parallel")
        not_reached(student, expect, "linear_attention", words, wanted, 4)

    def test_gradients(self, student, draw, expect):
        words, grad = text(draw, 7), draw(2, 3, 7, 7)
        functions = "linear_attention", linear_attention
        demand_gradients(student, expect, *functions, words, grad, chunk_size=3)


@pytest.mark.task(
    "Forgetting",
    hints=[
        "Row i of the mask is row i - 1, all of it times aᵢ, and a 1 on the diagonal. That is right already, "
        "one row after the other.",
        "All at once: a product is a sum of logarithms, and the sum from j + 1 to i is a difference of two "
        "running sums. But -∞ minus -∞ is NaN. Instead let every column j have a running sum of its own, "
        "which begins below the diagonal: put the logarithm of aᵢ at (i, j) for j < i and 0 elsewhere, then "
        "`cumsum` down the columns.",
        "What is above the diagonal must be hidden *before* the exponential, as -∞. If it is hidden after, "
        "exp may overflow there, and 0 times infinity is NaN on the way back.",
    ],
)
class TestForgetting:
    def demand(self, student, expect, log_decay, told):
        t = log_decay.shape[-1]
        wanted = torch.zeros(*log_decay.shape, t).double()
        for i in range(t):
            wanted[..., i, :i] = wanted[..., i - 1, :i] * log_decay[..., i, None].exp()
            wanted[..., i, i] = 1.0

        def explain(index):
            i, j = index["query"], index["key"]
            faded = f"key {j} fades at the tokens: {', '.join(map(str, range(j + 1, i + 1))) or 'none'}"
            return faded if j <= i else "the future is hidden"

        mask = student.call("decay_mask", log_decay)
        axes = "batch head query key"
        expect.close(mask, wanted, axes=axes, what=f"the mask {told}", explain=explain, largest=10)

    @pytest.mark.points(2)
    def test_mask(self, student, draw, expect):
        self.demand(student, expect, torch.full((1, 1, 3), 0.5).double().log(), "of three decays of 1/2")
        self.demand(student, expect, decays(draw, 7), "of 7 decays")

    @pytest.mark.points(2)
    def test_strong_decay(self, student, draw, expect):
        for strong in (-1000.0, -INF):
            log_decay = decays(draw, 7)
            log_decay[..., 3] = log_decay[:, 1, 5] = strong
            self.demand(student, expect, log_decay, f"where the logarithm of decay 3 is {strong}")

    @pytest.mark.points(2)
    def test_attention(self, student, draw, expect):
        inputs = *text(draw, 7), decays(draw, 7)
        output = student.call("decayed_attention", *inputs)
        wanted = decayed_linear_attention(*inputs, form="parallel")
        expect.close(output, wanted, axes=OUTPUT_AXES, what="the output", largest=10)

    def test_gradients(self, student, draw, expect):
        inputs, grad = (*text(draw, 5), decays(draw, 5)), draw(2, 3, 5, 7)
        inputs[3][..., 2] = -1000.0
        functions = "decayed_attention", decayed_linear_attention
        demand_gradients(student, expect, *functions, inputs, grad)


@pytest.mark.task(
    "Two halves",
    hints=[
        "In `summary`, what is left of token j at the end of the piece? It has faded by all that came after "
        "it: that is the last row of task 4's mask.",
        "In `join`, the second piece comes after the first. Which of the two states fades, and by how much? "
        "Products of decays are sums of logarithms.",
        "In a chunk, token i reads the carried state after the decays of this chunk up to its own, and that "
        "is `exp` of a running sum. Then the carried piece is joined with the summary of the chunk.",
    ],
)
class TestHalves:
    @pytest.mark.parametrize("strong", [-1.0, -INF], ids=["", "all forgotten"])
    def test_summary(self, student, draw, expect, strong):
        (_, key, value), log_decay = text(draw, 7), decays(draw, 7)
        log_decay[..., 3] = strong
        answer = student.call("summary", key, value, log_decay)
        demand_piece(expect, answer, faded(key, value, log_decay), "of 7 tokens")

    @pytest.mark.points(2)
    @pytest.mark.parametrize("backwards", [False, True], ids=["from the left", "from the right"])
    @each("lengths", PIECES)
    def test_join(self, student, draw, expect, lengths, backwards):
        t = sum(lengths)
        inputs = *text(draw, t)[1:], decays(draw, t)
        inputs[2][:, 0, t - 2] = -INF
        pieces = list(zip(*(x.split(lengths, dim=2) for x in inputs), strict=True))
        parts = [faded(*piece) for piece in pieces]
        order = parts[::-1] if backwards else parts
        answer = order[0]
        for part in order[1:]:
            whole = tuple(map(torch.as_tensor, answer))
            pair = (part, whole) if backwards else (whole, part)
            answer = expect.unpack(student.call("join", *pair), "log A", "S'")
        told = f"of pieces of {', '.join(map(str, lengths))} tokens, joined from the "
        demand_piece(expect, answer, faded(*inputs), told + ("right" if backwards else "left"))

    @pytest.mark.points(2)
    @each("t chunk_size", CUTS)
    def test_output(self, student, draw, expect, t, chunk_size):
        inputs = *text(draw, t), decays(draw, t)
        output = student.call("decayed_linear_attention", *inputs, chunk_size=chunk_size)
        wanted = decayed_linear_attention(*inputs, form="parallel")
        what = f"the output ({t} tokens, chunks of {chunk_size})"
        expect.close(output, wanted, axes=OUTPUT_AXES, what=what, largest=10)

    def test_no_chunk_is_read_from_before_it(self, student, draw, expect):
        inputs = *text(draw, 13), decays(draw, 13)
        wanted = decayed_linear_attention(*inputs, form="parallel")
        not_reached(student, expect, "decayed_linear_attention", inputs, wanted, 4)


@pytest.mark.task(
    "The way back",
    hints=[
        "oᵢ = Sᵢᵀqᵢ, so the gradient by qᵢ is Sᵢ gᵢ: a pass from the left. What does Sⱼ matter to the loss? "
        "Through every query from j on, R = Σᵢ≥ⱼ Dᵢⱼ qᵢ gᵢᵀ: a pass from the right. The gradients "
        "by kⱼ and vⱼ are R vⱼ and Rᵀkⱼ. When does R fade, before or after token j adds to it?",
        "For the decays: let cᵢ be the sum of the logarithms up to i. Then Dᵢⱼ = exp(cᵢ) exp(-cⱼ). Give one "
        "factor to the query, the other to the key. What is the gradient by cᵢ, if those by qᵢ and kᵢ are "
        "known? (Scale x by exp(c): the gradient by c is x times the gradient by x, summed.)",
        "It is qᵢ·dqᵢ - kᵢ·dkᵢ. And log aᵢ is a part of cᵢ, of cᵢ₊₁, and of all after that.",
    ],
)
class TestBackward:
    def demand(self, student, expect, inputs, grad, told, clean=None):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = decayed_linear_attention(*leaves, form="parallel")
        wanted = torch.autograd.grad(output, leaves, grad)
        if clean is not None:
            grad[:, :, clean - 1] = torch.nan
        answer = expect.unpack(student.call("decayed_backward", *inputs, grad), *NAMES)
        for name, got, right in zip(NAMES, answer, wanted, strict=True):
            axes = TEXT_AXES if right.ndim == 4 else "batch head token"
            if clean is not None and getattr(got, "shape", None) == tuple(right.shape):
                got = np.concatenate([right[:, :, :clean], got[:, :, clean:]], axis=2)
            what = f"the gradient of {name} {told}"
            expect.close(got, right, axes=axes, what=what, factor=3, largest=20)

    @pytest.mark.points(3)
    @pytest.mark.parametrize("t", [7, 1])
    def test_gradients(self, student, draw, expect, t):
        inputs = *text(draw, t), decays(draw, t)
        self.demand(student, expect, inputs, draw(2, 3, t, 7), f"of {t} tokens")

    @pytest.mark.points(2)
    def test_strong_decay(self, student, draw, expect):
        inputs = *text(draw, 7), decays(draw, 7)
        inputs[3][..., 3] = inputs[3][:, 1, 4] = -30.0
        self.demand(student, expect, inputs, draw(2, 3, 7, 7), "where decay 3 is exp(-30)")

    def test_a_nan_stays_where_it_belongs(self, student, draw, expect):
        inputs, grad = (*text(draw, 7), decays(draw, 7)), draw(2, 3, 7, 7)
        told = "behind token 3, after `grad` at token 3 became NaN"
        self.demand(student, expect, inputs, grad, told, clean=4)
