"""A correct solution with loops and indices: one token, one head, one query at a time; a part of the line for
the code is cut bit by bit."""

import math

import torch


def next_token_nats(logits, tokens):
    texts = []
    for rows, text in zip(logits, tokens, strict=True):
        costs = []
        for i in range(len(text) - 1):
            largest = rows[i].max().detach()
            costs.append(largest + (rows[i] - largest).exp().sum().log() - rows[i][text[i + 1]])
        texts.append(torch.stack(costs))
    return torch.stack(texts)


def bits_per_byte(logits, tokens, lengths):
    bits, number = 0.0, 0
    for costs, n in zip(next_token_nats(logits, tokens), lengths.tolist(), strict=True):
        for cost in costs[: n - 1]:
            bits += cost.item() * math.log2(math.e)
            number += 1
    return bits / number


def norm_one(x, weight, bias, eps):
    mean = sum(x) / len(x)
    variance = sum((number - mean) ** 2 for number in x) / len(x)
    return torch.stack([(n - mean) * (variance + eps) ** -0.5 for n in x]) * weight + bias


def layer_norm(x, weight, bias, eps=1e-5):
    return torch.stack([torch.stack([norm_one(one, weight, bias, eps) for one in text]) for text in x])


def phi(z):
    return torch.special.ndtr(z)


def mlp_half(x, weights):
    result = torch.zeros_like(x)
    for n, text in enumerate(layer_norm(x, weights["mlp_norm.weight"], weights["mlp_norm.bias"])):
        for i, vector in enumerate(text):
            z = weights["mlp.0.weight"] @ vector + weights["mlp.0.bias"]
            result[n, i] = x[n, i] + weights["mlp.2.weight"] @ (z * phi(z)) + weights["mlp.2.bias"]
    return result


def block(x, weights, n_heads):
    b, t, d = len(x), x.shape[1], x.shape[2] // n_heads
    normed = layer_norm(x, weights["attention_norm.weight"], weights["attention_norm.bias"])
    texts = []
    for n in range(b):
        found = []
        for i in range(t):
            heads = []
            for head in range(n_heads):
                rows = slice(head * d, head * d + d)
                w_q, w_k, w_v = (weights[f"attention.w_{name}.weight"][rows] for name in "qkv")
                query = w_q @ normed[n, i]
                scores = [w_k @ normed[n, j] @ query / math.sqrt(d) for j in range(i + 1)]
                shares = torch.stack(scores).softmax(dim=0)
                heads.append(sum(shares[j] * (w_v @ normed[n, j]) for j in range(i + 1)))
            found.append(weights["attention.w_o.weight"] @ torch.cat(heads))
        texts.append(torch.stack(found))
    return mlp_half(x + torch.stack(texts), weights)


def language_model(tokens, embedding, places, blocks, norm, n_heads):
    b, t = tokens.shape
    if t > places.shape[0]:
        raise ValueError("too long")
    x = torch.stack([torch.stack([embedding[tokens[n, i]] + places[i] for i in range(t)]) for n in range(b)])
    for weights in blocks:
        x = block(x, weights, n_heads)
    x = layer_norm(x, norm["weight"], norm["bias"])
    return torch.stack([(x * vector).sum(dim=-1) for vector in embedding], dim=-1)


def sampling_probabilities(logits, *, temperature=1.0, top_p=1.0):
    if not temperature >= 0 or top_p <= 0 or top_p > 1:
        raise ValueError("no distribution")
    result = torch.zeros_like(logits)
    for n, row in enumerate(logits.tolist()):
        largest = max(row)
        if temperature == 0:
            result[n, row.index(largest)] = 1
            continue
        shares = [math.exp((z - largest) / temperature) for z in row]
        whole = sum(shares)
        left = sorted(range(len(row)), key=lambda k: (-row[k], k))
        kept, total = [], 0.0
        while left and total < top_p:
            kept.append(left.pop(0))
            total += shares[kept[-1]] / whole
        for k in kept:
            result[n, k] = shares[k] / whole / total
    return result


def encode(tokens, counts):
    """In units of 1/total, which grows with every token and every bit. Both halves may hold a code while the
    part lies across their border: all candidates are kept, in order."""
    begin, end, total = 0, 1, 1
    for i in range(1, len(tokens)):
        row = [int(count) for count in counts[tokens[i - 1]]]
        size, before = end - begin, sum(row[: tokens[i]])
        begin, total = begin * sum(row), total * sum(row)
        begin, end = begin + size * before, begin + size * (before + row[tokens[i]])
    candidates = [("", 0)]
    while True:
        n = len(candidates[0][0])
        touching = []
        for bits, number in candidates:
            if number * total >= begin * 2**n and (number + 1) * total <= end * 2**n:
                return bits
            if (number + 1) * total > begin * 2**n and number * total < end * 2**n:
                touching += [(bits + "0", 2 * number), (bits + "1", 2 * number + 1)]
        candidates = touching


def decode(code, counts, first, n_tokens):
    """The number is taken out of each part and made as large as the whole again."""
    number, whole = 0, 1
    for bit in code:
        number, whole = 2 * number + (bit == "1"), 2 * whole
    tokens = [first]
    while len(tokens) <= n_tokens:
        row = [int(count) for count in counts[tokens[-1]]]
        number *= sum(row)
        token = 0
        while number >= row[token] * whole:
            number -= row[token] * whole
            token += 1
        whole *= row[token]
        tokens.append(token)
    return tokens
