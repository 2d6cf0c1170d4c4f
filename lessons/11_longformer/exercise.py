"""# Exercise: Longformer

Six tasks, each a little harder than the one before, and the last is not answered on the page. Axes are named
as everywhere here: `b` batch, `h` heads, `t` tokens (each is a query and a key), `k` slots for global tokens,
`a` keys in the window, `d` and `e` widths. Only `torch` is needed. Write the attention out:
`scaled_dot_product_attention` would leave nothing to learn. A task may use what the tasks before it made.

Two masks accompany a batch of texts, both `b t`. `padding_mask` is True for a token, False for padding
behind a text that is shorter than others. `global_mask` is True for a global token.

Check your work as often as you like: `attn check longformer` says what is wrong and where, and
`attn check longformer --hint` gives one hint at a time.
"""

import torch
from torch import Tensor


def longformer_mask(window: int, global_mask: Tensor, padding_mask: Tensor) -> Tensor:
    """Task 1: the pattern.

    Token i sees token j if they are closer than the window, |i - j| < window, in both directions. A global
    token sees all tokens, and all tokens see it. Padding is neither seen nor sees, wherever it stands and
    whatever `global_mask` says of it.

    Five tokens, window 2, token 0 global, token 4 padding, by hand (1 is True):

        1 1 1 1 0
        1 1 1 0 0
        1 1 1 1 0
        1 0 1 1 0
        0 0 0 0 0

    **Returns** a boolean mask `b t t`, True where query i sees key j.
    """
    ### BEGIN SOLUTION
    i = torch.arange(global_mask.shape[1])
    near = (i[:, None] - i).abs() < window
    pattern = near | global_mask[:, :, None] | global_mask[:, None, :]
    return pattern & padding_mask[:, :, None] & padding_mask[:, None, :]
    ### END SOLUTION


def count_scores(t: int, window: int, positions: list[int]) -> int:
    """Task 2: how many scores there are.

    How many True has this pattern, for one text of `t` tokens without padding? `positions` says where the
    global tokens stand: each once, in any order. Texts may have ten million tokens, so no `t t` table can be
    made, and no loop over the text is needed. Each pair (i, j) counts once, for whatever reason i sees j.

    Five tokens, window 2, by hand. Without a global token: 2 + 3 + 3 + 3 + 2 = 13. If token 0 is global, it
    sees 2, 3 and 4 too, and they see it: 19. If token 4 is as well, only (4, 1), (4, 2), (1, 4) and (2, 4)
    are new, for (0, 4) and (4, 0) were there: 23 of 25.
    """
    ### BEGIN SOLUTION
    reach = min(window, t) - 1
    # Full rows, less what the first and the last rows lack: reach, reach - 1, ... 1 on each side.
    count = t * (2 * reach + 1) - reach * (reach + 1)
    for p in positions:
        near = min(p, reach) + 1 + min(t - 1 - p, reach)
        count += 2 * (t - near)
        # Two global tokens out of each other's window: both rows and both columns had the pair.
        count -= sum(abs(p - q) >= window for q in positions)
    return count
    ### END SOLUTION


