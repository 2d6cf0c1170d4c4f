r"""# Grouped-query attention

To write one token, a decoder reads all that it has kept of the text: a key and a value for every token, in
each head of each layer. Were there one for each of the 64 heads in the 80 layers of Llama-2-70B, 4,096 tokens
would weigh 10 GiB [check:test_cache_table|10 GiB], and all of it would be read again for the next token. Each
number is multiplied once and added once. The arithmetic is done at once; the rest is waiting for memory.

So let several heads share what they read (GQA). Of $h$ query heads, $r$ neighbours use one of $g = h/r$ heads
of keys and values. Counted from 0, head $n$ belongs to group $u = \lfloor n/r \rfloor$:

$$\mathbf{o}_i^{n} = \sum_j \operatorname{softmax}_j\big(\lambda\, \mathbf{q}_i^{n}{}^\top
\mathbf{k}_j^{u}\big)\, \mathbf{v}_j^{u} .$$

With $g = h$ this is multi-head, with $g = 1$ *multi-query* attention, MQA
[check:test_one_function_from_multi_head_to_multi_query|one function]. Of the cache, $g/h$ is left to keep and
to read.

![Eight query heads, and the heads of keys and values that they read. A line is drawn where changing the key
moves the output.](figure:heads)

## What came before

The obvious savings are fewer heads, or narrower ones. Shazeer tried both in 2019, and a third: keep all query
heads, and give them a single head of keys and values. It lost least (arXiv:1911.02150, tables 1 and 3), and a
token of a translation took 3.8 microseconds on a TPU in place of 46 (table 2). PaLM and Falcon-7B are built
so. But a single head is a deep cut in a large model, and whoever has trained one with many heads would have to
begin again. Ainslie et al. answered both in 2023: any $g$ in between, and a way to convert what is trained.

## Operations per byte

A score takes $2d$ operations, and so does its share of the output: $4\,h s d$ for a new token in one layer.
It reads $2\,g s d$ numbers, of two bytes each in bfloat16. That makes

$$\frac{4\, h s d}{2 \cdot 2\, g s d} = \frac{h}{g} = r$$

operations a byte [check:test_operations_per_byte]. An H100 can do about 300 in the time that it takes to read
one (989 TFLOP/s, 3.35 TB/s): with $r = 1$ it idles. Writing for many people at once does not help, though
it does with the weights: those are one model's, but every text has keys of its own.

In training and in prefill, $t$ queries meet each key, and $r\,t$ operations a byte are plenty. Little is
gained there: the operations do not depend on $g$ [check:test_operations_do_not_depend_on_g], except in $W_K$
and $W_V$, which become smaller.

## A group is one head with more queries

If $r$ heads have the same keys and values, only their queries tell them apart, and no query takes part in
another's softmax. So they are one head that asks $r\,t$ questions, not $t$. Fold the group into time, and
multi-head attention with $g$ heads is left [check:test_a_group_is_one_head_with_more_queries].

![Three heads, two queries each, on the same keys. Left: three heads, the keys repeated. Right: one head with
six queries. The weights are the same.](figure:fold)

What is given up? Repeat the rows of $W_K$ and $W_V$, $r$ times for each head, and multi-head attention
computes the same [check:test_is_multi_head_with_tied_weights]: neighbours must agree on what to show, not on
what to ask. They still look in $h$ places, but two that look at one place bring back one value.

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

**Source.** Ainslie et al. (2023), arXiv:2305.13245, sections 2.1 and 2.2, which have no formulas; their $H$
and $G$ are our $h$ and $g$. Shazeer (2019), arXiv:1911.02150, section 3; his $k$ and $v$ are our $d$ and $e$,
his $n$ and $m$ our $t$ and $s$. Section 3.1 counts memory per operation, the inverse of ours.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from annotated_attention.language_model import SelfAttention, causal_attention, causal_mask
from annotated_attention.language_model_slot import Attend, Cache, placed
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import attention_weights, check_inputs

__all__ = ["GroupedQueryAttention", "causal_grouped_attention", "fused_grouped_attention"]
__all__ += ["grouped_query_attention", "grouped_query_cost", "mean_pool_kv_heads"]


def grouped_query_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## One function for all three

    The number of key heads says which of them it is. Outputs and gradients agree with PyTorch's under
    `enable_gqa=True` [check:test_agrees_with_pytorch] [check:test_gradcheck].

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, with $h$ a multiple of $g$.
    `attn_mask` broadcasts to `b h t s` and means what it means in lesson 1: True attends
    [check:test_masks_agree_with_pytorch]. `is_causal` is aligned top-left. The result is `b h t e`, and 0 in
    rows without a key.

    **Raises.** `ValueError` if the shapes or the mask do not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa=True)
    (b, h, t, _), (g, s) = query.shape, key.shape[1:3]
    r = h // g

    # Neighbours form a group: `g` outside, `r` inside. With `(r g)`, which is what `repeat` does to keys,
    # head 1 would read key head 1: right shape, another model [check:test_neighbours_share_a_head].
    wide = torch.promote_types(query.dtype, torch.float32)
    q = rearrange(query.to(wide), "b (g r) t d -> b g (r t) d", g=g)
    k, v = key.to(wide), value.to(wide)

    # A mask is folded as the queries are, once it has a row for each [check:test_masks_broadcast].
    if is_causal:
        attn_mask = query.new_ones(t, s, dtype=torch.bool).tril()
    if attn_mask is not None:
        mask = attn_mask.expand(b, h, t, s)
        attn_mask = rearrange(mask, "b (g r) t s -> b g (r t) s", g=g)

    # From here on this is lesson 1 with $g$ heads. Forward and backward, a decoding step makes no tensor of
    # more numbers than the keys have; `repeat_interleave` makes two of $r$ times as many
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

    Lesson 3's self-attention, but $W_K$ and $W_V$ make $g$ heads. A cache stands behind them and before the
    attention, so it holds $g$ heads without being told [check:test_cache_is_g_over_h].

    `attend` can be exchanged as there. Llama 2 and 3 and Mistral turn queries and keys (lesson 5), then group
    them: `attend=partial(rotary_attention, attend=causal_grouped_attention)`
    [check:test_rotary_and_groups_compose].

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
        r"""Read with a cache, in any pieces, a text gives what it gives at once
        [check:test_decoding_equals_prefill]. With $g = h$ the layer is lesson 3's
        [check:test_layer_with_all_heads_is_self_attention].
        """
        query = split_heads(self.w_q(x), self.n_heads)
        key = split_heads(self.w_k(x), self.n_kv_heads)
        value = split_heads(self.w_v(x), self.n_kv_heads)
        i, j, k, v = placed(key, value, positions, cache)
        heads = self.attend(query, k, v, i, j)
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

        $W_Q$ and $W_O$ stay. In $W_K$ and $W_V$, the heads of each group give way to their mean. Were they
        equal, nothing would be lost [check:test_equal_heads_convert_exactly]. As it is, the result is a place
        to begin: Ainslie et al. train it for another 5% of the original steps (*uptraining*), and find that
        more than 10% gains little. With eight heads it is of use before that, with one it is not (figure 5).

        **Raises.** `ValueError` if `source` does not attend plainly (but with rotary) and `attend` is None.
        """
        if attend is None and source.attend is not causal_attention:
            came = "source.attend is not causal_attention"
            raise ValueError(f"{came}: its like for groups is wanted as attend")
        attend = causal_grouped_attention if attend is None else attend
        h, m = source.n_heads, source.w_q.in_features
        weights = source.state_dict()
        for name in ("w_k.weight", "w_v.weight"):
            weights[name] = mean_pool_kv_heads(weights[name], h, n_kv_heads)
        copy = cls(m, h, n_kv_heads, attend=attend).to(source.w_q.weight)
        copy.load_state_dict(weights)
        return copy.train(source.training)


