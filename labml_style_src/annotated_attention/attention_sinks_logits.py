r"""# Sink logits

A sink token is a detour. It is read, stored and carried along in every layer, must never be dropped, and all
that it does for a head is to put one large number into a denominator. So give the head the number. For head
$h$ it is a learned $z_h$, a score that no key has and that leads to no value:

$$P_{ij} = \frac{e^{S_{ij}}}{e^{z_h} + \sum_k e^{S_{ik}}}$$

Weights now sum to *at most* one. A head that finds nothing takes nothing, and there is nothing to evict.

![One head, trained to repeat the token that is marked when it is asked, and to be silent else. Rows are
queries; a dot marks those that are asked. Left: each text has a first token that means nothing. Centre:
none. Right: none, and a sink logit, whose weight is the column apart.](figure:parking)

## What came before

Miller (2023, *Attention Is Off By One*) asked for a 1 in the denominator, $z_h = 0$, so that a head may
abstain. Xiao et al. (2023, section 3.3) trained models of 160M parameters with that, which they call a zero
sink, and with a *learnable sink*, a token of no meaning in front of every text. Perplexity when streaming with
some first tokens and a window, the learned token counting as the first (table 3):

| | 0 + 1024 | 1 + 1023 | 2 + 1022 | 4 + 1020 |
|---|---|---|---|---|
| vanilla | 27.87 | 18.49 | 18.05 | 18.05 |
| zero sink | 29214 | 19.90 | 18.27 | 18.01 |
| learnable sink | 1235 | 18.01 | 18.01 | 18.02 |

The token wins: kept, it is the only sink that is needed. The zero sink does not keep a model from using the
first token all the same. A constant 1 may be little beside what keys score; $z_h$ is for the head to choose.
gpt-oss (2025) has one for each head in every layer.

## A gate on the result

Let $L_i = \ln \sum_k e^{S_{ik}}$, which fused kernels compute anyway. Divide numerator and denominator by
$e^{L_i}$:

$$\begin{aligned} \mathbf{o}_i &= \frac{\sum_j e^{S_{ij}}\,\mathbf{v}_j}{e^{z_h} + e^{L_i}}
= \frac{e^{L_i}}{e^{z_h} + e^{L_i}} \sum_j \frac{e^{S_{ij}}}{e^{L_i}}\,\mathbf{v}_j \\
&= \sigma(L_i - z_h)\; \operatorname{SDPA}(\mathbf{q}_i, K, V). \end{aligned}$$

So a sink logit is attention as before and then a gate $\sigma(x) = 1/(1 + e^{-x})$, which opens as far as the
best of the keys exceeds $z_h$ [check:test_it_is_attention_times_a_gate]. With $z_h = -\infty$ it is open and
the result that of PyTorch [check:test_minus_infinity_is_pytorch]; with $z_h = 0$ it is softmax-off-by-one
[check:test_zero_is_softmax_off_by_one].

What the gate keeps back is $1 - \sigma$, the weight on nothing, and it is what $z_h$ learns by,

$$\frac{\partial\,\mathbf{o}_i}{\partial z_h} = -\big(1 - \sigma(L_i - z_h)\big)\,\mathbf{o}_i:$$

a larger $z_h$ makes every output shorter and turns none
[check:test_gradient_of_the_logit_shortens_the_output].

## Silence, measured

The head of the figure must output a marked token's content where it is asked and 0 elsewhere, 200 steps of
training. With a first token that means nothing it learns this, and parks. Without one it cannot: its error
stays above 0.5. With a sink logit and no first token its error is below 0.001, and where it is silent all its
weights together are below 0.05 [check:test_a_sink_logit_lets_a_head_be_silent].

Given both, this head uses both: much of the weight goes to the first token all the same, and to evict that
makes the error more than ten times as large [check:test_a_sink_logit_does_not_forbid_a_sink_token]. That a
model has sink logits does not mean that its first token can be dropped.

## Silence in eight heads

![Two layers of four heads, three seeds side by side. A cell is a head: its left half the weight on the first
token, its right half that on nothing, for queries that are not asked and for those that are.](figure:masses)

Two layers of four heads are to repeat what stood two places before where they are asked, and to be silent else
([all numbers](../../results.md#attention-sinks)). With a token in front some head parks over 99% on it, and to
evict it makes the error 1,500 times as large and more
[check:test_eviction_costs_eight_heads_dear]. With neither token nor logit the error
stays 800 times as large as with a logit [check:test_without_any_sink_eight_heads_cannot_be_silent]. With both,
these heads take the logit and leave the token alone [check:test_eight_heads_with_both_leave_the_token_alone]:
which of two sinks a model takes, the formula does not say.

We expected MLPs behind the heads to do away with parking, for they can throw away what a silent head brings. In
two of three seeds heads park all the same [check:test_mlps_do_not_keep_heads_from_parking]. What seems to decide
is how much an average hurts. A model that predicts tokens, and copies one after a trigger, comes within 0.02 bits
of the best there is while no head has 4% on the first token; in a language model of two layers it is 7% at most
[check:test_who_predicts_parks_little].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $S_{ij}$ | `scores` | `b h t s` | scaled product of query $i$ and key $j$, and the mask |
| $z_h$ | `sink_logits` | `h` | the score of nothing, not scaled; learned |
| $P_{ij}$ | `weights` | `b h t s` | how much of $\mathbf{v}_j$ query $i$ takes |
| $L_i$ | `lse` | `b h t` | logarithm of the sum of $e^{S_{ij}}$ over the keys |
| $\sigma$ | `sink_gate` | – | logistic function, here of $L_i - z_h$ |

**Source.** Xiao et al. (2023), arXiv:2309.17453, section 3.3, equation 2 for $z_h = 0$. Miller's article is
at evanmiller.org. gpt-oss: its published code; `sinks` there is our $z_h$.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from annotated_attention.language_model import causal_mask
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["LearnableSink", "SinkLogits"]
__all__ += ["fused_sink_attention", "sink_attention", "sink_gate"]


def sink_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    sink_logits: Float[Tensor, "h"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## One more score, and no value

    Lesson 1's contract, and one logit a head. It is the formula above in every dtype
    [check:test_agrees_with_the_plain_formula] and with every mask [check:test_masks], with its gradients
    [check:test_gradcheck].

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, with $h$ a multiple of $g$;
    the result is `b h t e`. A query without a key returns 0: what it had to spend went to nothing
    [check:test_empty_rows_are_zero].

    **Raises.** `ValueError` if shapes, dtypes or the mask do not fit, as in lesson 1, or if there is not one
    logit for each head [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa=True)
    (b, h, t, d), (g, s) = query.shape, key.shape[1:3]
    check_logits(sink_logits, h)
    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.to(wide).repeat_interleave(h // g, dim=1)
    value = value.to(wide).repeat_interleave(h // g, dim=1)
    scores = torch.einsum("b h t d, b h s d -> b h t s", query.to(wide), key)
    scores = scores * (d**-0.5 if scale is None else scale)
    if is_causal:
        attn_mask = scores.new_ones(t, s, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.to(wide)

    # Nothing is one more column. It joins after scale and mask: $z_h$ is no product, and nothing cannot be
    # masked [check:test_neither_scale_nor_mask_touch_the_logit]. The softmax subtracts the largest of all, so
    # a logit may be as large as a score [check:test_large_logits_do_not_overflow].
    nothing = sink_logits.to(wide)[:, None, None].expand(b, h, t, 1)
    joined = torch.cat([nothing, scores], dim=-1)

    # A row of $-\infty$ alone there is only if $z_h = -\infty$ too: lesson 1's two fills.
    empty = (joined == -torch.inf).all(dim=-1, keepdim=True)
    shares = torch.softmax(joined.masked_fill(empty, 0.0), dim=-1)

    # The share of nothing is dropped *after* the softmax: its value would be zero.
    weights = shares.masked_fill(empty, 0.0)[..., 1:]
    output = torch.einsum("b h t s, b h s e -> b h t e", weights, value)
    return output.to(query.dtype)


class SinkLogits(nn.Module):
    r"""## In a model

    A filling of lesson 3's slot that learns: `SelfAttention(m, h, attend=SinkLogits(h))`, and its $h$ numbers
    are trained with the rest [check:test_logits_are_trained_with_the_model]. They begin at 0, as
    softmax-off-by-one.

    What changes queries and keys beforehand goes `around` it: gpt-oss has
    `SinkLogits(h, around=rotary_attention)`, in every other layer with a window of 128. A `partial` of the two
    would compute the same, but in it PyTorch finds no parameters
    [check:test_a_partial_would_hide_the_parameters].

    Streaming needs no tokens that stay. With a cache of the window alone, `SinkKVCache(0, w)`, each step
    gives what the windowed pass gives [check:test_a_window_is_enough].
    """

    def __init__(
        self,
        n_heads: int,
        *,
        around: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sink_logits = nn.Parameter(torch.zeros(n_heads))
        self.around = around

    def forward(
        self,
        query: Float[Tensor, "b h t d"],
        key: Float[Tensor, "b g s d"],
        value: Float[Tensor, "b g s e"],
        i: Int[Tensor, "... t"],
        j: Int[Tensor, "... s"],
    ) -> Float[Tensor, "b h t e"]:
        if self.around is None:
            return self.attend(query, key, value, i, j)
        return self.around(query, key, value, i, j, attend=self.attend)

    def attend(
        self,
        query: Float[Tensor, "b h t d"],
        key: Float[Tensor, "b g s d"],
        value: Float[Tensor, "b g s e"],
        i: Int[Tensor, "... t"],
        j: Int[Tensor, "... s"],
    ) -> Float[Tensor, "b h t e"]:
        attend, z = fused_sink_attention, self.sink_logits
        return attend(query, key, value, z, causal_mask(i, j))


class LearnableSink(nn.Module):
    r"""## Or a token that means nothing

    The other way: learned vectors in front of every text, and a cache that keeps them. They are ordinary
    tokens to every layer; only nobody has to predict them.

    One learned vector is a row of the embedding table under another name. A model whose texts all begin with
    the same token has one: reading that token is putting its row in front, and training moves both alike
    [check:test_a_fixed_first_token_is_a_learnable_sink]. Lesson 3 begins every text with the byte 0, so
    `SinkKVCache(1, w)` keeps its sink. Only as an *output* do they differ: a token of the vocabulary can be
    predicted, and its row is trained there too.

    **Shapes.** `x` is `b t m`; the result is `b t+1 m` with one vector in front.
    """

    def __init__(self, d_model: int, n_sinks: int = 1) -> None:
        super().__init__()
        if d_model < 1 or n_sinks < 1:
            came = f"d_model is {d_model}, n_sinks is {n_sinks}"
            raise ValueError(f"{came}: at least 1 is wanted")
        self.sinks = nn.Parameter(torch.empty(n_sinks, d_model))
        nn.init.normal_(self.sinks, std=0.02)

    def forward(self, x: Float[Tensor, "b t m"]) -> Float[Tensor, "b _ m"]:
        sinks = self.sinks.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([sinks, x], dim=1)


def fused_sink_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    sink_logits: Float[Tensor, "h"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## In PyTorch's attention

    Nothing can be a key. Give queries and keys one coordinate more: in a query it is $z_h$, in a key 0, and in
    one key more, of zeros else and with a value of zeros, it is 1. That key scores

    $$\lambda\,\mathbf{q}_i^\top \mathbf{0} + z_h \cdot 1 = z_h$$

    with every query, and the other scores stay as they are [check:test_a_zero_key_is_a_sink_logit]. So any
    fused kernel computes sink logits, and their gradients. The zero sink of table 3 is such a token. With
    kernels of a CPU, it takes a little longer than without sinks; `sink_attention`, which writes out every
    weight, several times as long (`benchmarks/bench_attention_sinks.py`).

    **Cost.** One key and one coordinate more. No memory that grows, no token.

    **When it fails.** It has to be trained. A model that parks on its first token keeps parking there: a
    logit put in afterwards takes from every head what it was not asked for.
    """
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa=True)
    check_logits(sink_logits, query.shape[1])
    (b, h, t, d), e, s = query.shape, value.shape[3], key.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    scaled = query.to(wide) * (d**-0.5 if scale is None else scale)

    # Where there is no sink, the lowest number stands for $-\infty$, which is not a number times 0. And $z_h$ is
    # not scaled, so queries are scaled before it joins them.
    z = sink_logits.to(wide).clamp(min=torch.finfo(wide).min)
    z = z[:, None, None].expand(b, h, t, 1)
    q = torch.cat([scaled, z], dim=3)
    k = F.pad(key.to(wide), (0, 1, 1, 0))
    k[:, :, 0, d] = 1.0
    v = F.pad(value.to(wide), (0, 1, 1, 0))

    # Nothing stands in front of the keys, where causality hides it from nobody. It moves the diagonal, and so a
    # query stands in front of the queries.
    mask = attn_mask
    if is_causal:
        q = F.pad(q, (0, 0, 1, 0))
    elif mask is not None:
        seen = mask.dtype == torch.bool
        mask = mask.expand(*mask.shape[:-1], s)
        mask = F.pad(mask if seen else mask.to(wide), (1, 0), value=seen)
    attend = F.scaled_dot_product_attention
    options = {"is_causal": is_causal, "enable_gqa": True}
    output = attend(q, k, v, mask, scale=1.0, **options)
    return output[:, :, q.shape[2] - t :, :e].to(query.dtype)


