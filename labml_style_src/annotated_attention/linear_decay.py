r"""# Gated decay

A sum forgets nothing. Linear attention adds what each token says to one matrix and can take nothing out of
it: the 100,000th token finds a state in which all the others still stand, on top of one another.

So let the state fade. Before position $i$ writes, all that was written before shrinks by a factor $a_i$
between 0 and 1:

$$S_i = a_i\,S_{i-1} + \mathbf{k}_i \mathbf{v}_i^\top, \qquad \mathbf{o}_i = S_i^\top \mathbf{q}_i$$

The factor can be a constant of the head, and then a head has a span of its own, as in lesson 6. Or the token
says it, and then the head can hold on to what matters, and wipe the board where a new text begins.

![What eight heads keep of a token, against its distance. A dot marks the half-life. Strong: RetNet's decay.
Pale: lesson 6's slopes.](figure:half_lives)

## What came before

The LSTM was given a gate to forget with in 2000 (Gers, Schmidhuber, Cummins), linear attention in 2021 (Peng
et al., arXiv:2103.02143). RetNet (2023) has a constant for each head and no gate; TransNormerLLM and
Lightning Attention-2 likewise. Mamba-2, xLSTM's matrix memory and gated RetNet have one number for each token
and head, the gate of this page. Gated Linear Attention (GLA, 2023) has one for each coordinate of the key.

## From a product to a mask

Unroll the recurrence. What $j$ wrote has been multiplied by every factor after it:

$$\mathbf{o}_i = \sum_{j \le i} D_{ij}\,(\mathbf{q}_i^\top \mathbf{k}_j)\,\mathbf{v}_j, \qquad
D_{ij} = a_{j+1}\,a_{j+2} \cdots a_i, \qquad D_{ii} = 1.$$

So decay is a mask, one of shades: $O = (Q K^\top \odot D)\,V$. With all $a_i = \gamma$ it is
$D_{ij} = \gamma^{\,i-j}$ [check:test_constant_decay_is_a_power_of_the_distance], and that is lesson 6's bias:

$$\gamma^{\,i-j} = e^{-m\,(i-j)}, \qquad m = |\ln \gamma| .$$

ALiBi multiplies each $e^{\text{score}}$ by this very matrix, and then normalises [check:test_decay_is_alibi].
Without a softmax there are no scores to add a bias to; its exponential remains. Nothing else needs to say
where a token stands: that a later token counts more is a position.

The factor $a_1$ of the first token multiplies an empty state and does nothing
[check:test_first_decay_does_nothing].

## Add, never divide

With $c_i = \ln a_1 + \dots + \ln a_i$ it is tempting to write $D_{ij} = e^{c_i}\,e^{-c_j}$ and to scale
queries by the one factor, keys by the other. On paper that makes the mask free. But $e^{-c_j}$ grows as fast
as the state fades: a gate of $1/2$ overflows float32 after 128 tokens, and the answer is NaN
[check:test_ratio_overflows].

Better is $e^{c_i - c_j}$, never above 1. It still loses digits, for near the end of a text both numbers are
large and their difference is small. After 4,096 tokens whose $\ln a$ is near $-20$, what gates near 1 leave
is off by more than a thousandth [check:test_differences_lose_digits]. And a gate that shuts, $a = 0$, gives
$-\infty$ minus $-\infty$.

So add up the terms that are wanted and no others, $\ln a_{j+1} + \dots + \ln a_i$, all of one sign. No digit
is lost and no exponent is positive [check:test_no_exponent_is_positive]. Then a gate may shut for good: what
stands before it is gone, and many texts can be packed in one row [check:test_a_shut_gate_is_a_wall].

## How far it sees

After $r$ tokens $a^r$ is left. Half is left after

$$r_{1/2} = \frac{\ln 2}{|\ln a|}$$

tokens, a thousandth after ten such spans [check:test_half_life]. All weights together are at most
$1 + a + a^2 + \dots = 1/(1-a)$, which for RetNet's head $h$ is $2^{5+h}$: it sums as much as a window of so
many tokens would, 32 for the first head and 4,096 for the eighth [check:test_effective_window]. To cut off
what is further than $w$ back changes a sum by at most its share $a^w$
[check:test_what_lies_beyond_a_window_is_bounded]. A constant decay is lesson 9's window with a soft edge, for
one layer: what a token has picked up, the next layer can pass on.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_i$, $\mathbf{k}_j$ | `key` | `b h t d` | under what position $i$ writes |
| $\mathbf{v}_i$, $\mathbf{v}_j$ | `value` | `b h t e` | what it writes |
| $\ln a_i$ | `log_decay` | `b h t` | logarithm of what is left of the past when $i$ writes, at most 0 |
| $D_{ij}$ | – | `b h t t` | what is left of $j$ when $i$ reads |
| $S_i$ | `state` | `b h d e` | all that was written, faded |
| $\mathbf{o}_i$ | `output` | `b h t e` | what $i$ reads |
| $u$ | `chunk_size` | scalar | positions in a chunk |

**Source.** Sun et al. (2023), arXiv:2307.08621, section 2; its $S_n$ is our $S_i$ and its $D_{nm}$ our
$D_{ij}$. It also turns queries and keys as in lesson 5, which `apply_rotary` can do beforehand. Yang et al.
(2023), arXiv:2312.06635; Dao, Gu (2024), arXiv:2405.21060.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["decay_cost", "half_life", "retention_log_decay"]
__all__ += ["decayed_linear_attention", "decayed_linear_attention_step"]
__all__ += ["segment_sum", "summarise"]


def segment_sum(x: Float[Tensor, "... t"]) -> Float[Tensor, "... t t"]:
    r"""## Sums of segments

    Entry $(i, j)$ is $x_{j+1} + \dots + x_i$: nothing on the diagonal, where the sum is empty, and $-\infty$
    above it, whose exponential is 0 [check:test_segment_sum]. $D$ is the exponential of this, of $\ln a$.

    Column $j$ is a running sum that begins at $j$. So it takes $t$ running sums in place of one, and as much
    memory as $D$ itself.
    """
    t = x.shape[-1]
    later = x.new_ones(t, t, dtype=torch.bool).tril(-1)
    columns = x[..., :, None].expand(*x.shape, t)
    started = columns.masked_fill(~later, 0)
    sums = started.cumsum(dim=-2)
    return sums.masked_fill(later.mT, -torch.inf)


def summarise(
    key: Float[Tensor, "b h t d"],
    value: Float[Tensor, "b h t e"],
    log_decay: Float[Tensor, "b h t"],
) -> Float[Tensor, "b h d e"]:
    r"""## The state that a text leaves

    The last row of $D$ says what is left of each token at the end, and the state is the sum of what is left:
    $S_t = \sum_j D_{tj}\,\mathbf{k}_j \mathbf{v}_j^\top$. A prompt of any length leaves one matrix a head,
    from which to decode [check:test_a_summary_is_where_decoding_begins]. The sum runs backwards from the end,
    so here too nothing is subtracted.
    """
    after = log_decay.flip(-1).cumsum(dim=-1).flip(-1)
    last = torch.zeros_like(after[..., :1])
    left = torch.cat([after[..., 1:], last], dim=-1).exp()
    faded = left[..., None] * key
    return torch.einsum("b h t d, b h t e -> b h d e", faded, value)


def decayed_linear_attention_step(
    query: Float[Tensor, "b h 1 d"],
    key: Float[Tensor, "b h 1 d"],
    value: Float[Tensor, "b h 1 e"],
    log_decay: Float[Tensor, "b h 1"],
    state: Float[Tensor, "b h d e"] | None = None,
) -> tuple[Float[Tensor, "b h 1 e"], Float[Tensor, "b h d e"]]:
    r"""## One step

    Fade, write, read: the first formula of this page. It is all that decoding needs, and costs the same at
    every position; `state` is `None` before the first. It is kept in float32 or wider, for it is a sum over
    the whole text.

    **Raises.** `ValueError` if there is more than one token, or shapes do not fit
    [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal=True)
    (b, h, t, d), e = query.shape, value.shape[3]
    shape = (b, h, d, e) if state is None else tuple(state.shape)
    fits = key.shape[2] == t == 1 and log_decay.shape == (b, h, 1)
    if not fits or shape != (b, h, d, e):
        came = f"query has {t} tokens, key {key.shape[2]}"
        came = f"{came}, log_decay has shape {tuple(log_decay.shape)}"
        wanted = "1, 1, b h 1 and b h d e are wanted"
        raise ValueError(f"{came}, state {shape}: {wanted}")
    wide = torch.promote_types(query.dtype, torch.float32)
    q = query.to(wide)
    k, v = key.to(wide), value.to(wide)
    write = torch.einsum("b h t d, b h t e -> b h d e", k, v)
    if state is not None:
        write = log_decay.to(wide).exp()[..., None] * state + write
    output = torch.einsum("b h t d, b h d e -> b h t e", q, write)
    return output.to(query.dtype), write


