r"""# Models that do not ask

BLOOM was published in 2022, Longformer in 2020, and their attention stands in the middle of their layers.
`set_attn_implementation("annotated")` is accepted by both and changes nothing: they never look a name up
[check:test_the_name_changes_nothing]. Compare the logits then, and they agree, with an error of exactly 0.

An error of exactly 0 asks for a second look. The same sums in the same order give it, and so does a function that
is never called. Break the function: if nothing moves, it was not there.

Here the seam, the place where code can be exchanged, is the module. An `nn.Module` is an attribute of its
parent and can be exchanged for another that holds the same weights and answers the same call:

```python
annotate(model)
```

![BLOOM's fused projection, of three heads. Its rows are stored head by head: queries, keys, values of head
0, then of head 1. Read in thirds, as GPT-2's are, most rows land in the wrong matrix.](figure:fused)

## BLOOM: a bias that is made elsewhere

BLOOM has lesson 6. It adds $m_h\,j$ in place of $-m_h\,(i-j)$: in a row the difference is $m_h\,i$, the same
for all keys, and a softmax does not see it. One line of numbers a head then serves all queries. The price is
rounding, for $m_h\,j$ is large where the distance is small. In bfloat16, in which the largest BLOOM was trained,
lesson 6's distances are many times closer to float64 [check:test_distances_round_better_than_positions].

The line is made from the attention mask, $j$ counting the tokens that are not masked. Padding on either side
moves all of a text's tokens alike, and distances stay [check:test_bloom_with_padding]. A hole in the middle
does not: BLOOM closes it up, while distances here go on counting [check:test_a_hole_in_the_mask].

## Longformer: six projections, and another way to count

Its `attention_window` counts the keys of both sides and not the query's own: with our $w$ it is $2(w - 1)$,
so ours is half of it and one. One more or one less runs as well
[check:test_the_window_is_half_of_theirs_and_one]. What it calls `attention_mask` inside is three things at
once, by sign: negative is padding, 0 a local token, positive a global one.

Global tokens have projections of their own, $W^\star$, with biases as all of RoBERTa's. Published checkpoints
made them as copies; in a model with random weights nothing hides a mistake
[check:test_global_tokens_have_projections_of_their_own].

## And BigBird

Transformers' `BigBirdModel` has no counterpart here that would be honest. Its random blocks are drawn for each
head, lesson 12's plan is shared by all; and in evaluation mode they are not drawn at all. The plan is left at
zeros: each query block sees block 0 once for itself and once more for every random block it should have had
(`modeling_big_bird.py`, `_bigbird_block_rand_mask`). A plan is a set, and a set holds nothing twice.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $m_h$ | `alibi_bias` | `h` | slope of head $h$ (lesson 6) |
| $p$ | `past` | scalar | keys before the first query |
| $w$ | `window` | scalar | keys to one side, the query's own included (lesson 11) |
| $W_Q, W_K, W_V$ | `query_key_value` | – | one matrix in BLOOM, $3m$ rows |
| $W^\star$ | `self.heads` | – | with `_global`: projections for global attention |

**Source.** Transformers 5.23, `modeling_bloom.py` and `modeling_longformer.py`. Le Scao et al. (2022),
arXiv:2211.05100; Beltagy et al. (2020), arXiv:2004.05150.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from annotated_attention.alibi import alibi_bias
from annotated_attention.longformer import longformer_attention
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import (
    scaled_dot_product_attention,
)

__all__ = ["BloomAlibi", "LongformerWindow", "annotate", "split_fused"]


def split_fused(
    fused: Float[Tensor, "b t _"],
    n_heads: int,
) -> Float[Tensor, "3 b h t d"]:
    r"""## Three in one

    One product in place of three, and its rows may be stored in any order. BLOOM and GPT-NeoX have them head by
    head, GPT-2 matrix by matrix; the shapes are the same. Head by head, each device of several gets whole heads
    if the matrix is cut anywhere between two [check:test_a_cut_between_heads_keeps_them_whole].
    """
    layout = "b t (h three d) -> three b h t d"
    return rearrange(fused, layout, three=3, h=n_heads)


class BloomAlibi(nn.Module):
    r"""## BLOOM with lesson 6

    `source` is the layer's own attention, whose two projections it goes on to use: nothing is copied, so
    training either trains both [check:test_weights_are_shared]. Logits agree with the library's
    [check:test_bloom], and so do the tokens that are written with its cache
    [check:test_bloom_writes_the_same_tokens].

    **Raises.** `ValueError` if the layer drops weights, which lesson 1's function could do and the proof could
    not follow.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.query_key_value = source.query_key_value
        self.dense = source.dense
        self.n_heads = source.num_heads
        self.layer_idx = source.layer_idx
        self.hidden_dropout = source.hidden_dropout
        refuse(source.attention_dropout.p)

    def forward(
        self,
        hidden_states: Float[Tensor, "b t m"],
        residual: Float[Tensor, "b t m"],
        alibi: Float[Tensor, "bh 1 s"],
        attention_mask: Shaped[Tensor, "b 1 t s"] | None,
        layer_past: Any = None,
        output_attentions: bool | None = False,
        **others: Any,
    ) -> tuple[Float[Tensor, "b t m"], None]:
        refuse(0.0, output_attentions)
        fused = self.query_key_value(hidden_states)
        query, key, value = split_fused(fused, self.n_heads)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)

        # `alibi` is what the model has made, and is left alone. Queries stand behind all older keys.
        t, s = query.shape[2], key.shape[2]
        wide = torch.promote_types(query.dtype, torch.float32)
        past = s - t
        where = {"offset": past, "dtype": wide, "device": query.device}
        bias = alibi_bias(self.n_heads, t, s, **where)

        # The mask comes as floats: 0, and the least of their dtype for the future and for padding. In float32
        # that is as good as $-\infty$, but for rows of padding.
        if attention_mask is not None:
            bias = bias + attention_mask.to(wide)
        attend = scaled_dot_product_attention
        heads = merge_heads(attend(query, key, value, bias))

        # BLOOM adds the residual here, inside.
        p, training = self.hidden_dropout, self.training
        output = F.dropout(self.dense(heads), p, training)
        return residual + output, None


