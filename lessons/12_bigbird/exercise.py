"""# Exercise: BigBird

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` tokens, `d` and `e` widths; `n` blocks,
`k` places in a row of the table of blocks. Blocks and tokens are counted from 0. You need `torch`, and may
use `einops`. Write the attention out: `scaled_dot_product_attention` would leave nothing to learn. A task
may use the functions of the tasks before it.

Check your work as often as you like: `attn check bigbird` says what is wrong and where, and
`attn check bigbird --hint` gives one hint at a time.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def block_mask(n_blocks: int, *, n_window: int, n_global: int) -> Tensor:
    """Task 1: the part that is not drawn.

    Each block of queries sees the `n_window` blocks around it: itself, and as many to the left as to the
    right. At both ends of the text the window is cut off. The first `n_global` blocks are global: they
    see every block, and every block sees them.

    5 blocks, a window of 3, 1 global block, by hand (a row for each block of queries):

        1 1 1 1 1
        1 1 1 . .
        1 1 1 1 .
        1 . 1 1 1
        1 . . 1 1

    **Returns** True where block i sees block j: shape `n n`.

    **Raises** `ValueError` if `n_window` is not an odd number from 1 up.
    """
    ### BEGIN SOLUTION
    if n_window < 1 or n_window % 2 == 0:
        raise ValueError(f"n_window is {n_window}: an odd number from 1 up is wanted")
    block = torch.arange(n_blocks)
    window = (block[:, None] - block).abs() <= n_window // 2
    is_global = block < n_global
    return window | is_global | is_global[:, None]
    ### END SOLUTION


def key_table(decks: Tensor, *, n_window: int, n_global: int, n_random: int) -> Tensor:
    """Task 2: a plan, as a table.

    Besides its window and the global blocks, each block sees `n_random` more, drawn at random. Here the
    draw has been made: row i of `decks` has all the blocks, shuffled. Block i turns over its cards from
    the left, passes over each that it sees already, and keeps the first `n_random` others. If there are
    not so many, it keeps all there are.

    Row i of the table lists the blocks that block i sees, each once, in ascending order. It has
    k = n_global + n_window + n_random places; those that stay empty come last and hold -1. A global block
    sees everything, which no narrow row can hold. So the rows of the global blocks stay empty.

    5 blocks, a window of 3, 1 global and 1 random block, by hand. The deck of block 1 is 2 0 4 3 1. It sees
    0 1 2 already, so it passes over 2 and 0 and keeps 4: its row is 0 1 2 4 -1. That of block 0 is
    -1 -1 -1 -1 -1.

    **Shapes.** `decks` is `n n`; the result is `n k`, whole numbers.
    """
    ### BEGIN SOLUTION
    n_blocks, k = len(decks), n_global + n_window + n_random
    sees = block_mask(n_blocks, n_window=n_window, n_global=n_global)
    table = torch.full((n_blocks, k), -1)
    for i in range(n_global, n_blocks):
        new = [j for j in decks[i].tolist() if not sees[i, j]][:n_random]
        row = sorted(sees[i].nonzero().flatten().tolist() + new)
        table[i, : len(row)] = torch.tensor(row)
    return table
    ### END SOLUTION


def gather_blocks(x: Tensor, table: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Task 3: fetch what is seen.

    Block j of `x` is its positions from j · block_size up to, but not including, (j + 1) · block_size. The
    last block may be shorter. For each row of the table, fetch the blocks that it names, one after the
    other, each with `block_size` places. Some places have nothing to hold: all those of a -1, and those
    past the end of the text. They hold 0, and `seen` is False there.

    Positions 10 20 30 40 50, blocks of 2, by hand. The row 0 2 fetches 10 20 50 0 and has seen 1 1 1 0. The
    row 1 -1 fetches 30 40 0 0 and has seen 1 1 0 0.

    **Shapes.** `x` is `b h t d` and `table` is `n k`. The result is the pair (fetched, seen): `fetched` is
    `b h n k*block_size d`, `seen` is `n k*block_size`, true or false. The table may have any number of rows.
    """
    ### BEGIN SOLUTION
    t = x.shape[2]
    n_blocks = -(-t // block_size)
    blocks = F.pad(x, (0, 0, 0, n_blocks * block_size - t)).unflatten(2, (n_blocks, block_size))
    # A -1 fetches some block, whichever: what came of it is struck out below.
    fetched = blocks[:, :, table.clamp(min=0)].flatten(3, 4)
    position = table[..., None] * block_size + torch.arange(block_size)
    seen = ((position >= 0) & (position < t)).flatten(1)
    return fetched.masked_fill(~seen[..., None], 0.0), seen
    ### END SOLUTION


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_size: int,
    table: Tensor,
    *,
    n_global: int = 0,
    n_extra: int = 0,
) -> Tensor:
    """Task 4: the attention.

    The first `n_extra` tokens are extra ones that belong to no block: they see every token, and every
    token sees them. The tokens after them are cut into blocks, block 0 first. The first `n_global` blocks
    see every token too, extra ones included; their rows of the table do not count. The queries of each
    other block see the extra tokens, and the tokens of the blocks in their row of the table. There is no
    other way to be seen: that all see the global blocks is written in the table.

    A query takes the mean of the values it sees, with the weights softmax(query keyᵀ / √d). The softmax is
    one, over all that it sees. A query that sees nothing finds 0, with gradients of 0.

    The point is not to compute what is not seen. A mask over all t · t scores would give the same numbers
    until a key or a value that nobody sees is NaN: 0 · NaN is NaN. Here it must not matter.

    Blocks of 2, queries of 0, values 1 2 3 4 5, and the rows 0 -1, 0 2 and 2 -1, by hand: every score is 0,
    so each query finds the plain mean of what it sees. That is 1.5 1.5, (1 + 2 + 5) / 3 = 2.67 twice, and 5.
    With `n_extra=1` before them and its value 9: the mean of all is 4; then come 4 4, 4.25 4.25 and 7.

    **Shapes.** `query` and `key` are `b h t d`, `value` is `b h t e`, `table` is `n k`, with a row for each
    block of the t - n_extra tokens; the result is `b h t e`.
    """

    ### BEGIN SOLUTION
    def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
        scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
        # The softmax of nothing but -inf would be 0 / 0, in its gradient too.
        empty = ~seen.any(dim=-1, keepdim=True)
        return scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0) @ value

    n_blocks, length = len(table), query.shape[2] - n_extra
    blocks = F.pad(query[:, :, n_extra:], (0, 0, 0, n_blocks * block_size - length))
    blocks = rearrange(blocks, "b h (n u) d -> b h n u d", n=n_blocks)

    def in_sight(x: Tensor) -> tuple[Tensor, Tensor]:
        extra = x[:, :, None, :n_extra].expand(-1, -1, n_blocks, -1, -1)
        fetched, seen = gather_blocks(x[:, :, n_extra:], table, block_size)
        return torch.cat([extra, fetched], dim=3), F.pad(seen, (n_extra, 0), value=True)

    (keys, seen), (values, _) = in_sight(key), in_sight(value)
    sparse = rearrange(attend(blocks, keys, values, seen[:, None]), "b h n u e -> b h (n u) e")
    # Who sees everything needs no table.
    n_full = n_global * block_size
    everything = torch.ones(key.shape[2], dtype=torch.bool)
    full = attend(query[:, :, : n_extra + n_full], key, value, everything)
    return torch.cat([full, sparse[:, :, n_full:length]], dim=2)
    ### END SOLUTION


