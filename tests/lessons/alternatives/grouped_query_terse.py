"""A correct solution in as few lines as possible: views, a group axis of its own, one store for both."""

import numpy as np
import torch


def key_heads(n_heads, n_kv_heads):
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError
    return np.arange(n_heads) * n_kv_heads // n_heads


def fold_heads(query, n_kv_heads):
    return query.reshape(query.size(0), n_kv_heads, -1, query.size(-1))


def unfold_heads(folded, n_heads):
    return folded.reshape(folded.size(0), n_heads, -1, folded.size(-1))


def grouped_attention(query, key, value, attn_mask=None, is_causal=False):
    """Scores `b g r t s`: matmul broadcasts the keys over r."""
    key_heads(query.size(1), key.size(1))
    scores = query.unflatten(1, (key.size(1), -1)) @ key.unsqueeze(2).mT / query.size(-1) ** 0.5
    if is_causal:
        attn_mask = torch.arange(key.size(2)) <= torch.arange(query.size(2))[:, None]
    if attn_mask is not None:
        if not attn_mask.is_floating_point():
            attn_mask = attn_mask.to(query).log()
        scores = scores + attn_mask.expand(scores.flatten(1, 2).shape).view_as(scores)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=-1e300)
    shares = (scores - top).exp()
    return (shares @ value.unsqueeze(2) / shares.sum(-1, keepdim=True).clamp(min=1e-300)).flatten(1, 2)


def cache_bytes(n_tokens, d_model, n_layers, n_heads, n_kv_heads, *, n_devices=1, itemsize=2):
    if np.gcd(n_devices, n_kv_heads) != min(n_devices, n_kv_heads):
        raise ValueError
    return int(2 * itemsize * n_tokens * n_layers * d_model // n_heads * -(-n_kv_heads // n_devices))


class GroupedCache:
    kept, d = None, 0
    key = property(lambda self: self.kept[..., : self.d])
    value = property(lambda self: self.kept[..., self.d :])

    def step(self, query, key, value):
        new, self.d = torch.cat((key, value), -1), key.size(-1)
        self.kept = new if self.kept is None else torch.cat((self.kept, new), 2)
        t, s = query.size(2), self.kept.size(2)
        future = torch.full((t, s), -torch.inf, dtype=query.dtype).triu(s - t + 1)
        return grouped_attention(query, self.key, self.value, future)


def mean_pool_kv_heads(weight, n_heads, n_kv_heads):
    key_heads(n_heads, n_kv_heads)
    if len(weight) % n_heads:
        raise ValueError
    return weight.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)


def repeat_kv_heads(weight, n_heads, n_kv_heads):
    return weight.unflatten(0, (n_kv_heads, -1))[key_heads(n_heads, n_kv_heads)].flatten(0, 1)


def shared_head(asks, offers):
    """No `m m` matrix: with asks = Rᵀ Q, Q of orthonormal rows, the singular vectors are those of R offers.
    The factors come out with the singular values on the shared side."""
    orthonormal, upper = torch.linalg.qr(asks.mT)
    left, sizes, right = torch.linalg.svd((upper @ offers).flatten(0, 1), full_matrices=False)
    d = asks.size(1)
    new = orthonormal @ left[:, :d].unflatten(0, upper.shape[:2])
    return new.mT, sizes[:d, None] * right[:d]


def share_kv_heads(w_q, w_k, w_v, w_o, n_heads, n_kv_heads):
    def pairs(asks, offers):
        heads = [w.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)) for w in (asks, offers)]
        new, shared = zip(*map(shared_head, *heads), strict=True)
        return torch.stack(new).flatten(0, 2), torch.cat(shared)

    (query, key), (output, value) = pairs(w_q, w_k), pairs(w_o.mT, w_v)
    return query, key, value, output.mT
