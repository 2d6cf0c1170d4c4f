r"""# Rotary positions

A head that looks at the word before should do so at position 7 and at position 7,000. But attention by itself
sees no order, and where a position is a vector added to the token, the two places give two different sums
that nothing makes agree. What is wanted is a score that knows two tokens and how far apart they are; and it
should be made of a query that knows its own position only and a key that knows its own.

Turning does this. Take the numbers of a vector two by two, as points in a plane, and turn point $p$ by an
angle that grows with the position: $i\,\theta_p$ in the query at $i$, $j\,\theta_p$ in the key at $j$. Their
product feels the difference of the angles and nothing else:

$$(R_i\,\mathbf{q}_i)^\top (R_j\,\mathbf{k}_j) = \mathbf{q}_i^\top R_{j-i}\,\mathbf{k}_j$$

Nothing is learned, nothing is added to a token, and attention itself does not change. Its authors call it
*rotary position embedding*, RoPE.

![One vector at eight positions: three pairs of its numbers, each turning at its own speed. The wedge is the
angle between a position and the one two before it, the same everywhere in a row.](figure:hands)

## What came before

Sinusoidal and learned positions are added to the tokens. The product of two such sums has four terms, and in
two of them a position meets a meaning. Shaw et al. (2018) and T5 put distance into the scores, as a learned
vector or number for each: that is relative, but paid for every pair of tokens, inside the attention, where a
fused kernel has to make room for it. A turn is paid once a token, outside.

## The proof is one line

Let $q$ and $k$ be one pair of a query and of a key, as complex numbers, and $\iota^2 = -1$. To turn by an
angle $\varphi$ is to multiply by $e^{\iota\varphi}$ [check:test_turning_is_complex_multiplication], and the
plain product of two points is the real part of $\bar q\,k$. So

$$\operatorname{Re}\Big(\overline{q\,e^{\iota\, i\theta}}\; k\,e^{\iota\, j\theta}\Big) =
\operatorname{Re}\Big(\bar q\,k\; e^{\iota\,(j-i)\,\theta}\Big),$$

because conjugating turns the other way. Sum over the pairs: a score depends on the two vectors and on
$j - i$ [check:test_scores_depend_on_the_distance_alone].

## The same as matrices

A complex number that turns is a real matrix, and all pairs together are a matrix with such blocks on its
diagonal [check:test_turning_is_a_matrix_of_blocks]:

$$R_i = \begin{pmatrix} \ddots & & \\ & \begin{matrix} \cos i\theta_p & -\sin i\theta_p \\
\sin i\theta_p & \phantom{-}\cos i\theta_p \end{matrix} & \\ & & \ddots \end{pmatrix}$$

The proof now reads $R_i^\top R_j = R_{j-i}$. So a vector keeps its length, for $R_i^\top R_i = 1$
[check:test_lengths_are_kept], and a text moved as a whole attends as before
[check:test_moving_the_text_changes_nothing]. The head of the beginning needs no content at all: if all keys
are $\mathbf{u}$ and all queries $R_{-n}\,\mathbf{u}$, then query $i$ scores key $j$ with
$\mathbf{u}^\top R_{j-i+n}\,\mathbf{u}$, largest at $j = i - n$, wherever $i$ is
[check:test_one_query_looks_back_n_tokens_everywhere].

## It need not decay

The paper bounds a score by a sum that falls with distance (equation 37), and it is often said that rotary
scores decay. A bound is not a score. Where query and key agree, $\bar q\,k = 1$ in each of 64 pairs, the
score $\sum_p \cos (j-i)\theta_p$ falls from 64 to 31 at distance 100 and to 10 at 1,000
[check:test_agreeing_pairs_decay]. Where they are unrelated, a turned key is as random as the key, and the
score has mean 0 and one variance at every distance [check:test_unrelated_scores_do_not_decay]; and the head
above prefers any distance it likes. Turning shows distance, and what to make of it is learned: in Gemma 7B,
heads that look at neighbours use the fast pairs, and the slow ones seem to carry meaning (Barbero et al.
2024, arXiv:2410.06205).

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ offers |
| $i$ | `i` | `... t` | positions of the queries |
| $j$ | `j` | `... s` | positions of the keys |
| $p$ | `pair` | `r` | which pair of numbers, from 0; $r = d/2$ of them, or fewer |
| $\theta_p$ | `frequencies` | `r` | angle by which pair $p$ turns from one position to the next |
| $R_i$ | `apply_rotary` | – | turns each pair $p$ by $\varphi = i\,\theta_p$ |
| $B$ | `base` | scalar | every pair is round within $2\pi B$ positions |
| $L$ | `original_length` | scalar | tokens of a text in training |
| $f$ | `factor` | scalar | how many times longer the texts are to be |
| $\gamma_p$ | `gamma` | `r` | how much of its speed pair $p$ keeps: 1 all, 0 one part in $f$ |

**Source.** Su et al. (2021), arXiv:2104.09864: equations 12 and 13 for one pair, 14 to 16 for all, 34 as it
is computed, 35 to 37 for the bound. Their $m, n$ are our $i, j$, their $R^d_{\Theta,m}$ our $R_i$ on
neighbours, and their $\theta$ counts from 1. Peng et al. (2023), arXiv:2309.00071, version 2, with $b$, $s$,
$\alpha$, $\beta$ for our $B$, $f$, `beta_slow`, `beta_fast`.
"""

