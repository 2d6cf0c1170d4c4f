"""Wrong variants of the exercise on BigBird: each is a mistake that somebody made, with what a tutor would
say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are
right.
"""

import torch


def _pairs(n_blocks, n_window, n_global):
    """How far to the left each key block lies, and which pairs have a global block."""
    block_mask(n_blocks, n_window=n_window, n_global=n_global)  # Raises where it should.
    block = torch.arange(n_blocks)
    return block[:, None] - block, torch.minimum(block[:, None], block) < n_global


def block_mask__window_on_each_side(n_blocks, *, n_window, n_global):
    """Your window reaches `n_window` blocks to each side. How many blocks are that in all, with the block's
    own? Count the ones in the third row of the example."""
    far, has_global = _pairs(n_blocks, n_window, n_global)
    return (far.abs() <= n_window) | has_global


def block_mask__looks_back_only(n_blocks, *, n_window, n_global):
    """Your window lies to the left of the block, as in a model that writes. BigBird is an encoder, and reads
    in both directions: where in its window does a block stand?"""
    far, has_global = _pairs(n_blocks, n_window, n_global)
    return ((far >= 0) & (far < n_window)) | has_global


def block_mask__window_wraps_around(n_blocks, *, n_window, n_global):
    """Your window goes on at the other end of the text: the first block has the last one for a neighbour.
    That is what rolling the keys does. What stands to the left of block 0?"""
    far, has_global = _pairs(n_blocks, n_window, n_global)
    return (torch.minimum(far % n_blocks, -far % n_blocks) <= n_window // 2) | has_global


def block_mask__global_columns_only(n_blocks, *, n_window, n_global):
    """Every block sees your global blocks, but they see no more than their windows. So all read the same
    board, and nobody collects what is to be written on it. What do the first rows of the example say?"""
    far, _ = _pairs(n_blocks, n_window, n_global)
    return (far.abs() <= n_window // 2) | (torch.arange(n_blocks) < n_global)


def _table(decks, n_window, n_global, n_random, draw):
    """The table, where `draw(cards, sees)` says which cards a block keeps."""
    n_blocks, k = len(decks), n_global + n_window + n_random
    sees = block_mask(n_blocks, n_window=n_window, n_global=n_global)
    table = torch.full((n_blocks, k), -1)
    for i in range(n_global, n_blocks):
        row = sorted(sees[i].nonzero().flatten().tolist() + draw(i, sees[i])[:n_random])
        table[i, : len(row)] = torch.tensor(row)
    return table


def key_table__drawn_twice(decks, *, n_window, n_global, n_random):
    """Your table names a block twice in a row: one that the window, or a global block, had brought already.
    In the softmax its keys would then count twice. What does a block do with a card that it sees
    already?"""
    return _table(decks, n_window, n_global, n_random, lambda i, sees: decks[i].tolist())


def key_table__in_the_order_of_arrival(decks, *, n_window, n_global, n_random):
    """Your rows have the right blocks, in the order in which you found them. In which order does the task
    want them?"""
    sees = block_mask(len(decks), n_window=n_window, n_global=n_global)
    table = key_table(decks, n_window=n_window, n_global=n_global, n_random=n_random)
    for i, row in enumerate(table.tolist()):
        known = [j for j in row if j >= 0 and sees[i, j]]
        drawn = [j for j in decks[i].tolist() if j in row and j not in known]
        table[i, : len(known + drawn)] = torch.tensor(known + drawn)
    return table


def key_table__passes_over_too_late(decks, *, n_window, n_global, n_random):
    """You take `n_random` cards first, and strike out those that are seen already. Some blocks are then
    left with fewer random blocks than others, though their decks have more. Which comes first, to pass over
    or to count?"""
    return _table(
        decks,
        n_window,
        n_global,
        n_random,
        lambda i, sees: [j for j in decks[i].tolist()[:n_random] if not sees[j]],
    )


def gather_blocks__minus_one_is_the_last_block(x, table, block_size):
    """Where the table says -1 you fetch the last block: in Python, -1 is an index. Nothing fails, and the
    last block is counted once for every gap. How do you tell that there is nothing?"""
    return gather_blocks(x, table % -(-x.shape[2] // block_size), block_size)


def gather_blocks__blocks_taken_for_positions(x, table, block_size):
    """You take the numbers of blocks for positions: block 2 begins for you at position 2. How many
    positions stand before it?"""
    position = table[..., None] + torch.arange(block_size)
    seen = ((table[..., None] >= 0) & (position < x.shape[2])).flatten(1)
    fetched = x[:, :, position.clamp(0, x.shape[2] - 1).flatten(1)]
    return fetched * seen[..., None], seen


def gather_blocks__filled_with_block_0(x, table, block_size):
    """You say rightly what is seen, but a -1 has fetched block 0. It is not seen, and still: what does the
    task want in its place, and what would 0 · NaN be?"""
    fetched, seen = gather_blocks(x, table, block_size)
    return gather_blocks(x, table.clamp(min=0), block_size)[0].where(~seen[..., None], fetched), seen


def gather_blocks__padding_seen(x, table, block_size):
    """Your `seen` is True past the end of the text. The zeros there look harmless. But as keys they score
    0, and what is exp(0)?"""
    fetched, _ = gather_blocks(x, table, block_size)
    return fetched, (table >= 0).repeat_interleave(block_size, dim=1)


def gather_blocks__remainder_dropped(x, table, block_size):
    """You count the blocks with `t // block_size`. What is left over at the end of the text is a block too,
    only a shorter one: which tokens can nobody see now?"""
    fetched, seen = gather_blocks(x, table, block_size)
    there = table < x.shape[2] // block_size
    seen = seen & there.repeat_interleave(block_size, dim=1)
    return fetched * seen[..., None], seen


def _dense(query, key, value, seen):
    """Attention by a mask over all tokens; what sees nothing finds 0."""
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
    empty = ~seen.any(dim=-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0) @ value


def _seen(t, block_size, table, n_global, n_extra):
    """Which token sees which."""
    blocks = (table[..., None] == torch.arange(len(table))).any(dim=1)
    blocks[:n_global] = True
    block = (torch.arange(t) - n_extra).div(block_size, rounding_mode="floor").clamp(min=0)
    seen = blocks[block[:, None], block]
    seen[:n_extra] = seen[:, :n_extra] = True
    return seen


def sparse_attention__mask_over_everything(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    """You compute all t · t scores and mask most of them. The numbers are right, and nothing is saved; and
    a NaN that nobody sees reaches everybody, as 0 · NaN. Which keys does a block of queries need?"""
    return _dense(query, key, value, _seen(query.shape[2], block_size, table, n_global, n_extra))


def sparse_attention__global_blocks_read_the_table(
    query, key, value, block_size, table, *, n_global=0, n_extra=0
):
    """You look up the rows of the global blocks in the table, as for any other block. It has nothing to say
    about them. Which keys does a global block see?"""
    return sparse_attention(query, key, value, block_size, table, n_extra=n_extra)


def sparse_attention__extra_tokens_unseen(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    """Your extra tokens see everything, but the other queries do not see them. Count the keys of a block:
    those in its row of the table, and which more?"""
    full = sparse_attention(query, key, value, block_size, table, n_global=n_global, n_extra=n_extra)
    body = [tensor[:, :, n_extra:] for tensor in (query, key, value)]
    rest = sparse_attention(*body, block_size, table)
    n_full = n_extra + n_global * block_size
    return torch.cat([full[:, :, :n_full], rest[:, :, n_full - n_extra :]], dim=2)


def sparse_attention__global_blocks_blind_to_extra(
    query, key, value, block_size, table, *, n_global=0, n_extra=0
):
    """Your global blocks see all blocks, and not the extra tokens. Who is it that sees everything?"""
    found = sparse_attention(query, key, value, block_size, table, n_global=n_global, n_extra=n_extra)
    body = [tensor[:, :, n_extra:] for tensor in (query, key, value)]
    blind = sparse_attention(*body, block_size, table, n_global=n_global)
    stop = n_extra + n_global * block_size
    return torch.cat([found[:, :, :n_extra], blind[:, :, : stop - n_extra], found[:, :, stop:]], dim=2)


def sparse_attention__blocks_from_the_first_token(
    query, key, value, block_size, table, *, n_global=0, n_extra=0
):
    """Your blocks begin with the first extra token, so all of them are shifted. Where does the text begin?"""
    t = query.shape[2]
    seen = _seen(t, block_size, table, n_global, 0)
    seen[:n_extra] = seen[:, :n_extra] = True
    return _dense(query, key, value, seen)


def sparse_attention__softmax_of_each_part(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    """Your extra tokens have a softmax of their own, and the results are added. So the weights of a query
    sum to 2, and a good score among the blocks cannot win against a bad extra token. Over what does the one
    softmax run?"""
    if not n_extra:
        # Then there is one part only.
        return sparse_attention(query, key, value, block_size, table, n_global=n_global)
    t = query.shape[2]
    seen, extra = _seen(t, block_size, table, n_global, n_extra), torch.arange(t) < n_extra
    return _dense(query, key, value, seen & extra) + _dense(query, key, value, seen & ~extra)


def sparse_attention__softmax_of_each_block(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    """You take a softmax over each block that is seen, and then the mean of the results. Every block then
    gets the same share, whatever its keys say. How can one block win against another?"""
    seen = _seen(query.shape[2], block_size, table, n_global, n_extra)
    output, parts = torch.zeros_like(value), 0
    for begin in range(n_extra - block_size, query.shape[2], block_size):
        # The part before block 0 is that of the extra tokens.
        part = slice(begin if begin >= n_extra else 0, begin + block_size)
        if seen[:, part].any():
            output = output + _dense(query, key[:, :, part], value[:, :, part], seen[:, part])
            parts = parts + seen[:, part].any(dim=-1, keepdim=True)
    return output / parts.clamp(min=1)


def sparse_attention__padding_kept(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    """Your answer is longer than the question: the last block was filled up, and the answers of what is no
    query are still there. Where in the result do they stand?"""
    output = sparse_attention(query, key, value, block_size, table, n_global=n_global, n_extra=n_extra)
    missing = (n_extra - query.shape[2]) % block_size
    # What a query of 0 finds, if it stands in the last block.
    last = _seen(query.shape[2], block_size, table, n_global, n_extra)[-1]
    more = _dense(query[:, :, :missing] * 0, key[:, :, last], value[:, :, last], last[last])
    return torch.cat([output, more], dim=2)


def sparse_attention__not_scaled(query, key, value, block_size, table, *, n_global=0, n_extra=0):
    """Your scores are not scaled. Wide vectors have large products, and a softmax of large scores is nearly
    all or nothing. By what does the formula divide?"""
    query = query * query.shape[-1] ** 0.5
    return sparse_attention(query, key, value, block_size, table, n_global=n_global, n_extra=n_extra)


def sparse_attention__nan_where_nothing_is_seen(
    query, key, value, block_size, table, *, n_global=0, n_extra=0
):
    """A query that sees nothing has a row of minus infinities. Its softmax is 0 / 0, NaN, and spreads into
    every gradient. What should it return, and how do you keep the division from happening?"""
    output = sparse_attention(query, key, value, block_size, table, n_global=n_global, n_extra=n_extra)
    empty = ~_seen(query.shape[2], block_size, table, n_global, n_extra).any(dim=-1, keepdim=True)
    return output.masked_fill(empty, float("nan"))


def score_entries__last_block_counted_whole(mask, t, block_size, *, n_extra=0):
    """You count every block with `block_size` tokens. That is what a program may well compute, with
    padding. But how many tokens does the last block of the example have?"""
    pairs = int(mask.sum()) * block_size**2
    return pairs + n_extra * t + (t - n_extra) * n_extra


def score_entries__extra_columns_forgotten(mask, t, block_size, *, n_extra=0):
    """You count what the extra tokens see. And who sees them?"""
    return score_entries(mask, t, block_size, n_extra=n_extra) - (t - n_extra) * n_extra


def score_entries__corner_counted_twice(mask, t, block_size, *, n_extra=0):
    """You count t rows and t columns for each extra token. The pairs of two extra tokens are in both: count
    each pair once."""
    return score_entries(mask, t, block_size, n_extra=n_extra) + n_extra**2


def score_entries__added_in_float32(mask, t, block_size, *, n_extra=0):
    """You are off by a little, and only where the numbers are large. float32 has 24 binary digits: above
    16,777,216 it cannot hold every whole number. What counts exactly?"""
    sizes = (t - n_extra - block_size * torch.arange(len(mask))).clamp(0, block_size).float()
    return int(sizes @ mask.float() @ sizes) + n_extra * t + (t - n_extra) * n_extra


def layers_apart__counted_from_zero(masks):
    """You give what is seen in the first layer the number 0. A block knows itself before any layer; how many
    layers does it take to know of a neighbour?"""
    apart = layers_apart(masks)
    return torch.where(apart > 0, apart - 1, apart)


def layers_apart__stops_a_layer_early(masks):
    """What is learned in the last layer never comes into your table. How many masks are there, and how many
    times do you look at what has become known?"""
    return layers_apart(masks[:-1])


def layers_apart__the_wrong_way_round(masks):
    """You multiply from the other side: that says of whom i's acquaintances learn *after* i met them. While
    all layers have one plan it makes no difference. When they differ, who must have heard first?"""
    known, apart = torch.eye(masks.shape[-1]), torch.eye(masks.shape[-1]).long() - 1
    for layer, mask in enumerate(masks, start=1):
        known = ((known @ mask.float() + known) > 0).float()
        apart[(known > 0) & (apart < 0)] = layer
    return apart


def layers_apart__rows_and_columns_exchanged(masks):
    """Your table says who is heard, not who hears: row i should tell what block i knows. Seeing goes in
    one direction here. Compare your first row with that of the example."""
    return layers_apart(masks).T


def layers_apart__forgets(masks):
    """Your blocks forget: what a block knew before a layer is lost if it does not see itself there. What
    carries it past the layer?"""
    known, apart = torch.eye(masks.shape[-1]), torch.eye(masks.shape[-1]).long() - 1
    for layer, mask in enumerate(masks, start=1):
        known = ((mask.float() @ known) > 0).float()
        apart[(known > 0) & (apart < 0)] = layer
    return apart


def layers_apart__learns_within_the_layer(masks):
    """Your blocks are updated one after the other, and a later one hears what an earlier one has learned in
    the same layer. All learn at once: what did block k know *before* this layer?"""
    known, apart = torch.eye(masks.shape[-1]), torch.eye(masks.shape[-1]).long() - 1
    for layer, mask in enumerate(masks.float(), start=1):
        for i, sees in enumerate(mask):
            known[i] = ((sees @ known + known[i]) > 0).float()
        apart[(known > 0) & (apart < 0)] = layer
    return apart
