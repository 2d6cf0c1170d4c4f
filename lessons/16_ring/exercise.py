"""# Exercise: ring

Six tasks, each a little harder than the one before, and the last is not answered on the page. In the end you
have all of ring attention but the network: the checks play that. They make all the ranks, carry what each one
sends to the next, and compare what comes out with a device that has the whole text.

Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` and `e` widths. There are
`n` ranks, counted from 0, and each has `u` tokens of a text of n · u. You need `torch` only. Write the
attention out: `scaled_dot_product_attention` would leave nothing to learn. A task may use what was written
for the tasks before it.

Check your work as often as you like: `attn check ring` says what is wrong and where, and
`attn check ring --hint` gives one hint at a time.
"""

import torch
from torch import Tensor


def held(rank: int, step: int, n: int) -> int:
    """Task 1: who holds what.

    The text is cut into `n` shares, and share p is that of rank p. Keys travel: at step 0 each rank holds the
    keys of its own share, and after each step it sends what it holds to the next rank, that is rank + 1, and
    the last rank to rank 0. Which share does a rank hold at a step?

    Three ranks, by hand: rank 1 holds its own share first, then what rank 0 has sent, its share 0, and
    then what rank 0 got from rank 2. That makes 1, 0, 2.

    **Returns** the number of the share. At step n all are at home again.
    """
    ### BEGIN SOLUTION
    return (rank - step) % n
    ### END SOLUTION


def arrives(rank: int, share: int, n: int) -> int:
    """Task 1, continued: and when.

    The other way round: at which of the steps 0 to n - 1 does `rank` hold `share`? By hand, as above: rank 1
    holds share 2 at step 2.
    """
    ### BEGIN SOLUTION
    return (rank - share) % n
    ### END SOLUTION


def zigzag(n: int, t: int) -> Tensor:
    """Task 2: a fair cut.

    In a causal text late queries see more than early ones, so whoever has the end of the text has the most to
    do. So do not cut it into n stretches, but into 2n pieces of the same size. The first n go to rank 0, 1, ...,
    n - 1, and the other n to the ranks in the opposite order: n - 1, ..., 1, 0. Within its pieces each rank
    keeps the order of the text.

    Two ranks and 8 tokens, by hand; row r says at which positions the tokens of rank r stand:

        0 1 6 7
        2 3 4 5

    **Returns** a tensor of whole numbers, `n u`.

    **Raises** `ValueError` if `t` tokens cannot be cut into 2n pieces of one size.
    """
    ### BEGIN SOLUTION
    if t % (2 * n):
        raise ValueError(f"t is {t}: a multiple of {2 * n} is wanted, two pieces for each of {n} ranks")
    pieces = torch.arange(t).view(2 * n, -1)
    return torch.cat([pieces[:n], pieces[n:].flip(0)], dim=1)
    ### END SOLUTION


def unshard(shares: list[Tensor]) -> Tensor:
    """Task 2, continued: back to the text.

    Each of n ranks has computed something for its tokens of the zigzag. Put the text together again.

    Two ranks, by hand: the shares A B G H and C D E F make A B C D E F G H.

    **Shapes.** Each share is `b h u e`, that of rank 0 first; the result is `b h n*u e`.
    """
    ### BEGIN SOLUTION
    order = zigzag(len(shares), len(shares) * shares[0].shape[2])
    return torch.cat(shares, dim=2)[:, :, order.flatten().argsort()]
    ### END SOLUTION


def work(order: Tensor) -> Tensor:
    """Task 3: the work of each step.

    Row r of `order` says at which positions the tokens of rank r stand; it may be any cut of the text, not
    the zigzag alone. Query i sees the keys j <= i. How many pairs of a query and a key that it sees are there
    for each rank at each step, for the keys that it holds then?

    Two ranks that have 0 1 and 2 3, by hand. With its own keys each rank has 3 pairs. Then rank 0 holds 2 and 3,
    which it does not see, and rank 1 holds 0 and 1, which it does:

        3 0
        3 4

    **Shapes.** `order` is `n u`. The result is `n n`: a row for each rank, a column for each step.
    """
    ### BEGIN SOLUTION
    # Of each rank and each share; the ranks' rows are then turned so that the columns are steps.
    n = len(order)
    pairs = (order[None, :, None, :] <= order[:, None, :, None]).sum(dim=(2, 3))
    shares = torch.tensor([[held(rank, step, n) for step in range(n)] for rank in range(n)])
    return pairs.gather(1, shares)
    ### END SOLUTION