import math
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, Int64, Real
from torch import Tensor

from annotated_attention.language_model import Attend, causal_attention

__all__ = ["apply_rotary", "half_split_order", "ntk_base", "rotary_angles"]
__all__ += ["rotary_attention", "rotary_frequencies"]
__all__ += ["yarn_frequencies", "yarn_scale"]


def rotary_frequencies(
    d: int,
    *,
    base: float = 10000.0,
    device: torch.device | str | None = None,
) -> Float64[Tensor, "r"]:
    r"""## Many speeds

    $$\theta_p = B^{-2p/d}, \qquad p = 0, \dots, \tfrac d2 - 1$$

    An angle comes round again, after $2\pi/\theta_p$ positions. Pair 0 turns by one radian a token: it tells
    neighbours apart, and takes tokens 44 apart for nearly the same. At $d = 128$ and $B = 10^4$ the last pair
    turns once in 54,410 tokens [check:test_wavelengths]: it tells regions apart, not neighbours. They are the
    hands of a clock.
    """
    if d < 2 or d % 2:
        raise ValueError(f"d is {d}: an even number >= 2 is wanted")
    pair = torch.arange(d // 2, dtype=torch.float64, device=device)
    return base ** (-2 * pair / d)


def rotary_angles(
    positions: Real[Tensor, "... t"],
    d: int,
    *,
    base: float = 10000.0,
    frequencies: Float[Tensor, "r"] | None = None,
) -> Float64[Tensor, "... t r"]:
    r"""## Angles are kept in float64

    An angle grows with the text, but only its remainder of a turn counts, which is what rounding takes first.
    At position 100,000 float32 is off by 0.005 [check:test_float32_angles_drift]. In bfloat16, where numbers
    are 512 apart there, the newest eight tokens get one angle, and float16, which ends at 65,504, has none
    [check:test_half_precision_ruins_angles]. A model cast to half precision together with its table of
    frequencies has this bug (GPT-NeoX issue 1003, Transformers issue 25681).

    **Shapes.** `positions` is `... t`, whole or not; the result is `... t r`. `frequencies` replace the base.
    """
    if frequencies is None:
        device = positions.device
        frequencies = rotary_frequencies(d, base=base, device=device)
    if 2 * len(frequencies) != d:
        came = f"frequencies has {len(frequencies)} numbers, d is {d}"
        raise ValueError(f"{came}: d / 2 numbers are wanted")
    return positions.double()[..., None] * frequencies.double()


def apply_rotary(
    x: Float[Tensor, "b h t d"],
    angles: Float[Tensor, "... t r"],
    *,
    interleaved: bool = False,
) -> Float[Tensor, "b h t d"]:
    r"""## The turn

    $$\begin{pmatrix} x_1 \\ x_2 \end{pmatrix} \mapsto \begin{pmatrix}
    x_1 \cos\varphi - x_2 \sin\varphi \\ x_1 \sin\varphi + x_2 \cos\varphi \end{pmatrix}$$

    Which two numbers are a pair is a convention. By default $x_1$ comes from the first half and $x_2$ from
    the second; `interleaved` takes neighbours, as the paper does. See the end of the page.

    **Partial.** With $2r < d$ only the first $2r$ dimensions turn; the others compare tokens wherever they
    stand [check:test_partial_dimensions]. GPT-NeoX-20B turns a quarter.

    **Shapes.** `x` is `b h t d`; `angles` is `t r`, or `b t r` where texts have positions of their own
    [check:test_each_text_may_have_its_positions].

    **Raises.** `ValueError` if angles do not fit or are below float32 [check:test_wrong_input_is_refused].
    """
    (b, _, t, d), r = x.shape, angles.shape[-1]
    if tuple(angles.shape) not in {(t, r), (b, t, r)} or 2 * r > d:
        came = f"angles is {list(angles.shape)}, x is {list(x.shape)}"
        raise ValueError(f"{came}: t r or b t r is wanted, with 2 r <= d")
    if angles.dtype not in (torch.float32, torch.float64):
        came = f"angles is {angles.dtype}"
        raise ValueError(f"{came}: float32 or float64 is wanted")

    # Below float32 the turn is made in float32 and rounded once. Made in bfloat16, where cosine, sine, the
    # products and their sum are rounded too, it has 1.6 times the error [check:test_rounding_once_is_better].
    wide = torch.promote_types(x.dtype, torch.float32)
    angles = angles[..., None, :, :]
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)

    # The layouts differ in which of the two axes comes last, and in nothing else.
    layout = "b h t (r two)" if interleaved else "b h t (two r)"
    turning = x[..., : 2 * r].to(wide)
    x_1, x_2 = rearrange(turning, f"{layout} -> two b h t r", two=2)
    turned = torch.stack([x_1 * cos - x_2 * sin, x_1 * sin + x_2 * cos])
    turned = rearrange(turned, f"two b h t r -> {layout}").to(x.dtype)
    return torch.cat([turned, x[..., 2 * r :]], dim=-1)


