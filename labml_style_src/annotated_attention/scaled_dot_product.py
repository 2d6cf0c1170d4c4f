r"""# Scaled dot-product attention

A network that reads a sentence into one vector has the same thousand numbers for five words as for fifty.
What does not fit is lost before the first word is written.

Attention keeps a vector for every position and decides at each step what to read. A *query* is compared with
the *key* of every position; the better the match, the more of that position's *value* enters the answer:

$$O = \operatorname{softmax}\!\Big(\frac{Q K^\top}{\sqrt d}\Big)\, V .$$

![One query meets six keys: matches become weights, and the output is their blend of values.](figure:blend)

## What came before

Bahdanau, Cho and Bengio opened the bottleneck in 2014. Their decoder, in state $s_{i-1}$, scores every
encoder state $h_j$ with a small network, turns the scores into weights and takes the average:

$$e_{ij} = v_a^\top \tanh(W_a s_{i-1} + U_a h_j), \qquad
\alpha_{ij} = \frac{e^{e_{ij}}}{\sum_k e^{e_{ik}}}, \qquad c_i = \sum_j \alpha_{ij} h_j .$$

Two of these formulas are still in use. In place of the first, Luong, Pham and Manning tried a dot product,
one matrix product for all pairs $(i, j)$. Daniluk et al. split $h_j$ into a key to be found by and a value,
whose width is free [check:test_value_width_is_free]. Vaswani et al. kept both and divided by $\sqrt d$.

## Why the square root

Let the components of a query and a key be independent, with mean 0 and variance 1. The product of two
components then has mean 0 and variance 1, and $d$ such products are added:

$$\mathrm{Var}[\mathbf{q}_i^\top \mathbf{k}_j] = \sum_n \mathrm{E}[q_{in}^2]\, \mathrm{E}[k_{jn}^2] = d .$$

So scores grow like $\sqrt d$ [check:test_scores_have_variance_d], and the softmax of scores that lie far
apart is a choice of one. There a query's derivative $\partial P / \partial S$ vanishes, and with it the
gradient that could correct the choice: from $d = 4$ to $d = 1024$ the median of its Frobenius norm over
queries falls more than a thousandfold. (The mean falls fivefold: some queries stay undecided.) Divided by
$\sqrt d$, scores have variance 1 and the derivative keeps its size [check:test_unscaled_softmax_saturates].

![Sorted weights over 24 keys, mean of 1000 queries. Above, unscaled: as the width grows, one key takes all.
Below, divided by the root of the width: the shape stays.](figure:saturation)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $Q$, $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ looks for |
| $K$, $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ is found by |
| $V$, $\mathbf{v}_j$ | `value` | `b g s e` | what position $j$ holds |
| $M$, $M_{ij}$ | `attn_mask` | `... t s` | $-\infty$ forbids; any other number is added |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $S$, $S_{ij}$ | `scores` | `b h t s` | how well key $j$ matches query $i$ |
| $m_i$ | `maximum` | `b h t 1` | the best score of query $i$ |
| $P$, $P_{ij}$ | `weights` | `b h t s` | how much of value $j$ query $i$ takes |
| $O$, $\mathbf{o}_i$ | `output` | `b h t e` | the blend of values |

Axes: `b` batch, `h` query and `g` key heads, `t` queries, `s` keys, `d` width of keys, `e` width of values.

**Source.** Vaswani et al. (2017), arXiv:1706.03762, equation 1 and footnote 4; their $d_k$ is our $d$, their
$d_v$ is $e$. Bahdanau et al. (2014), arXiv:1409.0473, equations 5 and 6 and appendix A.1.2; their $e_{ij}$ is
our $S_{ij}$, $\alpha_{ij}$ is $P_{ij}$, $c_i$ is $\mathbf{o}_i$. Luong et al. (2015), arXiv:1508.04025, and
Daniluk et al. (2017), arXiv:1702.04521.
"""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_inputs", "numpy_attention", "numpy_attention_backward", "numpy_weights"]
__all__ += ["attention_cost", "attention_weights", "cached_attention", "scaled_dot_product_attention"]


