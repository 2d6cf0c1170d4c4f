"""# Exercise: real models

To *port* a model is to make its numbers come out of other code. Shapes will not help you: nearly every
mistake here has the right shapes and writes fluent nonsense. You read what a checkpoint means, exactly.

Six tasks, each a little harder than the one before; the last is not answered on the page. Axes: `b` batch,
`h` heads, `g` heads of keys and values, `t` queries, `s` keys, `d` and `e` widths of a head, `m` width of
the model. `torch` is enough; Transformers is not needed. Write the attention out:
`scaled_dot_product_attention` would leave nothing to learn. A task may use what the tasks before it made.

Check your work as often as you like: `attn check real_models` says what is wrong and where, and
`attn check real_models --hint` gives one hint at a time.
"""

import math

import torch
from torch import Tensor


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    is_causal: bool = True,
    **others,
) -> tuple[Tensor, Tensor | None]:
    """Task 1: the seam.

    In every layer, Transformers calls a function of this form, and another can be put in its place: it is the
    seam where a port begins. (The layer itself, its first argument, is left out here.) Yours
    computes softmax(query keyᵀ · scaling + mask) value, by these rules:

    - The result is laid out `b t h e`: time before heads.
    - Query heads that share a key head are neighbours: with h = 4 and g = 2, heads 0 and 1 use key head 0.
    - `attention_mask` is None, or can be broadcast to `b h t s`: booleans, True where a query may see a
      key, or floats to be added. If a boolean row is False everywhere (padding asks, too), its result is 0.
    - A mask says everything. Without one, a query sees every key, unless `is_causal` and t > 1: then
      query i sees keys 0 to i. One lonely query is a decoding step, the newest token, and sees all.
    - `scaling=None` is d^(-1/2).
    - `others` is whatever else the model passes: `dropout`, `sliding_window` (the mask has it already),
      `position_ids`. Ignore it. But `position_bias` (T5), `s_aux` (gpt-oss's sinks) and `softcap` (Gemma 2)
      change the numbers. To swallow them is how a port runs and is wrong: raise `ValueError` that names
      the first that is not None.

    One text, two queries, two heads; the values are all 1 in head 0, all 2 in head 1. By hand, whatever
    the scores: the result is 1, 2 for the first query, and 1, 2 for the second.

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`.

    **Returns** the pair (result, weights), the second None if you do not want to keep them.
    """
    ### BEGIN SOLUTION
    for name in ("position_bias", "s_aux", "softcap"):
        if others.get(name) is not None:
            raise ValueError(f"{name} came, and is not computed here")
    (h, t, d), (g, s) = query.shape[1:], key.shape[1:3]
    key, value = (x.repeat_interleave(h // g, dim=1) for x in (key, value))
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key)
    scores = scores * (d**-0.5 if scaling is None else scaling)
    if attention_mask is None and is_causal and t > 1:
        attention_mask = torch.ones(t, s, dtype=torch.bool).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores = scores + attention_mask
    empty = (scores == -torch.inf).all(dim=-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    return torch.einsum("b h t s, b h s e -> b t h e", weights, value), weights
    ### END SOLUTION


def split_qkv(fused: Tensor, layout: str, n_heads: int, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Task 2: three in one.

    Many models make queries, keys and values with one matrix. Take it apart. Let r = h / g.

    | `layout` | shape | order of the rows |
    |---|---|---|
    | `"phi3"` | `(h + 2g)d m` | all queries, head by head; then all keys; then all values |
    | `"gpt2"` | `m 3hd` | the same (g = h), but it is stored the other way round, for `x @ fused` |
    | `"falcon"` | `(h + 2g)d m` | key head by key head: the r query heads that share it, its key, its value |
    | `"bloom"` | `3hd m` | head by head: its query, its key, its value (g = h; GPT-NeoX, too) |

    Width 1, by hand. Six rows 0 to 5 for h = g = 2: `"phi3"` has queries 0 1, keys 2 3, values 4 5, and
    `"bloom"` has queries 0 3, keys 1 4, values 2 5. Eight rows for h = 4, g = 2, `"falcon"`: queries
    0 1 4 5, keys 2 6, values 3 7.

    `fused` may also be a bias: it has rows only, in the same order, in every layout.

    **Returns** three matrices for `x @ w.T`, as `nn.Linear` has them: `hd m`, `gd m` and `gd m`; or three
    biases.
    """
    ### BEGIN SOLUTION
    h, g = n_heads, n_kv_heads
    if layout == "gpt2" and fused.ndim == 2:
        fused = fused.T
    if layout in ("phi3", "gpt2"):
        d = fused.shape[0] // (h + 2 * g)
        return fused.split([h * d, g * d, g * d])
    groups = fused.unflatten(0, (g, h // g + 2, -1))
    return groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)
    ### END SOLUTION


def convert_llama(state: dict[str, Tensor], n_heads: int, n_kv_heads: int) -> dict[str, Tensor]:
    """Task 3: a whole checkpoint.

    Bring a Llama as Meta publishes it into the form that Transformers reads. `state` has, for every layer N,
    `layers.N.` followed by a name of the left column, and once each what has no N:

        attention_norm.weight       model.layers.N.input_layernorm.weight
        attention.wq.weight         model.layers.N.self_attn.q_proj.weight     (and k, v, o likewise)
        ffn_norm.weight             model.layers.N.post_attention_layernorm.weight
        feed_forward.w1.weight      model.layers.N.mlp. gate_proj, up_proj or down_proj .weight
        tok_embeddings.weight       model.embed_tokens.weight
        norm.weight                 model.norm.weight
        output.weight               lm_head.weight
        rope.freqs                  (not stored)

    - Meta's feed-forward is `w2(silu(w1(x)) * w3(x))`, Transformers' is
      `down_proj(silu(gate_proj(x)) * up_proj(x))`.
    - Meta turns neighbours, (0, 1), (2, 3), ... of each head; Transformers turns halves, (0, d/2),
      (1, d/2 + 1), ... So rows must move, in each head of what is turned: lesson 5.
    - If there is no `output.weight`, it is *tied*: the embedding serves for both ends. Store it twice.

    A head of width 6, by hand: its new rows are the old rows 0, 2, 4, 1, 3, 5.

    **Returns** the new dict; `state` is left as it was. A tensor that need not change is passed on.
    """
    ### BEGIN SOLUTION

    def halves(weight: Tensor, heads: int) -> Tensor:
        return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    inner = {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        **{f"attention.w{x}": f"self_attn.{x}_proj" for x in "qkvo"},
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    outer = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    heads = {"attention.wq": n_heads, "attention.wk": n_kv_heads}
    new = {}
    for name, tensor in state.items():
        stem = name.removesuffix(".weight")
        if stem in outer:
            new[f"{outer[stem]}.weight"] = tensor
        elif stem.startswith("layers."):
            _, layer, stem = stem.split(".", 2)
            moved = halves(tensor, heads[stem]) if stem in heads else tensor
            new[f"model.layers.{layer}.{inner[stem]}.weight"] = moved
    new.setdefault("lm_head.weight", new["model.embed_tokens.weight"])
    return new
    ### END SOLUTION


def t5_buckets(
    relative: Tensor, *, n_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> Tensor:
    """Task 4: T5's distances.

    T5 adds to each score a number that it has learned for the distance, but not one for every distance. They
    are sorted into buckets: near ones have a bucket each, far ones share.

    `relative` holds j - i: where the key stands, seen from the query. With n buckets for a distance x >= 0,
    and half of them, e = n // 2, for the exact ones, the bucket is

        x                                                              if x < e
        e + floor( log(x / e) / log(max_distance / e) * (n - e) )      otherwise, and at most n - 1

    - If not `bidirectional` (a decoder), x = i - j and n is `n_buckets`. Keys that come later count as x = 0.
    - If `bidirectional`, each direction has half of the buckets: x = |i - j|, n = `n_buckets` // 2, and to
      the bucket of a key that comes *later* n is added.

    Eight buckets and a `max_distance` of 16, by hand. For j - i = -20, -6, -3, -2, -1, 0, 1, 2, 3, 6, 20:
    3 3 2 2 1 0 5 6 6 7 7; and for a decoder 7 5 3 2 1 0 0 0 0 0 0.

    **Returns** whole numbers, in the shape of `relative`.
    """
    ### BEGIN SOLUTION
    n = n_buckets // 2 if bidirectional else n_buckets
    x = relative.abs() if bidirectional else (-relative).clamp(min=0)
    e = n // 2
    # Near distances are looked up as they are; the logarithm of 0 is kept out of their way.
    share = torch.log(x.clamp(min=e) / e) / math.log(max_distance / e)
    far = (e + (share * (n - e)).long()).clamp(max=n - 1)
    bucket = torch.where(x < e, x, far)
    return bucket + n * (relative > 0) if bidirectional else bucket
    ### END SOLUTION


def t5_bias(
    table: Tensor,
    t: int,
    s: int,
    *,
    offset: int = 0,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Tensor:
    """Task 4, continued: what is added.

    `table` is what the model has learned, `n_buckets h`. Query i stands at `offset + i`, key j at j.

    **Returns** `1 h t s`, to be added to the scores. (They are not scaled: T5 calls task 1 with scaling 1.)
    """
    ### BEGIN SOLUTION
    relative = torch.arange(s) - torch.arange(t)[:, None] - offset
    options = {"max_distance": max_distance, "bidirectional": bidirectional}
    return table[t5_buckets(relative, n_buckets=len(table), **options)].permute(2, 0, 1)[None]
    ### END SOLUTION


def padded_inputs(
    attention_mask: Tensor, t: int, *, sliding_window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Task 5: padding on the left.

    To write on, all texts of a batch must end in the same column, so the short ones are padded on the left.
    `attention_mask`, `b s`, has a 1 for each token and a 0 for padding. The queries are the newest t columns;
    the keys are all s, most of them perhaps from a cache.

    **Returns** a pair. First the positions of the queries, `b t`: a text's first token stands at 0, wherever
    its column is, and padding says 0. Then a boolean mask `b 1 t s`, True where a query sees a key: it is no
    padding, does not come later, and is one of the newest `sliding_window` keys, the query's own included.

    One text, 0 0 1 1 1, by hand. For t = 5 the positions are 0 0 0 1 2. For t = 2 they are 1 2, and the mask
    is 0 0 1 1 0 and 0 0 1 1 1. With a window of 2 it is 0 0 1 1 0 and 0 0 0 1 1.
    """
    ### BEGIN SOLUTION
    s = attention_mask.shape[1]
    positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0) * attention_mask.long()
    distance = torch.arange(s - t, s)[:, None] - torch.arange(s)
    seen = distance >= 0
    if sliding_window is not None:
        seen &= distance < sliding_window
    return positions[:, s - t :], seen & attention_mask.bool()[:, None, None]
    ### END SOLUTION


def bloom_alibi(attention_mask: Tensor, slopes: Tensor) -> Tensor:
    """Task 5, continued: ALiBi without queries.

    ALiBi takes slope · (i - j) off a score. BLOOM adds slope · j instead, whatever the query: in a row, i is
    the same for all keys, and a softmax does not see what is added to all. It counts j as above, in tokens
    of the text, with 0 for padding. (Why would columns do as well? We want BLOOM's own numbers.)

    The text above and a slope of 1/2, by hand: 0 0 0 1/2 1.

    **Shapes.** `attention_mask` is `b s`, `slopes` is `h`; the result is `b h 1 s`.
    """
    ### BEGIN SOLUTION
    positions, _ = padded_inputs(attention_mask, attention_mask.shape[1])
    return (slopes[:, None] * positions[:, None])[:, :, None]
    ### END SOLUTION


def layer_output(
    x: Tensor, fused: Tensor, n_heads: int, n_kv_heads: int, reading: tuple[str, str, str, int]
) -> Tensor:
    """Task 6: what nobody wrote down.

    A checkpoint came without its code. There is a layer's matrix, `fused`, and four things are not known. A
    *reading* is an answer to all four, such as `("phi3", "halves", "neighbours", 4)`:

    - how `fused` is ordered: `"phi3"` or `"falcon"`, as in task 2;
    - what is turned with what: `"halves"` as in Transformers, or `"pairs"` as Meta does (task 3). In queries
      and keys, pair p of d/2 is turned by the angle φ = i · 10000^(-2p/d), where i is the position in the
      text, from 0 on: (x1, x2) becomes (x1 cos φ - x2 sin φ, x1 sin φ + x2 cos φ);
    - which key head each query head reads, if g = 2 and h = 4: `"neighbours"` is 0 0 1 1, `"rounds"` 0 1 0 1;
    - how many keys a query sees: its own, and those before it, up to this number in all.

    The scale is d^(-1/2). What do the heads say, if this reading is right?

    **Shapes.** `x` is `b t m` and `fused` is `(h + 2g)d m`; the result is `b t hd`, the heads side by side.
    """
    ### BEGIN SOLUTION
    layout, pairing, sharing, window = reading
    h, g, i = n_heads, n_kv_heads, torch.arange(x.shape[1])
    parts = zip(split_qkv(fused, layout, h, g), (h, g, g), strict=True)
    query, key, value = ((x @ w.T).unflatten(-1, (n, -1)).transpose(1, 2) for w, n in parts)

    d = query.shape[-1]
    angles = i[:, None] * 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    cos, sin = angles.cos(), angles.sin()
    sizes, axis = ((2, d // 2), -2) if pairing == "halves" else ((d // 2, 2), -1)

    def turned(y: Tensor) -> Tensor:
        x1, x2 = y.unflatten(-1, sizes).unbind(axis)
        return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=axis).flatten(-2)

    heads = torch.arange(h)
    read = heads // (h // g) if sharing == "neighbours" else heads % g
    distance = i[:, None] - i
    mask = (distance >= 0) & (distance < window)
    output, _ = attention_forward(turned(query), turned(key)[:, read], value[:, read], mask)
    return output.flatten(2)
    ### END SOLUTION


def readings_that_fit(
    x: Tensor, fused: Tensor, recorded: Tensor, n_heads: int, n_kv_heads: int, window: int
) -> list[tuple[str, str, str, int]]:
    """Task 6, continued: ask the numbers.

    There is a record, too: what the heads did say to `x`. The authors speak of a `window`, but a query may
    see `window` keys or `window + 1`. So there are sixteen readings. Find those that fit.

    A reading *fits* if none of its numbers is further from the record than rounding explains. The record was
    computed in float64 and rounded to its dtype: allow 4 times the `eps` of that dtype, times the record's
    largest absolute number.

    By hand: a text of one token cannot tell halves from pairs, nor one window from the other. So if
    ("phi3", "halves", "neighbours", 4) fits its record, three others do as well. And if the model was scaled
    by something else, perhaps none does.

    **Shapes.** As above; `recorded` is `b t hd`, in float64 or below.

    **Returns** a list of the readings that fit, in any order.
    """
    ### BEGIN SOLUTION
    allowed = 4 * torch.finfo(recorded.dtype).eps * recorded.double().abs().max()
    readings = [
        (layout, pairing, sharing, reach)
        for layout in ("phi3", "falcon")
        for pairing in ("halves", "pairs")
        for sharing in ("neighbours", "rounds")
        for reach in (window, window + 1)
    ]
    return [
        reading
        for reading in readings
        if (layer_output(x, fused, n_heads, n_kv_heads, reading) - recorded).abs().max() <= allowed
    ]
    ### END SOLUTION
