"""A correct solution without a loop over tokens: gathers, scatters, running sums and whole tables."""

import numpy as np
import torch
from einops import rearrange, repeat


def longformer_mask(window, global_mask, padding_mask):
    t = global_mask.size(1)
    band = torch.ones(t, t).triu(1 - window).tril(window - 1).bool()
    hub = torch.logical_or(*torch.broadcast_tensors(global_mask.unsqueeze(1), global_mask.unsqueeze(2)))
    return torch.einsum("b t, b s -> b t s", padding_mask.int(), padding_mask.int()).bool() & (band | hub)


def count_scores(t, window, positions):
    hubs = np.sort(np.array(positions, dtype=np.int64))
    reach = min(window - 1, t - 1)
    distances = np.abs(np.subtract.outer(hubs, hubs))
    # What k full rows and columns hold, and the band; less what is in both.
    cross = 2 * len(hubs) * t - len(hubs) ** 2
    width = np.minimum(hubs, reach) + np.minimum(t - 1 - hubs, reach) + 1
    both = 2 * width.sum() - (distances <= reach).sum()
    return int(t + sum(2 * (t - r) for r in range(1, reach + 1)) + cross - both)


def pack_globals(global_mask):
    rank = global_mask.cumsum(dim=1) - 1
    k = int(rank.max()) + 1
    real = torch.arange(k).expand(len(global_mask), k) <= rank[:, -1:]
    # One column more than wanted takes in what is not global.
    slots = torch.zeros(len(global_mask), k + 1, dtype=torch.long)
    slots.scatter_(1, rank.where(global_mask, k), torch.arange(global_mask.shape[1]).expand_as(rank))
    return slots[:, :k] * real, real


def take_tokens(x, positions):
    return x.gather(2, repeat(positions, "b k -> b h k d", h=x.shape[1], d=x.shape[3]))


def global_rows(query, key, value, output, global_mask, padding_mask):
    positions, real = pack_globals(global_mask.logical_and(padding_mask))
    scores = take_tokens(query / query.size(-1) ** 0.5, positions) @ key.mT
    bias = torch.zeros_like(padding_mask, dtype=scores.dtype).masked_fill(~padding_mask, -torch.inf)
    weights = (scores + bias[:, None, None]).softmax(dim=-1).nan_to_num()
    # A matrix of zeros and ones, one column for each slot, takes every answer to its row.
    place = torch.nn.functional.one_hot(positions, query.shape[2]).mul(real[..., None]).to(value.dtype)
    written = torch.einsum("b k t, b h k e -> b h t e", place, weights @ value)
    return written + output * (1 - place.sum(dim=1))[:, None, :, None]


def shared_softmax(window_scores, global_scores, positions, real, padding_mask):
    t, a = window_scores.shape[-2:]
    side = a // 2
    ends = torch.nn.functional.pad(padding_mask, (side, side)).unfold(1, a, 1)
    i = torch.arange(t)
    near = ends & padding_mask[..., None]
    far = real[:, None] & padding_mask[..., None] & ~((positions[:, None] - i[:, None]).abs() <= side)
    parts = []
    for scores, counts in ((window_scores, near), (global_scores, far)):
        parts.append(torch.where(counts[:, None], scores, -torch.inf))
    highest = torch.cat(parts, dim=-1).detach().amax(dim=-1, keepdim=True).clamp(min=-1e300)
    parts = [(part - highest).exp() for part in parts]
    total = sum(part.sum(dim=-1, keepdim=True) for part in parts)
    return tuple(part / total.clamp(min=1e-300) for part in parts)


def longformer_attention(query, key, value, window, global_mask, *, global_qkv=None, padding_mask=None):
    if padding_mask is None:
        padding_mask = global_mask | ~global_mask
    is_global = rearrange(global_mask, "b t -> b 1 t 1")
    answers = []
    for q, k, v in ((query, key, value), global_qkv or (query, key, value)):
        shares = torch.exp((q @ k.mT) * q.shape[-1] ** -0.5)
        shares = shares * longformer_mask(window, global_mask, padding_mask).unsqueeze(1)
        answers.append((shares @ v) / shares.sum(dim=-1, keepdim=True).clamp(min=1e-300))
    return torch.where(is_global, answers[1], answers[0])


def layers_needed(source, target, t, layers, positions):
    distance = np.abs(np.subtract.outer(np.arange(t), np.arange(t)))
    felt = np.arange(t) == source
    for n in range(len(layers) + 1):
        if felt[target]:
            return n
        if n < len(layers):
            sees = np.zeros((t, t), dtype=bool)
            for window, dilation in layers[n]:
                sees |= (distance % dilation == 0) & (distance // dilation < window)
            sees[positions] = sees[:, positions] = True
            felt = sees[:, felt].any(axis=1)
    return None
