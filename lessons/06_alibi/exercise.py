"""# Exercise: attention with linear biases

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` and `e` widths.
Only `torch` is needed. Write the attention out: `torch.nn.functional.scaled_dot_product_attention`
would leave nothing to learn. A task may use the functions of the tasks before it.

Check your work as often as you like: `attn check alibi` says what is wrong and where, and
`attn check alibi --hint` gives one hint at a time.
"""

import torch
from torch import Tensor


def power_of_two_slopes(n_heads: int) -> Tensor:
    """Task 1: slopes for a power of two.

    Every head has a slope: how much a key loses for each position that it lies further away. For 8
    heads the paper takes 1/2, 1/4, 1/8, ... down to 1/256. For another power of two the last slope
    stays 1/256 = 2⁻⁸, and the slopes are again a geometric sequence whose first number is its own
    ratio.

    Four heads, by hand: 1/4, 1/16, 1/64, 1/256.

    **Returns** the slopes, steepest first: shape `h`, float64. `n_heads` is a power of two.
    """
    ### BEGIN SOLUTION
    exponents = torch.arange(1, n_heads + 1, dtype=torch.float64) * (8 / n_heads)
    return torch.exp2(-exponents)
    ### END SOLUTION


def alibi_slopes(n_heads: int) -> Tensor:
    """Task 2: slopes for any number of heads.

    Models with 12, 20 or 25 heads exist too. Take the largest power of two that is not above
    `n_heads` and use its slopes, all of them. The heads still missing take every other slope, from
    the first, of the *next* power of two.

    Three heads, by hand: two heads give 1/16, 1/256. Four heads would have 1/4, 1/16, 1/64, 1/256;
    every other of them is 1/4, 1/64, and one is missing. So the answer is 1/16, 1/256, 1/4, in this
    order.

    **Returns** the slopes: shape `h`, float64.

    **Raises** `ValueError` if `n_heads` is less than 1.
    """
    ### BEGIN SOLUTION
    if n_heads < 1:
        raise ValueError(f"n_heads is {n_heads}: at least 1 head is needed")
    closest = 1 << (n_heads.bit_length() - 1)
    between = power_of_two_slopes(2 * closest)[::2]
    return torch.cat([power_of_two_slopes(closest), between[: n_heads - closest]])
    ### END SOLUTION


def alibi_bias(n_heads: int, t: int, s: int, *, offset: int = 0) -> Tensor:
    """Task 3: the bias.

    Query i and key j of a head with slope m get the bias -m |i - j|. While a model writes, the new
    queries do not begin at position 0: query i stands at position `i + offset`. The keys always begin
    at 0.

    Slope 1/2, three queries, three keys, offset 0, by hand:

         0.0  -0.5  -1.0
        -0.5   0.0  -0.5
        -1.0  -0.5   0.0

    One query, three keys, offset 2 is the last of these rows: -1.0, -0.5, 0.0.

    **Returns** what is added to the scores: shape `h t s`, float64.
    """
    ### BEGIN SOLUTION
    query_positions = torch.arange(t) + offset
    distance = (query_positions[:, None] - torch.arange(s)).abs()
    return -alibi_slopes(n_heads)[:, None, None] * distance
    ### END SOLUTION


