r"""# Longformer

The text that comes with a question of TriviaQA has 6,589 tokens on average (Beltagy et al., table 6), and BERT
reads 512. It can be cut into pieces. But the answer may need two of them at once, a pronoun here and a name
there, and what no piece holds is lost.

An encoder reads in both directions, so give each token a window on both sides. Words are understood there,
most of the time. Then let a few chosen tokens look at everything, and be looked at by all:

$$\begin{aligned} \mathbf{o}_i &= \sum_{j \in \mathcal{S}_i} \operatorname{softmax}_{j \in \mathcal{S}_i}
\big(\lambda\, \mathbf{q}_i^\top \mathbf{k}_j\big)\, \mathbf{v}_j, \\
\mathcal{S}_i &= \{\,j : |i-j| < w, \text{ or } i \text{ or } j \text{ is global}\,\} . \end{aligned}$$

![Who sees whom, among 20 tokens: rows are queries, columns keys. Full attention; a window; the same, dilated;
a window with two global tokens, their rows in blue, their columns in brown.](figure:patterns)

## What came before

The simplest ways cut the document off, or into chunks that are read alone and put together by another model
(section 2). Transformer-XL reads chunk after chunk and keeps what it made of the last one, from left to
right: of no use to a token that needs what comes later. Sparse Transformer has the most similar pattern, in
blocks of 8 by 8, and is a model of what came before, too. Star-Transformer (Guo et al. 2019,
arXiv:1902.09113) ties each token to its neighbours and to one relay that is added to the text and joins all
the others. In Longformer the relays are tokens of the text, chosen for the task, the windows are wide, and
the whole replaces the attention of a model that has already been trained.

## Two hops

A window passes news on by $w - 1$ tokens a layer. RoBERTa-base has 12 layers, and the window that Longformer
gives it reaches 256 tokens to each side: 3,072 at the top, of the 4,096 that it reads
[check:test_windows_alone_do_not_reach|not enough].

With one global token, any distance takes two layers. In the first it looks at $j$, in the second $i$ looks at
it [check:test_two_hops_connect_every_pair]. A classifier makes [CLS] global, for it must see the text;
question answering makes the question global, for every word must be compared with it (section 3.1).

![How far the last of 24 tokens sees, in one, two and three layers: with a window of 4 alone, and with a
global token. Shaded where the gradient at an input is not zero.](figure:hops)

The bridge is narrow. What crosses by way of $G$ tokens is $G$ vectors. So in two layers the Jacobian from one
passage to another, far from it, has a rank of at most $G m$, for $m$ numbers a token, however long both are
[check:test_the_bridge_is_narrow]. A global token carries a summary. It does not copy a sentence across.

A small model shows it, trained to answer for [a planted fact](../sliding_window_recall/index.md). A window
alone ends where it must. One global token brings one fact to any place. Of eight facts, each asked for by
some, 32% of the answers are right over two arcs, where dense attention looks all of them up
[check:test_one_token_carries_one_fact|32%].

![Two layers, 64 tokens: right answers by distance, mean and range of three seeds (measured in lesson 12).
](figure:recall)

## Projections of their own

To ask what a text is about is another task than to ask which noun this adjective belongs to. So a global
query has three projections of its own, $W_Q^\star$, $W_K^\star$, $W_V^\star$, the last two applied to every
token, because it looks at all. They begin as copies (section 3.1): at first, a converted model does what it
did [check:test_copies_change_nothing_at_first].

The pattern is symmetric, the projections are not. A *local* query that meets a global key uses the ordinary
ones, so $W_K^\star$ and $W_V^\star$ move the outputs of global tokens and of no others
[check:test_global_projections_move_global_rows_only].

## Dilation

To see further for the same price, look at every $\delta$-th token: at those $j$ for which $i - j$ is a
multiple of $\delta$ and $|i-j| < w\,\delta$, again $w - 1$ to each side. Write $i = \delta n + c$ and
$j = \delta n' + c'$ with $0 \le c, c' < \delta$. Then

$$\begin{aligned} \delta \mid i - j \;&\Leftrightarrow\; c = c', \\
|i - j| < w\,\delta \;&\Leftrightarrow\; |n - n'| < w \quad (\text{if } c = c'). \end{aligned}$$

So nothing new is to be computed. The text is $\delta$ strands of every $\delta$-th token, and on each of them
the dilated window is a plain one [check:test_dilation_is_a_window_on_each_strand].

![A dilated window on 12 tokens is a plain window on each of three strands of four. Bright: what token 6
sees.](figure:strands)

The paper writes $\ell \times d \times w$ for what $\ell$ layers of dilation $d$ see. The span is that wide,
but if every head is dilated alike then strands never meet: token 0 learns nothing of token 1, in any number
of layers [check:test_strands_never_meet]. The authors dilate two heads of eight, in the upper layers, and
leave the lower ones whole (section 4.1, table 12).

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g t d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g t e` | what position $j$ gives |
| $\mathbf{o}_i$ | `output` | `b h t e` | what position $i$ finds |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $w$ | `window` | scalar | keys to one side, the query's own included |
| $\delta$ | `dilation` | scalar | steps from one key of the window to the next |
| $G$ | `n_global` | scalar | global tokens, in the text that has most |
| $W_Q^\star$ | `self.w_qg` | `m m` | to the queries of global tokens |
| $W_K^\star$ | `self.w_kg` | `m m` | to the keys that they see |
| $W_V^\star$ | `self.w_vg` | `m m` | to the values that they take |

## What was measured

After 150,000 steps on text8, bits per character: windows that grow from layer to layer (32 to 512) 1.21, one
of 230 everywhere 1.23, shrinking 1.24; two dilated heads take 1.21 to 1.20 (table 4). On WikiHop, the
encoder answers 73.8% right, without separate projections 72.2%, and without global attention as well 65.5%
(table 10). RoBERTa-base, reading 512 tokens, needs 1.846 bits per character of masked text; its weights,
converted to read 4,096, need 1.957 before any training and 1.705 after (table 5). There dilation hurt
(section 5, footnote 6): the weights did not know it.

**Source.** Beltagy, Peters, Cohan (2020), arXiv:2004.05150, sections 3.1 and 3.2. Their $w$ counts both
sides, $\tfrac12 w$ each; Transformers' `attention_window` is the same number. Ours is half of it, and one for
the query itself: `attention_window // 2 + 1` [check:test_transformers_window]. Their $n$ is our $t$, their
dilation $d$ our $\delta$; $Q_s, K_s, V_s$ and $Q_g, K_g, V_g$ are the ordinary and the starred.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from annotated_attention.longformer_tiles import pack, window_and_global
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["LongformerSelfAttention", "longformer_attention"]
__all__ += ["longformer_mask_mod"]


def longformer_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t e"],
    window: int,
    global_mask: Bool[Tensor, "b t"],
    *,
    global_qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    padding_mask: Bool[Tensor, "b t"] | None = None,
    dilation: int = 1,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## The function

    What a dense mask gives [check:test_agrees_with_the_dense_mask] [check:test_gradcheck], for any length,
    window, dilation and set of global tokens [check:test_any_text_agrees].

    `global_mask` is True at the global tokens; each text has its own, and may have none. `global_qkv` are the
    query, key and value made with the starred projections; without it, global queries use the ordinary three.
    `padding_mask` is True at real tokens. Padding is never seen [check:test_padding_moves_nothing], returns 0
    with gradient 0 [check:test_padding_returns_zero] and cannot be global: Transformers does all three.

    **Shapes.** `query` is `b h t d`, `key` is `b g t d`, `value` is `b g t e`, with $h$ a multiple of $g$.
    `global_mask` is `b t`, and so is the other mask. `global_qkv` has the shapes of the three, though $g$ may
    differ. The result is `b h t e`.

    **Raises.** `ValueError` if these do not fit, or if `window` or `dilation` is less than 1
    [check:test_wrong_input_is_refused].
    """
    masks = {"global_mask": global_mask, "padding_mask": padding_mask}
    check_longformer((query, key, value), global_qkv, masks, window, dilation)
    real = padding_mask
    if real is None:
        real = torch.ones_like(global_mask)
    is_global = global_mask & real

    # $G$ places for global tokens, of which shorter lists leave some empty.
    counts = is_global.sum(dim=1)
    n_global = max(counts.tolist(), default=0)
    place = torch.arange(n_global, device=query.device)
    found = place < counts[:, None]

    # Local queries: one softmax over the window and the global keys, tile by tile. How, and at what cost, is
    # told on [a page of its own](../longformer_tiles/index.md).
    near = window_and_global(
        query,
        key,
        value,
        window,
        is_global,
        real,
        found,
        dilation,
        scale,
    )
    output = near.masked_fill(~real[:, None, :, None], 0.0)

    # Global queries: plain attention, for $G$ queries. In an empty place everything may be seen, padding too.
    # It is thrown away, and no row is without a key.
    q, k, v = global_qkv or (query, key, value)
    mask = None
    if padding_mask is not None:
        mask = (real[:, None, :] | ~found[:, :, None])[:, None]
    asked = pack(q, is_global, found)
    attend = F.scaled_dot_product_attention
    far = attend(asked, k, v, mask, scale=scale, enable_gqa=True)

    # Packed in this order, they return to their rows in it.
    output.transpose(1, 2)[is_global] = far.transpose(1, 2)[found]
    return output


