r"""# Grouped-query attention

To write one token, a decoder reads all that it has kept of the text: a key and a value for every token, head
and layer. With 64 heads in each of its 80 layers, Llama-2-70B would have to read 10 GiB at the end of 4,096
tokens [check:test_cache_table|10 GiB], and again for the next token. It does two operations with each number
that it reads. The arithmetic is done at once; the rest is waiting for memory.

So let several query heads share what they read. Of $h$ query heads, $r$ neighbours use one of $g = h/r$ heads
of keys and values. Heads are counted from 0:

$$\mathbf{o}_i^{n} = \sum_j \operatorname{softmax}_j\big(\lambda\, \mathbf{q}_i^{n\top}
\mathbf{k}_j^{u}\big)\, \mathbf{v}_j^{u}, \qquad u = \lfloor n/r \rfloor .$$

With $g = h$ this is multi-head attention, with $g = 1$ *multi-query* attention
[check:test_one_function_from_multi_head_to_multi_query], and a cache holds $g/h$ of what it held.

![Eight query heads (above) and the heads of keys and values that they read: one each, one for every four, one
for all. A line is drawn where changing the key moves the head's output.](figure:heads)

## What came before

The obvious savings are fewer heads, or narrower ones. Shazeer tried both in 2019, and a third: keep all query
heads, and give them a single head of keys and values. It lost the least (arXiv:1911.02150, tables 1 and 3),
and a token of the decoder's output took 3.8 microseconds on a TPU, not 46; the encoder, which reads its text
at once, fell from 1.7 to 1.5 only (table 2). PaLM and Falcon-7B were built so. But one head for all is a
large cut in a large model, and who has trained a model with many would have to begin again. Ainslie et al.
answered both in 2023: any number $g$ in between, and a way to convert what is already trained.

## Why memory

Count the operations per byte. A score takes $2d$ operations, its share of the output $2d$ more, so a new
token costs $4\,h s d$ in one layer. What is read is $2\,g s d$ numbers, of two bytes each in bfloat16:

$$\frac{4\, h s d}{2 \cdot 2\, g s d} = \frac{h}{g} = r$$

operations a byte [check:test_operations_per_byte]. With $r = 1$ that is far from what hardware offers: an H100
does about 300 in the time that it takes to read one (989 TFLOP/s, 3.35 TB/s). Writing for many people at once
does not help: a batch shares the weights, but every text has keys of its own. Sharing among heads does.

In training and in prefill, $t$ queries share each key already, and $r\,t$ operations a byte are plenty. There
nothing is gained: the operations are the same for every $g$ [check:test_operations_do_not_depend_on_g], except
in $W_K$ and $W_V$, which become smaller.

## A group is one head with more queries

Heads differ in their queries, keys and values. Where $r$ heads have the same keys and values, nothing tells
them from one head that asks $r\,t$ questions in place of $t$: a softmax has no part in its neighbours' rows.
Fold the group into time, and what is left is multi-head attention with $g$ heads
[check:test_a_group_is_one_head_with_more_queries]. No key is ever repeated.

![Three heads, two queries each, that share their keys. Left: as heads, with the keys repeated. Right: as one
head with six queries. The scores are the same.](figure:fold)

## What is given up

Repeat the rows of $W_K$ and $W_V$, $r$ times for each head, and multi-head attention computes the same
[check:test_is_multi_head_with_tied_weights]: a grouped layer is a multi-head layer whose heads agree on what
to show, though not on what to ask. It can still look in $h$ places. But two heads of a group that look at the
same place bring back the same value; only $W_O$ can tell them apart.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i^n$ | `query` | `b h t d` | what head $n$ asks at position $i$ |
| $\mathbf{k}_j^u$ | `key` | `b g s d` | what position $j$ offers to group $u$ |
| $\mathbf{v}_j^u$ | `value` | `b g s e` | what position $j$ gives to group $u$ |
| $\mathbf{o}_i^n$ | `output` | `b h t e` | what head $n$ finds |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $g$ | `n_kv_heads` | scalar | heads of keys and values |
| $h$ | `n_heads` | scalar | heads of queries, $g\,r$ |
| $r$ | `r` | scalar | query heads in a group |
| $W_Q$ | `self.w_q` | – | to queries: $h\,d$ rows |
| $W_K$ | `self.w_k` | – | to keys: $g\,d$ rows |
| $W_V$ | `self.w_v` | – | to values: $g\,d$ rows |
| $W_O$ | `self.w_o` | – | from the heads back to the model |

**Source.** Ainslie et al. (2023), arXiv:2305.13245, sections 2.1 and 2.2, which have no formulas; their $H$ and
$G$ are our $h$ and $g$. Shazeer (2019), arXiv:1911.02150, section 3; his $k$ and $v$ are our $d$ and $e$, his
$n$ and $m$ our $t$ and $s$. His section 3.1 counts bytes per operation, the inverse of ours.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from annotated_attention.language_model import (
    Attend,
    Cache,
    SelfAttention,
    causal_attention,
    causal_mask,
    placed,
)
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import attention_weights, check_inputs

__all__ = ["GroupedQueryAttention", "causal_grouped_attention", "grouped_query_cost"]
__all__ += ["fused_grouped_attention", "grouped_query_attention", "mean_pool_kv_heads"]


def grouped_query_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## One function for all three

    The number of key heads says which it is. It agrees with PyTorch's attention under `enable_gqa=True`, in
    outputs and gradients [check:test_agrees_with_pytorch] [check:test_gradcheck].

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, with $h$ a multiple of $g$.
    `attn_mask` broadcasts to `b h t s` and means what it means in lesson 1: True attends
    [check:test_masks_agree_with_pytorch]. `is_causal` is aligned top-left. The result is `b h t e`, and 0 in
    rows without a key.

    **Raises.** `ValueError` if the shapes or the mask do not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa=True)
    (h, t), (g, s) = query.shape[1:3], key.shape[1:3]
    r = h // g

    # Each row of the fold is one query of one head, so a mask is folded as the queries are: head by head. A
    # mask for all heads is repeated $r$ times, for the heads of one group, and serves all groups as it is
    # [check:test_masks_broadcast].
    if is_causal:
        attn_mask = query.new_ones(t, s, dtype=torch.bool).tril()
    if attn_mask is not None:
        mask = attn_mask[(None,) * (4 - attn_mask.ndim)]
        mask = mask.expand(-1, r if mask.shape[1] == 1 else h, t, -1)
        attn_mask = rearrange(mask, "b (g r) t s -> b g (r t) s", r=r)

    # $n = u\,r + {}$ the place in its group: `g` outside, `r` inside. With `(r g)`, which is what `repeat`
    # does to keys, head 1 would read key head 1: right shape, another model
    # [check:test_neighbours_share_a_head].
    wide = torch.promote_types(query.dtype, torch.float32)
    q = rearrange(query.to(wide), "b (g r) t d -> b g (r t) d", g=g)
    k, v = key.to(wide), value.to(wide)

    # From here on this is lesson 1, with $g$ heads. Forward and backward, no tensor is larger than the keys
    # or the scores; `repeat_interleave` makes one of $r$ times the keys, and another for the values
    # [check:test_keys_are_never_repeated].
    weights = attention_weights(q, k, attn_mask, scale=scale)
    folded = torch.einsum("b g n s, b g s e -> b g n e", weights, v)
    output = rearrange(folded, "b g (r t) e -> b (g r) t e", r=r)
    return output.to(query.dtype)


def causal_grouped_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""The same for lesson 3's slot: queries at positions $i$ see the keys at positions $j \le i$."""
    return grouped_query_attention(query, key, value, causal_mask(i, j))


