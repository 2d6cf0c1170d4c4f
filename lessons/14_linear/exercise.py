"""# Exercise: linear attention

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` and `e` widths. In
examples with one text and one head, the axes `b` and `h` are left out. You need `torch` only. A task may use
the functions of the tasks before it.

Only task 4 asks for a table of all pairs of a text, queries by keys. Nothing else needs one, and the checks
notice it where they can.

Check your work as often as you like: `attn check linear` says what is wrong and where, and
`attn check linear --hint` gives one hint at a time.
"""

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]


def elu_plus_one(x: Tensor) -> Tensor:
    """Task 1: a state instead of a table.

    Linear attention gives key j the weight φ(qᵢ)ᵀφ(kⱼ) where softmax has exp(qᵢᵀkⱼ), and divides by the sum
    of the weights. The features φ must be positive: here φ(x) = x + 1 where x > 0, and exp(x) elsewhere,
    for each number by itself. Numbers may be large, and no gradient may be NaN. They may be far below 0:
    φ(-40) is exp(-40), very small but not 0, for one day it may stand alone in a denominator.

    By hand: 2, 0, -1 become 3, 1, 0.3679.
    """
    ### BEGIN SOLUTION
    return x.clamp(max=0).exp() + x.clamp(min=0)
    ### END SOLUTION


def store(key: Tensor, value: Tensor) -> State:
    """Task 1, continued: the text becomes a state.

    (φ(qᵢ)ᵀφ(kⱼ)) vⱼᵀ = φ(qᵢ)ᵀ (φ(kⱼ) vⱼᵀ), and the bracket on the right does not know the query. So all
    keys and values can be summed up before any query comes:

        S = Σⱼ φ(kⱼ) vⱼᵀ,        z = Σⱼ φ(kⱼ).

    Two keys (0, 1) and (1, 0) with the values 3 and 6, by hand: the features are (1, 2) and (2, 1), so S is
    the column (1·3 + 2·6, 2·3 + 1·6) = (15, 12), and z is (3, 3).

    **Shapes.** `key` is `b h s d`, `value` is `b h s e`; S is `b h d e` and z is `b h d`.

    **Returns** the tuple (S, z).
    """
    ### BEGIN SOLUTION
    features = elu_plus_one(key)
    return torch.einsum("b h s d, b h s e -> b h d e", features, value), features.sum(dim=2)
    ### END SOLUTION


def read(query: Tensor, state: State) -> Tensor:
    """Task 1, continued: what queries find there.

    Every query reads the whole state: Sᵀφ(q), divided by zᵀφ(q).

    The query (3, 0) reads the state above, by hand: its features are (4, 1), so it finds
    (4·15 + 12) / (4·3 + 3) = 4.8.

    **Shapes.** `query` is `b h t d`, the state is as above; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    (S, z), features = state, elu_plus_one(query)
    found = torch.einsum("b h t d, b h d e -> b h t e", features, S)
    return found / torch.einsum("b h t d, b h d -> b h t", features, z)[..., None]
    ### END SOLUTION


def linear_attention_step(query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
    """Task 2: one token at a time.

    A model that writes sees its past and the token itself. One step takes in one token, and returns what
    its query finds and the state for the next. At the beginning of a text, S and z are zeros; after a
    prompt they are what `store` made of it. A step costs the same, however long the text was.

    From zeros, by hand: the token has the key (0, 1), the value 3 and any query. It sees itself only, so it
    finds 3. S is then the column (3, 6), z is (1, 2).

    **Shapes.** `query` and `key` are `b h 1 d`, `value` is `b h 1 e`, and the output is `b h 1 e`.

    **Returns** the output and the state, a tuple of two; the state is the tuple (S, z).
    """
    ### BEGIN SOLUTION
    S, z = store(key, value)
    state = state[0] + S, state[1] + z
    return read(query, state), state
    ### END SOLUTION


def linear_attention(query: Tensor, key: Tensor, value: Tensor, *, chunk_size: int = 64) -> Tensor:
    """Task 3: chunk by chunk.

    To take steps is slow where all tokens are known: each is a tiny product. A table of all pairs is fast
    but quadratic. Between the two: cut the text into chunks of `chunk_size`; the last may be shorter. Within
    a chunk, a small table says what the tokens find in one another. What they find in all chunks before is
    in one state, carried from chunk to chunk. Both parts share one denominator.

    The result is that of task 2, token by token, for any chunk size. No output may read what comes after
    its chunk, so that a NaN there does not reach it. Gradients are asked for, too.

    Four tokens with all queries and keys 0, values 1, 2, 3, 4, in chunks of two, by hand: φ is 1, all
    weights are equal, and each token finds the mean up to itself: 1, 1.5, 2, 2.5. Token 2 has 3 from its own
    chunk and 1 + 2 from the state, divided by 1 + 2.

    **Shapes.** `query` and `key` are `b h t d`, `value` is `b h t e`; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    query, key = elu_plus_one(query), elu_plus_one(key)
    # z is one more column of S: the sum of weights is what a value of 1 would give.
    value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
    # A sum over no keys: zeros.
    S, outputs = key[:, :, :0].mT @ value[:, :, :0], []
    for q, k, v in zip(*(x.split(chunk_size, dim=2) for x in (query, key, value)), strict=True):
        outputs.append((q @ k.mT).tril() @ v + q @ S)
        S = S + k.mT @ v
    output = torch.cat(outputs, dim=2)
    return output[..., :-1] / output[..., -1:]
    ### END SOLUTION


