"""The checks of the exercise on rotary positions.

They speak to the student's code through the fixture `student` and to the reference by import.
"""

import math

import pytest
import torch

from annotated_attention.rotary import (
    apply_rotary,
    half_split_order,
    ntk_base,
    rotary_angles,
    rotary_attention,
    rotary_frequencies,
    yarn_frequencies,
)

ENTRY = "batch head position number"
OUTPUT = "batch head query width"


@pytest.mark.task(
    "The angles",
    hints=[
        "Write the frequencies of width 8 and base 10000 down first: 1, 1/10, 1/100, 1/1000. There are d/2 "
        "of them, so ask first whether d is even.",
        "`base ** (-2 * pair / d)` with `pair = torch.arange(d // 2, dtype=torch.float64)`.",
        "A table of positions times frequencies: `positions.double()[..., None] * frequencies`. The dots let "
        "a batch of positions through.",
    ],
)
class TestAngles:
    @pytest.mark.parametrize(
        ("d", "options"),
        [(8, {}), (2, {}), (6, {"base": 500_000.0}), (10, {"base": 100.0})],
        ids=["width 8", "one pair", "base 500000", "base 100"],
    )
    def test_angles(self, student, expect, d, options):
        def explain(index):
            turn = "1" if index["pair"] == 0 else f"base^(-{2 * index['pair']}/{d})"
            return f"pair {index['pair']} turns by {turn} radians a position"

        angles = student.call("rotary_angles", torch.arange(7), d, **options)
        expected = rotary_angles(torch.arange(7), d, **options)
        expect.close(angles, expected, axes="position pair", what="angle", explain=explain)
        expect.equal(str(angles.dtype), "float64", what="the dtype of the angles")

    def test_far_into_a_text(self, student, expect):
        positions = torch.tensor([1_000_003, 16_777_217, 2])
        angles = student.call("rotary_angles", positions, 6)
        expect.close(angles, rotary_angles(positions, 6), axes="position pair", what="angle", terms=8)

    def test_each_text_its_own_positions(self, student, draw, expect):
        positions = draw.integers(0, 100, 3, 5)
        angles = student.call("rotary_angles", positions, 4)
        expect.close(angles, rotary_angles(positions, 4), axes="batch position pair", what="angle")

    def test_odd_width_is_an_error(self, student, expect):
        expect.raises("ValueError", student.call, "rotary_angles", torch.arange(3), 7, what="width 7")


@pytest.mark.task(
    "The turn",
    hints=[
        "Multiply (a + ib)(cos φ + i sin φ) out on paper: which terms are real? Get all a in one tensor and "
        "all b in another, each `b h t r`.",
        "Interleaved, the a are `x[..., 0 : 2 * r : 2]`. Half-split, they are `x[..., :r]`. What is left, "
        "`x[..., 2 * r :]`, is joined to the result as it is.",
        "`angles` may be `b t r`, the pairs are `b h t r`: `angles.unsqueeze(-3)` makes room for the heads. "
        "`torch.stack([new_a, new_b], dim=-1).flatten(-2)` lays pairs out one after the other.",
    ],
)
class TestTurn:
    def check(self, student, expect, x, angles, interleaved=False, what="turned x"):
        r = angles.shape[-1]

        def explain(index):
            number = index["number"]
            if number >= 2 * r:
                return f"{r} angles turn the first {2 * r} numbers, and number {number} is none of them"
            p = number // 2 if interleaved else number % r
            one, other = (2 * p, 2 * p + 1) if interleaved else (p, p + r)
            layout = "interleaved" if interleaved else "half-split"
            return f"{layout}, numbers {one} and {other} are pair {p}"

        options = {"interleaved": True} if interleaved else {}
        turned = student.call("apply_rotary", x, angles, **options)
        expected = apply_rotary(x.double(), angles, interleaved=interleaved)
        expect.close(turned, expected, axes=ENTRY, what=what, explain=explain)
        return turned

    def test_interleaved(self, student, draw, expect):
        self.check(student, expect, draw(2, 3, 5, 6), draw(5, 3, scale=3), interleaved=True)

    def test_half_split(self, student, draw, expect):
        self.check(student, expect, draw(2, 3, 5, 6), draw(5, 3, scale=3))

    @pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half-split"])
    def test_part_of_the_width(self, student, draw, expect, interleaved):
        self.check(student, expect, draw(2, 3, 5, 11), draw(5, 3, scale=3), interleaved=interleaved)

    @pytest.mark.parametrize("h", [3, 2], ids=["as many heads as texts", "other"])
    def test_each_text_its_own_angles(self, student, draw, expect, h):
        self.check(student, expect, draw(3, h, 5, 6), draw(3, 5, 3, scale=3))

    @pytest.mark.points(2)
    def test_far_into_a_text_in_float32(self, student, draw, expect):
        angles = rotary_angles(torch.arange(1_000_003, 1_000_008), 6)
        x = draw(2, 3, 5, 6, dtype=torch.float32)
        turned = self.check(student, expect, x, angles, what="turned x at position 1000003 and on, float32")
        expect.equal(str(turned.dtype), "float32", what="the dtype of the result for x in float32")

    def test_gradient(self, student, draw, expect):
        x, angles, grad = draw(2, 3, 5, 8), draw(5, 3, scale=3), draw(2, 3, 5, 8)
        # A turn is undone by its transpose, so a gradient is turned back.
        ours, _ = student.vjp("apply_rotary", (x, angles), grad)
        expect.close(ours, apply_rotary(grad, -angles), axes=ENTRY, what="gradient of x", factor=3)


