"""# Exercise: rotary positions

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` and `e` widths,
`m` the width of the model; `r` is the number of pairs that are turned, at most d / 2. Angles are in
radians. Only `torch` and `math` are needed, and a task may use the functions of the tasks before it.

Check your work as often as you like: `attn check rotary` says what is wrong and where, and
`attn check rotary --hint` gives one hint at a time.
"""

import math

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, d: int, *, base: float = 10000.0) -> Tensor:
    """Task 1: the angles.

    A vector of width d is d/2 pairs of numbers. Each pair is turned by an angle proportional to the
    position: pair p by `position · base^(-2p/d)`, where p is 0, 1, ... d/2 - 1. So pair 0 turns by one
    radian from each position to the next, and the others more and more slowly.

    Width 4 and base 10000, by hand: the pairs turn by 1 and by 1/100 a position, so the angles at
    position 3 are 3 and 0.03.

    Positions may be in the millions, and an angle that is wrong by a tenth turns to a wrong place: the
    angles are float64.

    **Shapes.** `positions` is `t` or `b t`, whole numbers; the result is `t d/2` or `b t d/2`.

    **Raises** `ValueError` if `d` is odd.
    """
    ### BEGIN SOLUTION
    if d % 2:
        raise ValueError(f"d is {d}: an even number is wanted")
    pair = torch.arange(d // 2, dtype=torch.float64)
    return positions.double()[..., None] * base ** (-2 * pair / d)
    ### END SOLUTION


def apply_rotary(x: Tensor, angles: Tensor, *, interleaved: bool = False) -> Tensor:
    """Task 2: the turn.

    To turn the pair (a, b) by the angle φ is to multiply two complex numbers: the new pair is the real
    and the imaginary part of (a + ib)(cos φ + i sin φ).

    Which numbers of `x` are a pair is a matter of layout. With r angles, the first 2r numbers are
    turned, and the others stay as they are.

    - `interleaved`: numbers 2p and 2p + 1 are pair p, two neighbours.
    - half-split, the default: numbers p and p + r are pair p, one of each half.

    The result has the layout and the dtype of `x`. The angles are float64: take cos and sin of them as
    they are, for near a million the numbers of float32 are 0.06 apart.

    Angles π/2 and π, five numbers, by hand. Pair 0 takes a step of a quarter, (a, b) to (-b, a), and
    pair 1 one of a half, (a, b) to (-a, -b):

        interleaved    1  2  3  4  5    becomes   -2   1  -3  -4   5
        half-split     1  2  3  4  5    becomes   -3  -2   1  -4   5

    **Shapes.** `x` and the result are `b h t d`. `angles` is `t r` for all texts alike, or `b t r` if
    each text has its own positions.
    """
    ### BEGIN SOLUTION
    r = angles.shape[-1]
    first = x[..., : 2 * r]
    pairs = first.unflatten(-1, (r, 2)) if interleaved else first.unflatten(-1, (2, r)).mT
    # With an axis of size 1 for the heads, `t r` and `b t r` both line up with `b h t r`.
    cos, sin = (f(angles).to(x.dtype).unsqueeze(-3) for f in (torch.cos, torch.sin))
    a, b = pairs.unbind(-1)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    turned = turned.flatten(-2) if interleaved else turned.mT.flatten(-2)
    return torch.cat([turned, x[..., 2 * r :]], dim=-1)
    ### END SOLUTION


def to_half_split(weight: Tensor, n_heads: int, *, rotated: int | None = None) -> Tensor:
    """Task 3: convert a checkpoint.

    A model was trained with interleaved pairs, and your code turns half-split ones. Its weights need not
    be trained again: what makes the queries is a matrix with one row for each number of each head, and
    the order of its rows is the order of those numbers. Reorder the rows, so that half-split turns give
    the scores that interleaved turns gave before. (The same is done to the keys' matrix, whose number of
    heads may be another.)

    `rotated`, 2r of task 2, says how many numbers of each head are turned; `None` means all of them.

    One head of width 6, by hand: the new rows are the old rows 0, 2, 4, 1, 3, 5. If only four of the six
    are turned: 0, 2, 1, 3, 4, 5. Two heads of width 4: 0, 2, 1, 3, then 4, 6, 5, 7.

    **Shapes.** `weight` and the result are `(h d) m`; head 0 has the first d rows. A bias has no `m`: it
    is `(h d)`, and must be converted too.
    """
    ### BEGIN SOLUTION
    heads = weight.unflatten(0, (n_heads, -1))
    end = heads.shape[1] if rotated is None else rotated
    parts = heads[:, 0:end:2], heads[:, 1:end:2], heads[:, end:]
    return torch.cat(parts, dim=1).flatten(0, 1)
    ### END SOLUTION


def rotary_attention(
    query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor, *, base: float = 10000.0
) -> Tensor:
    """Task 4: the attention.

    Query n stands at position `i[n]`, key n at position `j[n]`. All pairs of both are turned,
    half-split, for where they stand. Then it is attention as you know it, scaled by 1/√d, and causal: a
    query sees no key that stands at a later position. Positions decide, not places in the tensor: a
    model that writes its token 100 comes with one query, for which `i` is 100, and 101 keys. Each query
    sees at least one key.

    Width 2, so there is one pair, and it turns by one radian a position. Two queries and two keys, all
    [1, 0], at the positions 0 and 1, by hand: the second query scores the keys cos(1) / √2 and
    cos(0) / √2, which are 0.382 and 0.707, so its weights are 0.419 and 0.581. At the positions 7 and 8
    they are the same.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`; `i` is `t` or `b t`, `j`
    is `s` or `b s`, both have a batch or neither. The result is `b h t e`.
    """
    ### BEGIN SOLUTION
    d = query.shape[-1]
    query = apply_rotary(query, rotary_angles(i, d, base=base))
    key = apply_rotary(key, rotary_angles(j, d, base=base))
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * d**-0.5
    later = (j[..., None, :] > i[..., :, None]).unsqueeze(-3)
    weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
    return torch.einsum("b h t s, b h s e -> b h t e", weights, value)
    ### END SOLUTION


def ntk_base(base: float, factor: float, d: int) -> float:
    """Task 5: a longer text, by another base.

    A model was trained on texts of some length and is to read texts `factor` times as long. To divide
    every position by `factor` brings the angles back to what it knows, but it also presses neighbours
    together, which the fast pairs tell apart. "NTK-aware" scaling leaves pair 0 as it is and slows the
    last pair by exactly `factor`; the pairs between are slowed more, the slower they are. All it needs
    is another base.

    Width 4, base 10000, factor 3, by hand: the pairs turn by 1 and by 1/100. The last one should turn by
    1/300, and 1/300 is 90000^(-2/4). So the base is 90000.

    **Returns** the new base. `d` is at least 4.
    """
    ### BEGIN SOLUTION
    return base * factor ** (d / (d - 2))
    ### END SOLUTION


def yarn_frequencies(
    d: int,
    factor: float,
    original_length: int,
    *,
    base: float = 10000.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Tensor:
    """Task 5, second part: a longer text, by parts.

    YaRN looks at how many full turns a pair makes within the `original_length` tokens of training. A pair
    of more than `beta_fast` turns has seen every angle many times: its frequency θ stays. One of less
    than `beta_slow` turns has never come round, and larger angles would be new to it: it gets
    θ / factor. Between the two is a ramp over the index p of the pair:

        γ θ + (1 - γ) θ / factor,    γ = (high - p) / (high - low), but never below 0 or above 1.

    Treat p as a real number for a moment. `low` is the p at which a pair would make `beta_fast` turns,
    rounded down, but at least 0; `high` is the p at which it would make `beta_slow` turns, rounded up.

    Width 8, base 10000, 600 tokens, factor 4, by hand. θ is 1, 0.1, 0.01, 0.001, so the pairs make 95,
    9.5, 0.95 and 0.095 turns. There are 32 turns at p = 0.47 and there is one at p = 1.98: `low` is 0,
    `high` is 2, and γ is 1, 1/2, 0, 0. The frequencies are 1, 0.0625, 0.0025, 0.00025.

    **Returns** the frequencies, `d/2`, float64.
    """
    ### BEGIN SOLUTION
    frequencies = rotary_angles(torch.ones(1), d, base=base)[0]

    def pair_of(turns: float) -> float:
        """Where `original_length * base**(-2 * p / d)` is `2 * pi * turns`."""
        return d / 2 * math.log(original_length / (2 * math.pi * turns), base)

    low, high = max(math.floor(pair_of(beta_fast)), 0), math.ceil(pair_of(beta_slow))
    gamma = (high - torch.arange(d // 2, dtype=torch.float64)) / (high - low)
    gamma = gamma.clamp(0, 1)
    return gamma * frequencies + (1 - gamma) * frequencies / factor
    ### END SOLUTION


class RotatedCache:
    """Task 6: a cache that forgets.

    While it writes, a model keeps the keys of all tokens, each already turned for where it stands. When
    the memory is full, some tokens must go. Those behind them move down and close the gap, so that the
    positions are 0, 1, 2, ... again. But their keys are turned for where they *stood*, and what they were
    before the turn was not kept. (llama.cpp must do this in its "context shift".)

    - `RotatedCache(frequencies)`: r numbers, the angles of one position. As in task 2, half-split, the
      first 2r numbers of each key are turned.
    - `append(key, value)` takes in new tokens behind the others. Their keys come turned: the first for
      the position n if n tokens are in the cache now, the next for n + 1, and so on.
    - `forget(start, stop)` removes the tokens `start`, ... `stop - 1`, counted as they stand now.
    - `key` and `value` are what the cache holds now: key n is turned for the position n, in the dtype in
      which it came. `key` is a property, made when it is read; `value` is an attribute.

    Below float64 each turn rounds, and roundings add up: forgetting 400 tokens one after the other must
    leave the keys as exact as forgetting them all at once.

    One frequency, π/2, by hand: three keys that were [1, 0] come in as [1, 0], [0, 1] and [-1, 0]. Forget
    token 1. The last key stands at position 1 now, so it must be [0, 1].
    """

    def __init__(self, frequencies: Tensor):
        ### BEGIN SOLUTION
        self.frequencies = frequencies
        # The keys as they came, and the positions for which they were turned when they came.
        self.given, self.value, self.positions = None, None, torch.arange(0)
        ### END SOLUTION

    @property
    def key(self) -> Tensor:
        """`b h s d`: key n is turned for position n."""
        ### BEGIN SOLUTION
        # Turns add up: one turn by the difference leads from the old position to the new one.
        shift = torch.arange(len(self.positions)) - self.positions
        return apply_rotary(self.given, shift.double()[:, None] * self.frequencies)
        ### END SOLUTION

    def append(self, key: Tensor, value: Tensor) -> None:
        """`key` is `b h t d`, `value` is `b h t e`."""
        ### BEGIN SOLUTION
        n = len(self.positions)
        self.positions = torch.cat([self.positions, torch.arange(n, n + key.shape[2])])
        self.given = key if self.given is None else torch.cat([self.given, key], dim=2)
        self.value = value if self.value is None else torch.cat([self.value, value], dim=2)
        ### END SOLUTION

    def forget(self, start: int, stop: int) -> None:
        """Remove the tokens `start` to `stop - 1`."""
        ### BEGIN SOLUTION
        keep = torch.ones(len(self.positions), dtype=torch.bool)
        keep[start:stop] = False
        self.positions, self.given, self.value = (
            self.positions[keep],
            self.given[:, :, keep],
            self.value[:, :, keep],
        )
        ### END SOLUTION
