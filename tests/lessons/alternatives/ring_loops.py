"""A correct solution in many small steps, one query or one token at a time, as somebody new to tensors might
write it."""

import math

import torch

NOTHING = -math.inf


def held(rank, step, n):
    for _ in range(step):
        rank = rank - 1 if rank > 0 else n - 1
    return rank


def arrives(rank, share, n):
    step = 0
    while held(rank, step, n) != share:
        step += 1
    return step


def zigzag(n, t):
    size, rest = divmod(t, 2 * n)
    if rest:
        raise ValueError(f"{t} tokens do not make {2 * n} pieces of the same size")
    rows = []
    for rank in range(n):
        row = []
        for piece in (rank, 2 * n - 1 - rank):
            for token in range(size):
                row.append(piece * size + token)
        rows.append(row)
    return torch.tensor(rows)


def unshard(shares):
    b, h, u, e = shares[0].shape
    text = torch.empty(b, h, len(shares) * u, e, dtype=shares[0].dtype)
    for rank, row in enumerate(zigzag(len(shares), len(shares) * u).tolist()):
        for place, position in enumerate(row):
            text[:, :, position] = shares[rank][:, :, place]
    return text


def work(order):
    rows, n = order.tolist(), len(order)
    pairs = [[0] * n for _ in rows]
    for rank in range(n):
        for step in range(n):
            for i in rows[rank]:
                pairs[rank][step] += sum(1 for j in rows[held(rank, step, n)] if j <= i)
    return torch.tensor(pairs)


def duration(pairs):
    return sum(max(column) for column in zip(*pairs.tolist(), strict=True))


def attend(query, key, value, i, j):
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, key, value = query.to(wide), key.to(wide), value.to(wide)
    b, h, t, d = query.shape
    output = torch.zeros(b, h, t, value.shape[3], dtype=wide)
    lse = torch.full((b, h, t), NOTHING, dtype=wide)
    for row in range(t):
        seen = [place for place in range(key.shape[2]) if j[place] <= i[row]]
        if not seen:
            continue
        scores = (query[:, :, row : row + 1] * key[:, :, seen]).sum(dim=-1) / math.sqrt(d)
        highest = scores.max(dim=-1, keepdim=True).values
        shares = torch.exp(scores - highest)
        total = shares.sum(dim=-1, keepdim=True)
        output[:, :, row] = ((shares / total)[..., None] * value[:, :, seen]).sum(dim=2)
        lse[:, :, row] = (highest + torch.log(total))[..., 0]
    return output, lse


def merge(output_a, lse_a, output_b, lse_b):
    """The share of a is the logistic function of the difference, which never overflows."""
    neither = (lse_a == NOTHING) & (lse_b == NOTHING)
    difference = torch.where(neither, torch.zeros_like(lse_a), lse_a - lse_b)
    share = torch.sigmoid(difference)[..., None]
    return share * output_a + (1 - share) * output_b, torch.logaddexp(lse_a, lse_b)


class PassKeys:
    """Half a share at a time: an early piece and a late piece of queries meet one of keys, or do not."""

    def __init__(self, rank, n, query, key, value):
        self.rank, self.n = rank, n
        self.query, self.holds, self.step = query, (key, value), 0
        wide = torch.promote_types(query.dtype, torch.float32)
        shape = query.shape[:3]
        self.output = torch.zeros(*shape, value.shape[3], dtype=wide)
        self.lse = torch.full(shape, NOTHING, dtype=wide)
        self.look()

    def look(self):
        u = self.query.shape[2]
        half, share = u // 2, held(self.rank, self.step, self.n)
        order = zigzag(self.n, self.n * u)
        mine, theirs = (self.rank, 2 * self.n - 1 - self.rank), (share, 2 * self.n - 1 - share)
        for a in (0, 1):
            for b in (0, 1):
                if theirs[b] > mine[a]:
                    continue
                rows, columns = slice(a * half, (a + 1) * half), slice(b * half, (b + 1) * half)
                key, value = (x[:, :, columns] for x in self.holds)
                i, j = order[self.rank, rows], order[share, columns]
                part = attend(self.query[:, :, rows], key, value, i, j)
                output, lse = merge(self.output[:, :, rows], self.lse[:, :, rows], *part)
                self.output[:, :, rows], self.lse[:, :, rows] = output, lse

    def send(self):
        return self.holds

    def receive(self, key, value):
        self.holds = key, value
        self.step += 1
        self.look()

    def result(self):
        return self.output.to(self.query.dtype), self.lse


class PassQueries:
    """Key by key. What is to be done is done when something arrives, and not when it leaves."""

    def __init__(self, rank, n, query, key, value, output, lse, grad_output):
        self.rank, self.n, self.key, self.value = rank, n, key, value
        self.dk, self.dv, self.step = torch.zeros_like(key), torch.zeros_like(value), -1
        delta = (grad_output * output).sum(dim=-1)
        self.receive(query, grad_output, lse, delta, torch.zeros_like(query))

    def send(self):
        return self.holds

    def receive(self, query, grad_output, lse, delta, dq):
        self.step += 1
        if self.step < self.n:
            dq = dq + self.turn(query, grad_output, lse, delta)
        self.holds = query, grad_output, lse, delta, dq

    def turn(self, query, grad_output, lse, delta):
        u, d = query.shape[2:]
        order = zigzag(self.n, self.n * u)
        i, added = order[held(self.rank, self.step, self.n)], torch.zeros_like(query)
        for place in range(u):
            k, v = self.key[:, :, place : place + 1], self.value[:, :, place : place + 1]
            weight = torch.exp((query * k).sum(dim=-1) / math.sqrt(d) - lse)
            weight = torch.where(i >= order[self.rank, place], weight, torch.zeros_like(weight))
            slope = weight * ((grad_output * v).sum(dim=-1) - delta) / math.sqrt(d)
            self.dv[:, :, place] += (weight[..., None] * grad_output).sum(dim=2)
            self.dk[:, :, place] += (slope[..., None] * query).sum(dim=2)
            added += slope[..., None] * k
        return added

    def result(self):
        return self.holds[4], self.dk, self.dv