def pack_globals(global_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Task 3: where the global tokens are.

    All rows of a tensor are equally long, but one text has three global tokens and the next has one. List
    their positions in ascending order, with as many slots a row as the text with most of them needs. A slot
    that is left over holds the position 0, and is not real.

    Three texts of 5 tokens, with global tokens 0 and 3; 2; none, by hand:

        positions  0 3    real  True  True
                   2 0          True  False
                   0 0          False False

    **Returns** the pair (positions, real), both `b k`, whole numbers and booleans. k is 0 if there is no
    global token at all.
    """
    ### BEGIN SOLUTION
    count = global_mask.sum(dim=1)
    slots = torch.arange(int(count.max()))
    real = slots < count[:, None]
    # A stable sort of "is not global" brings the global tokens to the front and keeps their order.
    order = (~global_mask).long().argsort(dim=1, stable=True)
    return order[:, : len(slots)] * real, real
    ### END SOLUTION


def take_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Task 3, continued: the vectors that stand there.

    Every text has positions of its own, the same in all its heads. For the texts abcde, fghij, klmno and
    the positions of the example, by hand: ad, hf, kk.

    **Shapes.** `x` is `b h t d`, `positions` is `b k`; the result is `b h k d`.
    """
    ### BEGIN SOLUTION
    texts = torch.arange(len(x))[:, None]
    return x.transpose(1, 2)[texts, positions].transpose(1, 2)
    ### END SOLUTION


def global_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    global_mask: Tensor,
    padding_mask: Tensor,
) -> Tensor:
    """Task 4: what the global tokens find.

    A global token asks with a projection of its own, and gets keys and values that were projected for such
    questions only; those are the three given here, of all tokens. It sees every token of its text: its row
    is softmax(query keyᵀ / √d) value. `output` has a row for each token already, the answers that window
    and global keys gave. Replace those of the global tokens, and keep all others.

    Padding is no key, and no global token either. A dense answer for all t queries, of which most are
    thrown away, would have the right numbers, and no check sees that. So this is left to you: only k
    queries are asked, and all scores are `b h k t`.

    One head, keys of zeros, by hand: three tokens with the values 3, 6, 30 and the output 7, 7, 7. Token 1
    is global and token 2 is padding. The answer is 7, 4.5, 7.

    **Shapes.** `query` and `key` are `b h t d`, `value` and `output` are `b h t e`, and so is the result. The
    masks are `b t`.
    """
    ### BEGIN SOLUTION
    positions, real = pack_globals(global_mask & padding_mask)
    asked = take_tokens(query, positions)
    scores = torch.einsum("b h k d, b h s d -> b h k s", asked, key) * query.shape[-1] ** -0.5
    # A text of padding only would be 0 / 0. It has no real slot, so what is computed for it is not used.
    hidden = ~padding_mask & padding_mask.any(dim=1, keepdim=True)
    weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(dim=-1)
    found = torch.einsum("b h k s, b h s e -> b h k e", weights, value)
    # Only real slots are written: the others would write to token 0.
    text, slot = real.nonzero(as_tuple=True)
    rows = output.transpose(1, 2).clone()
    rows[text, positions[text, slot]] = found.transpose(1, 2)[text, slot]
    return rows.transpose(1, 2)
    ### END SOLUTION


