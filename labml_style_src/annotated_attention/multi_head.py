r"""# Multi-head attention

A verb has a subject and an object, and needs both. But a query has one softmax, and gets one average: half of
this word, half of that, blended beyond telling apart.

So let $n$ *heads* attend side by side, each with queries, keys and values of its own, and let a last
projection combine what they find:

$$\begin{aligned}
O &= [\,H_1 \cdots H_n\,]\, W_O, \\
H_h &= \operatorname{softmax}\!\Big(\tfrac{1}{\sqrt d}\, Q W_Q^h\, (K W_K^h)^\top\Big)\, V W_V^h .
\end{aligned}$$

Every head reads all $m$ dimensions of a token, and projects them to $d = m/n$ of its own, so that all heads
together cost what a single wide one would.

![A vector of twelve numbers, projected and cut into three heads. Each head weighs the keys on its own; the
results are joined and projected once more.](figure:heads)

## What came before

One head, and one average a query: so it was in the attention of lesson 1. In March 2017, Lin et al. let a
sentence be read by several rows of weights, each with its own average, and punished rows for being alike. But
all rows averaged the same vectors, and no query asked: what a row looks for was learned once, for all texts.
Vaswani et al. gave every row a query, and every head its own view of queries, keys and values.

## Two places at once

One head takes the same blend of keys in every dimension: its output lies between the values. Two heads can
take the first half of their output from one word and the second half from another, a point that no single set
of weights reaches [check:test_two_heads_take_from_two_places].

## One product, then a cut

Written as above, $n$ heads need $3n$ small products. But a product works column by column: put the blocks
side by side, $W_Q = [\,W_Q^1 \cdots W_Q^n\,]$, and

$$Q\, W_Q = [\,Q W_Q^1 \;\cdots\; Q W_Q^n\,].$$

Three large products give all heads at once, and the heads are cut out of the result by a reshape
[check:test_heads_are_slices_of_the_weights].

## A sum of heads

The last product also falls into blocks, of rows this time:

$$[\,H_1 \cdots H_n\,]\, W_O = \sum_h H_h\, W_O^h .$$

What looks like a concatenation is a sum [check:test_output_is_a_sum_over_heads]. Every head adds its own
vector to the result and reads nothing of the others', so a head can be studied, or removed, alone; and their
order is only a name [check:test_order_of_heads_is_a_name].

## What can be seen of a head

Leave biases out for a moment. Then only two products of its four matrices matter:

$$\begin{aligned}
Q_h K_h^\top &= Q\, \big(W_Q^h W_K^{h\top}\big)\, K^\top, \\
H_h W_O^h &= P_h\, V\, \big(W_V^h W_O^h\big).
\end{aligned}$$

The first decides where to look, the second what to carry over. Both are $m \times m$ but pass through $d$
dimensions, so their rank is at most $d$ [check:test_scores_of_a_head_have_rank_d]: more heads mean simpler
ones. And for every invertible $A$, the pair $W_Q^h A$, $W_K^h A^{-\top}$ acts as before, if a bias of the
queries is turned by $A$ too [check:test_only_the_products_matter]. A single coordinate of a query means
nothing by itself.

## Two biases that are not needed

Give the keys a bias $\mathbf{b}$: every score of query $i$ grows by $\mathbf{q}_i^\top \mathbf{b}$, the same
for all keys, and softmax does not feel a constant. It has no effect at all and its gradient is zero
[check:test_key_bias_does_nothing]. Give the values a bias: weights sum to one, so it comes out of the average
as it went in and shifts the output, which has a bias of its own for that; only where weights do not sum to
one, after dropout and in rows without a key, do the two differ [check:test_value_bias_is_an_output_bias].
Whisper leaves the key bias out, LLaMA all four.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $Q$ | `query` | `b t m` | the vectors that ask |
| $K$ | `key` | `b s m` | the vectors that are asked |
| $V$ | `value` | `b s m` | the vectors that are taken from |
| $W_Q$ | `self.w_q` | – | to queries; columns $W_Q^h$ are head $h$'s |
| $W_K$ | `self.w_k` | – | to keys, likewise |
| $W_V$ | `self.w_v` | – | to values, likewise |
| $W_O$ | `self.w_o` | – | to the output; rows $W_O^h$ are head $h$'s |
| $Q_h$ | `q` | `b h t d` | queries of head $h$ |
| $K_h$ | `k` | `b h s d` | keys of head $h$ |
| $V_h$ | `v` | `b h s d` | values of head $h$ |
| $P_h$ | `weights` | `b h t s` | how much of each value head $h$ takes |
| $H_h$, $H$ | `heads` | `b h t d` | what head $h$ found |
| $O$ | `output` | `b t m` | what all heads found |
| $n$ | `n_heads` | scalar | number of heads |
| $m$ | `d_model` | scalar | width of the model, $n\,d$ |

**Source.** Vaswani et al. (2017), arXiv:1706.03762, section 3.2.2; its formulas have no numbers. Their $h$ is
our $n$, $W_i^Q$ is $W_Q^h$, $d_\text{model}$ is $m$, $d_k$ and $d_v$ are $d$. With computation held constant,
1, 4, 8, 16 and 32 heads reach 24.9, 25.5, 25.8, 25.8 and 25.4 BLEU (table 3, rows A): one is too few, and
very many too narrow. The paper drops out the output of the layer; dropping weights, as here and in PyTorch,
comes from code. Lin et al. (2017), arXiv:1703.03130.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from annotated_attention.scaled_dot_product import attention_weights, check_inputs

__all__ = ["MultiHeadAttention", "merge_heads", "multi_head_cost", "split_heads"]


def split_heads(x: Float[Tensor, "b t m"], n_heads: int) -> Float[Tensor, "b h t d"]:
    r"""## Heads are a reshape

    Of the $m$ numbers of a token, the first $d$ belong to head 1, the next $d$ to head 2. The axis $m$
    becomes two, `h` outside and `d` inside, and heads move in front of tokens, so that each head is a plain
    attention.

    `x.view(b, h, t, d)` has the right shape too, and deals out pieces of one token as if they were several
    [check:test_view_mixes_tokens].

    ![Which head each number of four tokens goes to, three heads of width two. Left: two columns of every
    token. Right: whole tokens, and parts of them.](figure:cut)

    **Shapes.** `x` is `b t m`, the result is `b h t d`.

    **Raises.** `ValueError` if `x` does not have three axes, or $m$ is no multiple of $n$.
    """
    if x.ndim != 3 or x.shape[2] % n_heads:
        came = f"x has shape {tuple(x.shape)}"
        raise ValueError(f"{came}: b t m is wanted, with m a multiple of n_heads = {n_heads}")
    return rearrange(x, "b t (h d) -> b h t d", h=n_heads)


def merge_heads(x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b t m"]:
    r"""## And back

    The inverse, to the last bit [check:test_merge_undoes_split]: $[\,H_1 \cdots H_n\,]$.

    **Shapes.** `x` is `b h t d`, the result is `b t m`.
    """
    return rearrange(x, "b h t d -> b t (h d)")


class MultiHeadAttention(nn.Module):
    r"""## Four projections

    `query`, `key` and `value` may come from different places, as in lesson 4. In self-attention they are one
    tensor, passed three times.

    **Raises.** `ValueError` if `d_model` is no multiple of `n_heads`, or `dropout` is no probability.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}: it must lie between 0 and 1")
        self.d_model, self.n_heads = d_model, n_heads
        self.w_q = nn.Linear(d_model, d_model, bias=bias)
        self.w_k = nn.Linear(d_model, d_model, bias=bias)
        self.w_v = nn.Linear(d_model, d_model, bias=bias)
        self.w_o = nn.Linear(d_model, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "b t m"],
        key: Float[Tensor, "b s m"],
        value: Float[Tensor, "b s m"],
        attn_mask: Shaped[Tensor, "..."] | None = None,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b h t s"]]:
        r"""The output, and the weights of every head, to look at [check:test_agrees_with_the_plain_formula].

        A mask is that of lesson 1: True attends, rank two is `t s`, rank three gives each head its own, rank
        four each text too [check:test_masks_agree_with_the_plain_formula]. With `is_causal`, no output sees a
        later key [check:test_future_moves_nothing]. Padding enters as `b 1 1 s`. A query that may see nothing
        finds 0 in every head, and its output is the bias of $W_O$
        [check:test_empty_rows_give_the_output_bias].

        **Shapes.** `query` is `b t m`, `key` and `value` are `b s m`; the output is `b t m` and the weights
        `b h t s`.

        **Raises.** `ValueError` if the shapes or the mask do not fit, naming the argument
        [check:test_wrong_input_is_refused].
        """
        for name, x in {"query": query, "key": key, "value": value}.items():
            if x.ndim != 3 or x.shape[2] != self.d_model:
                came = f"{name} has shape {tuple(x.shape)}"
                raise ValueError(f"{came}: b t m is wanted, with m = {self.d_model}")

        # $Q_h = Q W_Q^h$ for all heads in one product; `nn.Linear` keeps $W_Q$ transposed, so that a head
        # owns rows of its `weight`.
        q = split_heads(self.w_q(query), self.n_heads)
        k = split_heads(self.w_k(key), self.n_heads)
        v = split_heads(self.w_v(value), self.n_heads)
        check_inputs(q, k, v, attn_mask, is_causal)

        # From here to the output a head never meets another [check:test_texts_and_heads_are_independent].
        # Below float32, weights and sums are kept in float32.
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
        weights = attention_weights(q, k, attn_mask, is_causal)

        # Dropout forgets whole connections: a query must not rely on one key. The survivors are scaled by
        # $1/(1-p)$. The weights that are returned are those before, so their rows sum to one in training too
        # [check:test_dropout_acts_on_weights].
        dropped = self.dropout(weights)
        heads = torch.einsum("b h t s, b h s d -> b h t d", dropped, v)

        # $W_O$ mixes the heads. Without it head 1 could write to the first $d$ dimensions only.
        output = self.w_o(merge_heads(heads.to(query.dtype)))
        return output, weights.to(query.dtype)

    @classmethod
    def from_torch(cls, source: nn.MultiheadAttention) -> "MultiHeadAttention":
        r"""## Beside torch.nn.MultiheadAttention

        The same layer under other customs. This copies its weights, dropout and mode
        [check:test_from_torch_keeps_dropout_and_mode], and the two then agree, without dropout, in outputs,
        weights and gradients [check:test_agrees_with_torch_multihead_attention]. What differs:

        - Its boolean mask means the opposite: True *forbids* [check:test_torch_mask_means_the_opposite].
        - It takes `t b m` unless `batch_first=True`, and averages the weights over heads unless told not to.
        - `is_causal=True` is a hint there, and an error without a mask
          [check:test_torch_is_causal_is_a_hint].
        - A query that may see nothing gets NaN; with `need_weights=False` the bias of $W_O$, as here; but NaN
          again on the fast path of inference (on a CPU, in `eval()`, without gradients, one tensor passed
          three times, an even number of heads) [check:test_torch_empty_rows_depend_on_the_path].
        - In training it returns the weights *after* dropout, whose rows do not sum to one
          [check:test_torch_returns_weights_after_dropout].
        - It begins elsewhere: $W_Q$, $W_K$, $W_V$ within $\sqrt{6/(4m)}$ (Xavier, for the three as one) and
          biases at zero; `nn.Linear` draws all of them within $\sqrt{1/m}$
          [check:test_torch_begins_elsewhere].

        **In production** nobody asks for weights, so that a fused kernel can run. Transformers splits heads
        as above, calls `F.scaled_dot_product_attention`, FlexAttention or flash-attn (which takes `b t h d`,
        heads behind tokens), and merges them. vLLM packs $W_Q$, $W_K$ and $W_V$ into one matrix, as PyTorch
        does here.

        **Raises.** `ValueError` if `source` has key or value widths of its own, `add_bias_kv` or
        `add_zero_attn`.
        """
        packed = source.in_proj_weight
        if packed is None or source.bias_k is not None or source.add_zero_attn:
            raise ValueError(
                "source has kdim, vdim, add_bias_kv or add_zero_attn: one without them is wanted"
            )
        bias = source.in_proj_bias is not None
        copy = cls(source.embed_dim, source.num_heads, dropout=source.dropout, bias=bias).to(packed)

        # PyTorch stacks the three projections into one, of shape `3*m m`, in the order query, key, value.
        with torch.no_grad():
            inputs = (copy.w_q, copy.w_k, copy.w_v)
            for n, projection in enumerate(inputs):
                projection.weight.copy_(packed.chunk(3)[n])
                if bias:
                    projection.bias.copy_(source.in_proj_bias.chunk(3)[n])
        copy.w_o.load_state_dict(source.out_proj.state_dict())
        return copy.train(source.training)


