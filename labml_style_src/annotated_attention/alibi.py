r"""# Attention with linear biases

A language model is trained on texts of 512 tokens and then handed a longer one. If every token is told its
number, token 513 carries a number that no layer has ever seen, and the predictions decay within a few hundred
tokens.

ALiBi tells no token its number. Position enters in one place, the price of looking away: head $h$ takes from
each score the distance to the key, times a constant $m_h$ of its own.

$$P_{ij} = \operatorname{softmax}_j\Big(\tfrac{1}{\sqrt d}\,\mathbf{q}_i^\top \mathbf{k}_j - m_h\,|i-j|\Big)$$

Nothing is learned, and no table ends.

![What the last of 48 tokens sees of the others, scores being equal: the weight of each beside its own. Each
head looks twice as far as the one above it.](figure:decay)

## What came before

Sinusoidal and learned positions are vectors added to the tokens, so position travels through every layer
mixed with meaning, and a new position is a new input. T5 moved it into the scores: a learned number for each
of 32 buckets of relative distance. Trained on 512 tokens, such a model extrapolates by some 600 more, but it
trains at least twice as slowly as a sinusoidal one (Press et al., section 2.2). ALiBi keeps the place and the
relative distance, and drops the learning.

## From distances to positions

A softmax feels only differences within its row. For any numbers $c_i$,

$$\operatorname{softmax}_j(z_{ij} + c_i) = \operatorname{softmax}_j(z_{ij}),$$

because $e^{c_i}$ stands in the numerator and in every term of the denominator. Under a causal mask
$|i - j| = i - j$. Take $c_i = m_h\,i$:

$$-m_h\,(i-j) + m_h\,i \;=\; m_h\,j.$$

The query's position has cancelled [check:test_row_constants_cancel]. What began as a relation between two
tokens is a property of one, so a key can be given its bias when it is written, once, for every query to come.

![Left and centre: two biases, $-m_h(i-j)$ and $m_h\,j$. They differ by a constant in each row. Right: the
weights that both of them give when the scores are equal.](figure:two_biases)

A number that belongs to a key is one more coordinate of that key. Append $m_h\,j$ to $\mathbf{k}_j$ and
$\sqrt d$ to $\mathbf{q}_i$, pass the old scale (`scale=d**-0.5`, for the width is now $d + 1$), and the
scaled product gains exactly $m_h\,j$. Any attention kernel, even one that has never heard of a bias, computes
causal ALiBi on vectors that are wider by one [check:test_bias_is_one_more_coordinate].

## Equal on paper, not in bfloat16

A sum forgets what lies below the last digit of its largest term, and $m_h\,j$ grows with the text. bfloat16
keeps 8 binary digits: near $m_h\,j = 2000$ its numbers are 8 apart, so the newest keys, which matter most,
receive the same bias. With equal scores and $m_h = 1/2$, a weight is wrong by more than 0.2 after 4,096
tokens [check:test_bfloat16_ruins_positions].

A distance is small where it matters. Rounding moves $x_r = m_h\,r$ by at most $2^{-8}\,x_r$, and so, to first
order, the weight at distance $r$ by at most

$$2^{-8}\, P_r \Big( x_r + \sum_k P_k\, x_k \Big) \;\le\; 2^{-8}\, (1 + x_r)\, e^{-x_r} \;\le\; 2^{-8},$$

because with equal scores $P_r \le e^{-x_r}$ and the mean $\sum_k P_k\,x_k$ stays below 1, at any length.
Measured with 17 heads, no weight moves by more than $2^{-10}$ [check:test_bfloat16_spares_distances]. This
file therefore keeps distances, and makes them in float32.

## How far a head sees

If no score exceeds $C$ in size, a key at distance $r$ gets a weight of at most

$$P_{ij} \le e^{2C - m_h r}$$

since its numerator is at most $e^{C - m_h r}$ and the query's own key alone puts $e^{-C}$ into the
denominator [check:test_weight_is_bounded_by_distance]. For $C = 4$ the weight is below a thousandth from 30
tokens on when $m_h = 1/2$, from 3,817 on when $m_h = 1/256$. A longer text holds nothing new for such a head:
it is a window with a soft edge.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b h s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b h s e` | what position $j$ gives |
| $P_{ij}$ | – | `b h t s` | how much of $\mathbf{v}_j$ query $i$ takes |
| $m_h$ | `slopes` | `h` | what one step of distance costs head $h$ |
| $B_{hij}$ | `bias` | `h t s` | what is added to the score: $-m_h\,\lvert i-j\rvert$ |
| $i$ | `i` | `t` | position of a query |
| $j$ | `j` | `s` | position of a key |
| $n$ | `n_heads` | scalar | number of heads |
| $p$ | `power` | scalar | the largest power of two that is at most $n$ |
| $o$ | `offset` | scalar | position of the first query |

## What was measured

Trained on 512 tokens of WikiText-103, ALiBi has a perplexity of 19.73 there and of 18.40 when tested on
3,072, below a sinusoidal model trained on 3,072 (18.67) and trained 1.84 times as fast (arXiv:2108.12409,
tables 2 and 5; the speed is in section 4.1). Read the first pair with care. A text cut into longer blocks has
fewer tokens near the start of a block, where hardly any context helps, and that alone lowers perplexity. With
*stride 1*, where each token is the last of a window of its own, ALiBi is flat (17.98 to 18.3; sinusoidal
18.35 to 360; tables 13 to 15). It is not hurt by more context, and hardly uses it.

![With stride 1, four small models trained on 64 bytes; the bands span three seeds.](figure:extrapolation)

A model that trains in a minute does the same (`attn experiment alibi`). From 64 bytes to 512 ALiBi loses 0.02
bits a byte [check:test_alibi_is_flat], sinusoidal positions lose 0.78, rotary 2.15, and learned ones, whose
entries behind 64 were never trained, 1.82 [check:test_all_others_lose]. In blocks ALiBi seems to gain 0.04;
with stride 1 nothing of that is left [check:test_the_gain_is_in_the_blocks]. For texts that never get longer
it is not the best: at 64, rotary needs 2.61 bits, ALiBi 2.89 [check:test_rotary_is_better_in_range].

![ALiBi twice: longer blocks seem to make a byte cheaper, full context does not.](figure:early_bytes)

**Source.** Press, Smith, Lewis (2022), arXiv:2108.12409, section 3; the equation there has no number, and is
for causal attention only. Its $m\cdot[-(i-1),\dots,-2,-1,0]$ counts positions from 1 and is our $-m_h(i-j)$;
it leaves out $1/\sqrt d$, which applies to the product and never to the bias
[check:test_scale_spares_the_bias].
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from annotated_attention.scaled_dot_product import check_inputs, scaled_dot_product_attention

__all__ = ["AlibiBias", "alibi_attention", "alibi_bias", "alibi_score_mod", "alibi_slopes"]


def alibi_slopes(
    n_heads: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "h"]:
    r"""## Slopes

    One slope would give every head the same horizon. When $n$ is a power of two, the heads share out the
    scales from near to far as a geometric series,

    $$m_h = 2^{-8h/n}, \qquad h = 1, \dots, n,$$

    which for eight heads is $\tfrac12, \tfrac14, \dots, \tfrac1{256}$ [check:test_eight_heads]. It ends at
    $2^{-8}$ for every $n$ [check:test_gentlest_slope_is_always_1_over_256]: more heads divide the range more
    finely, and none looks further.

    ![Slopes on a logarithmic axis. Twelve heads are the eight of the row above and every other one of the
    sixteen below. Crosses: the series $2^{-8h/12}$.](figure:slopes)

    **Shapes.** The result is `h`.

    **Raises.** `ValueError` if `n_heads` is less than 1.
    """
    if n_heads < 1:
        raise ValueError(f"n_heads is {n_heads}: it must be at least 1")
    power = 1 << (n_heads.bit_length() - 1)
    exponents = [8 * h / power for h in range(1, power + 1)]

    # Twelve is no power of two. The series for $p = 8$ is kept, and the missing four come from the series for
    # $2p$: its even members are those that we have, its odd members lie between them, and the steepest are
    # taken first [check:test_any_head_count]. So head 9 of 12 is the steepest of all, $2^{-1/2}$.
    #
    # The paper's text (section 3) has one series for every $n$, $2^{-8h/n}$, and public recipes follow it;
    # the authors' code and published models (BLOOM, MPT) have the series here. At $n = 12$, head 9 gets 0.02
    # there, 0.69 less [check:test_short_cut_is_wrong_at_12_heads]. A model trained on one does not run on the
    # other.
    exponents += [4 * h / power for h in range(1, 2 * (n_heads - power), 2)]

    # Python's floats are float64, so each slope is rounded once, to the dtype that is asked for.
    slopes = [2.0**-exponent for exponent in exponents]
    return torch.tensor(slopes, dtype=dtype, device=device)


def alibi_bias(
    n_heads: int,
    t: int,
    s: int,
    *,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "h t s"]:
    r"""## The bias

    $$B_{hij} = -m_h\,|i - j|$$

    Keys stand at $0, \dots, s-1$ and queries at $o, \dots, o+t-1$. With `offset` $o = 0$ both begin together;
    a model that decodes the token at position 100 asks with $t = 1$ and $o = 100$, and gets row 100 of the
    whole matrix [check:test_offset_picks_rows]. Only distances count: moving queries and keys together
    changes nothing [check:test_bias_is_relative].

    **Shapes.** The result is `h t s`: no batch, because all texts are measured with the same ruler.

    **Raises.** `ValueError` if `n_heads` is less than 1, or `t` or `s` negative.
    """
    if min(t, s) < 0:
        raise ValueError(f"t is {t} and s is {s}: neither may be negative")
    i = torch.arange(offset, offset + t, device=device)
    j = torch.arange(s, device=device)

    # A causal mask hides $j > i$, so there the sign is never seen. A bidirectional head needs $|i-j|$:
    # $i - j$ would reward a later key for being far away [check:test_bias_is_minus_slope_times_distance].
    distance = (i[:, None] - j[None, :]).abs().to(dtype)
    slopes = alibi_slopes(n_heads, dtype=dtype, device=device)
    return -torch.einsum("h, t s -> h t s", slopes, distance)


def alibi_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
    *,
    is_causal: bool = True,
    scale: float | None = None,
    offset: int = 0,
) -> Float[Tensor, "b h t e"]:
    r"""## Attention

    With the bias in hand, ALiBi is scaled dot-product attention with a float mask, `scale` acting on the
    product alone [check:test_agrees_with_the_plain_formula] [check:test_gradcheck].

    **Decoding.** `is_causal` hides the keys $j > i$ [check:test_future_moves_nothing], and `offset` says
    where the first query stands. It is 0 unless given, which aligns the mask top-left as everywhere in this
    book, and it is never guessed from $t < s$: cross-attention has that shape too. Forget it when decoding,
    with $t = 1$ and $s = 100$, and the token at position 99 takes itself for the one at 0 and returns
    $\mathbf{v}_0$ [check:test_decoding_needs_the_offset]; with $o = s - t$ it gets what it would get
    from the whole text [check:test_decoding_equals_prefill].

    **Where it fails.** Without the mask the distance has no sign: a text read backwards gives the same
    outputs backwards [check:test_bidirectional_cannot_tell_direction], so an encoder that must tell *dog
    bites man* from *man bites dog* needs more than this. And the price is paid for everything far: to reach
    back 2,560 tokens, the gentlest head needs a score 10 higher than the nearest key's.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`, the result is `b h t e`. If
    $o < 0$, the queries at positions $i < 0$ stand before every key: with `is_causal` they see none, and
    return 0 [check:test_queries_before_all_keys_return_zero].

    **Raises.** `ValueError` if batch, heads, lengths, widths or dtypes do not fit
    [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal)
    _, h, t, _ = query.shape
    s = key.shape[2]

    # Below float32 the bias is wider than the queries: a far key whose score outweighs its distance is
    # compared by the difference of two large numbers [check:test_bias_is_never_rounded_below_float32].
    wide = torch.promote_types(query.dtype, torch.float32)
    bias = alibi_bias(h, t, s, offset=offset, dtype=wide, device=query.device)

    # `tril` counts rows from 0, queries count from $o$.
    if is_causal:
        past = bias.new_ones(t, s, dtype=torch.bool).tril(offset)
        bias = bias.masked_fill(~past, -torch.inf)
    return scaled_dot_product_attention(query, key, value, bias, scale=scale)


