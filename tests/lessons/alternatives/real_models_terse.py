"""A correct solution in as few lines as possible: einops, index arithmetic and complex numbers."""

import math

import numpy as np
import torch
from einops import rearrange, repeat


def attention_forward(query, key, value, attention_mask=None, *, scaling=None, is_causal=True, **others):
    if bad := [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]:
        raise ValueError(*bad)
    (t, d), (g, s) = query.shape[2:], key.shape[1:3]
    if attention_mask is None:
        attention_mask = query.new_ones(t, s).tril(0 if is_causal and t > 1 else s).bool()
    if attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros(()).to(query).where(attention_mask, torch.tensor(-math.inf).to(query))
    # The group becomes an axis of its own; no key is copied.
    scores = torch.einsum("bgrtd,bgsd->bgrts", rearrange(query, "b (g r) t d -> b g r t d", g=g), key)
    scores = rearrange(scores, "b g r t s -> b (g r) t s") * (d**-0.5 if scaling is None else scaling)
    weights = (scores + attention_mask).softmax(-1).nan_to_num(0.0)
    grouped = rearrange(weights, "b (g r) t s -> b g r t s", g=g)
    return rearrange(torch.einsum("bgrts,bgse->bgrte", grouped, value), "b g r t e -> b t (g r) e"), weights


def split_qkv(fused, layout, n_heads, n_kv_heads):
    fused = fused.T if (layout, fused.ndim) == ("gpt2", 2) else fused
    r, pieces = n_heads // n_kv_heads, np.arange(n_heads + 2 * n_kv_heads)
    if layout in ("falcon", "bloom"):
        # Sorted by who they are, the pieces of the groups lie as in three blocks.
        pieces = pieces.reshape(-1, r + 2)
        pieces = np.concatenate([pieces[:, :r].ravel(), pieces[:, r], pieces[:, r + 1]])
    rows = rearrange(fused, "(n d) ... -> n d ...", n=len(pieces))[torch.from_numpy(pieces)]
    cuts = (n_heads, n_kv_heads, n_kv_heads)
    return tuple(rearrange(part, "n d ... -> (n d) ...") for part in rows.split(cuts))


def convert_llama(state, n_heads, n_kv_heads):
    words = "attention_norm input_layernorm ffn_norm post_attention_layernorm attention self_attn "
    words += "wq q_proj wk k_proj wv v_proj wo o_proj feed_forward mlp w1 gate_proj w2 down_proj w3 up_proj "
    words += "tok_embeddings embed_tokens output lm_head"
    new, words = {}, dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    for name, x in ({"output.weight": state["tok_embeddings.weight"]} | state).items():
        if name == "rope.freqs":
            continue
        for kind, n in (("wq", n_heads), ("wk", n_kv_heads)):
            x = rearrange(x, "(n p two) m -> (n two p) m", n=n, two=2) if f".{kind}." in name else x
        name = ".".join(words.get(word, word) for word in name.split("."))
        new[name if name.startswith("lm_head") else f"model.{name}"] = x
    return new


def t5_buckets(relative, *, n_buckets=32, max_distance=128, bidirectional=True):
    relative = np.asarray(relative)
    n = n_buckets >> bidirectional
    x, e = (abs(relative) if bidirectional else np.maximum(-relative, 0)), n // 2
    # The bucket is the number of bounds that a distance has reached.
    bounds = [*range(1, e), *(e * (max_distance / e) ** (k / (n - e)) for k in range(n - e))]
    return np.searchsorted(np.array(bounds), x, side="right") + n * (bidirectional & (relative > 0))


def t5_bias(table, t, s, *, offset=0, **options):
    relative = np.arange(s) - np.arange(offset, offset + t)[:, None]
    buckets = torch.as_tensor(t5_buckets(relative, n_buckets=table.size(0), **options))
    return table.T[None, :, buckets]


def padded_inputs(attention_mask, t, *, sliding_window=None):
    s = attention_mask.size(1)
    near = torch.ones(s, s).tril().triu(1 - (sliding_window or s)).bool()[s - t :]
    return (attention_mask.cumsum(1) - 1).relu()[:, s - t :], near & (attention_mask == 1)[:, None, None]


def bloom_alibi(attention_mask, slopes):
    return torch.einsum("h,bs->bhs", slopes, (attention_mask.cumsum(1) - 1).relu().to(slopes)).unsqueeze(2)


def layer_output(x, fused, n_heads, n_kv_heads, reading):
    layout, pairing, sharing, window = reading
    (t, d), r = (x.size(1), len(fused) // (n_heads + 2 * n_kv_heads)), n_heads // n_kv_heads
    angles = torch.outer(torch.arange(t).double(), 10000.0 ** (-torch.arange(0, d, 2).double() / d))
    turns = torch.polar(torch.ones_like(angles), angles)
    pattern = "b t (n two p) -> b n t p two" if pairing == "halves" else "b t (n p two) -> b n t p two"
    query, key, value = (x @ w.T for w in split_qkv(fused, layout, n_heads, n_kv_heads))
    query, key = (
        torch.view_as_real(
            torch.view_as_complex(rearrange(y, pattern, p=d // 2, two=2).contiguous()) * turns
        ).flatten(-2)
        for y in (query, key)
    )
    value = rearrange(value, "b t (n d) -> b n t d", d=d)
    rule = "b g t d -> b (g r) t d" if sharing == "neighbours" else "b g t d -> b (r g) t d"
    key, value = (repeat(y, rule, r=r) for y in (key, value))
    _, mask = padded_inputs(torch.ones(1, t), t, sliding_window=window)
    return attention_forward(query, key, value, mask)[0].flatten(2)


def readings_that_fit(x, fused, recorded, n_heads, n_kv_heads, window):
    exact = np.asarray(recorded, dtype=np.float64)
    grid = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], [0, 1])).reshape(4, -1).T.tolist()
    options = ("phi3", "falcon"), ("halves", "pairs"), ("neighbours", "rounds"), (window, window + 1)
    readings = [tuple(kind[n] for kind, n in zip(options, row, strict=True)) for row in grid]
    bound = 4 * torch.finfo(recorded.dtype).eps * np.abs(exact).max()
    outputs = [layer_output(x, fused, n_heads, n_kv_heads, reading).numpy() for reading in readings]
    return [each for each, out in zip(readings, outputs, strict=True) if np.abs(out - exact).max() <= bound]