def duration(pairs: Tensor) -> int:
    """Task 3, continued: how long it takes.

    A pair takes one unit of time, and sending takes none. But nobody goes on to the next step before all have
    done this one: each waits for the keys. When is the last step done?

    The example, by hand: the first step takes 3 and the second 4, which makes 7. A rank alone with all 10 pairs
    takes 10, so the second rank is worth little. With the zigzag there is 3 2 in both rows: that takes 5, and
    two ranks are worth two.

    **Shapes.** `pairs` is `n n`, what `work` returns; the result is a whole number.
    """
    ### BEGIN SOLUTION
    return int(pairs.amax(dim=0).sum())
    ### END SOLUTION


def attend(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """Task 4: a part of the answer.

    The queries stand at the positions `i`, the keys at the positions `j`, in whatever order, and a query sees
    the keys that stand where it stands or before. Return softmax(query keyᵀ / √d) value over what is
    seen, and the lse: ln Σ exp(score) over the same keys. A query that sees none of them has the output 0 and
    the lse -∞. It may be that there are no keys at all.

    The results are still to be merged, so they are not rounded: below float32 compute in float32, and
    return both in it. Float64 stays float64.

    All scores 0, by hand: keys at 0, 3 and 1 with the values 6, 7 and 2. A query at 2 sees the first and the
    last: the output is 4, the lse ln 2.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`, `i` is `t` and `j` is `s`.

    **Returns** (output, lse), `b h t e` and `b h t`.
    """
    ### BEGIN SOLUTION
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key, value = query.to(wide), key.to(wide), value.to(wide)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    scores = scores.masked_fill(j > i[:, None], float("-inf"))
    lse = scores.logsumexp(dim=-1)
    # exp(-inf - 0) is 0, where exp(-inf - -inf) would be NaN.
    safe = lse.masked_fill(lse == float("-inf"), 0.0)
    return torch.exp(scores - safe[..., None]) @ value, lse
    ### END SOLUTION


def merge(output_a: Tensor, lse_a: Tensor, output_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Task 4, continued: two parts make one.

    The same queries attended to some keys, and then to others: `attend` said what came of each. Say what it
    would have said for all these keys at once. An lse may be 10,000, and -∞ on one side or on both. There is
    never a NaN. (Who has done lesson 13 may bring its merge along.)

    The example goes on, by hand: output 4 with ln 2, and output 10 with ln 1: (2 · 4 + 1 · 10) / 3 = 6, and ln 3.

    **Returns** (output, lse).
    """
    ### BEGIN SOLUTION
    lse = torch.logaddexp(lse_a, lse_b)
    safe = lse.masked_fill(lse == float("-inf"), 0.0)
    a, b = torch.exp(lse_a - safe), torch.exp(lse_b - safe)
    return a[..., None] * output_a + b[..., None] * output_b, lse
    ### END SOLUTION


class PassKeys:
    """Task 5: the keys travel.

    One rank of the ring. Of a causal text, cut in zigzag, it has `query`, `key` and `value`: `b h u d`, `b h u d`
    and `b h u e`. The checks make all `n` ranks. Then n - 1 times they ask each rank what it sends, and carry it
    to the next one. In the end they ask each for its result.

    - `send()` returns (key, value): what the rank holds, in the dtype in which it came. What travels in
      float32 takes twice as long.
    - `receive(key, value)` takes in what the rank before has sent. What was held is given away: a rank has room
      for one share of keys, not for all that come by.
    - `result()` returns (output, lse) of attention to all that the queries of this rank see: `b h u e`, in the
      dtype of the query and rounded once, and `b h u`, in float32 or wider.

    The cut is fair only if what is hidden is not computed. Of the pairs with a share that has come from another
    rank half are hidden, and in zigzag they are a whole side of the table of scores: all queries and half of the
    keys, or half of the queries and all keys. So of what comes, let no query read what stands behind it: a NaN
    there does no harm.

    Two ranks and 4 tokens, all queries 0, values 1 2 3 6, by hand. Rank 0 has the positions 0 and 3. Of its own
    it takes 1 and (1 + 6) / 2 = 3.5, with the lse ln 1 and ln 2. Then those at 1 and 2 come. Query 0 sees
    neither, query 3 both: (3.5 + 2.5) / 2 = 3. The result is 1 and 3, with the lse ln 1 and ln 4.
    """

    def __init__(self, rank: int, n: int, query: Tensor, key: Tensor, value: Tensor):
        ### BEGIN SOLUTION
        self.rank, self.n, self.step, self.query = rank, n, 0, query
        self.order = zigzag(n, n * query.shape[2])
        self.key, self.value = key, value
        self.output, self.lse = attend(query, key, value, self.order[rank], self.order[rank])
        ### END SOLUTION

    def send(self) -> tuple[Tensor, Tensor]:
        """(key, value), for the next rank."""
        ### BEGIN SOLUTION
        return self.key, self.value
        ### END SOLUTION

    def receive(self, key: Tensor, value: Tensor) -> None:
        """What has come from the rank before."""
        ### BEGIN SOLUTION
        self.step, self.key, self.value = self.step + 1, key, value
        i, j = self.order[self.rank], self.order[held(self.rank, self.step, self.n)]
        # Whoever sees nothing, and what nobody sees, is left out.
        seen = j <= i[:, None]
        rows, columns = seen.any(dim=1), seen.any(dim=0)
        part = attend(self.query[:, :, rows], key[:, :, columns], value[:, :, columns], i[rows], j[columns])
        merged = merge(self.output[:, :, rows], self.lse[:, :, rows], *part)
        self.output[:, :, rows], self.lse[:, :, rows] = merged
        ### END SOLUTION

    def result(self) -> tuple[Tensor, Tensor]:
        """(output, lse) of this rank's queries."""
        ### BEGIN SOLUTION
        return self.output.to(self.query.dtype), self.lse
        ### END SOLUTION


class PassQueries:
    """Task 6: the way back, on which the keys stay at home.

    On the page keys and values go round once more for the gradient, and dk and dv with them. That makes four large
    tensors. Where every query head has keys of its own it can be done with three: the keys and values stay, and the
    queries travel with what belongs to them. A rank of that ring has what it had forward, the output and lse that
    came out, and the gradient of the output. Autograd is of no use, for no rank has a whole row of
    weights. With score = query · key / √d it is

        P  = exp(score - lse), 0 where a key is hidden
        D  = Σ grad_output · output, over e
        dP = grad_output valueᵀ
        dS = P · (dP - D)
        dv = Pᵀ grad_output,   dk = dSᵀ query / √d,   dq = dS key / √d

    This time all is sent n times, so that each share comes home. Before it sends, a rank adds what its own keys
    and values have to add: to the dq that it holds, and to the dk and dv that it keeps.

    - `send()` returns (query, grad_output, lse, delta, dq): `delta` is D, `b h u`, and stands for the output,
      which need not travel.
    - `receive(...)` takes the same five, from the rank before.
    - `result()` returns (dq, dk, dv), each for the rank's own tokens.

    Two ranks and 4 tokens, all queries 0, grad_output 12 12 12 12 and e = 1, by hand. Query i spreads its 12
    evenly over i + 1 keys. Rank 1 has the positions 1 and 2. Its own queries make dv 6 + 4 = 10 and 4. Then
    the queries 0 and 3 come and add 3 and 3: 13 and 7. Then its own come home, with their dq.
    """

    def __init__(
        self,
        rank: int,
        n: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        grad_output: Tensor,
    ):
        ### BEGIN SOLUTION
        self.rank, self.n, self.step = rank, n, 0
        self.order = zigzag(n, n * query.shape[2])
        self.key, self.value = key, value
        self.dk, self.dv = torch.zeros_like(key), torch.zeros_like(value)
        self.parcel = query, grad_output, lse, (grad_output * output).sum(dim=-1), torch.zeros_like(query)
        ### END SOLUTION

    def send(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(query, grad_output, lse, delta, dq), for the next rank."""
        ### BEGIN SOLUTION
        query, grad, lse, delta, dq = self.parcel
        i, j = self.order[held(self.rank, self.step, self.n)], self.order[self.rank]
        c = query.shape[-1] ** -0.5
        p = torch.exp(query @ self.key.mT * c - lse[..., None]).masked_fill(j > i[:, None], 0.0)
        ds = p * (grad @ self.value.mT - delta[..., None]) * c
        self.dk += ds.mT @ query
        self.dv += p.mT @ grad
        return query, grad, lse, delta, dq + ds @ self.key
        ### END SOLUTION

    def receive(self, query: Tensor, grad_output: Tensor, lse: Tensor, delta: Tensor, dq: Tensor) -> None:
        """What has come from the rank before."""
        ### BEGIN SOLUTION
        self.step += 1
        self.parcel = query, grad_output, lse, delta, dq
        ### END SOLUTION

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv) of this rank's tokens."""
        ### BEGIN SOLUTION
        return self.parcel[-1], self.dk, self.dv
        ### END SOLUTION