def decay_mask(log_decay: Tensor) -> Tensor:
    """Task 4: forgetting.

    A state that only adds up is soon full. Let it fade: at each token i, what it held is multiplied by aᵢ,
    a number from 0 to 1, before the token is added. What token j brought has then, when token i reads, faded
    by all that came after it:

        Dᵢⱼ = aⱼ₊₁ · aⱼ₊₂ · … · aᵢ  for j ≤ i,        Dᵢⱼ = 0  for j > i.

    Given are the logarithms of a. They are 0 or negative, perhaps very: -1,000, or -∞, which forgets all
    that came before, as a new document may want. Nothing may become NaN, the gradient included (where no
    logarithm is -∞).

    Three tokens, each with a = 1/2, by hand:

        1    0    0
        1/2  1    0
        1/4  1/2  1

    **Shapes.** `log_decay` is `b h t`; the result is `b h t t`, queries by keys.
    """
    ### BEGIN SOLUTION
    t = log_decay.shape[-1]
    after = torch.ones(t, t, dtype=torch.bool, device=log_decay.device).tril(-1)
    # Row l of the table has the logarithm of a_l for every j < l: summed from above, j + 1 up to i.
    table = log_decay[..., :, None].expand(*log_decay.shape, t).masked_fill(~after, 0.0)
    # Masked before the exponential, not after it: no row is -inf throughout, and no exponent is positive.
    hidden = ~(after | torch.eye(t, dtype=torch.bool, device=log_decay.device))
    return table.cumsum(dim=-2).masked_fill(hidden, float("-inf")).exp()
    ### END SOLUTION


