r"""# Linear attention

Attention compares every query with every key. A text ten times as long costs a hundred times as much, and to
write its next token, all keys and values must still be there.

The softmax is to blame. $e^{\mathbf{q}_i^\top \mathbf{k}_j}$ knows $i$ and $j$ together, and cannot be pulled
apart. Put a product in its place, $\varphi(\mathbf{q}_i)^\top \varphi(\mathbf{k}_j)$, with a map $\varphi$ of
each alone. Then what belongs to the query leaves the sum,

$$\begin{aligned} \mathbf{o}_i &= \frac{\sum_j \varphi(\mathbf{q}_i)^\top \varphi(\mathbf{k}_j)\,
\mathbf{v}_j^\top}{\sum_j \varphi(\mathbf{q}_i)^\top \varphi(\mathbf{k}_j)} \\[4pt] &=
\frac{\varphi(\mathbf{q}_i)^\top \sum_j \varphi(\mathbf{k}_j)\, \mathbf{v}_j^\top}{\varphi(\mathbf{q}_i)^\top
\sum_j \varphi(\mathbf{k}_j)}\,, \end{aligned}$$

and what is left in it is the same for all queries: a matrix of $f \times e$ numbers and a vector of $f$, if
$\varphi$ makes $f$ features of a query or key, however long the text is.

![Three factors in two orders. Above, every query meets every key. Below, keys meet values.](figure:orders)

## What came before

Schmidhuber (1992) let one network write into the weights of another, as sums of outer products. Shen et al.
(2018, arXiv:1812.01243) multiplied keys with values first, for large images. Katharopoulos et al. (2020) add
a causal mask: the sum runs up to $i$, and the transformer is a recurrent network. Schlag et al. (2021,
arXiv:2102.11174) closed the circle: it is that of 1992.

## The map

$\varphi(x) = \operatorname{elu}(x) + 1$ of each number: $x + 1$ above 0, $e^x$ below. It is never negative,
and so no weight is: an output is a mean of values [check:test_outputs_are_means]. It does not approximate the
softmax; [the next page](../linear_features/index.md) has maps that do. There is no `scale` either. A factor
within the exponential made softmax sharper or flatter; here it is a part of the map
[check:test_a_scale_belongs_to_the_map].

## Three forms

A causal query sees the keys $j \le i$, so its sums end at $i$:

$$\begin{gathered} S_i = \sum_{j \le i} \varphi(\mathbf{k}_j)\, \mathbf{v}_j^\top, \quad \mathbf{z}_i =
\sum_{j \le i} \varphi(\mathbf{k}_j), \\ \mathbf{o}_i = \frac{\varphi(\mathbf{q}_i)^\top
S_i}{\varphi(\mathbf{q}_i)^\top \mathbf{z}_i}\,. \end{gathered}$$

**Parallel**: all weights $A_{ij} = \varphi(\mathbf{q}_i)^\top \varphi(\mathbf{k}_j)$, half of them masked. No
step waits for another, and the cost is that of softmax.

**Recurrent**: $S_i = S_{i-1} + \varphi(\mathbf{k}_i)\, \mathbf{v}_i^\top$. The least work, but in $t$ steps,
each waiting for the one before. On the way back, all $t$ states are wanted.

**Chunked**: cut the text into chunks of $u$ tokens. A sum up to $i$ is the sum up to the chunk and that
within it. The first is a state, the second is the parallel form of $u$ tokens:

$$\varphi(\mathbf{q}_i)^\top S_i = \varphi(\mathbf{q}_i)^\top S_{\text{before}} + \sum_{j \le i
\text{, within}} A_{ij}\, \mathbf{v}_j^\top .$$

With $u = 1$ this is the recurrent form, with $u = t$ the parallel one, and they are all one function
[check:test_forms_are_one_function].

![A causal text in chunks. Strong: weights that are computed. Pale: what a state stands for.](figure:chunks)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$, $\mathbf{k}_i$ | `key` | `b h s d` | what position $j$ offers |
| $\mathbf{v}_j$, $\mathbf{v}_i$ | `value` | `b h s e` | what position $j$ gives |
| $\varphi$ | `feature_map` | – | from $d$ numbers to $f$ features |
| $A_{ij}$ | `weights` | `b h t s` | product of features, before the division |
| $S$ | `matrix` | `b h f e` | sum of $\varphi(\mathbf{k}_j)\, \mathbf{v}_j^\top$ over what was read |
| $\mathbf{z}$ | `normaliser` | `b h f` | sum of $\varphi(\mathbf{k}_j)$ over what was read |
| $\mathbf{o}_i$ | `output` | `b h t e` | the blend of values |
| $u$ | `chunk_size` | scalar | tokens in a chunk |

**Source.** Katharopoulos et al. (2020), arXiv:2006.16236: equations 4 and 5, 7 (the map) and 10 to 12; their
$Z_i$ is our $\mathbf{z}_i$. In chunks: Sun et al. (2023), arXiv:2307.08621, equation 7, without the decay.
"""