def alibi_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = True,
    offset: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Task 4: the attention.

    It is softmax(scale · query keyᵀ + bias) value. The scale belongs to the product alone, and `None`
    means `d ** -0.5`. If `is_causal`, a query sees no key at a position later than its own; `offset`
    moves the queries, as in task 3. If not, it sees all. A query that sees no key at all, which a
    negative offset can bring about, returns 0.

    One head (its slope is 1/256), two positions and queries of zeros, by hand: the second query scores
    both keys 0, so its weights are softmax(-1/256, 0) = 0.499, 0.501. The first sees only itself: 1, 0.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`; the result is `b h t e`
    and has the dtype of `query`.
    """
    ### BEGIN SOLUTION
    n_heads, t, d = query.shape[1:]
    s = key.shape[2]
    scale = d**-0.5 if scale is None else scale
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * scale
    scores = scores + alibi_bias(n_heads, t, s, offset=offset).to(scores.dtype)
    if is_causal:
        future = torch.arange(s) > torch.arange(t)[:, None] + offset
        scores = scores.masked_fill(future, float("-inf"))
    # A row of nothing but -inf would be 0 / 0 in the softmax.
    sees_nothing = (scores == float("-inf")).all(dim=-1, keepdim=True)
    weights = scores.softmax(dim=-1).masked_fill(sees_nothing, 0.0)
    return torch.einsum("b h t s, b h s e -> b h t e", weights, value)
    ### END SOLUTION


class GrowingBias:
    """Task 5: a bias that grows.

    A model that writes a text asks for the bias again and again, each time for one more key. Building
    it anew costs more than using it, so keep what was built. All there is to keep is one row a head:
    the bias at distance 0, 1, 2, ...

    - `row` is an attribute, a tensor `h size`: what is kept. A call that needs no distance beyond it
      leaves it as it is and reads from it; nothing is computed anew.
    - `size` is the number of distances held, 0 at first. It never shrinks. When a call needs more, it
      becomes the smallest power of two that is enough, so that a thousand steps rebuild the row only a
      few times.
    - `add_to(scores, offset=0)` returns `scores` plus the bias, in the dtype of `scores`. The dtype may
      differ from call to call: a call in float32 must not make a later one in float64 less exact.

    By hand: 3 queries and 3 keys at offset 0 need the distances 0, 1, 2, so `size` becomes 4. One query
    at offset 5 with 6 keys needs the distances 0 to 5, so `size` becomes 8. The first call again: `size`
    stays 8.
    """

    def __init__(self, n_heads: int):
        ### BEGIN SOLUTION
        self.n_heads = n_heads
        self.row = alibi_bias(n_heads, 1, 0)[:, 0]
        ### END SOLUTION

    @property
    def size(self) -> int:
        """How many distances are held."""
        ### BEGIN SOLUTION
        return self.row.shape[1]
        ### END SOLUTION

    def add_to(self, scores: Tensor, *, offset: int = 0) -> Tensor:
        """`scores` is `b h t s`, and so is the result."""
        ### BEGIN SOLUTION
        t, s = scores.shape[-2:]
        distance = (torch.arange(t)[:, None] + offset - torch.arange(s)).abs()
        needed = int(distance.max()) + 1
        if needed > self.size:
            size = 1 << (needed - 1).bit_length()
            self.row = alibi_bias(self.n_heads, 1, size)[:, 0]
        return scores + self.row[:, distance].to(scores.dtype)
        ### END SOLUTION


class RunningAlibi:
    """Task 6: a head that need not look back.

    Think of a head whose scores do not depend on the query: key j scores a number a(j), and every query
    agrees. With ALiBi and a causal mask, query i takes from key j a share that is proportional to

        exp(a(j) - m (i - j)),        j = 0, 1, ... i.

    Written down like that, each new token looks back at all the others. It need not: what it has to
    know of the past fits into a state whose size does not grow with the text. Find that state.

    - `step(score, value)` takes in one new token and returns the output at its position.
    - `state` is an attribute: a tuple of tensors, empty at first, all that the object remembers of the
      tokens. Together they hold at most b h (e + 2) numbers, however many tokens came.
      `RunningAlibi(n_heads, state)` goes on from there.

    Scores may be in the thousands: exp of them is infinite, the outputs are not.

    Slope 1/256, scores 0 and 0, values 1 and 3, by hand: the first output is 1. At the second token the
    shares are exp(-1/256) and 1, in parts of one 0.499 and 0.501, so the output is 2.002.
    """

    def __init__(self, n_heads: int, state: tuple[Tensor, ...] = ()):
        ### BEGIN SOLUTION
        self.slopes = alibi_slopes(n_heads)
        # The largest share's exponent; the sum of all shares and that of the values, in parts of it.
        self.state = state
        ### END SOLUTION

    def step(self, score: Tensor, value: Tensor) -> Tensor:
        """Shapes: `score` is `b h`, `value` is `b h e`, and so is the result."""
        ### BEGIN SOLUTION
        nothing = torch.full_like(score, float("-inf")), torch.zeros_like(score), torch.zeros_like(value)
        top, total, weighted = self.state or nothing
        # One step on, every old share is exp(-m) times what it was. All shares are held relative to
        # the largest of them, exp(top), so that no exponent is ever above 0.
        faded = top - self.slopes.to(score.dtype)
        top = torch.maximum(faded, score)
        old, new = torch.exp(faded - top), torch.exp(score - top)
        total = old * total + new
        weighted = old[..., None] * weighted + new[..., None] * value
        self.state = top, total, weighted
        return weighted / total[..., None]
        ### END SOLUTION