class GroupedQueryAttention(nn.Module):
    r"""## The layer

    Lesson 3's self-attention, but $W_K$ and $W_V$ make $g$ heads. The cache stands between them and the
    attention, so it holds $g$ heads without being told [check:test_cache_is_g_over_h].

    `attend` is exchangeable as there. LLaMA 2 and 3 and Mistral turn queries and keys by lesson 5 and group
    them [check:test_rotary_and_groups_compose]:
    `attend=partial(rotary_attention, attend=causal_grouped_attention)`.

    **Raises.** `ValueError` unless `d_model` is a multiple of `n_heads` and that one of `n_kv_heads`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        *,
        attend: Attend = causal_grouped_attention,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        group_size(n_heads, n_kv_heads)
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.attend = attend
        d = d_model // n_heads
        self.w_q = nn.Linear(d_model, n_heads * d, bias=False)
        self.w_k = nn.Linear(d_model, n_kv_heads * d, bias=False)
        self.w_v = nn.Linear(d_model, n_kv_heads * d, bias=False)
        self.w_o = nn.Linear(n_heads * d, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        r"""Decoding token by token gives what reading at once gives [check:test_decoding_equals_prefill], and
        with $g = h$ the layer is lesson 3's [check:test_layer_with_all_heads_is_self_attention].
        """
        query = split_heads(self.w_q(x), self.n_heads)
        key = split_heads(self.w_k(x), self.n_kv_heads)
        value = split_heads(self.w_v(x), self.n_kv_heads)
        i, j, key, value = placed(key, value, positions, cache)
        heads = self.attend(query, key, value, i, j)
        return self.w_o(merge_heads(heads))

    @classmethod
    def from_multi_head(
        cls,
        source: SelfAttention,
        n_kv_heads: int,
        *,
        attend: Attend | None = None,
    ) -> "GroupedQueryAttention":
        r"""## Converting a checkpoint

        $W_Q$ and $W_O$ stay; of $W_K$ and $W_V$, the heads of each group are replaced by their mean. What
        comes out is a starting point. Ainslie et al. train it on for 5% of the original steps (*uptraining*);
        after 10% there is little more to gain. GQA with 8 heads works passably before that, MQA does not
        (figure 5).

        If the heads of a group were equal to begin with, nothing changes
        [check:test_equal_heads_convert_exactly].

        **Raises.** `ValueError` if `source` attends in a way of its own, rotary for one, and `attend` does not
        say how to do that with groups.
        """
        if attend is None and source.attend is not causal_attention:
            raise ValueError("source.attend is its own: the same for groups is wanted as attend")
        attend = causal_grouped_attention if attend is None else attend
        n_heads, d_model = source.n_heads, source.w_q.in_features
        copy = cls(d_model, n_heads, n_kv_heads, attend=attend).to(source.w_q.weight)
        copy.w_q.load_state_dict(source.w_q.state_dict())
        copy.w_o.load_state_dict(source.w_o.state_dict())
        with torch.no_grad():
            for new, old in (copy.w_k, source.w_k), (copy.w_v, source.w_v):
                new.weight.copy_(mean_pool_kv_heads(old.weight, n_heads, n_kv_heads))
        return copy.train(source.training)


def mean_pool_kv_heads(
    weight: Float[Tensor, "..."],
    n_heads: int,
    n_kv_heads: int,
) -> Float[Tensor, "..."]:
    r"""## Mean pooling

    Of all single matrices that could stand for the heads of a group, their mean has the smallest sum of squared
    differences to them [check:test_mean_is_least_squares]. For T5-Large, converted to MQA and trained on for
    5%, it was better than keeping the first head, and that better than a random one (figure 4). It is linear:
    pooled keys are the mean of keys [check:test_pooling_weights_pools_keys].

    But a mean of unlike vectors is short. If $r$ heads are uncorrelated and of equal size, their mean has
    $1/\sqrt r$ of it, so the scores shrink, and the softmax is flatter than what $W_Q$ was trained for
    [check:test_mean_of_unlike_heads_is_short].

    And the heads are unlike by accident. Lesson 2 showed that $W_Q^n A$ and $W_K^n A^{-\top}$ act as $W_Q^n$
    and $W_K^n$ do, for any invertible $A$: a model does not care in which basis a head keeps its keys. The mean
    does. Two models that compute the same have different means [check:test_pooling_depends_on_the_basis]. Turn
    the heads towards each other first, and less is lost (Jin et al. 2024, arXiv:2412.20677).

    **Shapes.** `weight` has $h\,d$ rows, as `nn.Linear` keeps it, or is a bias of as many numbers. The result has
    $g\,d$.

    **Raises.** `ValueError` if they do not divide so.
    """
    r = group_size(n_heads, n_kv_heads)
    if weight.ndim not in (1, 2) or weight.shape[0] % n_heads:
        came = f"weight has shape {tuple(weight.shape)}"
        raise ValueError(f"{came}: h*d m or h*d is wanted, with h = n_heads = {n_heads}")
    return reduce(weight, "(g r d) ... -> (g d) ...", "mean", g=n_kv_heads, r=r)


def group_size(n_heads: int, n_kv_heads: int) -> int:
    """How many query heads share a key head."""
    if n_kv_heads < 1 or n_heads < 1 or n_heads % n_kv_heads:
        came = f"n_heads is {n_heads}, n_kv_heads is {n_kv_heads}"
        raise ValueError(f"{came}: a multiple of n_kv_heads is wanted")
    return n_heads // n_kv_heads


def grouped_query_cost(b: int, h: int, g: int, s: int, d: int, itemsize: int = 2) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns, for one layer and one new token in each of $b$ texts, the operations of its attention and the bytes
    of keys and values that it reads. Only the second depends on $g$. Kept for one token, in all layers and in
    two bytes a number [check:test_cache_table|this table]:

    | model | layers | $h$ | $g$ | $d$ | with $h$ heads | with $g$ |
    |---|---|---|---|---|---|---|
    | Llama-2-7B | 32 | 32 | 32 | 128 | 512 KiB | 512 KiB |
    | Llama-2-70B | 80 | 64 | 8 | 128 | 2560 KiB | 320 KiB |
    | Llama-3-8B, Mistral-7B | 32 | 32 | 8 | 128 | 512 KiB | 128 KiB |
    | Falcon-7B | 32 | 71 | 1 | 64 | 568 KiB | 8 KiB |

    ![Bytes that are kept of one token, as multi-head attention and as the models are. The bars are to
    scale.](figure:cache)

    - *Quality.* T5-XXL, trained on for 5%: 47.2 on average with all heads, 47.1 with $g = 8$, 46.6 with
      $g = 1$; seconds a sample: 1.51, 0.28, 0.24 (Ainslie et al., table 1). T5-Large with all its heads is
      slower than both, 0.37, and worse, 46.0.
    - *Where the cache is not the load.* The weights are read for every token, too. Those of Llama-2-7B, 6.7
      billion, weigh as much as 25,000 cached tokens [check:test_cache_table|25,000]: one short text gains
      little.
    - *More devices than key heads.* $g$ heads can be dealt out to $g$ devices. On more, heads are copied, and
      what each device keeps shrinks no further. With $g = 1$ that is so from the second on; $g = 8$ suits the
      eight of one server.
    - *It only shares.* Each of the $g$ heads is kept in full. Latent attention (DeepSeek-V2, arXiv:2405.04434)
      keeps one narrow vector a token, from which the keys and values of all heads are made.
    """
    return 4 * b * h * s * d, 2 * b * g * s * d * itemsize