def rotary_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
    *,
    base: float = 10000.0,
    frequencies: Float[Tensor, "r"] | None = None,
    attend: Attend = causal_attention,
) -> Float[Tensor, "b h t e"]:
    r"""## Attention

    It has the form of lesson 3's slot: a model takes it with `SelfAttention(m, n, attend=rotary_attention)`
    and needs no other positions [check:test_language_model_with_a_cache]. Any attention of that form may
    follow the turn, as `attend`.

    It is the plain formula on turned vectors [check:test_agrees_with_the_plain_formula]. A chunk that begins
    at position 100 gets its slice of the whole [check:test_a_chunk_is_a_slice_of_the_whole].

    **Values are not turned.** In a score, a product, absolute angles cancel. An output is a sum: with turned
    values, moving the text would turn the output [check:test_turned_values_feel_the_absolute_place].

    **Cost.** Three operations for each number of queries and keys, next to nothing beside the scores of a
    whole text. But in a cache the keys lie unturned, and for one new token all $s$ are turned again: $3sd$
    operations a head, beside $4sd$ of attention. Production stores them turned. To count them anew (lesson
    10), it turns them once more, by the difference, for turns add up [check:test_turns_add_up]: this is
    llama.cpp's context shift. But each turn rounds, and small ones are lost: 400 turns by one position are
    some 120 times as wrong, in bfloat16, as one by 400 [check:test_small_turns_are_lost]. And if frequencies
    change while a text grows, all keys turn at every step: Peng et al. store them unturned (section 3.3).
    """
    d = query.shape[-1] if frequencies is None else 2 * len(frequencies)
    angles = partial(rotary_angles, d=d, base=base, frequencies=frequencies)
    query = apply_rotary(query, angles(i))
    key = apply_rotary(key, angles(j))
    return attend(query, key, value, i, j)


def ntk_base(base: float, factor: float, d: int) -> float:
    r"""## Where it fails: beyond the trained length

    Angles have no end, and yet a model trained on $L$ tokens fails soon after $L$; the notebook trains one.
    Llama 2 has $d = 128$, $B = 10^4$, $L = 4096$: 18 of its 64 pairs never complete a turn in training, and
    at position 8,000, 14 of them stand where they never stood [check:test_slow_pairs_meet_new_angles].

    *Position interpolation* divides all positions by $f$, so that no angle is new
    [check:test_interpolation_stays_within_training]. But now neighbours are $f$ times closer, in the fast
    pairs too, and the model must be tuned to that, for up to 1,000 steps (Chen et al. 2023,
    arXiv:2306.15595).

    *Another base* spares the fast pairs. With

    $$B' = B\, f^{\,d/(d-2)},$$

    pair $p$ is slowed by $f^{2p/(d-2)}$: the fastest not at all, the slowest by exactly $f$
    [check:test_ntk_slows_the_last_pair_by_the_factor]. It is known as NTK-aware (equation 16 of Peng et al.)
    and does better untuned; but the pairs that had not completed a turn, all but the slowest, are slowed by
    less than $f$ and still go on to new angles [check:test_ntk_goes_beyond_training]. Llama 3 was trained
    with a large base, 500,000, from the start.
    """
    if d < 4 or d % 2:
        raise ValueError(f"d is {d}: an even number >= 4 is wanted")
    return base * factor ** (d / (d - 2))