def multi_head_cost(b: int, t: int, s: int, m: int) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns the operations of the four projections and of the attention between them
    [check:test_cost_counts_the_products]. The number of heads is in neither: $n$ scores of width $m/n$ cost
    as much as one of width $m$. It is in the memory, for there are $n$ matrices of weights.

    In self-attention the two are equal at $t = 2m$. Below that, which is 8,192 tokens for a model of width
    4,096, projections are most of the work, and a cheaper attention saves little.

    - *Narrow heads.* With rank at most $d$, a head of width 16 compares queries and keys in 16 dimensions,
      however wide the model.
    - *Every head keeps its keys and values.* A decoder stores $2m$ numbers a token and layer. That, not
      arithmetic, is what lesson 8 cuts down.
    - *Heads that nobody needs.* Nothing in the formula makes heads differ; trained models have many that can
      be removed at little loss (Michel, Levy, Neubig 2019, arXiv:1905.10650).
    """
    projections = 2 * (2 * b * t * m * m) + 2 * (2 * b * s * m * m)
    attention = 2 * (2 * b * t * s * m)
    return projections, attention


def example(axes: dict[str, int]) -> None:
    """Run once, on primes such as `h=3, d=11`: the shapes beside the code are read off this run."""
    b, h, t, s, d = (axes[letter] for letter in "bhtsd")
    query, key = torch.randn(b, t, h * d), torch.randn(b, s, h * d)
    merge_heads(split_heads(query, h))
    MultiHeadAttention(h * d, h)(query, key, key)
    MultiHeadAttention.from_torch(nn.MultiheadAttention(h * d, h))
    multi_head_cost(b, t, s, h * d)
