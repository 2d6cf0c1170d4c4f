"""A correct solution in as few lines as possible: it sorts, merges one column of the table after the other
with a running softmax, and follows each layer's news backwards."""

import torch


def block_mask(n_blocks, *, n_window, n_global):
    if n_window not in range(1, n_window + 1, 2):
        raise ValueError(n_window)
    ones = torch.ones(n_blocks, n_blocks)
    inner = torch.nn.functional.pad(ones[n_global:, n_global:] * 0, (n_global, 0, n_global, 0), value=1.0)
    return (ones.tril(n_window // 2).triu(-(n_window // 2)) + inner).bool()


def key_table(decks, *, n_window, n_global, n_random):
    n, k = len(decks), n_global + n_window + n_random
    sees = block_mask(n, n_window=n_window, n_global=n_global)
    # How many new cards were turned over up to each card, brought from the deck's order to that of the blocks.
    new = ~sees.gather(1, decks)
    keep = (new & (new.cumsum(1) <= n_random)).gather(1, decks.argsort(1)) | sees
    rows = torch.where(keep, torch.arange(n), n).sort(1).values
    rows = torch.nn.functional.pad(rows, (0, k), value=n)[:, :k]
    return torch.where((rows < n) & (torch.arange(n) >= n_global)[:, None], rows, -1)


def gather_blocks(x, table, block_size):
    places = torch.where(table < 0, x.shape[2], table * block_size)[..., None] + torch.arange(block_size)
    places = places.flatten(1).clamp(max=x.shape[2])
    return torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2)[:, :, places], places < x.shape[2]


def sparse_attention(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    t, n = query.shape[2], len(table)
    query = query / query.shape[-1] ** 0.5
    row = ((torch.arange(t) - n_extra) // block_size).clamp(0, n - 1)
    top = query.new_full(query.shape[:3], -1e300)
    total, mean = torch.zeros_like(top), 0.0

    def parts():
        every = torch.ones(n, 1, dtype=torch.bool)
        yield *(x[:, :, None, :n_extra].expand(-1, -1, n, -1, -1) for x in (key, value)), every
        for column in table.T:
            (keys, seen), (values, _) = (
                gather_blocks(x[:, :, n_extra:], column[:, None], block_size) for x in (key, value)
            )
            yield keys, values, seen

    for keys, values, seen in parts():
        scores = torch.einsum("b h t d, b h t s d -> b h t s", query, keys[:, :, row])
        if scores.shape[-1]:
            scores = scores.masked_fill(~seen[row], -torch.inf)
            higher = torch.maximum(top, scores.detach().amax(-1))
            old, shares = torch.exp(top - higher), torch.exp(scores - higher[..., None])
            top, total = higher, old * total + shares.sum(-1)
            mean = old[..., None] * mean + torch.einsum(
                "b h t s, b h t s e -> b h t e", shares, values[:, :, row]
            )
    sparse = mean / total.clamp(min=1e-300)[..., None]
    full = (query @ key.mT).softmax(-1) @ value
    return torch.where((torch.arange(t) < n_extra + n_global * block_size)[:, None], full, sparse)


def score_entries(mask, t, block_size, *, n_extra=0):
    length = t - n_extra
    last = length - (len(mask) - 1) * block_size
    sizes = [block_size] * (len(mask) - 1) + [last]
    return t**2 - length**2 + sum(sizes[i] * sizes[j] for i, j in mask.nonzero().tolist())


def layers_apart(masks):
    n = masks.shape[-1]
    apart = torch.where(torch.eye(n, dtype=torch.bool), 0, len(masks) + 1)
    for layer, mask in enumerate(masks, 1):
        # The news that i gets through k is as old as k's; what is new to k in this layer has to wait.
        told = torch.where(mask[:, :, None] & (apart < layer), layer, len(masks) + 1).amin(1)
        apart = torch.minimum(apart, told)
    return apart.masked_fill(apart > len(masks), -1)
