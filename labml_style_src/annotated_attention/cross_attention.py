r"""# Cross-attention

A French sentence is written from an English one. Every new word needs two or three words of the other
sentence, a different two or three each time, and self-attention cannot fetch them: it looks only at what is
being written.

So let one sequence ask and another answer. Queries come from the text that is written, $X$; keys and values
come from the *context* $C$, which has a length and a width of its own.

$$\begin{aligned}
O &= [\,H_1 \cdots H_n\,]\, W_O, \\
H_h &= \operatorname{softmax}\!\Big(\tfrac{1}{\sqrt d}\, X W_Q^h\, (C\, W_K^h)^\top\Big)\, C\, W_V^h .
\end{aligned}$$

![Above, the context; below, what is written from it. The stroke from a word to each word of the context is as
strong as its weight. Vectors made by hand: words of one meaning point one way.](figure:alignment)

## What came before

One vector: a network read the sentence into it, another wrote from it (Sutskever et al. 2014,
arXiv:1409.3215), and for five words or fifty it had the same size. Bahdanau, Cho and Bengio kept a vector for
every word, let each step of the writer weigh them all, and printed the weights: their figure 3 has the
crossing above, learned. That was cross-attention, three years before the transformer. Their appendix A.1.2
has the cache of this page, too: what a score needs of the context alone is computed beforehand.

## Each query reads alone

Row $i$ of $O$ depends on row $i$ of $X$ and on $C$, on no other row of $X$
[check:test_each_query_reads_alone]. So no future leaks here: the tokens that are written meet in
self-attention only. And a token that is decoded alone gets what it would get in the whole text. Nothing has
to be kept for it but the context, which does not change.

## Never causal

A causal mask hides what is not yet written. The context was complete before the first token was, and its
position $j$ has nothing to do with position $i$ of another text. With $t < s$ a top-left mask would hide the
last $s - t$ vectors of the context from every query, and leave the first query a single one
[check:test_causal_mask_would_hide_the_end]. The only mask here is that of padding.

## A set, not a sequence

Shuffle the context, and its mask with it: nothing changes [check:test_context_is_a_set]. Whatever order the
context has must be in its vectors, and to put it there is the encoder's work. T5, whose positions are biases
of the scores, gives none to cross-attention.

T5 does not divide by $\sqrt d$ either: its $W_Q$ begins smaller by that factor. Multiply the $W_Q$ of a T5
layer with $d = m/n$ by $\sqrt d$ and it runs here [check:test_t5_scale_lives_in_its_weights].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $X$ | `x` | `b t m` | the sequence that asks |
| $C$ | `context` | `b s c` | the sequence that is read |
| $W_Q$, $W_Q^h$ | `self.w_q` | – | from $X$ to queries; columns $W_Q^h$ are head $h$'s |
| $W_K$, $W_K^h$ | `self.w_k` | – | from $C$ to keys, likewise |
| $W_V$, $W_V^h$ | `self.w_v` | – | from $C$ to values, likewise |
| $W_O$ | `self.w_o` | – | from all heads to the output |
| $Q_h$ | `query` | `b h t d` | queries of head $h$, $X W_Q^h$ |
| $K_h$ | `key` | `b h s d` | keys of head $h$, $C\,W_K^h$ |
| $V_h$ | `value` | `b h s d` | values of head $h$, $C\,W_V^h$ |
| $H_h$ | `heads` | `b h t d` | what head $h$ found |
| $Z$ | `features` | `b s c` | what a vision encoder says of each patch |
| $m$, $c$ | `d_model`, `d_context` | scalar | widths of $X$ and of $C$ |
| $n$ | `n_heads` | scalar | number of heads, $d = m/n$ |

**Source.** Vaswani et al. (2017), arXiv:1706.03762, section 3.2.3, "encoder-decoder attention"; its formulas
are those of section 3.2.2, where $Q$ is our $X$ and $K = V$ is our $C$. Bahdanau et al. (2014),
arXiv:1409.0473. T5: Raffel et al. (2020), arXiv:1910.10683, section 2.1. Whisper: Radford et al. (2022),
arXiv:2212.04356, section 2.2. LLaVA: Liu et al. (2023), arXiv:2304.08485, equation 1, one matrix; the two
layers below are LLaVA-1.5's, arXiv:2310.03744. No biases in the four projections, as in T5; Whisper has them
but for $W_K$, where they do nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from annotated_attention.language_model import Cache, SelfAttention
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

__all__ = ["ContextCost", "CrossAttention", "DecoderBlock", "VisionProjector"]
__all__ += ["cross_attention_cost", "insert_features", "insertion_cost"]


class CrossAttention(nn.Module):
    r"""## Two widths

    Only $W_K$ and $W_V$ touch the context, and they alone know its width $c$. A sentence and an image, 4096
    and 1024 numbers wide, meet in heads of width $d$.

    **Raises.** `ValueError` if `d_model` is no multiple of `n_heads`, or a size is less than 1.
    """

    def __init__(self, d_model: int, d_context: int, n_heads: int) -> None:
        super().__init__()
        if min(d_model, d_context, n_heads) < 1 or d_model % n_heads:
            came = f"{d_model=}, {d_context=}, {n_heads=}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        self.d_model, self.d_context = d_model, d_context
        self.n_heads = n_heads
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_context, d_model, bias=False)
        self.w_v = nn.Linear(d_context, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)

    def project(
        self,
        context: Float[Tensor, "b s c"],
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        r"""## Once a context

        $K_h = C\,W_K^h$ and $V_h = C\,W_V^h$ do not know what is being written. A model that writes a
        thousand tokens calls this once, and passes the two as `keys_values` a thousand times
        [check:test_context_is_projected_once].
        """
        if context.ndim != 3 or context.shape[2] != self.d_context:
            came = f"context has shape {tuple(context.shape)}"
            raise ValueError(f"{came}: b s c, c = {self.d_context}, is wanted")
        key = split_heads(self.w_k(context), self.n_heads)
        value = split_heads(self.w_v(context), self.n_heads)
        return key, value

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        context: Float[Tensor, "b s c"] | None = None,
        *,
        keys_values: tuple[Tensor, Tensor] | None = None,
        padding_mask: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b t m"]:
        r"""## The layer

        Takes the context or what `project` made of it, never both: one could be out of date. It computes the
        formula above [check:test_agrees_with_the_plain_formula] [check:test_gradcheck], as PyTorch's layer
        does with `kdim` and `vdim` [check:test_agrees_with_torch_multihead_attention].

        **Padding.** Contexts of one batch differ in length; the short ones are filled up. `padding_mask`
        is True at a real vector, as in Transformers' `attention_mask`; `key_padding_mask` of
        `nn.MultiheadAttention` means the opposite [check:test_agrees_with_torch_multihead_attention]. With
        it, a text gets what it would get alone [check:test_padding_moves_nothing]. Forget it, and nothing is
        raised: $p$ vectors of zeros score 0, and each row of $H_h$ is multiplied by $a / (a + p)$, where $a$
        is the sum of the real $e^\text{score}$ [check:test_zero_padding_dilutes]. The answer to one text then
        depends on the others of its batch. A context without any real vector gives 0
        [check:test_empty_context_gives_zero].

        **Raises.** `ValueError` if shapes do not fit, or not exactly one of `context` and `keys_values` is
        given [check:test_wrong_input_is_refused].
        """
        if x.ndim != 3 or x.shape[2] != self.d_model:
            came = f"x has shape {tuple(x.shape)}"
            raise ValueError(f"{came}: b t m, m = {self.d_model}, is wanted")
        query = split_heads(self.w_q(x), self.n_heads)
        if context is not None and keys_values is None:
            key, value = self.project(context)
        elif context is None and keys_values is not None:
            key, value = keys_values
        else:
            came = "neither came" if context is None else "both came"
            raise ValueError(f"context, keys_values: {came}, one is wanted")

        # Hidden from all heads and all queries alike: `b s` becomes `b 1 1 s`. As it is, lesson 1 would read
        # it as `t s`, without a word wherever $b = t$.
        mask = padding_mask
        if mask is not None:
            wanted = key.shape[0], key.shape[2]
            if mask.dtype != torch.bool or mask.shape != wanted:
                came = f"padding_mask is {mask.dtype}, {tuple(mask.shape)}"
                raise ValueError(f"{came}: bool, {wanted}, is wanted")
            mask = mask[:, None, None, :]
        heads = scaled_dot_product_attention(query, key, value, mask)
        return self.w_o(merge_heads(heads))


class DecoderBlock(nn.Module):
    r"""## Where it lives

    What have I written? asks self-attention; what am I writing about? asks cross-attention; then the MLP.
    Each adds to its input, behind a norm of its own (the paper has the norm behind the sum). The context
    needs none: encoders of this kind end with one. Whisper's decoder is made of these blocks, with biases; T5
    has RMSNorm and ReLU in them, and biases nowhere but in the scores of self-attention.

    With $W_O = 0$ in the middle, this is lesson 3's block [check:test_zero_output_weights_leave_lesson_3]: so
    a trained language model can be given a context without being disturbed. Flamingo multiplies by
    $\tanh\alpha$ instead, with $\alpha = 0$ at first (arXiv:2204.14198, section 2.2).
    """

    def __init__(self, d_model: int, d_context: int, n_heads: int) -> None:
        super().__init__()
        m = d_model
        self.self_norm, self.cross_norm = nn.LayerNorm(m), nn.LayerNorm(m)
        self.mlp_norm = nn.LayerNorm(m)
        self.self_attention = SelfAttention(m, n_heads)
        self.cross_attention = CrossAttention(m, d_context, n_heads)
        w_in, w_out = nn.Linear(m, 4 * m), nn.Linear(4 * m, m)
        self.mlp = nn.Sequential(w_in, nn.GELU(), w_out)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        context: Float[Tensor, "b s c"] | None = None,
        *,
        keys_values: tuple[Tensor, Tensor] | None = None,
        padding_mask: Bool[Tensor, "b s"] | None = None,
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        r"""It agrees with `nn.TransformerDecoderLayer` [check:test_block_agrees_with_torch]. In decoding it has
        two memories: `cache` takes in every token that is written, `keys_values` stays as it is. Token by
        token, it gives what it gives for the whole text [check:test_decoding_equals_the_whole_text].
        """
        y = self.self_norm(x)
        x = x + self.self_attention(y, positions=positions, cache=cache)
        about = {"keys_values": keys_values, "padding_mask": padding_mask}
        x = x + self.cross_attention(self.cross_norm(x), context, **about)
        return x + self.mlp(self.mlp_norm(x))


class ContextCost(NamedTuple):
    """What a context adds to a layer: `once` and `per_token` are operations, `cache` counts numbers."""

    parameters: int
    once: int
    per_token: int
    cache: int


def cross_attention_cost(s: int, c: int, m: int) -> ContextCost:
    r"""## What it costs

    $W_K$ and $W_V$ work once on the context; $W_Q$, $W_O$ and the scores on every token
    [check:test_cost_is_counted].

    Whisper's large model, with 32 layers of $m = c = 1280$, turns 30 seconds of audio into $s = 1500$
    vectors, and always so many: shorter audio is filled with silence, and nothing is masked. In 16 bits the
    keys and values are 234 MiB; those of the 448 tokens that it may write, 70 MiB. Projecting the context for
    every token would cost 180 times the rest of the block [check:test_sizes_of_whisper_and_llava].
    """
    return ContextCost(
        parameters=2 * m * m + 2 * c * m,
        once=4 * s * c * m,
        per_token=4 * m * m + 4 * s * m,
        cache=2 * s * m,
    )


class VisionProjector(nn.Module):
    r"""## Or make tokens of it

    LLaVA-1.5 adds no layer to its language model. CLIP cuts an image of $336 \times 336$ pixels into
    $24 \times 24$ patches and has $c = 1024$ numbers to say of each, $Z$. A small network makes of each of
    these 576 vectors one that could be a token's embedding:

    $$\operatorname{GELU}(Z\,W_\text{in} + \mathbf{b})\,W_\text{out} + \mathbf{b}' .$$

    It works patch by patch [check:test_projector_works_patch_by_patch]. At $m = 4096$ it has 21 million
    parameters, beside 7 billion [check:test_sizes_of_whisper_and_llava]; at first, they alone are trained.
    """

    def __init__(self, d_vision: int, d_model: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(d_vision, d_model)
        self.w_out = nn.Linear(d_model, d_model)

    def forward(
        self,
        features: Float[Tensor, "b s c"],
    ) -> Float[Tensor, "b s m"]:
        return self.w_out(F.gelu(self.w_in(features)))


def insert_features(
    x: Float[Tensor, "b t m"],
    features: Float[Tensor, "b s m"],
    is_image: Bool[Tensor, "b t"],
) -> Float[Tensor, "b t m"]:
    r"""The tokenizer leaves $s$ placeholders in a text, at `is_image`; their embeddings in `x` are replaced by
    the projected features, in order [check:test_features_take_the_places]. From here on they are tokens: each
    gets a position, and the causal mask holds for patches too. A patch sees the text before it and the
    patches before it, and all later text sees it [check:test_inserted_features_are_tokens].

    ![Who sees whom after one layer, measured by gradients. Left: five tokens with a context of four vectors.
    Right: the four vectors inserted behind the second token.](figure:who_sees_whom)

    **Raises.** `ValueError` if shapes do not fit, or a text has not exactly $s$ places.
    """
    (b, t, m), s = x.shape, features.shape[1]
    if is_image.dtype != torch.bool or is_image.shape != (b, t):
        came = f"is_image is {is_image.dtype}, {tuple(is_image.shape)}"
        raise ValueError(f"{came}: bool, {(b, t)}, is wanted")
    places = is_image.sum(dim=1).tolist()
    if features.shape != (b, s, m) or places != [s] * b:
        came = f"features has shape {tuple(features.shape)}, places {places}"
        raise ValueError(f"{came}: {(b, s, m)} and {s} a text are wanted")
    return x.masked_scatter(is_image[:, :, None], features)


def insertion_cost(s: int, m: int) -> ContextCost:
    r"""## What each costs, and when it fails

    Inserted vectors go through every product of the layer, $12m^2$ weights, and through each other
    [check:test_cost_is_counted].

    | a layer | cross-attention | insertion |
    |---|---|---|
    | parameters | $2m^2 + 2cm$ | 0 |
    | operations, once | $4scm$ | $24sm^2 + 4s^2m$ |
    | operations, a token | $4m^2 + 4sm$ | $4sm$ |
    | cache | $2sm$ | $2sm$ |

    Insertion pays for every vector of the context, cross-attention for every token of the text. They are even
    after $s\,(6 + (s - c)/m)$ tokens, with LLaVA's sizes after 3,393; until then cross-attention is cheaper
    [check:test_where_the_two_are_even], and it need not be in every layer: Llama 3.2 Vision 11B has it in 8
    of 40. But its weights are new, 42 million a layer at these sizes, and all layers read the same $C$, while
    an inserted vector is rewritten by every layer. How cross-attention fails:

    - *It must read something.* Weights sum to one over silence as well. Whatever the cause, about 1% of
      Whisper's transcripts held phrases that nobody said, more with long pauses (arXiv:2402.08021).
    - *Nobody counts.* Nothing in the formula says that each word be read once: words are translated twice or
      not at all (Tu et al. 2016, arXiv:1601.04811).
    - *Stale keys.* The keys of the last context fit the next one in shape, and nothing is raised.

    **In production.** SDPA takes `padding_mask[:, None, None, :]`, FlexAttention a `mask_mod` that returns
    `padding_mask[b, j]` [check:test_production_kernels_agree]; without padding pass no mask, for SDPA's
    FlashAttention takes none. Transformers keeps two caches in an `EncoderDecoderCache`: the first step fills
    a layer's cross-attention cache and notes it in `is_updated`, the others read it; LLaVA's features go in
    by `masked_scatter`, as above. vLLM has a `CrossAttention` layer, its keys in pages as all others.
    """
    return ContextCost(
        parameters=0,
        once=24 * s * m * m + 4 * s * s * m,
        per_token=4 * s * m,
        cache=2 * s * m,
    )


def example(axes: dict[str, int]) -> None:
    """Run once, on primes such as `h=3, d=11`: the shapes beside the code are read off this run."""
    b, h, t, s, d, c = (axes[letter] for letter in "bhtsde")
    m, x, context = h * d, torch.randn(b, t, h * d), torch.randn(b, s, c)
    layer, real = CrossAttention(m, c, h), torch.ones(b, s, dtype=torch.bool)
    layer(x, keys_values=layer.project(context), padding_mask=real)
    DecoderBlock(m, c, h)(x, context)
    is_image = torch.arange(t + s).expand(b, -1) < s
    insert_features(torch.randn(b, t + s, m), VisionProjector(c, m)(context), is_image)
    _ = cross_attention_cost(s, c, m), insertion_cost(s, m)