def shared_softmax(
    window_scores: Tensor,
    global_scores: Tensor,
    positions: Tensor,
    real: Tensor,
    padding_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Task 5: one softmax for both.

    The scores of a query come from two places. `window_scores` has a = 2 * window - 1 of them: number c is
    the score of query i and key i + c - (window - 1). Near the ends of a text no such key exists, and the
    number there means nothing. `global_scores` has one for each slot of task 3.

    A query spreads one unit of attention over all keys that it sees, each counted once. A global key inside
    the window keeps its weight there, and its slot gets 0. What means nothing gets 0: no key, padding, a slot
    that is not real. All weights of a query that is padding are 0. A global token asks here as all others do;
    its row is replaced later. No `t t` table is needed.

    Three tokens, window 2, token 0 global, all scores 0, by hand:

        window weights   0   1/2 1/2     global weight   0
                         1/3 1/3 1/3                     0
                         1/3 1/3 0                       1/3

    **Shapes.** `window_scores` is `b h t a`, `global_scores` is `b h t k`, and so are the weights, a pair in
    this order. `positions` and `real` are `b k`, `padding_mask` is `b t`. No real slot holds padding.
    """
    ### BEGIN SOLUTION
    t, a = window_scores.shape[2:]
    window, i = (a + 1) // 2, torch.arange(t)[:, None]
    j = i + torch.arange(a) - (window - 1)
    in_text = (j >= 0) & (j < t)
    near = in_text & padding_mask[:, j.clamp(0, t - 1)]
    far = real[:, None] & ((positions[:, None] - i).abs() >= window)
    sees = torch.cat([near, far], dim=-1) & padding_mask[:, :, None]
    scores = torch.cat([window_scores, global_scores], dim=-1)
    # A row of nothing but -inf would be 0 / 0, in its gradient too.
    empty = ~sees.any(dim=-1)[:, None, :, None]
    weights = scores.masked_fill(~sees[:, None], float("-inf")).masked_fill(empty, 0.0).softmax(dim=-1)
    weights = weights.masked_fill(empty, 0.0)
    return weights[..., :a], weights[..., a:]
    ### END SOLUTION


def longformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    global_mask: Tensor,
    *,
    global_qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Task 5, continued: the whole.

    Every token attends to its window and to the global tokens, with `query`, `key` and `value`. A global
    token attends to everything, with the three of `global_qkv`; if those are None, with the same as all. So
    a global token has two keys: one that local queries meet, and one for global queries. Without a
    `padding_mask` there is no padding; rows of padding are 0.

    Only `b h t a` and `b h t k` scores are wanted: `torch.nn.functional.pad(key, (0, 0, 2, 2))` puts
    two rows of zeros before and after the keys, and `x.unfold(2, 5, 1)` lists windows of five rows, as
    `b h t d 5`.

    With the masks of task 4, all queries and keys zero and window 1, by hand: the values 3, 6, 30 give 4.5,
    4.5, 0. The first token sees itself and the global one.

    **Shapes.** `query` and `key` are `b h t d`, `value` is `b h t e`, and so is the result. `global_qkv` has
    the same shapes, the masks are `b t`.
    """
    ### BEGIN SOLUTION
    if padding_mask is None:
        padding_mask = torch.ones_like(global_mask)
    positions, real = pack_globals(global_mask & padding_mask)
    side, a = window - 1, 2 * window - 1
    near_keys, near_values = (
        torch.nn.functional.pad(x, (0, 0, side, side)).unfold(2, a, 1) for x in (key, value)
    )
    far_keys, far_values = take_tokens(key, positions), take_tokens(value, positions)
    query_scaled = query * query.shape[-1] ** -0.5
    near, far = shared_softmax(
        torch.einsum("b h t d, b h t d a -> b h t a", query_scaled, near_keys),
        torch.einsum("b h t d, b h k d -> b h t k", query_scaled, far_keys),
        positions,
        real,
        padding_mask,
    )
    output = torch.einsum("b h t a, b h t e a -> b h t e", near, near_values)
    output = output + torch.einsum("b h t k, b h k e -> b h t e", far, far_values)
    return global_rows(*(global_qkv or (query, key, value)), output, global_mask, padding_mask)
    ### END SOLUTION


def layers_needed(
    source: int,
    target: int,
    t: int,
    layers: list[list[tuple[int, int]]],
    positions: list[int],
) -> int | None:
    """Task 6: how deep must it be?

    What one layer cannot connect, the next may: a token that has felt another passes it on. A head with
    (window, dilation) sees the keys whose distance is 0, 1, 2, ... window - 1 times the dilation, on both
    sides, and tokens `positions` are global in every head. A layer is a list of heads, and what one of them
    finds, the whole layer knows. `layers` lists them from the bottom, and may mix them as it likes.

    Change the input at `source`. After how many layers, from the bottom, can the output at `target` differ?

    A text of 100 tokens, by hand. Two layers of one head (3, 1): from token 10, token 12 needs one layer,
    token 14 two, and token 15 is never reached (None), unless some token is global: then two are enough. With
    heads (3, 2) instead, 14 needs one, 18 two, and 11 is never reached: 10 + 2 + 2 + ... stays even. With
    both heads in each layer, 11 needs one again, and 15 two.

    **Returns** the number of layers, 0 if source and target are the same token, or None if all layers are not
    enough. 0 <= source, target < t.
    """
    ### BEGIN SOLUTION
    felt = torch.zeros(t, dtype=torch.bool)
    felt[source] = True
    for n, heads in enumerate(layers):
        if felt[target]:
            return n
        before = felt.clone()
        for window, dilation in heads:
            for step in range(dilation, min(window * dilation, t), dilation):
                felt[step:] |= before[:-step]
                felt[:-step] |= before[step:]
        if before[positions].any():
            felt[:] = True
        felt[positions] = True
    return len(layers) if felt[target] else None
    ### END SOLUTION