class AlibiBias(nn.Module):
    r"""## One line a head

    A bias for $t$ queries and $s$ keys has $t\,s$ entries a head, but only $t + s - 1$ differences $i - j$.
    This cache keeps one line of differences a head: between $2s$ and $4s$ numbers for a text of $s$ tokens,
    in place of $s^2$ [check:test_cache_is_linear_in_length]. For 32 heads and 8,192 tokens in float32 that is
    2 to 4 MiB, not 8 GiB. A causal line holds $-\infty$ for what lies ahead.

    **Cost.** One addition a score, beside the $2(d + e)$ operations of the two products, is next to nothing.
    What the bias costs is memory: `h t s` numbers for each call, whatever the batch, unless the kernel makes
    them itself.
    """

    def __init__(self, n_heads: int, *, is_causal: bool = True) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.is_causal = is_causal
        # A buffer would follow `.to(device)`, but `.half()` would round it, and `.float()` could not bring
        # the digits back. So this is a plain attribute, never cast and in no checkpoint
        # [check:test_cache_survives_casts].
        self.line = alibi_slopes(n_heads).new_empty(n_heads, 0)

    def forward(
        self,
        query: Float[Tensor, "b h t d"],
        key: Float[Tensor, "b g s d"],
        *,
        offset: int = 0,
    ) -> Float[Tensor, "h t s"]:
        r"""The bias for these queries and keys, on their device, ready to be a float mask: `alibi_bias` to
        the last bit, with the future hidden [check:test_cache_equals_the_bias].
        """
        _, h, t, _ = query.shape
        s = key.shape[2]
        if h != self.n_heads:
            raise ValueError(f"query has {h} heads, the cache has slopes for {self.n_heads}")

        # The furthest look back is $o + t - 1$, the furthest look ahead $s - 1 - o$. Doubling keeps the
        # number of rebuilds logarithmic in the length of the text [check:test_cache_grows_by_doubling].
        reach = max(offset + t, s - offset)
        length = self.line.shape[1] // 2
        if reach > length:
            length = max(reach, 2 * length)

        # The line is the bias of a single query, at position `length`, over twice as many keys.
        wide = torch.promote_types(query.dtype, torch.float32)
        wanted = (2 * length, wide, query.device)
        if (self.line.shape[1], self.line.dtype, self.line.device) != wanted:
            line = alibi_bias(h, 1, 2 * length, offset=length, dtype=wide, device=query.device)
            if self.is_causal:
                line[:, :, length + 1 :] = -torch.inf
            self.line = line[:, 0]

        # A query at position $i$ reads $s$ numbers of it, from place `length - i` on; the next query begins
        # one place further left. `unfold` lists these windows without a copy, but `flip` copies those that
        # are wanted: prefill still makes `h t s` numbers, decoding $s$ a head
        # [check:test_cache_is_linear_in_length].
        windows = self.line.unfold(1, s, 1)
        first = length - (offset + t - 1)
        return windows[:, first : first + t].flip(1)


