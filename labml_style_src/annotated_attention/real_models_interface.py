r"""# The attention interface

A formula that agrees with PyTorch to the last bits has still never seen a model. There, somebody else makes the
mask. Prompts are read at once and answers token by token, from a cache that somebody else keeps. Texts of a
batch are padded on the left. Heads share keys, every other layer has a window, queries arrive scaled. Whoever
gets one of these wrong sees no error: a model with weights trained for months writes a little worse.

So put the course's functions where the library calls its own, and ask that every logit stay where it was.
Transformers has a table of attention functions, and a name in it is enough. After `register()` from this page

```python
model.set_attn_implementation("annotated")
```

puts lesson 8 into Llama, lessons 8 and 9 into Mistral, lesson 10 into gpt-oss and lesson 4 into Whisper. T5
brings its biases along.

![Models and lessons. Five ask for a function by its name, and get what was put there. The two below have no such
place: whole modules of theirs are exchanged.](figure:seams)

## What came before

Until the end of 2024, each architecture of Transformers had a class for each kernel, `LlamaSdpaAttention` beside
`LlamaAttention`, and who wanted another attention replaced methods at run time. Now a layer projects, turns and
caches, then looks up a function by name. What is left to be agreed on is what goes in.

## What goes in

`(module, query, key, value, attention_mask, scaling=..., dropout=..., **others)`, and out come an answer and
weights. Queries are `b h t d`; keys and values come from the cache already and have their own `g` heads. Six
things are not in the signature, and none of them raises an error.

- *The name decides what a mask is.* Under `"eager"`, floats to be added; under `"sdpa"`, booleans, True attends.
  A second table maps names to functions that make masks. A name that is missing there gets **no mask at all**:
  padding is attended to, and nobody says so [check:test_without_a_mask_function_padding_is_attended_to].
- *None is not nothing.* It means that the future alone is hidden, if `module.is_causal`; and not even that if
  $t = 1$, since that query stands last. Read top-left there, it would see the oldest key only
  [check:test_none_means_causal_but_for_one_query].
- *The least number is not* $-\infty$. A row of padding that may see nothing gets the mean of all values under
  `"eager"`, and 0 under `"sdpa"` and here. No other row notices [check:test_left_padding].
- *Scaling is the model's.* Whisper has scaled its queries already and passes 1; T5 never scales.
- *The answer is* `b t h e`, time before heads. With `b h t e`, a text of as many tokens as heads has its axes
  exchanged, and all other texts are scrambled by the `reshape` that follows
  [check:test_the_answer_has_time_before_heads].
- *`**others` swallows.* gpt-oss passes its sink logits as `s_aux`, T5 its biases as `position_bias`, Mistral
  its window as `sliding_window`, although the mask has it too. A function that does not know a name drops it:
  gpt-oss without its sinks is another model [check:test_dropped_sinks_are_silent].

## Two fillings

The first takes masks as they come, and makes what lesson 1 makes, a score for each pair. The second takes none.
It knows where queries stand: they are the last $t$ of $s$ keys, whatever cache lies in front, full or sliding.
So windows cost $t\,w$ and full layers keep no matrix: lessons 9 and 13, in models not written for them.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | queries, turned by the model |
| $\mathbf{k}_j$ | `key` | `b g s d` | keys, those of the cache first |
| $\mathbf{v}_j$ | `value` | `b g s e` | values, those of the cache first |
| $M_{ij}$ | `attention_mask` | `b 1 t s` | booleans, or floats to be added; or None |
| $B_{hij}$ | `position_bias` | `1 h t s` | T5: what is added to the scores |
| $z_h$ | `s_aux` | `h` | gpt-oss: the score of nothing (lesson 10) |
| $\lambda$ | `scaling` | scalar | what products are multiplied with |
| $w$ | `sliding_window` | scalar | keys that a query sees, its own included |
| $p$ | `past` | scalar | keys before the first query, $s - t$ |

**Source.** Transformers 5.23: `modeling_utils.py`, `masking_utils.py`, `integrations/sdpa_attention.py`.
"""

from functools import partial
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from annotated_attention.attention_sinks_logits import (
    fused_sink_attention,
    sink_attention,
    sink_gate,
)
from annotated_attention.flash import flash_attention
from annotated_attention.flash_decoding import flash_behind_a_cache
from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.sliding_window import (
    sliding_window_attention,
    window_tiles,
)
from annotated_attention.sliding_window_tiles import attend_in_tiles

