"""A correct solution written with loops and plain Python numbers, as somebody new to tensors might."""

import math

import torch


def turn(x, positions):
    half = x.shape[-1] // 2
    turned = x.clone()
    for n, position in enumerate(positions.tolist()):
        for pair in range(half):
            angle = position / 10000 ** (pair / half)
            one, two = x[:, :, n, pair], x[:, :, n, pair + half]
            turned[:, :, n, pair] = one * math.cos(angle) - two * math.sin(angle)
            turned[:, :, n, pair + half] = one * math.sin(angle) + two * math.cos(angle)
    return turned


def softmax_off_by_one(scores):
    rows = []
    for row in scores.reshape(-1, scores.shape[-1]):
        top = max(0.0, row.max().item())
        total = math.exp(-top)
        for score in row.tolist():
            total += math.exp(score - top)
        rows.append((row - top).exp() / total)
    return torch.stack(rows).reshape(scores.shape)


def sink_attention(query, key, value, sink_logits, attn_mask=None, scale=None):
    b, h, t, d = query.shape
    if attn_mask is not None:
        attn_mask = attn_mask.expand(b, h, t, key.shape[2])
    texts = []
    for text in range(b):
        heads = []
        for head in range(h):
            rows = []
            for i in range(t):
                k, v = key[text, head], value[text, head]
                if attn_mask is not None:
                    seen = attn_mask[text, head, i]
                    k, v = k[seen], v[seen]
                if len(k) == 0:
                    rows.append(0 * value[text, head].sum(dim=0))
                    continue
                scores = (k * query[text, head, i]).sum(dim=-1)
                scores = scores / math.sqrt(d) if scale is None else scores * scale
                top = torch.maximum(scores.max(), sink_logits[head]).detach()
                shares = torch.exp(scores - top)
                total = shares.sum() + torch.exp(sink_logits[head] - top)
                rows.append((shares[:, None] * v).sum(dim=0) / total)
            heads.append(torch.stack(rows))
        texts.append(torch.stack(heads))
    return torch.stack(texts)


def kept(n_read, n_sinks, window):
    return torch.tensor([j for j in range(n_read) if j < n_sinks or n_read - j <= window])


def inside(n_read, n_sinks, window):
    held = kept(n_read, n_sinks, window).tolist()
    return torch.tensor([held.index(j) if j in held else -1 for j in range(n_read)])


class SinkCache:
    """Each slot remembers which token of the text it holds."""

    def __init__(self, n_sinks, window):
        self.n_sinks, self.size = n_sinks, n_sinks + window
        self.tokens = []
        self.n_read = 0

    def update(self, key, value):
        b, h, _, d = key.shape
        if self.n_read == 0:
            self.keys = torch.zeros(b, h, self.size, d, dtype=key.dtype)
            self.values = torch.zeros(b, h, self.size, value.shape[-1], dtype=value.dtype)
        if len(self.tokens) < self.size:
            slot = len(self.tokens)
            self.tokens.append(self.n_read)
        else:
            slot = self.tokens.index(min(token for token in self.tokens if token >= self.n_sinks))
            self.tokens[slot] = self.n_read
        self.keys[:, :, slot] = key[:, :, 0]
        self.values[:, :, slot] = value[:, :, 0]
        self.n_read += 1
        return self.keys[:, :, : len(self.tokens)], self.values[:, :, : len(self.tokens)]

    @property
    def positions(self):
        ranks = sorted(self.tokens)
        return torch.tensor([ranks.index(token) for token in self.tokens])


def next_token(query, key, value, cache):
    keys, values = cache.update(key, value)
    positions = cache.positions
    query = turn(query, torch.tensor([len(positions) - 1]))
    none = torch.full((query.shape[1],), -math.inf, dtype=query.dtype)
    return sink_attention(query, turn(keys, positions), values, none)


def distances(t, n_sinks, window):
    rows = []
    for i in range(t):
        places = inside(i + 1, n_sinks, window).tolist()
        row = [places[i] - place if place >= 0 else -1 for place in places]
        rows.append(row + [-1] * (t - len(row)))
    return torch.tensor(rows)


def all_at_once(query, key, value, n_sinks, window):
    """Each query gathers the tokens it would find, and counts them anew."""
    outputs = []
    for i in range(query.shape[2]):
        held = kept(i + 1, n_sinks, window)
        place = torch.arange(len(held))
        k = turn(key[:, :, held], place)
        q = turn(query[:, :, i : i + 1], place[-1:])
        none = torch.full((q.shape[1],), -math.inf, dtype=q.dtype)
        outputs.append(sink_attention(q, k, value[:, :, held], none))
    return torch.cat(outputs, dim=2)


def with_sink(query, key, value, sink_logits, attn_mask=None):
    """The scale goes into the queries, so that the kernel's is 1; the sink comes first."""
    b, h, t, d = query.shape
    s, e = value.shape[2:]
    new_query = torch.ones(b, h, t, 1 + d, dtype=query.dtype)
    new_query[..., 1:] = query / math.sqrt(d)
    new_key = torch.zeros(b, h, 1 + s, 1 + d, dtype=key.dtype)
    new_key[:, :, 1:, 1:] = key
    new_value = torch.zeros(b, h, 1 + s, e, dtype=value.dtype)
    new_value[:, :, 1:] = value
    for head, logit in enumerate(sink_logits.tolist()):
        new_key[:, head, 0, 0] = logit
    mask = torch.ones(b, h, t, 1 + s, dtype=torch.bool)
    if attn_mask is not None:
        mask[..., 1:] = attn_mask
    return new_query, new_key, new_value, mask, 1.0


def merged(outputs, lses, sink_logits):
    """One part after another: the sink is the first of them, with the output 0."""
    output = torch.zeros_like(outputs[0])
    lse = torch.zeros_like(lses[0]) + sink_logits[:, None]
    for new_output, new_lse in zip(outputs, lses, strict=True):
        total = torch.logaddexp(lse, new_lse)
        safe = total.clamp(min=-1e300)
        output = output * torch.exp(lse - safe)[..., None] + new_output * torch.exp(new_lse - safe)[..., None]
        lse = total
    return output
