"""A correct solution in as few lines as possible: other primitives, one tensor for keys and values, beams by
a batch that broadcasts."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence


def pad(rows):
    return (
        pad_sequence(rows, batch_first=True),
        pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True),
    )


def cross_attention(query, key, value, padding_mask=None):
    scores = query @ key.mT / query.size(-1) ** 0.5
    real = torch.ones(scores.shape[::3]) if padding_mask is None else padding_mask
    real = real.view(len(real), *[1] * (scores.ndim - 2), -1).to(scores)
    # Without the padding in the maximum, or all real scores could vanish beside it.
    top = scores.detach().masked_fill(real == 0, -torch.inf).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    shares = (scores - top).clamp(max=0).exp() * real
    total = shares.sum(-1, keepdim=True)
    return shares @ value / (total + (total == 0))


class CrossAttention(nn.Module):
    def __init__(self, d_model, d_context, n_heads):
        super().__init__()
        self.d = d_model // n_heads
        for name in "qkvo":
            width = d_context if name in "kv" else d_model
            self.add_module(f"w_{name}", nn.Linear(width, d_model, bias=False))

    def project(self, context):
        both = F.linear(context, torch.cat([self.w_k.weight, self.w_v.weight]))
        return both.unflatten(-1, (2, -1, self.d)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x, context=None, *, keys_values=None, padding_mask=None):
        if (context is not None) + (keys_values is not None) != 1:
            raise ValueError
        query = self.w_q(x).unflatten(-1, (-1, self.d)).transpose(-2, -3)
        key, value = self.project(context) if keys_values is None else keys_values
        found = cross_attention(query, key, value, padding_mask)
        return self.w_o(found.transpose(-2, -3).flatten(-2))


class ContextCache:
    def __init__(self, layer, context, padding_mask):
        self.layer, self.pair, self.real = layer, torch.stack(layer.project(context)), padding_mask

    key = property(lambda self: self.pair[0])
    value = property(lambda self: self.pair[1])

    def attend(self, x):
        if len(x) % len(self.real):
            raise ValueError
        # `b r t m`: the keys get an axis of length 1 for the beams.
        beams = x.unflatten(0, (len(self.real), -1))
        return self.layer(beams, keys_values=self.pair[:, :, None], padding_mask=self.real).flatten(0, 1)

    def keep(self, texts):
        self.pair, self.real = self.pair.index_select(1, texts), self.real.index_select(0, texts)


class VisionProjector(nn.Sequential):
    def __init__(self, d_vision, d_model):
        super().__init__()
        self.add_module("w_in", nn.Linear(d_vision, d_model))
        self.add_module("gelu", nn.GELU())
        self.add_module("w_out", nn.Linear(d_model, d_model))


IMAGE = -200


def insert_images(texts, embedding, images):
    tokens = torch.cat(texts)
    if (tokens == IMAGE).sum() != len(images):
        raise ValueError
    # One long text, each place repeated once for each of its vectors, and the batch cut out of it.
    sizes = torch.where(tokens == IMAGE, images.size(1), 1)
    spread = tokens.repeat_interleave(sizes)
    x = F.embedding(spread.clamp(min=0), embedding)
    x = x.masked_scatter((spread == IMAGE)[:, None], images)
    return pad(x.split([int(part.sum()) for part in sizes.split(list(map(len, texts)))]))


def ask(x, w_q, w_k, n_heads):
    d, c = len(w_k) // n_heads, w_k.size(1)
    by_head = w_q.unflatten(0, (n_heads, d)).mT @ w_k.unflatten(0, (n_heads, d))
    return x[:, None] @ by_head * (c / d) ** 0.5


def answer(found, w_v, w_o):
    heads = found @ w_v.unflatten(0, (found.size(1), -1)).mT
    return F.linear(heads.transpose(1, 2).flatten(2), w_o)