__all__ = ["library", "masked", "no_mask", "register", "tiled"]
__all__ += ["window_with_sinks"]


def library() -> ModuleType:
    """## Not needed by the rest of the course

    Transformers is imported when it is asked for; `ImportError` says how to come by it
    [check:test_a_missing_library_is_named].
    """
    try:
        import transformers
    except ImportError as error:
        wanted = 'pip install "annotated-attention[models]"'
        came = "Transformers is not installed"
        raise ImportError(f"{came}: {wanted}") from error
    return transformers


def register() -> None:
    """## Two names

    `"annotated"` has its masks made by the function that makes them for SDPA: booleans, True attends, as in
    this course. `"annotated_tiled"` has a function that makes none, and refuses where one is needed.

    A model takes a name with `set_attn_implementation`, or `attn_implementation=` when it is loaded.
    """
    transformers = library()
    from transformers.masking_utils import sdpa_mask

    attention = transformers.AttentionInterface
    masks = transformers.AttentionMaskInterface
    attention.register("annotated", masked)
    masks.register("annotated", sdpa_mask)
    attention.register("annotated_tiled", tiled)
    masks.register("annotated_tiled", no_mask)


def masked(
    module: nn.Module,
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    attention_mask: Shaped[Tensor, "..."] | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    s_aux: Float[Tensor, "h"] | None = None,
    position_bias: Float[Tensor, "..."] | None = None,
    **others: object,
) -> tuple[Float[Tensor, "b t h e"], None]:
    r"""## With masks

    Logits and gradients agree with the library's own, for Llama [check:test_llama]
    [check:test_gradients_of_llama], Mistral [check:test_mistral], gpt-oss [check:test_gpt_oss], Whisper's three
    kinds of attention [check:test_whisper] and T5's [check:test_t5]. With the library's caches, `generate`
    writes the same tokens [check:test_generation_writes_the_same_tokens]. Texts may be padded on the left
    [check:test_left_padding]. And it is this function that is called, once for each attention of a model
    [check:test_our_functions_are_called].

    **Raises.** `ValueError` for what would have to be ignored [check:test_what_cannot_be_done_is_refused].
    """
    refuse(dropout, others)
    t, s = query.shape[2], key.shape[2]

    # Top-left is right: behind a cache with a past a mask is always made, so if there are more keys than
    # queries, they are slots of a static cache that lie in the future.
    mask = attention_mask
    if mask is None and t > 1 and looks_back(module, is_causal):
        mask = query.new_ones(t, s, dtype=torch.bool).tril()

    # T5 has its positions here, and no others: forgotten, words have no order.
    if position_bias is not None:
        mask = with_mask(position_bias, mask)

    # Lesson 8 does not repeat the keys of a group, as `"eager"` does. With one key head for each query head, it
    # is lesson 1, and with keys that come from elsewhere lesson 4.
    if s_aux is None:
        attend = grouped_query_attention
        output = attend(query, key, value, mask, scale=scaling)
    else:
        given = query, key, value, s_aux, mask
        output = sink_attention(*given, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def with_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """A bias, and whatever kind of mask there is."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, -torch.inf)
    return bias + mask


def looks_back(module: nn.Module, is_causal: bool | None) -> bool:
    """Whether the future is hidden: a layer says so, unless the call does."""
    said = getattr(module, "is_causal", True)
    return said if is_causal is None else is_causal


def refuse(dropout: float, others: dict[str, object]) -> None:
    """What is not done here: dropout, Gemma 2's `softcap`, pages of continuous batching, a second answer."""
    for name in ("softcap", "cache", "output_attentions"):
        if others.get(name) not in (None, False):
            wanted = 'None is wanted, or "eager"'
            raise ValueError(f"{name} is {others[name]}: {wanted}")
    if dropout:
        raise ValueError(f"dropout is {dropout}: 0 is wanted")


def no_mask(
    *,
    attention_mask: Bool[Tensor, "b s"] | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    local_size: int | None = None,
    config: object = None,
    **others: object,
) -> None:
    r"""## Without masks

    Called in place of a function that makes masks. What a mask would hold beside windows and the future, the
    tiles cannot know, and so it is refused: padding, texts packed one behind the other, windows to both sides,
    Llama 4's chunks, empty slots of a static cache [check:test_tiles_refuse_what_needs_a_mask].
    """
    wanted = '"annotated" takes masks'
    if attention_mask is not None and not attention_mask.all():
        raise ValueError(f"attention_mask hides padding: {wanted}")
    both_ways = allow_is_bidirectional_skip and local_size is None
    if not (allow_is_causal_skip or both_ways):
        came = "packed texts, two-sided windows or a static cache"
        raise ValueError(f"{came}: {wanted}")
    if getattr(config, "attention_chunk_size", None):
        raise ValueError(f"attention is chunked: {wanted}")


def tiled(
    module: nn.Module,
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    attention_mask: None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    s_aux: Float[Tensor, "h"] | None = None,
    **others: object,
) -> tuple[Float[Tensor, "b t h e"], None]:
    r"""The same logits for Llama, Mistral, gpt-oss and BERT [check:test_tiles_agree], at once, in pieces and
    token by token [check:test_tiles_read_in_pieces]. No tensor has $t\,s$ entries: twice the text, twice the
    largest tensor [check:test_memory_of_the_tiles_is_linear].

    **When it fails.** Padding, as said. And versions: Transformers 5.15 was the first whose T5 asks for a
    function, and only from 5.20 on does `set_attn_implementation` reach it. Before, the name is accepted and
    nothing happens.

    **In production** stands a kernel: `"sdpa"`, `"flash_attention_2"` or `"flex_attention"`, each with a mask
    function of its own; or vLLM's attention, which runs Transformers' models through this same table.
    """
    refuse(dropout, others)
    bias = others.get("position_bias")
    if attention_mask is not None or bias is not None:
        raise ValueError('a mask or a bias came: "annotated" takes them')
    past = key.shape[2] - query.shape[2]
    causal = looks_back(module, is_causal)
    if sliding_window is not None and not causal:
        raise ValueError(f"a window of {sliding_window} looks both ways")

    # A sliding cache answers with the last $w - 1$ keys and the new ones: fewer than the text has, but without
    # a gap. Only differences count, so positions may begin at its first key.
    if sliding_window is not None:
        qkv, w = (query, key, value), sliding_window
        if s_aux is None:
            where = {"scale": scaling, "offset": past}
            output = sliding_window_attention(*qkv, w, **where)
        else:
            output = window_with_sinks(*qkv, s_aux, w, scaling)
        return output.transpose(1, 2).contiguous(), None

    # The past has a reader of its own (lesson 13). Lesson 10's gate needs nothing but the logsumexp of both.
    qkv = query, key, value
    if causal:
        output, lse = flash_behind_a_cache(*qkv, past, scale=scaling)
    else:
        output, lse = flash_attention(*qkv, scale=scaling)
    if s_aux is not None:
        gate = sink_gate(lse, s_aux.to(lse.dtype))
        output = (output * gate).to(query.dtype)
    return output.transpose(1, 2).contiguous(), None


def window_with_sinks(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    sink_logits: Float[Tensor, "h"],
    window: int,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""### A window and a sink

    gpt-oss has both in every other layer. Lesson 9's tiles are attention of a few queries over a few keys, so
    any attention may stand in them, lesson 10's for one [check:test_tiles_are_masks].
    """
    t, s = query.shape[2], key.shape[2]
    where = {"offset": s - t, "device": key.device}
    tiles = partial(window_tiles, t, s, window, **where)

    def attend(q, k, v, mask, z):
        return fused_sink_attention(q, k, v, z, mask, scale=scale)

    return attend_in_tiles(attend, tiles, query, key, value, sink_logits)


def example(axes: dict[str, int]) -> None:
    """A prompt behind a cache: the shapes beside the code are read off this run."""
    b, g, r, t, p, d, e, w = (axes[letter] for letter in "bgrtsdew")
    h, s, layer = g * r, p + t, nn.Module()
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    masked(layer, query, key, value, None)
    masked(layer, query, key, value, None, s_aux=torch.zeros(h))
    tiled(layer, query, key, value, None, s_aux=torch.zeros(h))
    tiled(layer, query, key, value, None, sliding_window=w)
    window_with_sinks(query, key, value, torch.zeros(h), w)