def decayed_attention(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """Task 4, continued: the attention.

    As in RetNet and Mamba-2 there are no features and no denominator any more. A scale is not wanted either:

        oᵢ = Σⱼ Dᵢⱼ (qᵢᵀkⱼ) vⱼ

    Two tokens, d = e = 1, all queries and keys 1, values 4 and 6, a = 1/2, by hand: 4, then 4/2 + 6 = 8.

    **Shapes.** As in task 3, and `log_decay` is `b h t`.
    """
    ### BEGIN SOLUTION
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * decay_mask(log_decay)
    return torch.einsum("b h t s, b h s e -> b h t e", scores, value)
    ### END SOLUTION


def summary(key: Tensor, value: Tensor, log_decay: Tensor) -> State:
    """Task 5: two halves.

    What does a piece of text do to a state S that comes in? It makes it A S + S', where A is the product of
    the piece's decays, and S' is what the piece leaves by itself, starting from zeros. The pair says all
    that anybody later can know of the piece.

    The two tokens of task 4, by hand: log A = ln 1/4, S' = 4/2 + 6 = 8.

    **Shapes.** `key` is `b h t d`, `value` is `b h t e`, `log_decay` is `b h t`; log A is `b h`, S' is
    `b h d e`.

    **Returns** the tuple (log A, S').
    """
    ### BEGIN SOLUTION
    faded = key * decay_mask(log_decay)[..., -1:, :].mT
    return log_decay.sum(dim=-1), torch.einsum("b h t d, b h t e -> b h d e", faded, value)
    ### END SOLUTION


def join(first: State, second: State) -> State:
    """Task 5, continued: the summary of both.

    Two pieces, one behind the other, are a piece. Its summary follows from theirs; their tokens are not
    needed. Pieces may be joined in any grouping, so a long text can be cut up and read by many at once.

    Behind the piece above comes one token with a = 1/2, the key 1 and the value 10: (ln 1/2, 10). By hand,
    the whole has log A = ln 1/8 and S' = 8/2 + 10 = 14.
    """
    ### BEGIN SOLUTION
    return first[0] + second[0], second[0].exp()[..., None, None] * first[1] + second[1]
    ### END SOLUTION


def decayed_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    *,
    chunk_size: int = 64,
) -> Tensor:
    """Task 5, continued: chunk by chunk.

    The attention of task 4 for long texts, cut as in task 3, for any chunk size, and with no output that
    reads beyond its chunk.

    Tokens 0 and 1 are the piece above, token 2 is the one behind it, all queries are 1, chunks of two, by
    hand: 4, 8, and 8/2 + 10 = 14. By the time that token 2 reads, its own decay has touched the state.
    """
    ### BEGIN SOLUTION
    chunks = (x.split(chunk_size, dim=2) for x in (query, key, value, log_decay))
    # Before the text there is an empty piece: it fades nothing and leaves nothing.
    outputs, carried = [], (log_decay[..., :0].sum(dim=-1), key[:, :, :0].mT @ value[:, :, :0])
    for q, k, v, a in zip(*chunks, strict=True):
        since = a.cumsum(dim=-1).exp()[..., None]
        outputs.append(decayed_attention(q, k, v, a) + (since * q) @ carried[1])
        carried = join(carried, summary(k, v, a))
    return torch.cat(outputs, dim=2)
    ### END SOLUTION


def decayed_backward(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Task 6: the way back.

    Autograd remembers the state at every token. Do without: `grad` is the gradient of a loss by the output
    of `decayed_attention`; return the gradients by query, key, value and log_decay, without autograd. Pass
    over the text from left to right, and from right to left, with one state in hand. No table of pairs, and
    no gradient may read what it does not depend on: a NaN in `grad` at token p says nothing about the key of
    token p + 1. The decays may be strong, such as e⁻³⁰, though none is 0.

    The last of the four is the hard one. aᵢ multiplies the state that comes from the left, and is felt by
    all queries to the right: it seems that two states must meet at every i.

    Two tokens, d = e = 1, no decay, queries 1, 2, keys 3, 4, values 5, 6, and 1, 1 for `grad`, by hand. The
    outputs are q₀k₀v₀ and a₁q₁k₀v₀ + q₁k₁v₁. So the gradients are 15, 39 for the queries, 15, 12 for the
    keys, 9, 8 for the values, and 0, 30 for the logarithms.
    """
    ### BEGIN SOLUTION
    decay = log_decay.exp()[..., None, None]
    d_query, d_key, d_value = map(torch.empty_like, (query, key, value))
    S = key[:, :, :0].mT @ value[:, :, :0]
    for i in range(query.shape[2]):
        S = decay[:, :, i] * S + key[:, :, i, :, None] * value[:, :, i, None, :]
        d_query[:, :, i] = (S @ grad[:, :, i, :, None]).squeeze(-1)
    # From the right comes a state of what later queries asked.
    R = torch.zeros_like(S)
    for i in reversed(range(query.shape[2])):
        R = R + query[:, :, i, :, None] * grad[:, :, i, None, :]
        d_key[:, :, i] = (R @ value[:, :, i, :, None]).squeeze(-1)
        d_value[:, :, i] = (R.mT @ key[:, :, i, :, None]).squeeze(-1)
        R = decay[:, :, i] * R
    # Let c_i be the sum of logarithms up to i. All that the output knows of c is q_i exp(c_i) and
    # k_j exp(-c_j): so these are the gradients by c. And log a_i is part of c_i, c_i+1, ...
    by_sum = (query * d_query - key * d_key).sum(dim=-1)
    return d_query, d_key, d_value, by_sum.flip(-1).cumsum(dim=-1).flip(-1)
    ### END SOLUTION