class LongformerSelfAttention(nn.Module):
    r"""## The layer

    Six projections and the output's. As in all layers of this course they have no biases; RoBERTa's do.

    **Raises.** `ValueError` unless `d_model` is a multiple of `n_heads`.
    """

    def __init__(self, d_model: int, n_heads: int, window: int) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        self.n_heads, self.window = n_heads, window
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)
        # Copies, from which training may depart.
        self.w_qg = copy.deepcopy(self.w_q)
        self.w_kg = copy.deepcopy(self.w_k)
        self.w_vg = copy.deepcopy(self.w_v)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        global_mask: Bool[Tensor, "b t"] | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t m"]:
        r"""Without a `global_mask` there are no global tokens, and the starred projections rest."""
        flat = [self.w_q(x), self.w_k(x), self.w_v(x)]
        query, key, value = (split_heads(y, self.n_heads) for y in flat)
        masks = {"global_mask": global_mask, "padding_mask": padding_mask}
        check_longformer((query, key, value), None, masks, self.window, 1)
        if global_mask is None:
            global_mask = torch.zeros_like(x[:, :, 0], dtype=torch.bool)
            starred = None
        else:
            # All tokens are seen by the global ones, which alone ask: $W_Q^\star$ is applied to no others.
            asked = torch.zeros_like(flat[0])
            asked[global_mask] = self.w_qg(x[global_mask])
            flat = [asked, self.w_kg(x), self.w_vg(x)]
            q, k, v = (split_heads(y, self.n_heads) for y in flat)
            starred = (q, k, v)
        output = longformer_attention(
            query,
            key,
            value,
            self.window,
            global_mask,
            global_qkv=starred,
            padding_mask=padding_mask,
        )
        return self.w_o(merge_heads(output))