class LongformerWindow(nn.Module):
    r"""## Longformer with lesson 11

    Hidden states agree with the library's [check:test_longformer], with global tokens and without, at padding
    too: there both return 0 [check:test_longformer_with_padding].

    The library fills texts up to a multiple of its window, for its chunks to fit, before the layers are called
    and after the embeddings are known. The tiles would not need it.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.n_heads = source.num_heads
        self.window = source.one_sided_attn_window_size + 1
        self.dropout = source.dropout
        for name in ("query", "key", "value"):
            for kind in ("", "_global"):
                projection = getattr(source, name + kind)
                setattr(self, name + kind, projection)

    def forward(
        self,
        hidden_states: Float[Tensor, "b t m"],
        attention_mask: Float[Tensor, "b t"] | None = None,
        *,
        is_index_masked: Bool[Tensor, "b t"],
        is_index_global_attn: Bool[Tensor, "b t"],
        is_global_attn: bool,
        output_attentions: bool | None = False,
        **others: Any,
    ) -> tuple[Float[Tensor, "b t m"]]:
        refuse(self.dropout if self.training else 0.0, output_attentions)
        starred = None
        if is_global_attn:
            starred = self.heads(hidden_states, "_global")
        query, key, value = self.heads(hidden_states)
        output = longformer_attention(
            query,
            key,
            value,
            self.window,
            is_index_global_attn,
            global_qkv=starred,
            padding_mask=~is_index_masked,
        )
        return (merge_heads(output),)

    def heads(
        self,
        x: Float[Tensor, "b t m"],
        kind: str = "",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, for the window or (`_global`) for global attention."""
        query = split_heads(getattr(self, f"query{kind}")(x), self.n_heads)
        key = split_heads(getattr(self, f"key{kind}")(x), self.n_heads)
        value = split_heads(getattr(self, f"value{kind}")(x), self.n_heads)
        return query, key, value


def refuse(p: float, output_attentions: bool | None = False) -> None:
    """The two classes above drop no weights, and hand none out."""
    if p:
        raise ValueError(f"dropout on the weights is {p}: 0 is wanted")
    if output_attentions:
        raise ValueError("output_attentions is True: False is wanted")


def annotate(model: nn.Module) -> int:
    r"""## All layers

    Exchanges every attention module that it knows, by the name of its class, and returns how many. A loop that
    found nothing would leave the model as it was, and all comparisons perfect; so that is an error.

    **Raises.** `ValueError` if there is none [check:test_a_model_without_a_seam_is_refused].
    """
    known = {
        "BloomAttention": BloomAlibi,
        "LongformerSelfAttention": LongformerWindow,
    }
    found = [
        (parent, name, known[type(child).__name__])
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in known
    ]
    if not found:
        wanted = f"a model with one of {', '.join(known)}"
        came = f"model is {type(model).__name__}"
        raise ValueError(f"{came}: {wanted} is wanted")
    for parent, name, ours in found:
        own = ours(getattr(parent, name)).train(model.training)
        setattr(parent, name, own)
    return len(found)


def example(axes: dict[str, int]) -> None:
    """Stand-ins with the attributes that a layer of each library has."""
    b, h, t, d = (axes[letter] for letter in "bhtd")
    m, x = h * d, torch.randn(b, t, h * d)
    layer = SimpleNamespace(num_heads=h, layer_idx=0, hidden_dropout=0.0, dropout=0.0)
    layer.query_key_value, layer.dense = nn.Linear(m, 3 * m), nn.Linear(m, m)
    layer.attention_dropout = nn.Dropout(0.0)
    BloomAlibi(layer)(x, x, x.new_zeros(b * h, 1, t), x.new_zeros(b, 1, t, t))
    layer.one_sided_attn_window_size = 1
    for name in ("query", "key", "value"):
        setattr(layer, name, nn.Linear(m, m))
        setattr(layer, f"{name}_global", nn.Linear(m, m))
    real = x[:, :, 0] < torch.inf
    masks = {"is_index_masked": ~real, "is_index_global_attn": real}
    LongformerWindow(layer)(x, x[:, :, 0], **masks, is_global_attn=True)