def fused_grouped_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""## In production

    - **SDPA** takes `enable_gqa=True` (PyTorch 2.5), as here: this, too, fits the slot
      [check:test_fused_attention_agrees]. On a GPU, a mask rules FlashAttention out, and the plain formula that
      may take its place does repeat the keys.
    - **FlexAttention** takes `enable_gqa=True` as well [check:test_flex_attention_agrees].
    - **flash-attn** takes fewer key heads without being asked, dealt out to neighbours as here. For a single
      query it folds the group into time, as above.
    - **Transformers** calls $g$ `num_key_value_heads`. Its eager attention repeats keys (`repeat_kv`); under
      `"sdpa"` they are repeated too when there is a mask, else it passes `enable_gqa`.
    - **vLLM** keeps $g$ heads in its pages, and copies heads if there are more devices than heads.
    """
    mask = causal_mask(i, j)
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)


def example(axes: dict[str, int]) -> None:
    """Run once, on primes such as `g=3, r=2`: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    h, m = g * r, g * r * d
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    grouped_query_attention(query, key, value, is_causal=True)
    GroupedQueryAttention(m, h, g)(torch.randn(b, t, m))
    GroupedQueryAttention.from_multi_head(SelfAttention(m, h), g)
    mean_pool_kv_heads(torch.randn(h * d, m), h, g)
    grouped_query_cost(b, h, g, s, d)
    i, j = torch.arange(s - t, s), torch.arange(s)
    causal_grouped_attention(query, key, value, i, j)
    fused_grouped_attention(query, key, value, i, j)