def longformer_mask_mod(
    window: int,
    global_mask: Bool[Tensor, "b t"],
    *,
    padding_mask: Bool[Tensor, "b t"] | None = None,
    dilation: int = 1,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    r"""## In production, and when it fails

    - **FlexAttention** takes this function as `mask_mod`, and skips the blocks that hold no pair
      [check:test_flex_attention_agrees]. One kernel has one set of keys: for the starred projections call it
      twice, and take the rows of global tokens from the second answer.
    - **SDPA** takes the same function's answer for all $i$ and $j$ as a mask. That is right, and saves
      nothing: all $t^2$ scores are computed [check:test_a_mask_saves_nothing].
    - **flash-attn** has the window, `window_size=(w - 1, w - 1)`, and no global tokens.
    - **Transformers** has `LongformerModel`, and as an encoder for summaries LED, whose decoder attends fully
      (section 7). `attention_window` is even and counts both sides, `global_attention_mask` is 1 at global
      tokens, texts are padded to a multiple of the window, and there is no dilation. Its classifier makes the
      first token global if told nothing, its question answerer the question.

    **When it fails.**

    - *Short texts.* Up to 387 tokens full attention computes fewer scores than the usual window and [CLS]:
      see [the tiles](../longformer_tiles/index.md).
    - *Writing.* A global token sees what follows, and one layer later every token has heard of it
      [check:test_global_tokens_leak_the_future]. The paper's language models have a window on the left,
      dilated in places, and no global tokens (section 4.1); LED writes with a decoder.
    - *The wrong tokens.* They are chosen before the text is read. With windows alone, what is further off than
      $L(w-1)$ tokens does not exist for an encoder of $L$ layers.
    """
    real = padding_mask
    if real is None:
        real = torch.ones_like(global_mask)
    is_global = global_mask & real

    def mask_mod(
        b: Int[Tensor, "..."],
        h: Int[Tensor, "..."],
        i: Int[Tensor, "..."],
        j: Int[Tensor, "..."],
    ) -> Bool[Tensor, "..."]:
        steps = (i - j).abs()
        near = (steps < window * dilation) & (steps % dilation == 0)
        pair = near | is_global[b, i] | is_global[b, j]
        return pair & real[b, i] & real[b, j]

    return mask_mod


def check_longformer(qkv, global_qkv, masks, window, dilation) -> None:
    """## What is refused

    Whatever would be broadcast or cut off without a word [check:test_wrong_input_is_refused].
    """
    (b, h, t, _), e = qkv[0].shape, qkv[2].shape[3]
    for query, key, value in (qkv, qkv if global_qkv is None else global_qkv):
        check_inputs(query, key, value, None, False, enable_gqa=True)
        came = (*query.shape[:3], key.shape[2], value.shape[3])
        if came != (b, h, t, t, e):
            wanted = f"{(b, h, t, t, e)} is wanted"
            raise ValueError(f"b, h, t, s, e are {came}: {wanted}")
    for name, mask in masks.items():
        if mask is None:
            continue
        if mask.shape != (b, t) or mask.dtype != torch.bool:
            came = f"{name} is {mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(f"{came}: bool of shape {(b, t)} is wanted")
    for name, number in {"window": window, "dilation": dilation}.items():
        if number < 1:
            raise ValueError(f"{name} is {number}: at least 1 is wanted")


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, d, e = (axes[name] for name in "bgrtde")
    query, key = torch.randn(b, g * r, t, d), torch.randn(b, g, t, d)
    value = torch.randn(b, g, t, e)
    is_global = torch.arange(t).expand(b, t) < 1
    real = torch.ones_like(is_global)
    longformer_attention(query, key, value, 2, is_global, padding_mask=real)
    LongformerSelfAttention(g * d, g, 2)(torch.randn(b, t, g * d), is_global)
    place = torch.arange(t)
    mask_mod = longformer_mask_mod(2, is_global)
    mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place)