def yarn_frequencies(
    d: int,
    factor: float,
    original_length: int,
    *,
    base: float = 10000.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    device: torch.device | str | None = None,
) -> Float64[Tensor, "r"]:
    r"""## Slow down what has not been round

    YaRN looks at what a pair has seen. Many turns within $L$: every angle is known, keep the speed. Less than
    one: slow down by all of $f$. Between them a ramp,

    $$\theta'_p = \gamma_p\,\theta_p + (1 - \gamma_p)\,\frac{\theta_p}{f}.$$

    ![What is left of each pair's speed at $f = 8$, for Llama 2's sizes; above, its turns in training. Shaded:
    never a whole one.](figure:scaling)

    Beware of two ramps. In the paper (equations 17, 18, 20) $\gamma_p$ is linear in the number of turns. In
    the authors' code, and so in Transformers, vLLM and the published models, it is linear in $p$, as here; in
    the figure, frequencies differ by up to 2.3 times [check:test_paper_and_code_have_two_ramps]. Llama 3.1
    took the paper's ramp, from 1 turn to 4.
    """
    frequencies = rotary_frequencies(d, base=base, device=device)

    # Pair $p$ makes $L\,\theta_p / 2\pi$ turns in training. Solved for $p$, this says where the ramp begins
    # and where it ends, to be rounded outwards to whole pairs [check:test_yarn_agrees_with_the_authors_code].
    def pair_of(turns: float) -> float:
        wavelength = original_length / turns
        return d / 2 * math.log(wavelength / (2 * math.pi), base)

    low = max(math.floor(pair_of(beta_fast)), 0)
    high = min(math.ceil(pair_of(beta_slow)), d - 1)
    pair = torch.arange(d // 2, dtype=torch.float64, device=device)
    gamma = ((high - pair) / max(high - low, 0.001)).clamp(0, 1)
    return gamma * frequencies + (1 - gamma) * frequencies / factor


def yarn_scale(factor: float) -> float:
    r"""## And look more sharply

    More tokens share one softmax, so YaRN divides scores by a temperature $\tau < 1$. Fitted on LLaMA,
    $\sqrt{1/\tau} = 0.1 \ln f + 1$ (equations 21, 22, with $t$ for $\tau$), and query and key are each
    multiplied by that root, or the query by its square [check:test_temperature_multiplies_the_scores].
    """
    return 0.1 * math.log(factor) + 1.0


def half_split_order(
    d: int,
    *,
    device: torch.device | str | None = None,
) -> Int64[Tensor, "d"]:
    r"""## In production: two layouts

    ![Which of eight numbers are a pair. Above: neighbours. Below: one from each half. The lines are the
    permutation between the two.](figure:layouts)

    Neighbours: RoFormer, GPT-J, Meta's Llama, torchtune. Halves: GPT-NeoX, Transformers' Llama
    (`rotate_half`), `apply_rotary_emb` of flash-attn. vLLM has both, by `is_neox_style`.

    `x[..., half_split_order(d)]` brings neighbours into halves, and turning then does the same to both
    [check:test_layouts_differ_by_a_permutation]. A product does not mind if both vectors are permuted, so it
    is enough to permute, once, the rows of $W_Q$ and $W_K$ in each head: this is how Meta's Llama became
    Transformers' [check:test_permuted_rows_convert_a_checkpoint]. Nothing complains if it is forgotten: at
    distance 0 the scores are even right [check:test_wrong_layout_is_silent].

    SDPA and FlexAttention get queries and keys already turned. `flash_attn_with_kvcache` can turn the new
    ones itself, and takes neighbours unless `rotary_interleaved=False`. Transformers makes angles in float32,
    but rounds cosine and sine to the model's dtype and turns in it; torchtune turns in float32.
    """
    if d < 2 or d % 2:
        raise ValueError(f"d is {d}: an even number >= 2 is wanted")
    return torch.arange(d, device=device).view(-1, 2).T.flatten()


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, s, r, e = (axes[letter] for letter in "bhtsre")
    query, key, i = torch.randn(b, h, t, 2 * r), torch.randn(b, h, s, 2 * r), torch.arange(t)
    rotary_frequencies(2 * r)
    apply_rotary(query, rotary_angles(i, 2 * r))
    rotary_attention(query, key, torch.randn(b, h, s, e), i, torch.arange(s))
    ntk_base(10000.0, 8.0, 2 * r)
    yarn_frequencies(2 * r, 8.0, 64)
    yarn_scale(8.0)
    half_split_order(2 * r)