def decayed_linear_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h t d"],
    value: Float[Tensor, "b h t e"],
    log_decay: Float[Tensor, "b h t"],
    *,
    form: str = "chunked",
    chunk_size: int = 64,
) -> Float[Tensor, "b h t e"]:
    r"""## Three forms, one loop

    Cut the text into chunks of $u$. A query reads its own chunk through the mask $D$, and all that came
    before it from the state, which has faded since, by all factors of the chunk up to its own.

    The other two forms are its ends. One chunk, $u = t$, is the *parallel* form, a whole matrix and no state.
    Chunks of one, $u = 1$, are the *recurrent* form, all state and no matrix. So one loop computes all three;
    each is held against its own formula, with gradients [check:test_agrees_with_the_plain_formula]
    [check:test_gradcheck], and where the cuts are cannot be seen [check:test_chunk_size_is_irrelevant].

    With $\ln a = 0$ it is linear attention without its denominator [check:test_without_decay_it_is_a_sum].
    Who wants the denominator appends a 1 to each value and divides by what comes out of it
    [check:test_a_one_in_the_value_is_the_denominator].

    **Shapes.** `query` and `key` are `b h t d`, `value` is `b h t e`, `log_decay` is `b h t`; the result is
    `b h t e`. Nothing is scaled: a factor would pass straight to the output.

    **Raises.** `ValueError` if shapes, form or chunk do not fit [check:test_wrong_input_is_refused].
    `log_decay` is not looked into, which would make a GPU wait: above 0 it makes the past grow.
    """
    check_inputs(query, key, value, None, is_causal=True)
    wide = torch.promote_types(query.dtype, torch.float32)
    positions, t = query.shape[:3], query.shape[2]
    if key.shape[2] != t or log_decay.shape != positions:
        came = f"key has {key.shape[2]} positions, query {t}, log_decay has shape"
        wanted = f"as many, and {tuple(positions)}, are wanted"
        raise ValueError(f"{came} {tuple(log_decay.shape)}: {wanted}")
    sizes = {"parallel": max(t, 1), "recurrent": 1, "chunked": chunk_size}
    if form not in sizes or chunk_size < 1:
        came = f"form is {form!r}, chunk_size is {chunk_size}"
        wanted = f"one of {', '.join(sizes)}, and at least 1, is wanted"
        raise ValueError(f"{came}: {wanted}")

    # `split` cuts once, for all chunks (lesson 9 says why). Below float32 the text is widened here, and the
    # result rounded once.
    text = (x.to(wide) for x in (query, key, value, log_decay))
    pieces = zip(*(x.split(sizes[form], dim=2) for x in text), strict=True)
    outputs, state = [], None
    for q, k, v, x in pieces:
        # Within the chunk: products, faded.
        decay = segment_sum(x).exp()
        scores = torch.einsum("b h t d, b h s d -> b h t s", q, k)
        o = torch.einsum("b h t s, b h s e -> b h t e", scores * decay, v)

        # From before it: the state as it was when the chunk began, faded since.
        write = summarise(k, v, x)
        if state is not None:
            since = x.cumsum(dim=-1).exp()
            read = torch.einsum("b h t d, b h d e -> b h t e", q, state)
            o = o + since[..., None] * read
            write = since[..., -1:, None] * state + write
        state = write
        outputs.append(o.to(query.dtype))
    return torch.cat(outputs, dim=2)