def mean_pool_kv_heads(
    weight: Float[Tensor, "..."],
    n_heads: int,
    n_kv_heads: int,
) -> Float[Tensor, "..."]:
    r"""## Mean pooling

    Of all matrices that could stand for the heads of a group, the mean has the least squared distance to them
    [check:test_mean_is_least_squares]. T5-Large, made multi-query and trained on, did best when it began from
    the mean, worse from the first head, worst from random numbers (figure 4). The keys that it gives are the
    mean of the keys [check:test_pooling_weights_pools_keys].

    But a mean of unlike vectors is short. If $r$ heads are uncorrelated and of one size, their mean has
    $1/\sqrt r$ of it: scores shrink, and the softmax is flatter than $W_Q$ was trained for
    [check:test_mean_of_unlike_heads_is_short].

    And heads are unlike by accident. Lesson 2 showed (transposed) that $A^\top W_Q^n$ and $A^{-1} W_K^n$ do
    what $W_Q^n$ and $W_K^n$ did, for any invertible $A$: a model does not care in which basis a head keeps
    its keys. The mean does, and two models that compute the same are pooled to two that do not
    [check:test_pooling_depends_on_the_basis]. Heads that differ by a rotation can be turned back, and nothing
    is lost [check:test_turned_heads_can_be_turned_back]; so Jin et al. (2024, arXiv:2412.20677) begin by
    turning the heads of a model towards one another. With rotary positions, queries and keys are less free:
    turns within their pairs, not across them [check:test_rotary_frees_turns_within_pairs].

    ![Three seeds: bits after the conversion (pale), and after another 5% of the steps.](figure:uptraining)

    Our small models need 2.70 bits with all heads. With one, after another 5% of the steps, it is 3.39 from the
    mean, 3.35 from the first head (better in one seed of three only), 3.50 from a new one.
    Made as long as the heads were, the mean leads to 3.32 [check:test_where_one_head_begins]. Turned towards
    one another first, the heads lead to 3.11 [check:test_turned_heads_are_the_best_start].

    `weight` is that of an `nn.Linear`, with $h\,d$ rows, or its bias. The result has $g\,d$.

    **Raises.** `ValueError` if the rows are no multiple of `n_heads`, or that is none of `n_kv_heads`.
    """
    r = group_size(n_heads, n_kv_heads)
    if weight.ndim not in (1, 2) or weight.shape[0] % n_heads:
        came = f"weight has shape {tuple(weight.shape)}"
        raise ValueError(f"{came}: a multiple of {n_heads} rows is wanted")
    groups = "(g r d) ... -> (g d) ..."
    return reduce(weight, groups, "mean", g=n_kv_heads, r=r)