def numpy_weights(
    query: Float[np.ndarray, "b h t d"],
    key: Float[np.ndarray, "b h s d"],
    attn_mask: Shaped[np.ndarray, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[np.ndarray, "b h t s"]:
    r"""## The weights

    First in NumPy, where every step shows, and always in float64, so that it can judge the others:

    $$S_{ij} = \lambda\, \mathbf{q}_i^\top \mathbf{k}_j + M_{ij}, \qquad
    P_{ij} = \frac{e^{S_{ij} - m_i}}{\sum_k e^{S_{ik} - m_i}}, \qquad m_i = \max_k S_{ik} .$$

    **Shapes.** The result is `b h t s`. Its rows sum to one [check:test_rows_sum_to_one].
    """
    check_inputs(query, key, key, attn_mask, is_causal)

    # $\lambda$ is applied here, once. Whoever scaled the queries beforehand has divided by $d$ in the end,
    # not by $\sqrt d$, and should pass `scale=1.0` [check:test_scale_is_applied_once].
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key = query.astype(np.float64), key.astype(np.float64)
    scores = scale * np.einsum("b h t d, b h s d -> b h t s", query, key)

    # Query $i$ sees the keys $j \le i$, even if $t \ne s$: PyTorch's top-left alignment. One new query in
    # front of a cache would see the oldest key alone [check:test_is_causal_is_aligned_top_left].
    if is_causal:
        attn_mask = np.tri(*scores.shape[-2:], dtype=bool)

    # True means *attend*. A forbidden score becomes $-\infty$. With -1e9 in its place, a query that may see
    # nothing returns the mean of all values [check:test_finite_mask_returns_the_mean].
    if attn_mask is not None and attn_mask.dtype == bool:
        scores = np.where(attn_mask, scores, -np.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask

    # Subtracting $m_i$ divides numerator and denominator by $e^{m_i}$: no weight moves
    # [check:test_shift_invariance], and with no exponent above 0 nothing overflows
    # [check:test_large_scores_do_not_overflow]. A finite $m_i$ keeps a row of $-\infty$ from becoming NaN.
    maximum = scores.max(axis=-1, keepdims=True, initial=np.finfo(np.float64).min)
    exponentials = np.exp(scores - maximum)

    # The best key contributes $e^0$, so a sum is at least 1, or 0 in a row that has no key at all. A floor of
    # 1 touches only that row, whose weights become 0 and not 0/0 [check:test_empty_rows_are_zero].
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / np.maximum(total, 1.0)


def numpy_attention(
    query: Float[np.ndarray, "b h t d"],
    key: Float[np.ndarray, "b h s d"],
    value: Float[np.ndarray, "b h s e"],
    attn_mask: Shaped[np.ndarray, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[np.ndarray, "b h t e"]:
    r"""## The blend

    $O = P V$. Each $\mathbf{o}_i = \sum_j P_{ij} \mathbf{v}_j$ is an average, in every component within the
    range of the values [check:test_output_lies_between_the_values], or 0 in a row with no key. Attention
    mixes, it never amplifies. The result is rounded once, to the dtype of `query` [check:test_numpy_agrees].
    """
    check_inputs(query, key, value, attn_mask, is_causal)
    weights = numpy_weights(query, key, attn_mask, is_causal, scale)
    return np.einsum("b h t s, b h s e -> b h t e", weights, value).astype(query.dtype)


def numpy_attention_backward(
    grad_output: Float[np.ndarray, "b h t e"],
    query: Float[np.ndarray, "b h t d"],
    key: Float[np.ndarray, "b h s d"],
    value: Float[np.ndarray, "b h s e"],
    attn_mask: Shaped[np.ndarray, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""## The gradient by hand

    Write $dX$ for the gradient of the loss with respect to $X$. Given $dO$, walk $S \to P \to O$ backwards.
    Two of the steps are matrix products. The softmax between them ties the keys of a row together
    [check:test_softmax_jacobian], and the chain rule sums over every weight that a score moves:

    $$\begin{aligned} \frac{\partial P_{ij}}{\partial S_{ik}} &= P_{ij}\,(\delta_{jk} - P_{ik}), \\
    dS_{ik} &= \sum_j dP_{ij}\, P_{ij}\,(\delta_{jk} - P_{ik})
    = P_{ik}\,\Big(dP_{ik} - \sum_j dP_{ij}\, P_{ij}\Big) . \end{aligned}$$

    A score is moved by its weight $P_{ik}$ times how far that weight's gradient lies above the row's average,
    itself weighted by $P$. Autograd agrees to $10^{-10}$ [check:test_numpy_backward_equals_autograd].

    | symbol | code | shape | meaning |
    |---|---|---|---|
    | $dO$ | `grad_output` | `b h t e` | gradient at the output |
    | $dP$, $dP_{ij}$ | `dp` | `b h t s` | gradient at the weights |
    | $dS$, $dS_{ij}$ | `ds` | `b h t s` | gradient at the scores, and at a float mask |
    | $dQ$ | `dq` | `b h t d` | gradient at the queries |
    | $dK$ | `dk` | `b h s d` | gradient at the keys |
    | $dV$ | `dv` | `b h s e` | gradient at the values |
    """
    check_inputs(query, key, value, attn_mask, is_causal)
    weights = numpy_weights(query, key, attn_mask, is_causal, scale)

    # $O = P V$ is linear in both factors: $dV = P^\top dO$ and $dP = dO\, V^\top$.
    dv = np.einsum("b h t s, b h t e -> b h s e", weights, grad_output)
    dp = np.einsum("b h t e, b h s e -> b h t s", grad_output, value)

    # $dS = P \circ (dP - \operatorname{rowsum}(dP \circ P))$. The mask needs no line: where it forbids,
    # $P_{ij} = 0$ stops the gradient [check:test_numpy_backward_equals_autograd]. The row sum is also
    # $\operatorname{rowsum}(dO \circ O)$, which lesson 13 lives on [check:test_row_sum_needs_no_weights].
    ds = weights * (dp - (dp * weights).sum(axis=-1, keepdims=True))

    # $S = \lambda\, Q K^\top + M$: $dQ = \lambda\, dS\, K$ and $dK = \lambda\, dS^\top Q$.
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dq = scale * np.einsum("b h t s, b h s d -> b h t d", ds, key)
    dk = scale * np.einsum("b h t s, b h t d -> b h s d", ds, query)
    return dq.astype(query.dtype), dk.astype(query.dtype), dv.astype(query.dtype)


def attention_weights(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t s"]:
    r"""## The weights in PyTorch

    The same steps with autograd, on any device and in any floating dtype. A mask broadcasts from the right:
    rank two is `t s`, rank three `h t s`, rank four `b h t s`. Padding, `b s`, must enter as `b 1 1 s`: where
    $b = t$, it is silently read as `t s`. A mask `b t s` is refused unless $b = 1$, or $b = h$, when it is
    silently one mask a head [check:test_masks_are_read_from_the_right]. `torch.nn.MultiheadAttention` means
    the opposite: its True *forbids* [check:test_multihead_attention_masks_the_opposite].
    """
    check_inputs(query, key, key, attn_mask, is_causal)

    # bf16 keeps 8 significant bits: near a score of 1000 it steps by 4. So scores and softmax are computed in
    # float32 and rounded once, at the end [check:test_half_precision_rounds_once].
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.einsum("b h t d, b h s d -> b h t s", query.to(wide), key.to(wide))
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.to(wide)

    # `torch.softmax` subtracts the maximum itself, but makes NaN of a row of $-\infty$. To overwrite the NaN
    # is not enough: the backward pass multiplies it by 0, and it stays. So the row gets harmless scores
    # before and zero weights after, and each fill stops the gradient [check:test_empty_rows_are_zero].
    empty = (scores == -torch.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1)
    return weights.masked_fill(empty, 0.0).to(query.dtype)


def scaled_dot_product_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "b h t e"]:
    r"""## PyTorch's contract

    Arguments, defaults and results are those of `torch.nn.functional.scaled_dot_product_attention`, in every
    dtype [check:test_agrees_with_pytorch], with every mask [check:test_masks_agree_with_pytorch], and in the
    gradients [check:test_gradcheck]. What differs: PyTorch takes any number of leading axes, the course
    always `b h`. There, `scale` and `enable_gqa` go by keyword only, and a float mask is float32 or of the
    query's dtype; here, any float mask will do [check:test_pytorch_is_stricter]. Wrong input, a mask with
    `is_causal` included, is a `ValueError` that says what is wanted; there it is a `RuntimeError` or an
    `IndexError`, or goes through, as $d = 0$ and a key batch of 1 do [check:test_wrong_input_is_named].
    """
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa)

    # Neighbours share a key head: of six query heads on two, 0, 1 and 2 read key head 0. `repeat` would deal
    # the key heads out in turn: right shape, wrong answer [check:test_gqa_shares_neighbouring_heads].
    shared = query.shape[1] // key.shape[1] if enable_gqa else 1
    wide = torch.promote_types(query.dtype, torch.float32)
    key_heads = key.to(wide).repeat_interleave(shared, dim=1)
    value_heads = value.to(wide).repeat_interleave(shared, dim=1)
    weights = attention_weights(query.to(wide), key_heads, attn_mask, is_causal, scale)

    # Dropout acts on the weights, after the softmax, and multiplies the survivors by $1/(1 - p)$: right on
    # average, though a row no longer sums to one. A function knows no training mode: a `dropout_p` that is
    # passed is applied, in evaluation too [check:test_dropout_is_that_of_pytorch].
    if dropout_p != 0.0:
        weights = F.dropout(weights, dropout_p)
    output = torch.einsum("b h t s, b h s e -> b h t e", weights, value_heads)
    return output.to(query.dtype)


def check_inputs(query, key, value, attn_mask, is_causal, enable_gqa=False) -> None:
    """## What is refused

    Broadcasting would accept many a mistake and return numbers. Each rule names the argument, what came and
    what is wanted [check:test_wrong_input_is_named]. A mask may broadcast to the scores, never enlarge them.
    """
    arrays = {"query": query, "key": key, "value": value}
    for name, x in arrays.items():
        is_sound = x.ndim == 4 and x.shape[3] > 0 and "float" in str(x.dtype)
        if not is_sound or x.dtype != query.dtype:
            came = f"{name} is {x.dtype} of shape {tuple(x.shape)}"
            raise ValueError(f"{came}: b h t d, d > 0, in one floating dtype, is wanted")
    (b, h, t, d), (g, s), e = query.shape, key.shape[1:3], value.shape[3]
    for name, wanted in {"key": (b, g, s, d), "value": (b, g, s, e)}.items():
        if tuple(arrays[name].shape) != wanted:
            came = f"{name} has shape {tuple(arrays[name].shape)}"
            raise ValueError(f"{came}, query {tuple(query.shape)}: {wanted} is wanted")
    if h != g and (not enable_gqa or g == 0 or h % g):
        rule = "a multiple of key heads" if enable_gqa else "as many without enable_gqa"
        raise ValueError(f"key has {g} heads, query has {h}: query heads must be {rule}")
    if attn_mask is not None:
        came = f"attn_mask is {attn_mask.dtype} of shape {tuple(attn_mask.shape)}"
        if is_causal:
            raise ValueError(f"{came}: together with is_causal, None is wanted")
        if not any(kind in str(attn_mask.dtype) for kind in ("bool", "float")):
            raise ValueError(f"{came}: bool (True attends) or floating is wanted")
        pairs = zip(attn_mask.shape[::-1], (s, t, h, b), strict=False)
        if not 2 <= attn_mask.ndim <= 4 or any(n not in (1, full) for n, full in pairs):
            raise ValueError(f"{came}: rank 2 to 4, fitting {(b, h, t, s)}, is wanted")


def attention_cost(b: int, h: int, t: int, s: int, d: int, e: int) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns the operations of one forward pass, $2\,b h t s\,(d + e)$ for two matrix products, and the number
    of weights. Twice the text costs four times both, and memory hurts first: in bf16, the weights of 32 heads
    on 32,768 tokens are 64 GiB [check:test_cost|operations, 64 GiB]. Lesson 13 never writes them out. What
    the formula cannot do:

    - *See order.* Without a mask, shuffle keys and values together and nothing changes
      [check:test_key_order_is_invisible]. A causal mask lets a model count what came before (Haviv et al.
      2022, arXiv:2203.16634); more than that must be put in: lessons 5 and 6.
    - *Abstain.* Weights sum to one, so a query that finds nothing takes something all the same: lesson 10.
    - *Stay sharp in a long text.* If no score is larger than $C$ in size, no weight is larger than
      $e^{2C} / (e^{2C} + s - 1)$, and every further key lowers that [check:test_long_texts_dilute].
    - *Ignore garbage.* Zero times NaN is NaN: even a value that a mask forbids must be finite, in PyTorch as
      here [check:test_forbidden_values_must_be_finite]. Under `is_causal` fused kernels skip tiles: on a CPU,
      NaN in the last of 7 values spoils 5 of 5 queries, of 600 none of 64 [check:test_garbage_in_the_future].
    """
    return 2 * b * h * t * s * (d + e), b * h * t * s


def cached_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
) -> Float[Tensor, "b h t e"]:
    r"""## In production

    Call `F.scaled_dot_product_attention`. It picks a fused kernel (FlashAttention, memory-efficient, cuDNN)
    by what it is given, or falls back on plain products; `torch.nn.attention.sdpa_kernel` pins the choice.
    FlexAttention compiles scores of one's own into a kernel. Transformers makes this call under
    `attn_implementation="sdpa"`; vLLM's kernels read keys and values from the pages of its cache.

    They differ in alignment. With a cache, the $t$ queries are the *last* of $s$ positions, and query $i$
    sees the keys $j \le i + s - t$: bottom-right, the `causal` of flash-attn since 2.1. `is_causal` would be
    wrong [check:test_cached_attention_is_aligned_bottom_right]. A mask is right, but rules FlashAttention out
    on a GPU; `torch.nn.attention.bias.causal_lower_right` does not.
    """
    t, s = query.shape[2], key.shape[2]
    lower_right = torch.ones(t, s, dtype=torch.bool, device=query.device).tril(s - t)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=lower_right)


def example(axes: dict[str, int]) -> None:
    """Run once, on primes such as `b=2, t=5`: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query, key, value = (torch.randn(b, g * r, n, w) for n, w in ((t, d), (s, d), (s, e)))
    q, k, v = (tensor.numpy() for tensor in (query, key, value))
    numpy_weights(q, k, is_causal=True)
    numpy_attention_backward(numpy_attention(q, k, v, is_causal=True), q, k, v)
    attention_weights(query, key, is_causal=True)
    scaled_dot_product_attention(query, key[:, :g], value[:, :g], dropout_p=0.1, enable_gqa=True)
    attention_cost(b, g * r, t, s, d, e)
    cached_attention(query, key, value)