@pytest.mark.task(
    "Convert a checkpoint",
    hints=[
        "The number that interleaved pairs have at place 2p must come to place p, and that of place 2p + 1 to "
        "place p + r. So which old row is new row 1?",
        "Split the rows into heads first: `weight.unflatten(0, (n_heads, -1))` is `h d m`, for a bias `h d`.",
        "In each head: the even rows, then the odd rows, then those that are not turned. Slices with a step "
        "pick them, `torch.cat(..., dim=1).flatten(0, 1)` puts them together.",
    ],
)
class TestConvert:
    @pytest.mark.parametrize(
        ("n_heads", "d", "rotated"),
        [(1, 6, None), (3, 10, None), (2, 11, 6)],
        ids=["one head", "three heads", "part of the width"],
    )
    def test_rows(self, student, draw, expect, n_heads, d, rotated):
        turned = rotated or d
        order = torch.cat([half_split_order(turned), torch.arange(turned, d)])

        def explain(index):
            head, new = divmod(index["row"], d)
            return f"in head {head}, new row {new} is old row {int(order[new])}"

        weight = draw(n_heads * d, 5)
        options = {} if rotated is None else {"rotated": rotated}
        expected = weight.unflatten(0, (n_heads, d))[:, order].flatten(0, 1)
        result = student.call("to_half_split", weight, n_heads, **options)
        expect.close(result, expected, axes="row column", what="weight", explain=explain, terms=0)

    def test_bias(self, student, draw, expect):
        bias = draw(3 * 6)
        expected = bias.unflatten(0, (3, 6))[:, half_split_order(6)].flatten()
        result = student.call("to_half_split", bias, 3)
        expect.close(result, expected, axes="row", what="bias", terms=0)

    @pytest.mark.points(2)
    def test_the_scores_stay(self, student, draw, expect):
        h, d, x = 3, 10, draw(2, 7, 5)
        w_q, w_k, angles = draw(h * d, 5), draw(h * d, 5), rotary_angles(torch.arange(7), d)

        def scores(w_q, w_k, interleaved):
            query, key = ((x @ w.mT).unflatten(-1, (h, d)).transpose(1, 2) for w in (w_q, w_k))
            query, key = (apply_rotary(each, angles, interleaved=interleaved) for each in (query, key))
            return (query @ key.mT).numpy()

        ours = [torch.from_numpy(student.call("to_half_split", w, h)) for w in (w_q, w_k)]
        expect.close(
            scores(*ours, interleaved=False),
            scores(w_q, w_k, interleaved=True),
            axes="batch head query key",
            what="score after converting both matrices",
            largest=100,
        )


