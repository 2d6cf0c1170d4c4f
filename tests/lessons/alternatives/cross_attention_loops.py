"""A correct solution that never masks: it takes the real keys of each text, one text, head and query at a
time."""

import math

import torch
from torch import nn


def pad(rows):
    longest = max(row.shape[0] for row in rows)
    filled, real = [], []
    for row in rows:
        missing = longest - row.shape[0]
        filled.append(torch.cat([row, torch.zeros(missing, row.shape[1], dtype=row.dtype)]))
        real.append([True] * row.shape[0] + [False] * missing)
    return torch.stack(filled), torch.tensor(real)


def cross_attention(query, key, value, padding_mask=None):
    b, h, t, d = query.shape
    e = value.shape[3]
    results = []
    for text in range(b):
        real = range(key.shape[2])
        if padding_mask is not None:
            real = [j for j in real if padding_mask[text, j]]
        for head in range(h):
            for i in range(t):
                if len(real) == 0:
                    # Zero times everything, so that the gradients exist and are 0.
                    nothing = query[text, head, i].sum() + key[text, head].sum() + value[text, head].sum()
                    results.append(0 * nothing.expand(e))
                    continue
                scores = [(query[text, head, i] * key[text, head, j]).sum() / math.sqrt(d) for j in real]
                top = max(score.item() for score in scores)
                shares = [torch.exp(score - top) for score in scores]
                total = sum(shares)
                mean = sum(
                    share / total * value[text, head, j] for share, j in zip(shares, real, strict=True)
                )
                results.append(mean)
    return torch.stack(results).view(b, h, t, e)


class CrossAttention(nn.Module):
    def __init__(self, d_model, d_context, n_heads):
        super().__init__()
        self.w_q, self.w_o = nn.Linear(d_model, d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.w_k, self.w_v = (nn.Linear(d_context, d_model, bias=False) for _ in range(2))
        self.d = d_model // n_heads

    def heads(self, x):
        return torch.stack(x.split(self.d, dim=2), dim=1)

    def project(self, context):
        return self.heads(self.w_k(context)), self.heads(self.w_v(context))

    def forward(self, x, context=None, *, keys_values=None, padding_mask=None):
        if context is not None and keys_values is not None:
            raise ValueError("a context and a pair")
        if context is None and keys_values is None:
            raise ValueError("no context and no pair")
        if context is not None:
            keys_values = self.project(context)
        found = cross_attention(self.heads(self.w_q(x)), *keys_values, padding_mask)
        return self.w_o(torch.cat(list(found.unbind(1)), dim=-1))


class ContextCache:
    def __init__(self, layer, context, padding_mask):
        self.attention = layer
        self.key, self.value = layer.project(context)
        self.real = padding_mask

    def attend(self, x):
        texts = self.key.shape[0]
        beams = x.shape[0] // texts
        if beams * texts != x.shape[0]:
            raise ValueError("beams and texts do not fit")
        outputs = []
        for row in range(x.shape[0]):
            text = row // beams
            own = slice(text, text + 1)
            pair = self.key[own], self.value[own]
            outputs.append(self.attention(x[row : row + 1], keys_values=pair, padding_mask=self.real[own]))
        return torch.cat(outputs)

    def keep(self, texts):
        def chosen(parts):
            return torch.stack([parts[text] for text in texts.tolist()])

        self.key, self.value, self.real = chosen(self.key), chosen(self.value), chosen(self.real)


class VisionProjector(nn.Module):
    def __init__(self, d_vision, d_model):
        super().__init__()
        self.w_in, self.w_out = nn.Linear(d_vision, d_model), nn.Linear(d_model, d_model)

    def forward(self, features):
        hidden = self.w_in(features)
        return self.w_out(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


IMAGE = -200


def insert_images(texts, embedding, images):
    used, rows = 0, []
    for text in texts:
        row = []
        for token in text.tolist():
            if token != IMAGE:
                row.append(embedding[token])
            elif used == len(images):
                raise ValueError("too few images")
            else:
                row.extend(images[used])
                used += 1
        rows.append(torch.stack(row))
    if used < len(images):
        raise ValueError("too many images")
    return pad(rows)


def ask(x, w_q, w_k, n_heads):
    (m, c), asked = w_k.shape, []
    d = m // n_heads
    for head in range(n_heads):
        rows = slice(head * d, (head + 1) * d)
        asked.append(x @ (w_q[rows].T @ w_k[rows]) * math.sqrt(c) / math.sqrt(d))
    return torch.stack(asked, dim=1)


def answer(found, w_v, w_o):
    n_heads, d = found.shape[1], len(w_v) // found.shape[1]
    output = 0
    for head in range(n_heads):
        own = slice(head * d, (head + 1) * d)
        output = output + found[:, head] @ (w_o[:, own] @ w_v[own]).T
    return output