def alibi_score_mod(
    n_heads: int, *, offset: int = 0, device: torch.device | str | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    r"""## In production

    A kernel that adds the bias while the scores are still in registers needs no `h t s` matrix.

    - **FlexAttention** takes this function as `score_mod`, beside a causal `block_mask`
      [check:test_flex_attention_agrees].
    - **SDPA** takes `alibi_bias` as `attn_mask`, with the causal part folded in
      [check:test_torch_sdpa_agrees]. Give it an axis for the batch, or the CPU's fused kernel refuses
      [check:test_fused_kernel_wants_an_axis_for_the_batch]. `alibi_attention` takes no mask; padding,
      `b 1 1 s`, joins the bias as `bias.masked_fill(~padding, -inf)` [check:test_padding_joins_the_bias].
    - **flash-attn** takes `alibi_slopes=alibi_slopes(n)` in float32. It aligns bottom-right, which is our
      $o = s - t$.
    - **Transformers** (BLOOM, MPT) and **vLLM** build these slopes from the head count. BLOOM adds $m_h\,j$
      in the model's dtype: see bfloat16 above.
    """
    slopes = alibi_slopes(n_heads, device=device)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, row: Tensor, j: Tensor) -> Tensor:
        i = row + offset
        return score - slopes[h] * (i - j).abs()

    return score_mod


def example(axes: dict[str, int]) -> None:
    """Prefill, then one step of decoding: the shapes beside the code are read off this run."""
    b, h, t, s, d, e = (axes[letter] for letter in "bhtsde")
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, h, s, d), torch.randn(b, h, s, e)
    alibi_slopes(h)
    alibi_bias(h, t, s)
    alibi_attention(query, key, value)
    AlibiBias(h)(query[:, :, :1], key, offset=s - 1)
    alibi_score_mod(h)