from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from annotated_attention.linear_features import (
    FeatureMap,
    elu_plus_one,
    positive_random_features,
    relu_features,
    taylor_features,
)
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["LinearState", "elu_plus_one", "linear_attention", "linear_attention_piece"]
__all__ += ["linear_attention_step", "linear_cost", "merge_states", "positive_random_features"]
__all__ += ["ratio", "read", "relu_features", "state_of", "taylor_features"]

FORMS = ("parallel", "recurrent", "chunked")


class LinearState(NamedTuple):
    """## The state

    All that is kept of what was read, in float32 or wider. In bf16, a sum of ones ends at 256, for 257 has no
    place there; in float32 at 16.8 million [check:test_a_sum_in_bf16_ends_at_256].
    """

    matrix: Float[Tensor, "b h f e"]
    normaliser: Float[Tensor, "b h f"]

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + self.normaliser.nbytes


def state_of(
    k: Float[Tensor, "b h s f"],
    v: Float[Tensor, "b h s e"],
) -> LinearState:
    r"""Of any keys: $S = \sum_j \varphi(\mathbf{k}_j)\,\mathbf{v}_j^\top$ and $\mathbf{z} = \sum_j
    \varphi(\mathbf{k}_j)$, from features `k`. A sum has no order [check:test_keys_have_no_order]."""
    matrix = torch.einsum("b h s f, b h s e -> b h f e", k, v)
    return LinearState(matrix, k.sum(2))


def merge_states(a: LinearState, b: LinearState) -> LinearState:
    r"""Two pieces are read as one if their states are added [check:test_states_add]. Lesson 13's merge had to
    weigh its parts by their sums; these are not divided yet."""
    return LinearState(a.matrix + b.matrix, a.normaliser + b.normaliser)