def score_entries(mask: Tensor, t: int, block_size: int, *, n_extra: int = 0) -> int:
    """Task 5: the bill.

    How many scores does the attention need? Count the pairs of a query and a key it sees, each once. Of
    the t tokens the first `n_extra` are extra ones, as in task 4; the others are cut into blocks, the last
    of which may be shorter, and `mask` says which block sees which. Global blocks are in the mask already.

    `t` may be in the millions. A table of t · t tokens does not fit into any memory, and need not.

    3 blocks that see only themselves, t = 5, blocks of 2, by hand: the blocks hold 2, 2 and 1 tokens, so
    there are 4 + 4 + 1 = 9 pairs. With t = 6, one of them extra: the same 9; the extra token sees all 6,
    and the 5 others see it. That makes 20.

    **Shapes.** `mask` is `n n`, True where block i sees block j; the result is a whole number.
    """
    ### BEGIN SOLUTION
    length = t - n_extra
    sizes = (length - block_size * torch.arange(len(mask))).clamp(0, block_size)
    pairs = int(sizes @ mask.long() @ sizes)
    return pairs + n_extra * t + length * n_extra
    ### END SOLUTION


def layers_apart(masks: Tensor) -> Tensor:
    """Task 6: who has heard of whom.

    A model has a layer for each of the masks, and each layer may have drawn a plan of its own. At first
    a block knows only itself. In a layer it learns, all at once, whatever the blocks that it sees there
    knew before this layer. What it knows it keeps: the residual stream carries it on, even past a layer
    where it does not see itself. After how many layers does block i know of block j?

    Three blocks, two layers, by hand. In the first layer block 0 sees 1, in the second block 1 sees 2. Block
    0 never hears of block 2: when it listened to block 1, that did not know of 2 yet.

         0  1 -1
        -1  0  2
        -1 -1  0

    With the two layers exchanged it does, and the first row is 0 2 2.

    If all masks are one and the same, the numbers are the lengths of the shortest paths in a graph.

    **Shapes.** `masks` is `l n n`, True where block i sees block j in a layer, the first layer first. The
    result is `n n`, whole numbers: the number of layers until i knows of j, 0 for itself, -1 if it still
    does not after the last.
    """
    ### BEGIN SOLUTION
    known = torch.eye(masks.shape[-1])
    apart = known.long() - 1
    for layer, mask in enumerate(masks, start=1):
        # Somebody whom i sees knows j: a product, with "or" for the sum.
        known = ((mask.float() @ known + known) > 0).float()
        apart[(known > 0) & (apart < 0)] = layer
    return apart
    ### END SOLUTION