def check_logits(sink_logits: Tensor, h: int) -> None:
    """One logit a head."""
    if sink_logits.shape != (h,) or not sink_logits.is_floating_point():
        came = f"{sink_logits.dtype} of shape {tuple(sink_logits.shape)}"
        raise ValueError(f"sink_logits is {came}: floats, ({h},), are wanted")


def sink_gate(
    lse: Float[Tensor, "b h t"],
    sink_logits: Float[Tensor, "h"],
) -> Float[Tensor, "b h t 1"]:
    r"""## In production

    $\sigma(L_i - z_h)$, to be multiplied with the output of any kernel that returns $L_i$.

    - **FlexAttention** does, with `return_lse=True`, since PyTorch 2.9 with `return_aux=AuxRequest(lse=True)`
      [check:test_flex_attention_agrees]. Its `score_mod` sees one score at a time and cannot add a column.
      This is how Transformers runs gpt-oss on it.
    - **Transformers** in eager mode concatenates `sinks` as an extra column and drops it after the softmax,
      as `sink_attention` does, but takes the softmax in the model's dtype. It offers no SDPA for gpt-oss,
      which the extra key would allow.
    - **flash-attn** has `learnable_sink` in its CuTe kernels; FlashAttention-2 has none.
    - **vLLM** hands the sinks to its kernels and chooses among those that take them, Triton's for one.
    """
    # A query without a key has $L_i = -\infty$: its gate is shut, even where there is no sink, and the
    # difference of two infinities is no number.
    margin = lse - sink_logits[:, None]
    margin = margin.masked_fill(lse == -torch.inf, -torch.inf)
    return torch.sigmoid(margin)[..., None]


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    h, i, j = g * r, torch.arange(t), torch.arange(s)
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    sink_attention(query, key, value, torch.zeros(h))
    SinkLogits(h)(query, key, value, i, j)
    LearnableSink(h * d)(torch.randn(b, t, h * d))
    fused_sink_attention(query, key, value, torch.zeros(h), torch.zeros(t, s))
    sink_gate(torch.zeros(b, h, t), torch.zeros(h))
