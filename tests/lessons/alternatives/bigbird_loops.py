"""A correct solution written with loops and lists, one block after the other, as somebody new to tensors
might."""

import math

import torch


def block_mask(n_blocks, *, n_window, n_global):
    if n_window <= 0 or n_window % 2 != 1:
        raise ValueError("an odd window, please")
    mask = []
    for i in range(n_blocks):
        row = []
        for j in range(n_blocks):
            row.append(abs(i - j) <= (n_window - 1) // 2 or i < n_global or j < n_global)
        mask.append(row)
    return torch.tensor(mask)


def key_table(decks, *, n_window, n_global, n_random):
    mask = block_mask(len(decks), n_window=n_window, n_global=n_global)
    rows = []
    for i, deck in enumerate(decks):
        blocks = set()
        if i >= n_global:
            blocks = {j for j in range(len(decks)) if mask[i, j]}
            wanted = len(blocks) + n_random
            for card in deck:
                if len(blocks) < wanted:
                    blocks.add(int(card))
        row = sorted(blocks)
        rows.append(row + [-1] * (n_global + n_window + n_random - len(row)))
    return torch.tensor(rows)


def gather_blocks(x, table, block_size):
    n, k = table.shape
    fetched = x.new_zeros(*x.shape[:2], n, k * block_size, x.shape[3])
    seen = torch.zeros(n, k * block_size, dtype=torch.bool)
    for row in range(n):
        for place in range(k):
            begin = int(table[row, place]) * block_size
            if begin < 0:
                continue
            piece = x[:, :, begin : begin + block_size]
            at = place * block_size
            fetched[:, :, row, at : at + piece.shape[2]] = piece
            seen[row, at : at + piece.shape[2]] = True
    return fetched, seen


def sparse_attention(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    t = query.shape[2]
    outputs = []
    for i in range(t):
        block = (i - n_extra) // block_size
        places = list(range(n_extra))
        if i < n_extra or block < n_global:
            places = list(range(t))
        else:
            for j in table[block].tolist():
                begin = n_extra + j * block_size
                if j >= 0:
                    places += range(begin, min(begin + block_size, t))
        if not places:
            outputs.append(0 * query[:, :, i, :1] * value.new_zeros(value.shape[-1]))
            continue
        keys, values = key[:, :, places], value[:, :, places]
        scores = (query[:, :, i : i + 1] * keys).sum(dim=-1) / math.sqrt(query.shape[-1])
        shares = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        shares = shares / shares.sum(dim=-1, keepdim=True)
        outputs.append((shares[..., None] * values).sum(dim=2))
    return torch.stack(outputs, dim=2)


def score_entries(mask, t, block_size, *, n_extra=0):
    sizes, left = [], t - n_extra
    while left > 0:
        sizes.append(min(left, block_size))
        left -= block_size
    total = n_extra**2
    for i, rows in enumerate(sizes):
        total += 2 * n_extra * rows
        for j, columns in enumerate(sizes):
            if mask[i][j]:
                total += rows * columns
    return total


def layers_apart(masks):
    n = masks.shape[1]
    apart = [[0 if i == j else -1 for j in range(n)] for i in range(n)]
    known = [{i} for i in range(n)]
    for layer in range(len(masks)):
        before = [set(each) for each in known]
        seen = masks[layer].tolist()
        for i in range(n):
            for k in range(n):
                if seen[i][k]:
                    for j in before[k] - known[i]:
                        apart[i][j] = layer + 1
                    known[i] |= before[k]
    return torch.tensor(apart)