def group_size(n_heads: int, n_kv_heads: int) -> int:
    """How many query heads share a key head."""
    if n_kv_heads < 1 or n_heads < 1 or n_heads % n_kv_heads:
        came = f"n_heads is {n_heads}, n_kv_heads is {n_kv_heads}"
        raise ValueError(f"{came}: a multiple of n_kv_heads is wanted")
    return n_heads // n_kv_heads


def grouped_query_cost(b: int, h: int, g: int, s: int, d: int) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns, for a new token in each of $b$ texts and one layer, the operations of attention and the bytes of
    keys and values that they read, in bfloat16. What all layers keep of a token
    [check:test_cache_table|this table]:

    | model | layers | $h$ | $g$ | $d$ | with $h$ heads | with $g$ |
    |---|---|---|---|---|---|---|
    | Llama-2-7B | 32 | 32 | 32 | 128 | 512 KiB | 512 KiB |
    | Llama-2-70B | 80 | 64 | 8 | 128 | 2560 KiB | 320 KiB |
    | Llama-3-8B, Mistral-7B | 32 | 32 | 8 | 128 | 512 KiB | 128 KiB |
    | Falcon-7B | 32 | 71 | 1 | 64 | 568 KiB | 8 KiB |

    ![What is kept of one token (full colour), and what all heads would keep (pale).](figure:cache)

    ![Small models, three seeds: the loss against the cache; how much sooner a token is there.](figure:price)

    - *Quality.* T5-XXL scores 47.2 with all heads, 47.1 with $g = 8$, 46.6 with $g = 1$, both uptrained; a
      sample takes 1.51, 0.28 and 0.24 seconds (Ainslie et al., table 1). Models of 0.1 million parameters that
      have one head from the start need as many bits as with eight, but for chance. They do use their heads: the
      same cache with one query head costs 6% more, with narrow heads 20% [check:test_sharing_costs_least].
    - *Short texts.* The weights are read for every token too. Those of Llama-2-7B, 6.7 billion, weigh as much
      as some 25,000 cached tokens [check:test_cache_table|25,000]: with one short text there is little to save.
    - *More devices than key heads.* Then heads are copied, and a device keeps no less: with $g = 1$ from the
      second device on. Eight heads suit the eight devices of one server.
    - *Nothing else is saved.* Each of the $g$ heads is kept in full. Latent attention keeps a narrow vector a
      token, from which the keys and values of all heads are made (DeepSeek-V2, arXiv:2405.04434).
    """
    return 4 * b * h * s * d, 2 * (2 * b * g * s * d)


def fused_grouped_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    i: Int[Tensor, "... t"],
    j: Int[Tensor, "... s"],
) -> Float[Tensor, "b h t e"]:
    r"""## In production

    - **SDPA** takes `enable_gqa=True`, from PyTorch 2.5 on: so in this function, which fits the slot
      [check:test_fused_attention_agrees]. On a GPU a mask rules FlashAttention out, and PyTorch's plain
      formula does repeat the keys [check:test_keys_are_never_repeated|ours does not]. **FlexAttention** takes
      `enable_gqa=True` too [check:test_flex_attention_agrees].
    - **flash-attn** takes fewer key heads without being told, for neighbours as here. For a single query it
      folds the group into time.
    - **Transformers** calls $g$ `num_key_value_heads`. Its eager attention repeats the keys (`repeat_kv`);
      under `"sdpa"` it does so if there is a mask, and else passes `enable_gqa`.
    """
    attend = nn.functional.scaled_dot_product_attention
    return attend(query, key, value, causal_mask(i, j), enable_gqa=True)


def example(axes: dict[str, int]) -> None:
    """Run once, on primes such as `g=3, r=2`: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    h, m, i, j = g * r, g * r * d, torch.arange(s - t, s), torch.arange(s)
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    grouped_query_attention(query, key, value, is_causal=True)
    GroupedQueryAttention(m, h, g)(torch.randn(b, t, m))
    GroupedQueryAttention.from_multi_head(SelfAttention(m, h), g)
    mean_pool_kv_heads(torch.randn(h * d, m), h, g)
    grouped_query_cost(b, h, g, s, d)
    causal_grouped_attention(query, key, value, i, j)
    fused_grouped_attention(query, key, value, i, j)
