"""# Exercise: flash

Six tasks, each a little harder than the one before, and the last is not answered on the page. In the end you
have flash attention, forward and backward, and know what can be done with its results, and what cannot.

Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` and `e` widths; a tile has
`u` queries and `a` keys. You need `torch` only. Write the attention out: `scaled_dot_product_attention` would
leave nothing to learn. A task may use the functions of the tasks before it.

Check your work as often as you like: `attn check flash` says what is wrong and where, and
`attn check flash --hint` gives one hint at a time.
"""

import torch
from torch import Tensor


def add_block(
    m: Tensor, l: Tensor, o: Tensor, scores: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Task 1: one more block of keys.

    The keys come in blocks, and each block is forgotten. Of all keys so far, three things are remembered for
    every query:

        m = the largest score
        l = Σ exp(score - m)
        o = Σ exp(score - m) · value

    Before the first block they are -∞, 0 and 0. Take in one more block. Scores may be 10,000, and a score of
    -∞ is a key that is hidden: it adds nothing, even if the whole block is hidden and nothing was seen before.

    Scores 0 and ln 3 with the values 4 and 8 came before, by hand: m is ln 3, the shares are 1/3 and 1, so
    l = 4/3 and o = 4/3 + 8 = 28/3. Now comes ln 6 with the value 2. The largest is ln 6, twice as much, so
    what was summed is worth half of it: l = 2/3 + 1 = 5/3, and o = 14/3 + 2 = 20/3.

    **Shapes.** `m` and `l` are `... u`, `o` is `... u e`, `scores` is `... u a` and `value` is `... a e`.

    **Returns** the new (m, l, o).
    """
    ### BEGIN SOLUTION
    highest = torch.maximum(m, scores.amax(dim=-1))
    # -inf minus -inf is NaN, so where nothing was seen yet 0 is taken away: exp(-inf) stays 0.
    safe = highest.masked_fill(highest == float("-inf"), 0.0)
    keep = torch.exp(m - safe)
    shares = torch.exp(scores - safe[..., None])
    return highest, keep * l + shares.sum(dim=-1), keep[..., None] * o + shares @ value
    ### END SOLUTION


def finish(m: Tensor, l: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Task 1, continued: what it comes to.

    After the last block, say what attention over all keys returns, and how much there was to attend to: the
    `lse`, ln Σ exp(score). A query that saw nothing has the output 0 and the lse -∞.

    The example, by hand: the output is (20/3) / (5/3) = 4, and the lse is ln 6 + ln 5/3 = ln 10.

    **Returns** (output, lse), `... u e` and `... u`.
    """
    ### BEGIN SOLUTION
    return o / l.masked_fill(l == 0, 1.0)[..., None], m + torch.log(l)
    ### END SOLUTION


def merge_attention(
    output_a: Tensor, lse_a: Tensor, output_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Task 2: two results make one.

    The same queries attended to some keys and, elsewhere, to others. Only the two results are left, each with
    its lse. Say what attention over all these keys returns, and its lse.

    An lse may be 10,000, or -∞ where a query saw nothing, which may be so in both. Gradients are asked for,
    too; where both saw nothing they are 0. There is never a NaN.

    Output 4 with the lse ln 10, and output 9 with the lse ln 15, by hand: the second counts 15 where the
    first counts 10, so the output is (10 · 4 + 15 · 9) / 25 = 7, and the lse is ln 25.

    **Shapes.** Outputs are `b h t e`, an lse is `b h t`.

    **Returns** (output, lse).
    """
    ### BEGIN SOLUTION
    highest = torch.maximum(lse_a, lse_b)
    empty = highest == float("-inf")
    safe = highest.masked_fill(empty, 0.0)
    a, b = torch.exp(lse_a - safe), torch.exp(lse_b - safe)
    # Not 0 but 1 where nothing was seen, before it is divided by: a NaN would come back as a gradient.
    total = (a + b).masked_fill(empty, 1.0)
    output = (a / total)[..., None] * output_a + (b / total)[..., None] * output_b
    return output, (safe + torch.log(total)).masked_fill(empty, float("-inf"))
    ### END SOLUTION


def tile_plan(t: int, s: int, block_q: int, block_k: int, *, is_causal: bool = False) -> Tensor:
    """Task 3: which tiles are needed.

    Cut the table of scores, `t s`, into tiles of `block_q` rows and `block_k` columns, from the top left. The
    last ones are smaller if it does not come out even. With `is_causal`, query i sees the keys j <= i, however
    many there are of each. Then a tile is one of three kinds:

    - 0: no query in it sees any of its keys. It need not be computed.
    - 1: some keys are seen by some queries, but not all by all. It needs a mask.
    - 2: each of its queries sees each of its keys. It needs none.

    If not `is_causal`, all are 2. Five queries, seven keys and tiles of 2 by 3, causal, by hand; the rows are
    the queries 0 1, 2 3 and 4, the columns the keys 0 1 2, 3 4 5 and 6:

        1 0 0
        2 1 0
        2 1 0

    With six keys the last row is 2 1, for query 4 does not see key 5. With five keys it is 2 2.

    **Returns** a tensor of whole numbers, one for each tile.
    """
    ### BEGIN SOLUTION
    first_q, first_k = torch.arange(0, t, block_q), torch.arange(0, s, block_k)
    last_q, last_k = (first_q + block_q).clamp(max=t) - 1, (first_k + block_k).clamp(max=s) - 1
    if not is_causal:
        return torch.full((len(first_q), len(first_k)), 2)
    some, all_of_it = first_k <= last_q[:, None], last_k <= first_q[:, None]
    return some.int() + all_of_it.int()
    ### END SOLUTION


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    block_q: int = 32,
    block_k: int = 64,
) -> tuple[Tensor, Tensor]:
    """Task 4: flash attention.

    It is softmax(query keyᵀ / √d) value, tile by tile: whatever the lengths, no tensor of `t` times `s` is
    ever made. (The checks cannot see how large your tensors are. Your memory can.) The result does not depend
    on the sizes of the tiles. What the plan of task 3 leaves out is not read, so a NaN there does no harm.

    In half precision, all that is computed and remembered is in float32, and so is the lse; the output is
    rounded to the dtype of the query once, in the end. In float64 all stays in float64.

    Values 1, 2, 3, 4, all queries 0, by hand: all scores are 0, so the causal outputs are 1, 1.5, 2, 2.5, and
    the lse is ln 1, ln 2, ln 3, ln 4.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d` and `value` is `b h s e`.

    **Returns** (output, lse), `b h t e` and `b h t`.
    """
    ### BEGIN SOLUTION
    t, s = query.shape[2], key.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    plan = tile_plan(t, s, block_q, block_k, is_causal=is_causal).tolist()
    results = []
    for n, q in enumerate(query.split(block_q, dim=2)):
        q = q.to(wide) * query.shape[3] ** -0.5
        i = n * block_q + torch.arange(q.shape[2])
        m, l = q.new_full(q.shape[:3], float("-inf")), q.new_zeros(q.shape[:3])
        o = q.new_zeros(*q.shape[:3], value.shape[3])
        tiles = zip(plan[n], key.split(block_k, dim=2), value.split(block_k, dim=2), strict=True)
        for column, (kind, k, v) in enumerate(tiles):
            if kind == 0:
                continue
            scores = q @ k.to(wide).mT
            if kind == 1:
                j = column * block_k + torch.arange(k.shape[2])
                scores = scores.masked_fill(j > i[:, None], float("-inf"))
            m, l, o = add_block(m, l, o, scores, v.to(wide))
        results.append(finish(m, l, o))
    outputs, lses = zip(*results, strict=True)
    return torch.cat(outputs, dim=2).to(query.dtype), torch.cat(lses, dim=2)
    ### END SOLUTION


def flash_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    *,
    is_causal: bool = False,
    block_q: int = 32,
    block_k: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Task 5: the way back.

    The weights were not kept. Of the way there only `output` and `lse` are left: compute every tile anew, and
    again read none that the plan leaves out. With P for the weights, and D, one number for each query,

        dP = grad_output valueᵀ
        D = Σ grad_output · output, over e
        dS = P · (dP - D)

    and then dv, dq and dk as in lesson 1, but as sums over tiles. Write it by hand: autograd would keep all
    weights.

    `output` and `lse` may be those of a longer text, of which `key` and `value` are only a piece. Then dk and
    dv are those of this piece, and dq is what it contributes: added up over the pieces, it is the gradient.

    One query 2, two keys 0 and ln 3 with the values 4 and 8, d = 4 (the other numbers are 0), by hand: the
    weights are 1/4 and 3/4, the output 7. For a gradient of 1, dP is 4 and 8, D is 7, dS is -3/4 and 3/4; dk
    is -3/4 and 3/4 in its first number, dq is 3/8 · ln 3, and dv is 1/4 and 3/4.

    **Shapes.** As in task 4; `grad_output` is `b h t e`.

    **Returns** (dq, dk, dv).
    """
    ### BEGIN SOLUTION
    t, s, scale = query.shape[2], key.shape[2], query.shape[3] ** -0.5
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    delta = (grad_output * output).sum(dim=-1, keepdim=True)
    plan = tile_plan(t, s, block_q, block_k, is_causal=is_causal)
    for n, column in plan.nonzero().tolist():
        i = slice(n * block_q, (n + 1) * block_q)
        j = slice(column * block_k, (column + 1) * block_k)
        q, k, grad = query[:, :, i], key[:, :, j], grad_output[:, :, i]
        # With the lse, each tile knows its weights at once: there is no second online softmax.
        p = torch.exp(q @ k.mT * scale - lse[:, :, i, None])
        if plan[n, column] == 1:
            p = p.masked_fill(torch.arange(s)[j] > torch.arange(t)[i, None], 0.0)
        ds = p * (grad @ value[:, :, j].mT - delta[:, :, i]) * scale
        dq[:, :, i] += ds @ k
        dk[:, :, j] += ds.mT @ q
        dv[:, :, j] += p.mT @ grad
    return dq, dk, dv
    ### END SOLUTION


def leave_one_out(outputs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Task 6: without each of them.

    A model was shown n documents, and each query attended to all of their keys. What would it have taken in
    without the first document? And without the second? Of each there is the result of attention to its keys
    alone, and its lse. Say, for each document, what attention to all the others returns.

    It may be that nearly everything was taken from one document, so that its lse is 10,000 above the others;
    it is just then that one would like to know. A document may have nothing to be seen: 0 and -∞. If there is
    only one, the others are nothing.

    To merge all others anew for each document takes n² merges. About 3n are enough. (The checks do not count.)

    Three documents with the lse ln 1, ln 2 and ln 3 and the outputs 6, 3 and 2, by hand: without the first,
    the output is (2 · 3 + 3 · 2) / 5 = 2.4 and the lse ln 5; without the second 3 and ln 4; without the third
    4 and ln 3.

    **Shapes.** `outputs` is `n b h t e`, `lses` is `n b h t`.

    **Returns** (outputs, lses) in the same shapes: entry k is without document k.
    """
    ### BEGIN SOLUTION
    # A merge cannot be undone: the sum of a large number and a small one has forgotten the small one. So it
    # is not done in the first place. What comes before each document and what comes after it grow side by side.
    parts = list(zip(outputs, lses, strict=True))
    nothing = torch.zeros_like(outputs[0]), torch.full_like(lses[0], float("-inf"))
    before, after = [nothing], [nothing]
    for k in range(1, len(parts)):
        before.append(merge_attention(*before[-1], *parts[k - 1]))
        after.append(merge_attention(*parts[-k], *after[-1]))
    merged = [merge_attention(*a, *b) for a, b in zip(before, reversed(after), strict=True)]
    return torch.stack([output for output, _ in merged]), torch.stack([lse for _, lse in merged])
    ### END SOLUTION
