"""A correct solution in as few lines as possible: each block is a result of its own, and all is merged."""

import torch
import torch.nn.functional as F

INF = float("inf")


def one(scores, value):
    """Plain attention with these scores: output and lse."""
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse.masked_fill(lse == -INF, 0)[..., None]) @ value, lse


def add_block(m, l, o, scores, value):
    """What was summed is one more key, with the score m and the value o / l, that counts l times."""
    joined = torch.cat([m[..., None], scores], -1)
    shares = torch.exp(joined - joined.amax(-1, keepdim=True).clamp(min=torch.finfo(m.dtype).min))
    keep, new = shares[..., 0], shares[..., 1:]
    return joined.amax(-1), keep * l + new.sum(-1), torch.addcmul(new @ value, keep[..., None], o)


def finish(m, l, o):
    return torch.nan_to_num(o / l[..., None]), m + l.log()


def merge_attention(output_a, lse_a, output_b, lse_b):
    """Attention over two keys, whose scores are the lse."""
    scores = torch.stack([lse_a, lse_b], -1)
    empty = (scores == -INF).all(-1)
    scores = scores.masked_fill(empty[..., None], 0)
    weights = scores.softmax(-1).masked_fill(empty[..., None], 0)
    output = torch.einsum("...n,...ne->...e", weights, torch.stack([output_a, output_b], -2))
    return output, scores.logsumexp(-1).masked_fill(empty, -INF)


def tile_plan(t, s, block_q, block_k, *, is_causal=False):
    seen = torch.ones(1, 1, t, s)
    seen = seen.tril() if is_causal else seen
    tiles = {"kernel_size": (block_q, block_k), "ceil_mode": True}
    some = F.max_pool2d(seen, **tiles)
    whole = -F.max_pool2d(-seen, **tiles)
    return (some + whole).long()[0, 0].numpy()


def flash_attention(query, key, value, *, is_causal=False, block_q=32, block_k=64):
    wide = torch.promote_types(query.dtype, torch.float32)
    t, s, scale = query.size(2), key.size(2), query.size(3) ** -0.5
    output = torch.zeros(*query.shape[:3], value.size(3), dtype=wide)
    lse = torch.full(query.shape[:3], -INF, dtype=wide)
    for i, j in ((i, j) for j in range(0, s, block_k) for i in range(0, t, block_q)):
        if is_causal and j > min(i + block_q, t) - 1:
            continue
        u, a = slice(i, i + block_q), slice(j, j + block_k)
        scores = query[:, :, u].to(wide) @ key[:, :, a].to(wide).mT * scale
        if is_causal:
            scores += torch.full_like(scores, -INF).triu(i - j + 1)
        tile = one(scores, value[:, :, a].to(wide))
        output[:, :, u], lse[:, :, u] = merge_attention(output[:, :, u], lse[:, :, u], *tile)
    return output.to(query.dtype), lse


def flash_backward(query, key, value, output, lse, grad_output, *, is_causal=False, block_q=32, block_k=64):
    """Columns outside, rows inside, as on a GPU: dk and dv of a column are finished before the next."""
    scale, dq, dkv = query.size(3) ** -0.5, torch.zeros_like(query), []
    rows = [x.split(block_q, 2) for x in (query, output, lse, grad_output, dq)]
    for j, k, v in zip(
        range(0, key.size(2), block_k), key.split(block_k, 2), value.split(block_k, 2), strict=True
    ):
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for i, (q, o, log, g, dq_rows) in zip(
            range(0, query.size(2), block_q), zip(*rows, strict=True), strict=True
        ):
            if is_causal and j >= i + q.size(2):
                continue
            p = torch.exp(torch.einsum("bhtd,bhsd->bhts", q, k) * scale - log.unsqueeze(-1))
            p = p.tril(i - j) if is_causal else p
            ds = p * (g @ v.mT - torch.linalg.vecdot(g, o).unsqueeze(-1)) * scale
            dv, dk = dv + p.mT @ g, dk + ds.mT @ q
            dq_rows += ds @ k
        dkv.append((dk, dv))
    return dq, *(torch.cat(x, 2) for x in zip(*dkv, strict=True))


def leave_one_out(outputs, lses):
    """Attention among documents, in which none sees itself."""
    others = ~torch.eye(len(lses), dtype=torch.bool)
    scores = lses.movedim(0, -1).unsqueeze(-2).where(others, torch.full((), -INF).to(lses))
    result = one(scores, outputs.movedim(0, -2))
    return result[0].movedim(-2, 0), result[1].movedim(-1, 0)