def read(
    q: Float[Tensor, "b h t f"],
    state: LinearState,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""Numerator $\varphi(\mathbf{q}_i)^\top S$ and denominator $\varphi(\mathbf{q}_i)^\top \mathbf{z}$."""
    blend = torch.einsum("b h t f, b h f e -> b h t e", q, state.matrix)
    return blend, torch.einsum("b h t f, b h f -> b h t", q, state.normaliser)


def ratio(
    blend: Float[Tensor, "b h t e"],
    total: Float[Tensor, "b h t"],
) -> Float[Tensor, "b h t e"]:
    r"""And their ratio. Where nothing was seen the denominator is 0 (or below $10^{-38}$, float32's end): no
    keys, or features that are all 0, as those of ReLU can be, and of elu at $-10^4$. Such a row is divided by
    infinity: it gives 0, and sends 0 back [check:test_rows_that_see_nothing_are_zero]."""
    nothing = total.abs() < torch.finfo(total.dtype).tiny
    return blend / total.masked_fill(nothing, torch.inf)[..., None]


def linear_attention_piece(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h t d"],
    value: Float[Tensor, "b h t e"],
    state: LinearState | None = None,
    *,
    feature_map: FeatureMap = elu_plus_one,
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "b h t e"], LinearState]:
    r"""## Chunks

    A piece of a text, behind all that `state` has read: its outputs, and the state after it. Where the cuts
    are cannot be seen [check:test_a_text_in_pieces_is_the_text].
    """
    given = prepared(query, key, value, state, feature_map)
    (q, k, v, start), t = given, query.shape[2]

    # Chunks join the heads: but for the states, each is a text of its own. Behind the last token, *features*
    # of 0 add nothing. A key of 0 has features of 1.
    u = min(chunk_size, max(t, 1))
    n = max(1, -(-t // u))
    if n * u > t:
        q, k, v = (F.pad(x, (0, 0, 0, n * u - t)) for x in (q, k, v))
    cut = partial(rearrange, pattern="b h (n u) c -> b (h n) u c", u=u)
    q, k, v = map(cut, (q, k, v))

    # The state before each chunk, and after the last: what came in, and one chunk's sums after the other. To
    # sum up all and take off the rest lets the future round the past [check:test_future_moves_nothing].
    past, after = [], []
    for x, own in zip(start, state_of(k, v), strict=True):
        own = rearrange(own, "b (h n) ... -> b h n ...", n=n)
        *before, last = accumulate(own.unbind(2), initial=x)
        past.append(torch.stack(before, dim=2).flatten(1, 2))
        after.append(last)
    blend, total = read(q, LinearState(*past))

    # Within a chunk, the parallel form.
    inside = torch.einsum("b h u f, b h a f -> b h u a", q, k).tril()
    near = torch.einsum("b h u a, b h a e -> b h u e", inside, v)
    blend, total = blend + near, total + inside.sum(-1)
    means = ratio(blend, total)
    output = rearrange(means, "b (h n) u e -> b h (n u) e", n=n)
    return output[:, :, :t].to(query.dtype), LinearState(*after)


def linear_attention_step(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h t d"],
    value: Float[Tensor, "b h t e"],
    state: LinearState | None,
    *,
    feature_map: FeatureMap = elu_plus_one,
) -> tuple[Float[Tensor, "b h t e"], LinearState]:
    r"""## One token

    $t = 1$: write, then read. `state` is None at first. All cost the same [check:test_a_step_is_a_step].
    """
    if query.shape[2] > 1:
        came = f"query has shape {tuple(query.shape)}"
        raise ValueError(f"{came}: one token, b h 1 d, is wanted")
    q, k, v, state = prepared(query, key, value, state, feature_map)
    state = merge_states(state, state_of(k, v))
    return ratio(*read(q, state)).to(query.dtype), state


def linear_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
    *,
    is_causal: bool = True,
    feature_map: FeatureMap = elu_plus_one,
    form: str = "chunked",
    chunk_size: int = 64,
) -> Float[Tensor, "b h t e"]:
    r"""## Attention

    It agrees with the plain formula, gradients included, in every form and dtype
    [check:test_agrees_with_the_plain_formula] [check:test_gradcheck].

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`; the result is `b h t e`.
    `is_causal` is aligned top-left.

    **Raises.** `ValueError` if anything does not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal)
    if form not in FORMS or chunk_size < 1:
        came = f"form is {form!r}, chunk_size is {chunk_size}"
        raise ValueError(f"{came}: one of {FORMS}, and at least 1, is wanted")
    if form == "parallel" or not is_causal:
        q, k = (features(x, feature_map) for x in (query, key))
        v = value.to(q.dtype)

        # Without a mask, all queries read one state, that of all keys.
        if form != "parallel":
            return ratio(*read(q, state_of(k, v))).to(query.dtype)
        weights = torch.einsum("b h t f, b h s f -> b h t s", q, k)
        weights = weights.tril() if is_causal else weights
        blend = torch.einsum("b h t s, b h s e -> b h t e", weights, v)
        return ratio(blend, weights.sum(-1)).to(query.dtype)

    # In Python one token takes as long as hundreds, so the recurrent form is slow here. Of a piece, outputs and one
    # state are left; the way back makes the rest again. 16 chunks keep a processor busy, and stay in its cache.
    size, do = 1, linear_attention_step
    if form == "chunked":
        size, piece = 16 * chunk_size, linear_attention_piece
        do = partial(checkpoint, piece, use_reentrant=False, chunk_size=chunk_size)

    # As many tokens as have a query and a key; `split` cuts outside of the loop (lesson 9).
    n, outputs, state = min(query.shape[2], key.shape[2]), [], None
    text = (x[:, :, :n].split(size, dim=2) for x in (query, key, value))
    for q, k, v in zip(*text, strict=True):
        output, state = do(q, k, v, state, feature_map=feature_map)
        outputs.append(output)

    # Queries behind the last key all read what it has left.
    if n < query.shape[2] and state is not None:
        q = features(query[:, :, n:], feature_map)
        outputs.append(ratio(*read(q, state)).to(query.dtype))
    return torch.cat(outputs, dim=2)


def features(x: Tensor, feature_map: FeatureMap) -> Tensor:
    """In float32 or wider: what is rounded here is rounded in every sum."""
    mapped = feature_map(x.to(torch.promote_types(x.dtype, torch.float32)))
    if mapped.ndim != 4 or mapped.shape[:3] != x.shape[:3]:
        came = f"feature_map made {tuple(mapped.shape)} of {tuple(x.shape)}"
        raise ValueError(f"{came}: b h t f is wanted")
    return mapped


def prepared(query, key, value, state, feature_map):
    """Features, values and a state that fits them."""
    check_inputs(query, key, value, None, False)
    if query.shape[2] != key.shape[2]:
        came = f"query has {query.shape[2]} tokens, key has {key.shape[2]}"
        raise ValueError(f"{came}: the same tokens are wanted")
    q, k = features(query, feature_map), features(key, feature_map)
    v = value.to(q.dtype)

    empty = state_of(k[:, :, :0], v[:, :, :0])
    state = empty if state is None else state
    for x, fits in zip(state, empty, strict=True):
        if x.shape != fits.shape or x.dtype != fits.dtype:
            came = f"state has {x.dtype} of shape {tuple(x.shape)}"
            wanted = f"{fits.dtype}, {tuple(fits.shape)},"
            raise ValueError(f"{came}: {wanted} is wanted")
    return q, k, v, state


def linear_cost(t: int, f: int, e: int, chunk_size: int) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns the operations of one causal head, and how many numbers its states have, for the way back:

    $$2\,t\,\big(u\,(f + e) + 2 f e + f\big) \qquad\text{and}\qquad \frac tu\, f\,(e + 1)$$

    for chunks that fill the text [check:test_cost_counts_the_products]. Both grow like $t$, as does memory,
    forwards and back [check:test_memory_is_linear]. At $u = f = e$ all products are of one size, and the
    states as large as the values. With 64 for each, that is 32,896 operations a token. Softmax, if it skips
    what is masked, needs more from 257 tokens on [check:test_softmax_needs_more_from_257_tokens]; measured,
    later [check:test_measured_they_are_even_later], for it is one kernel, and this is Python. At 4,096 it trains
    in five sixths of the memory [check:test_training_takes_more_memory]. [Time](../../results.md#linear) is saved.

    ![Time of a softmax over that of linear attention, measured and by operations.](figure:crossing)

    - *Weights of low rank.* $A$ is a product of $t \times f$ and $f \times s$ numbers; the softmax has no
      such limit [check:test_weights_have_rank_f]. What it costs is [recall](../linear_recall/index.md).
    - *Nothing fades.* Every key stays in the sums as it came, unless it [decays](../linear_decay/index.md).
    - *A steep ratio.* Where $\varphi(cx) = c\,\varphi(x)$, as for ReLU, a query $c$ times as small has the
      same output, and $1/c$ times the gradient [check:test_the_gradient_has_no_bound]. Qin et al. (2022,
      arXiv:2210.10340) normalise outputs instead, as do RetNet, GLA and Lightning Attention.

    **In production.** SDPA has nothing of the kind. **FlexAttention** can check it, not speed it up: of
    features, with `score_mod` a logarithm and a scale of 1, its softmax is $A_{ij} / \sum_j A_{ij}$
    [check:test_flex_attention_agrees]. **flash-linear-attention** has kernels, `chunk_linear_attn(q, k, v)`,
    of *features*, laid out `b t h d`. Until September 2025 its denominator was summed over heads, not tokens
    (pull request 594); for a time before May 2026 it sent no gradient to the keys (875): compare with the
    plain formula. **Transformers** and **vLLM** run MiniMax-01, seven layers of Lightning Attention to one of
    softmax, and Qwen3-Next and Kimi Linear, three of a gated delta rule to one. MiniMax-M2 went back.
    """
    operations = 2 * t * (chunk_size * (f + e) + 2 * f * e + f)
    return operations, -(-t // chunk_size) * f * (e + 1)


def example(axes: dict[str, int]) -> None:
    """Chunks of `u`, `n` of them: the shapes beside the code are read off this run."""
    b, h, t, s, d, e, n, u = (axes[name] for name in "bhtsdenu")
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, h, s, d), torch.randn(b, h, s, e)
    linear_attention(query, key, value, form="parallel")
    linear_attention(query, key, value)
    linear_attention_step(query[:, :, :1], key[:, :, :1], value[:, :, :1], None)
    query, value = torch.randn(b, h, n * u, d), torch.randn(b, h, n * u, e)
    linear_attention_piece(query, query, value, chunk_size=u)
    linear_cost(t, d, e, u)