@pytest.mark.task(
    "The attention",
    hints=[
        "`rotary_angles` makes the angles of `i` and those of `j`, `apply_rotary` turns the queries with the "
        "former and the keys with the latter. Does a value have a place to be turned for?",
        "`j[..., None, :] > i[..., :, None]` is True for keys that stand later than the query, `t s` or "
        "`b t s`. The scores are `b h t s`.",
    ],
)
class TestAttention:
    def check(self, student, draw, expect, i, j, what="output", **options):
        query, key = draw(2, 3, i.shape[-1], 6, scale=2), draw(2, 3, j.shape[-1], 6, scale=2)
        value = draw(2, 3, j.shape[-1], 4)
        output = student.call("rotary_attention", query, key, value, i, j, **options)
        expected = rotary_attention(query, key, value, i, j, **options)

        def explain(index):
            place = i if i.ndim == 1 else i[index["batch"]]
            return f"query {index['query']} stands at position {int(place[index['query']])}"

        expect.close(output, expected, axes=OUTPUT, what=what, explain=explain, largest=10)

    def test_a_whole_text(self, student, draw, expect):
        self.check(student, draw, expect, torch.arange(7), torch.arange(7))

    def test_another_base(self, student, draw, expect):
        self.check(student, draw, expect, torch.arange(5), torch.arange(5), base=100.0)

    @pytest.mark.points(2)
    @pytest.mark.parametrize(
        ("i", "j"),
        [(range(10, 11), range(11)), (range(6, 11), range(11)), (range(6, 11), range(2, 7))],
        ids=["one new token", "five new tokens", "five later queries"],
    )
    def test_where_they_stand(self, student, draw, expect, i, j):
        what = f"output of queries at {i[0]} to {i[-1]}, keys at {j[0]} to {j[-1]}"
        self.check(student, draw, expect, torch.tensor(i), torch.tensor(j), what=what)

    def test_each_text_its_own_positions(self, student, draw, expect):
        j = torch.arange(7) + torch.tensor([[0], [40]])
        self.check(student, draw, expect, j[:, 4:], j, what="output of two texts, one of them 40 further on")

    def test_gradients(self, student, draw, expect):
        i, inputs, grad = torch.arange(5), [draw(2, 3, 5, 6) for _ in range(3)], draw(2, 3, 5, 6)
        ours = student.vjp("rotary_attention", (*inputs, i, i), grad)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        wanted = torch.autograd.grad(rotary_attention(*leaves, i, i), leaves, grad)
        for name, got, expected in zip(("query", "key", "value"), ours, wanted, strict=False):
            expect.close(got, expected, axes=ENTRY, what=f"gradient of {name}", factor=3)


@pytest.mark.task(
    "A longer text",
    hints=[
        "The last pair is p = d/2 - 1, and it turns by base^(-(d - 2)/d). To make that `factor` times smaller, "
        "by what must the base be multiplied?",
        "A pair makes `original_length * theta / (2 * math.pi)` turns. Put base^(-2p/d) for theta, set that "
        "equal to the turns and solve for p: `math.log(x, base)` helps.",
        "Round one end with `math.floor`, the other with `math.ceil`, and `.clamp(0, 1)` what lies between. A "
        "fast pair has a small p and keeps all of its speed: γ is 1.",
    ],
)
class TestLongerText:
    @pytest.mark.parametrize(
        ("base", "factor", "d"),
        [(1e4, 3.0, 4), (1e4, 8.0, 64), (5e5, 2.5, 10)],
        ids=["by hand", "width 64", "base 500000"],
    )
    def test_base(self, student, expect, base, factor, d):
        answer = student.call("ntk_base", base, factor, d)
        last = rotary_frequencies(d, base=base)[-1]
        told = f"the last pair should turn by {last / factor:.4g}, which is {last:.4g} / {factor:g}"
        what = f"ntk_base({base:g}, {factor:g}, {d})"
        expect.close(answer, ntk_base(base, factor, d), what=what, terms=256, explain=lambda _: told)

    @pytest.mark.points(2)
    @pytest.mark.parametrize(
        ("d", "factor", "length", "options"),
        [
            (8, 4.0, 600, {}),
            (40, 8.0, 2048, {}),
            (48, 2.0, 8192, {"base": 500_000.0}),
            (16, 4.0, 1024, {"beta_fast": 8.0, "beta_slow": 2.0}),
            (10, 4.0, 190, {}),
        ],
        ids=["by hand", "width 40", "base 500000", "other turns", "a short text"],
    )
    def test_frequencies(self, student, expect, d, factor, length, options):
        def explain(index):
            theta = rotary_frequencies(d, base=options.get("base", 1e4))[index["pair"]].item()
            turns = length * theta / (2 * math.pi)
            return f"pair {index['pair']} turns by {theta:.3g}, {turns:.3g} times around in {length} tokens"

        answer = student.call("yarn_frequencies", d, factor, length, **options)
        expected = yarn_frequencies(d, factor, length, **options)
        expect.close(answer, expected, axes="pair", what="frequency", explain=explain)
        expect.equal(str(answer.dtype), "float64", what="the dtype of the frequencies")


