"""A correct solution with loops and sums that are written out, as somebody new to tensors might write it."""

import torch


def elu_plus_one(x):
    return x.clamp(min=0) + x.clamp(max=0).exp()


def outer(a, b):
    return a[..., :, None] * b[..., None, :]


def store(key, value):
    S, z = 0, 0
    for j in range(key.shape[2]):
        S = S + outer(elu_plus_one(key[:, :, j]), value[:, :, j])
        z = z + elu_plus_one(key[:, :, j])
    return S, z


def read(query, state):
    found = []
    for i in range(query.shape[2]):
        features = elu_plus_one(query[:, :, i])
        top = (features[..., None] * state[0]).sum(dim=2)
        found.append(top / (features * state[1]).sum(dim=2, keepdim=True))
    return torch.stack(found, dim=2)


def linear_attention_step(query, key, value, state):
    new = store(key, value)
    S, z = state[0] + new[0], state[1] + new[1]
    return [read(query, (S, z)), [S, z]]


def linear_attention(query, key, value, *, chunk_size=64):
    """The recurrence does not need chunks, and reads nothing of the future."""
    outputs, state = [], [0.0, 0.0]
    for i in range(query.shape[2]):
        output, state = linear_attention_step(*(x[:, :, i : i + 1] for x in (query, key, value)), state)
        outputs.append(output)
    return torch.cat(outputs, dim=2)


def decay_mask(log_decay):
    """Each row is the row above, faded, and a 1."""
    t = log_decay.shape[-1]
    row, rows = torch.zeros_like(log_decay), []
    for i in range(t):
        row = row * log_decay[..., i : i + 1].exp() + torch.eye(t, dtype=log_decay.dtype)[i]
        rows.append(row)
    return torch.stack(rows, dim=-2)


def decayed_attention(query, key, value, log_decay):
    outputs, state = [], 0.0
    for i in range(query.shape[2]):
        state = log_decay[:, :, i, None, None].exp() * state + outer(key[:, :, i], value[:, :, i])
        outputs.append((query[:, :, i, :, None] * state).sum(dim=2))
    return torch.stack(outputs, dim=2)


def summary(key, value, log_decay):
    total, state = 0.0, 0.0
    for i in range(key.shape[2]):
        total = total + log_decay[:, :, i]
        state = log_decay[:, :, i, None, None].exp() * state + outer(key[:, :, i], value[:, :, i])
    return total, state


def join(first, second):
    fades = torch.exp(second[0])
    return first[0] + second[0], second[1] + first[1] * fades.unsqueeze(-1).unsqueeze(-1)


def decayed_linear_attention(query, key, value, log_decay, *, chunk_size=64):
    return decayed_attention(query, key, value, log_decay)


def decayed_backward(query, key, value, log_decay, grad):
    """The gradient of a decay as a meeting of both states after all: the one from the left is made anew for
    every token. Quadratic in time, but with one state in hand."""
    t = query.shape[2]
    gradients = [torch.zeros_like(x) for x in (query, key, value, log_decay)]
    asked = torch.zeros_like(outer(key[:, :, 0], value[:, :, 0]))
    for i in reversed(range(t)):
        q, k, v, g = (x[:, :, i] for x in (query, key, value, grad))
        before = summary(*(x[:, :, :i] for x in (key, value, log_decay)))[1]
        decay = log_decay[:, :, i, None, None].exp()
        faded = decay * before
        asked = asked + outer(q, g)
        gradients[0][:, :, i] = ((faded + outer(k, v)) * g[..., None, :]).sum(dim=-1)
        gradients[1][:, :, i] = (asked * v[..., None, :]).sum(dim=-1)
        gradients[2][:, :, i] = (asked * k[..., :, None]).sum(dim=-2)
        gradients[3][:, :, i] = (asked * faded).sum(dim=(-1, -2))
        asked = asked * decay
    return gradients