def retention_log_decay(
    n_heads: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "h"]:
    r"""## The decay of a head

    RetNet's head $h = 0, 1, \dots$ keeps

    $$\gamma_h = 1 - 2^{-5-h}$$

    from one token to the next. Its half-life is 22 tokens for the first head and 2,839 for the eighth
    [check:test_half_lives_of_retnet]; lesson 6's eight slopes, read as decays, have 1.4 to 177. Each head
    remembers twice as long as the one before it, and no end is set: with 16 heads, the last one's half-life
    is 727 thousand tokens.

    **Raises.** `ValueError` if `n_heads` is less than 1.
    """
    if n_heads < 1:
        raise ValueError(f"n_heads is {n_heads}: it must be at least 1")
    values = [math.log1p(-(2.0 ** (-5 - h))) for h in range(n_heads)]
    return torch.tensor(values, dtype=dtype, device=device)


def half_life(log_a: Float[Tensor, "h"]) -> Float[Tensor, "h"]:
    r"""## How long a head remembers

    $\ln 2\,/\,|\ln a|$ tokens; where $a = 1$, infinitely many [check:test_half_life].
    """
    return math.log(2) / log_a.abs()


def decay_cost(t: int, d: int, e: int, chunk_size: int) -> int:
    r"""## What it costs, and when it fails

    Returns the multiplications of one head for a text of $t$ tokens [check:test_cost_counts_products]:

    $$\underbrace{t\,u\,(d + e)}_{\text{within chunks}} \;+\;
    \underbrace{2\,t\,d\,e}_{\text{write and read}}$$

    but for the first chunk, which has nothing to read; the whole matrix takes $t^2 (d + e)$. Work grows like
    $t$, forward and backward [check:test_work_is_linear], and so does memory: nothing is larger than the
    text, a chunk's matrix or a state [check:test_memory_is_linear]. A backward pass needs each chunk's state,
    $t/u$ of them, so a small $u$ saves work and costs memory.

    - *What has faded is gone.* A constant rate must be chosen before it is known what will be asked.
    - *What has not faded interferes*: a state has room for [so many pairs](../linear_recall/index.md).
    - *No denominator*, so outputs have any size. RetNet and most others put a norm over each head behind it,
      which any factor on a whole row passes unseen: the three by which RetNet keeps its numbers small change
      nothing [check:test_a_norm_hides_any_factor].

    **In production.** A gate for each token is learned as $\ln a = \operatorname{logsigmoid}(\dots)$, divided
    by 16 in GLA so that it starts near 1. **flash-linear-attention** has `chunk_retention`,
    `chunk_simple_gla` (this page) and `chunk_gla`. **Transformers**' MiniMax takes lesson 6's slopes as its
    $|\ln a|$, gentler in each layer than in the one below [check:test_slopes_of_minimax]. Mamba-2 is [a page
    of its own](../linear_state_space/index.md).
    """
    pieces = [chunk_size] * (t // chunk_size) + [t % chunk_size]
    within = sum(u * u for u in pieces) * (d + e)
    read = max(t - chunk_size, 0)
    return within + (t + read) * d * e


def example(axes: dict[str, int]) -> None:
    """Chunks of `u`, as many as `n`: the shapes beside the code are read off this run."""
    b, h, d, e, n, u = (axes[letter] for letter in "bhdenu")
    query, key = torch.randn(b, h, n * u, d), torch.randn(b, h, n * u, d)
    value = torch.randn(b, h, n * u, e)
    log_decay = -torch.rand(b, h, n * u)
    segment_sum(log_decay[..., :u])
    decayed_linear_attention(query, key, value, log_decay, chunk_size=u)
    state = summarise(key, value, log_decay)
    q, k, v, x = (x[:, :, -1:] for x in (query, key, value, log_decay))
    decayed_linear_attention_step(q, k, v, x, state)
    half_life(retention_log_decay(h))
    decay_cost(n * u, d, e, u)