@pytest.mark.task(
    "A cache that forgets",
    hints=[
        "A key is turned for position 9 and must be turned for position 5. You do not have it unturned, and "
        "need not: turns add up. Which single turn leads from the one to the other?",
        "Which keys need that turn when the tokens 2, 3 and 4 are forgotten, and by how much each? Get this "
        "right first, with one turn in each `forget`.",
        "Positions are whole numbers: their differences can be added up without rounding. So let `forget` "
        "only keep count, and turn once, when `key` is read.",
    ],
)
class TestForgets:
    # Angles that float32 holds exactly, so that what rounds is the turn.
    FREQUENCIES = torch.tensor([0.5, 0.125, 0.0625], dtype=torch.float64)

    def turned(self, key, positions):
        return apply_rotary(key, torch.as_tensor(positions).double()[:, None] * self.FREQUENCIES)

    def run(self, student, draw, expect, steps, d=6):
        """Appends (a number of tokens) and forgets (a range) in turn, the whole cache looked at after each."""
        cache, values = student.new("RotatedCache", self.FREQUENCIES), draw(2, 3, 0, 5)
        keys = draw(2, 3, 0, d)
        for step in steps:
            n = keys.shape[2]
            if isinstance(step, int):
                key, value = draw(2, 3, step, d), draw(2, 3, step, 5)
                cache.call("append", self.turned(key, range(n, n + step)), value)
                keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
                told = f"after {step} tokens came behind {n}"
            else:
                cache.call("forget", *step)
                kept = [place for place in range(n) if place not in range(*step)]
                keys, values = keys[:, :, kept], values[:, :, kept]
                told = f"after forget({step[0]}, {step[1]}) of {n} tokens"

            def explain(index):
                return f"token {index['position']} stands at position {index['position']} now"

            expected = self.turned(keys, range(keys.shape[2]))
            expect.close(cache.get("key"), expected, axes=ENTRY, what=f"key {told}", explain=explain)
            expect.close(cache.get("value"), values, axes=ENTRY, what=f"value {told}", terms=0)

    def test_append(self, student, draw, expect):
        self.run(student, draw, expect, [5, 1, 1])

    @pytest.mark.parametrize("step", [(0, 3), (5, 7), (2, 5)], ids=["the first", "the last", "the middle"])
    def test_forget(self, student, draw, expect, step):
        self.run(student, draw, expect, [7, step])

    @pytest.mark.points(2)
    def test_goes_on_after_forgetting(self, student, draw, expect):
        self.run(student, draw, expect, [7, (2, 5), 1, 3, (1, 3), (0, 1), 2])

    def test_part_of_the_width(self, student, draw, expect):
        self.run(student, draw, expect, [7, (2, 4)], d=11)

    @pytest.mark.points(2)
    def test_forgetting_does_not_wear_out(self, student, draw, expect):
        cache, n = student.new("RotatedCache", self.FREQUENCIES), 408
        key = self.turned(draw(1, 2, n, 6), range(n)).float()
        cache.call("append", key, draw(1, 2, n, 5, dtype=torch.float32))
        for _ in range(400):
            cache.call("forget", 3, 4)
        left = [*range(3), *range(403, 408)]
        shift = torch.arange(8) - torch.tensor(left)
        expected, peer = self.turned(key[:, :, left].double(), shift), self.turned(key[:, :, left], shift)
        what = "key in float32 after forgetting 400 tokens one by one"
        expect.close(cache.get("key"), expected, axes=ENTRY, what=what, peer=peer, factor=3)
        expect.equal(str(cache.get("key").dtype), "float32", what="the dtype of key for keys in float32")
