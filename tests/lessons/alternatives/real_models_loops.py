"""A correct solution with loops and plain Python numbers: every rule is written down where it is used."""

import math

import torch


def attention_forward(query, key, value, attention_mask=None, *, scaling=None, is_causal=True, **others):
    for name in ["s_aux", "softcap", "position_bias"]:
        if name in others and others[name] is not None:
            raise ValueError("cannot do " + name)
    b, h, t, d = query.shape
    g, s = key.shape[1], key.shape[2]
    if scaling is None:
        scaling = 1 / math.sqrt(d)
    if attention_mask is not None:
        attention_mask = attention_mask.broadcast_to(b, h, t, s)
    result = torch.zeros(b, t, h, value.shape[3], dtype=query.dtype)
    for head in range(h):
        keys, values = key[:, head * g // h], value[:, head * g // h]
        for i in range(t):
            seen = torch.ones(b, s, dtype=torch.bool)
            scores = (keys * query[:, head, i, None]).sum(dim=2) * scaling
            if attention_mask is None:
                if is_causal and t > 1:
                    seen[:, i + 1 :] = False
            elif attention_mask.dtype == torch.bool:
                seen = attention_mask[:, head, i]
            else:
                scores = scores + attention_mask[:, head, i]
            for text in range(b):
                if seen[text].any():
                    weights = torch.softmax(scores[text][seen[text]], dim=0)
                    result[text, i, head] = weights @ values[text][seen[text]]
    return result, None


def owners(layout, h, g):
    """Whose the pieces of width d are, in order: a letter and the number of the head."""
    if layout in ("phi3", "gpt2"):
        queries = [("q", n) for n in range(h)]
        return queries + [("k", n) for n in range(g)] + [("v", n) for n in range(g)]
    pieces = []
    for n in range(g):
        for head in range(n * h // g, (n + 1) * h // g):
            pieces.append(("q", head))
        pieces += [("k", n), ("v", n)]
    return pieces


def split_qkv(fused, layout, n_heads, n_kv_heads):
    if layout == "gpt2" and len(fused.shape) == 2:
        fused = torch.stack([fused[:, column] for column in range(fused.shape[1])])
    pieces = owners(layout, n_heads, n_kv_heads)
    d = len(fused) // len(pieces)
    found = {"q": [], "k": [], "v": []}
    for n, (letter, _) in enumerate(pieces):
        found[letter].append(fused[n * d : n * d + d])
    return [torch.cat(found[letter]) for letter in "qkv"]


RENAMED = [
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attention.wq", "self_attn.q_proj"),
    ("attention.wk", "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
]


def convert_llama(state, n_heads, n_kv_heads):
    embedding = state["tok_embeddings.weight"]
    new = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": state.get("output.weight", embedding),
    }
    numbers = {name.split(".")[1] for name in state if name.startswith("layers.")}
    for number in numbers:
        for meta, name in RENAMED:
            weight = state[f"layers.{number}.{meta}.weight"]
            if meta in ("attention.wq", "attention.wk"):
                heads = n_heads if meta == "attention.wq" else n_kv_heads
                d = len(weight) // heads
                rows = []
                for head in range(heads):
                    first = head * d
                    rows += list(range(first, first + d, 2)) + list(range(first + 1, first + d, 2))
                weight = weight[rows]
            new[f"model.layers.{number}.{name}.weight"] = weight
    return new


def t5_buckets(relative, *, n_buckets=32, max_distance=128, bidirectional=True):
    if relative.ndim:
        options = {"n_buckets": n_buckets, "max_distance": max_distance, "bidirectional": bidirectional}
        return torch.stack([t5_buckets(x, **options) for x in relative])
    distance, first = int(relative), 0
    if bidirectional:
        n_buckets = n_buckets // 2
        if distance > 0:
            first = n_buckets
        distance = abs(distance)
    else:
        distance = -distance if distance < 0 else 0
    exact = n_buckets // 2
    if distance < exact:
        return torch.tensor(first + distance)
    share = (math.log(distance) - math.log(exact)) / (math.log(max_distance) - math.log(exact))
    return torch.tensor(first + min(exact + int(share * (n_buckets - exact)), n_buckets - 1))


def t5_bias(table, t, s, *, offset=0, max_distance=128, bidirectional=True):
    bias = torch.zeros(1, table.shape[1], t, s, dtype=table.dtype)
    for i in range(t):
        for j in range(s):
            relative = torch.tensor(j - (i + offset))
            options = {"max_distance": max_distance, "bidirectional": bidirectional}
            bias[0, :, i, j] = table[t5_buckets(relative, n_buckets=table.shape[0], **options)]
    return bias


def padded_inputs(attention_mask, t, *, sliding_window=None):
    b, s = attention_mask.shape
    positions, mask = torch.zeros(b, t, dtype=torch.long), torch.zeros(b, 1, t, s, dtype=torch.bool)
    for text in range(b):
        for row in range(t):
            i = s - t + row
            positions[text, row] = max(int(attention_mask[text, : i + 1].sum()) - 1, 0)
            for j in range(i + 1):
                near = sliding_window is None or i - j < sliding_window
                mask[text, 0, row, j] = near and attention_mask[text, j] == 1
    return positions, mask


def bloom_alibi(attention_mask, slopes):
    bias = torch.zeros(len(attention_mask), len(slopes), 1, attention_mask.shape[1], dtype=slopes.dtype)
    for text, row in enumerate(attention_mask.tolist()):
        count = 0
        for j, there in enumerate(row):
            if there:
                bias[text, :, 0, j] = slopes * count
                count += 1
    return bias


def turn(head, pairing):
    """One head's queries or keys, `b t d`."""
    t, d = head.shape[1:]
    out = torch.zeros_like(head)
    for p in range(d // 2):
        first, second = (p, p + d // 2) if pairing == "halves" else (2 * p, 2 * p + 1)
        for i in range(t):
            angle = i * 10000 ** (-2 * p / d)
            x1, x2 = head[:, i, first], head[:, i, second]
            out[:, i, first] = x1 * math.cos(angle) - x2 * math.sin(angle)
            out[:, i, second] = x1 * math.sin(angle) + x2 * math.cos(angle)
    return out


def layer_output(x, fused, n_heads, n_kv_heads, reading):
    layout, pairing, sharing, window = reading
    heads = {}
    pieces = owners(layout, n_heads, n_kv_heads)
    for owner, weight in zip(pieces, fused.chunk(len(pieces)), strict=True):
        made = x @ weight.T
        heads[owner] = made if owner[0] == "v" else turn(made, pairing)
    outputs = []
    for n in range(n_heads):
        shared = n * n_kv_heads // n_heads if sharing == "neighbours" else n % n_kv_heads
        query, key, value = heads["q", n], heads["k", shared], heads["v", shared]
        rows = []
        for i in range(x.shape[1]):
            first = max(0, i - window + 1)
            scores = key[:, first : i + 1] @ query[:, i, :, None] / math.sqrt(query.shape[2])
            rows.append((scores.softmax(dim=1) * value[:, first : i + 1]).sum(dim=1))
        outputs.append(torch.stack(rows, dim=1))
    return torch.cat(outputs, dim=2)


def readings_that_fit(x, fused, recorded, n_heads, n_kv_heads, window):
    found = []
    allowed = 4 * torch.finfo(recorded.dtype).eps * float(recorded.abs().max())
    for layout in ["phi3", "falcon"]:
        for pairing in ["halves", "pairs"]:
            for sharing in ["neighbours", "rounds"]:
                for keys in [window, window + 1]:
                    reading = (layout, pairing, sharing, keys)
                    output = layer_output(x, fused, n_heads, n_kv_heads, reading)
                    if float((output - recorded.to(output.dtype)).abs().max()) <= allowed:
                        found.append(reading)
    return found
