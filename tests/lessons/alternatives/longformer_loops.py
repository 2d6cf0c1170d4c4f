"""A correct solution that goes through texts and tokens one by one, with sets and lists."""

import math

import torch


def longformer_mask(window, global_mask, padding_mask):
    b, t = global_mask.shape
    mask = torch.zeros(b, t, t, dtype=torch.bool)
    for text in range(b):
        tokens = padding_mask[text].nonzero().flatten().tolist()
        hubs = [j for j in tokens if global_mask[text, j]]
        for i in tokens:
            seen = tokens if i in hubs else hubs + [j for j in tokens if -window < j - i < window]
            mask[text, i, seen] = True
    return mask


def count_scores(t, window, positions):
    if window >= t:
        return t * t
    # All but the two triangles that lie outside the band, each of side t - window.
    side, hubs = t - window, len(positions)
    missing = side * (side + 1)
    for p in positions:
        missing -= 2 * (max(p - window + 1, 0) + max(t - p - window, 0))
    for n in range(hubs):
        for m in range(n):
            missing += 2 if abs(positions[n] - positions[m]) >= window else 0
    return t * t - missing


def pack_globals(global_mask):
    found = [[j for j, yes in enumerate(row) if yes] for row in global_mask.tolist()]
    k = max(len(row) for row in found)
    positions = torch.zeros(len(found), k, dtype=torch.int64)
    real = torch.zeros(len(found), k, dtype=torch.bool)
    for text, row in enumerate(found):
        for slot, j in enumerate(row):
            positions[text, slot] = j
            real[text, slot] = True
    return positions, real


def take_tokens(x, positions):
    return torch.stack([x[text][:, positions[text]] for text in range(x.shape[0])])


def attend(query, keys, values):
    """One query of every head, h d, over some keys, h n d."""
    scores = (query[:, None] * keys).sum(dim=-1) / math.sqrt(query.shape[-1])
    return (torch.softmax(scores, dim=-1)[..., None] * values).sum(dim=1)


def global_rows(query, key, value, output, global_mask, padding_mask):
    rows = output.clone()
    for text in range(len(query)):
        tokens = padding_mask[text].nonzero().flatten()
        for i in tokens.tolist():
            if global_mask[text, i]:
                rows[text, :, i] = attend(query[text, :, i], key[text, :, tokens], value[text, :, tokens])
    return rows


def shared_softmax(window_scores, global_scores, positions, real, padding_mask):
    b, _, t, a = window_scores.shape
    near, far = torch.zeros_like(window_scores), torch.zeros_like(global_scores)
    for text in range(b):
        for i in range(t):
            if not padding_mask[text, i]:
                continue
            places = [c for c in range(a) if 0 <= i + c - a // 2 < t and padding_mask[text, i + c - a // 2]]
            pairs = enumerate(zip(positions[text].tolist(), real[text].tolist(), strict=True))
            used = [n for n, (j, yes) in pairs if yes and abs(j - i) > a // 2]
            scores = torch.cat([window_scores[text, :, i, places], global_scores[text, :, i, used]], dim=1)
            weights = scores.softmax(dim=1)
            near[text, :, i, places] = weights[:, : len(places)]
            far[text, :, i, used] = weights[:, len(places) :]
    return near, far


def longformer_attention(query, key, value, window, global_mask, *, global_qkv=None, padding_mask=None):
    padding_mask = torch.ones_like(global_mask) if padding_mask is None else padding_mask
    mask = longformer_mask(window, global_mask, padding_mask)
    others = global_qkv or (query, key, value)
    texts = []
    for text in range(len(query)):
        rows = []
        for i in range(query.shape[2]):
            asked = others if global_mask[text, i] else (query, key, value)
            keys = mask[text, i].nonzero().flatten()
            if len(keys):
                rows.append(attend(asked[0][text, :, i], asked[1][text][:, keys], asked[2][text][:, keys]))
            else:
                rows.append(torch.zeros_like(value[text, :, i]))
        texts.append(torch.stack(rows, dim=1))
    return torch.stack(texts)


def layers_needed(source, target, t, layers, positions):
    hubs, felt, count = set(positions), {source}, 0
    while target not in felt:
        if count == len(layers):
            return None
        reached = set(range(t)) if felt & hubs else felt | hubs
        for window, dilation in layers[count]:
            for step in range(window):
                reached |= {i + sign * step * dilation for i in felt for sign in (1, -1)}
        felt = {i for i in reached if 0 <= i < t}
        count += 1
    return count
