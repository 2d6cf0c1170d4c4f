"""Wrong variants of the exercise on the ring: each is a mistake, with what a tutor would say to it.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch

INF = float("inf")


def held__the_other_way(rank, step, n):
    """In your ring the keys come from the next rank. Each rank sends to the next: from whom does it get?"""
    return (rank + step) % n


def held__no_ring(rank, step, n):
    """You count below 0: there is no rank -1. From whom does rank 0 get its keys?"""
    return rank - step


def arrives__the_other_way(rank, share, n):
    """You count the hops from `rank` to the home of the share, against the ring. In which direction does it
    travel?"""
    return (share - rank) % n


def zigzag__in_text_order(n, t):
    """You give each rank one stretch of the text. How many keys do the tokens of rank 0 see, and how many those
    of the last rank? Two pieces each are wanted."""
    zigzag(n, t)
    return torch.arange(t).view(n, -1)


def zigzag__in_stripes(n, t):
    """You deal the tokens out one by one. That is fair too (it is called striped attention), but not the zigzag:
    how long are the pieces of which each rank has two?"""
    zigzag(n, t)
    return torch.arange(t).view(-1, n).T.contiguous()


def zigzag__zig_without_zag(n, t):
    """Your second pieces go to the ranks in the same order as the first: rank 0 has the earliest of both, and the
    last rank the latest. Which second piece makes up for the first piece of all?"""
    zigzag(n, t)
    return torch.arange(t).view(2, n, -1).transpose(0, 1).flatten(1)


def zigzag__tokens_run_backwards(n, t):
    """Your second pieces are the right ones, and their tokens run backwards. It is the pieces that go to the
    ranks in the opposite order: in which order do the tokens stay?"""
    first, second = zigzag(n, t).chunk(2, dim=1)
    return torch.cat([first, second.flip(1)], dim=1)


def zigzag__rest_is_lost(n, t):
    """You round the size of a piece down, and tokens at the end of the text belong to nobody. What is to be done
    with a text that cannot be cut evenly?"""
    return zigzag(n, t - t % (2 * n))


def unshard__only_joined(shares):
    """You join the shares as they are: after the first piece comes the last one. Which position has the token
    that stands at place k of what is joined?"""
    return torch.cat(shares, dim=2)


def unshard__order_for_its_inverse(shares):
    """You index what is joined with the zigzag once more, which shuffles it again. The zigzag says which position
    stands at a place; what you need is at which place a position stands. How does one turn a list around?"""
    order = zigzag(len(shares), len(shares) * shares[0].shape[2])
    return torch.cat(shares, dim=2)[:, :, order.flatten()]


def unshard__late_pieces_in_rank_order(shares):
    """You put the second pieces in the order of the ranks. They were given out the other way round: which rank has
    the very last piece of the text?"""
    early, late = zip(*(share.chunk(2, dim=2) for share in shares), strict=True)
    return torch.cat([*early, *late], dim=2)


def _work(order, *, columns="steps", sees=torch.le):
    """A table of pairs with one of its parts done wrong."""
    n = len(order)
    pairs = sees(order[None, :, None, :], order[:, None, :, None]).sum(dim=(2, 3))
    shares = [[held(r, k, n) if columns == "steps" else k for k in range(n)] for r in range(n)]
    return pairs.gather(1, torch.tensor(shares))


def work__columns_are_pieces(order):
    """Your columns are the shares: all ranks would have the keys of rank 0 first. Whose keys does rank r hold at
    step k?"""
    return _work(order, columns="shares")


def work__the_other_way(order):
    """Your ranks have the keys of the rank after them at step 1, and two after them at step 2. Which way do keys
    travel? Task 1 knows."""
    pairs = work(order)
    return torch.cat([pairs[:, :1], pairs[:, 1:].flip(1)], dim=1)


def work__blind_to_itself(order):
    """With its own keys each rank has too few pairs: as many are missing as it has tokens. Does a query see the
    key that stands where it stands?"""
    return _work(order, sees=torch.lt)


def work__looks_ahead(order):
    """You count the keys that stand at the query's position or behind it. Which of the two has the right to see
    the other?"""
    return _work(order, sees=torch.ge)


def duration__waits_in_the_end(pairs):
    """You let each rank run through all its steps, and wait for the busiest in the end. But a rank cannot begin a
    step before the keys have come. For whom does it wait at each step?"""
    return int(pairs.sum(dim=1).amax())


def duration__rows_for_columns(pairs):
    """You add up the busiest step of each rank: a row is a rank, a column is a step. What are you waiting for at the
    end of a step?"""
    return int(pairs.amax(dim=1).sum())


def duration__nobody_waits(pairs):
    """You spread the pairs of a step evenly over the ranks, whatever the cut. Who does the work of a step, and who only
    waits?"""
    return int(pairs.sum()) // len(pairs)


def attend__places_for_positions(query, key, value, i, j):
    """Your mask compares places in the share, as if both shares began at 0 and had no gaps. Where do the queries
    and the keys stand in the text?"""
    return attend(query, key, value, torch.arange(len(i)), torch.arange(len(j)))


def attend__everything(query, key, value, i, j):
    """Your queries see every key of the share, and some of these stand behind them. What are `i` and `j` for?"""
    return attend(query, key, value, torch.full_like(i, 10**6), j)


def attend__not_scaled(query, key, value, i, j):
    """Your scores are not scaled: what stands under the products in softmax(query keyᵀ / √d)?"""
    return attend(query * query.shape[-1] ** 0.5, key, value, i, j)


def attend__nothing_is_nan(query, key, value, i, j):
    """A query that sees nothing gets NaN: the softmax of nothing but -inf is 0/0. What is its output to be, and
    what does `exp(score - lse)` need to give it?"""
    output, lse = attend(query, key, value, i, j)
    return output.masked_fill(lse[..., None] == -INF, float("nan")), lse


def attend__rounds(query, key, value, i, j):
    """Your parts are rounded to half precision. They will be merged many times: when is the one time to round?"""
    output, lse = attend(query, key, value, i, j)
    return output.to(query.dtype), lse.to(query.dtype)


def merge__adds(output_a, lse_a, output_b, lse_b):
    """You add the two outputs up, and each is a mean already: of the keys of its own part. How much does each
    part stand for?"""
    return output_a + output_b, torch.logaddexp(lse_a, lse_b)


def merge__mean(output_a, lse_a, output_b, lse_b):
    """You take the mean of the two, as if as much had been seen in both parts. Which number says how much it
    was?"""
    return (output_a + output_b) / 2, torch.logaddexp(lse_a, lse_b)


def merge__not_shifted(output_a, lse_a, output_b, lse_b):
    """exp of an lse of 10,000 is infinite, and of -10,000 it is 0. What can be taken off both lse first, and
    changes no weight?"""
    a, b = torch.exp(lse_a), torch.exp(lse_b)
    total = (a + b).masked_fill(a + b == 0, 1.0)
    return (a / total)[..., None] * output_a + (b / total)[..., None] * output_b, torch.log(a + b)


def merge__the_larger_for_both(output_a, lse_a, output_b, lse_b):
    """You take the larger lse for that of both. As a shift it is safe, but what do the two parts weigh together?"""
    larger = torch.maximum(lse_a, lse_b)
    a, b = torch.exp(torch.stack([lse_a, lse_b]) - larger.clamp(min=-1e30))[..., None]
    return a * output_a + b * output_b, larger


def merge__two_empties_are_nan(output_a, lse_a, output_b, lse_b):
    """Where neither side saw anything you get NaN: -inf - (-inf) is no number. What may stand there instead, so
    that exp(-inf - ...) is 0?"""
    lse = torch.logaddexp(lse_a, lse_b)
    a, b = torch.exp(lse_a - lse), torch.exp(lse_b - lse)
    return a[..., None] * output_a + b[..., None] * output_b, lse


def merge__only_the_output_is_mended(output_a, lse_a, output_b, lse_b):
    """Where neither side saw anything you put 0 over the NaN of the output, and the lse stays NaN. It would spoil the
    next merge. Of what is it the logarithm there?"""
    output, lse = merge(output_a, lse_a, output_b, lse_b)
    return output, lse.masked_fill(lse == -INF, float("nan"))


class PassKeys__sends_its_own(PassKeys):
    """You always send your own share, so each rank sees two shares, again and again. What is a rank to hand on
    that has received something?"""

    def __init__(self, rank, n, query, key, value):
        super().__init__(rank, n, query, key, value)
        self.own = key, value

    def send(self):
        return self.own


class PassKeys__own_forgotten(PassKeys):
    """Your rank attends to what it receives, and never to the keys that it had from the beginning. What is step
    0?"""

    def __init__(self, rank, n, query, key, value):
        super().__init__(rank, n, query, key, value)
        self.output, self.lse = 0 * self.output, self.lse - INF


class PassKeys__later_ranks_skipped(PassKeys):
    """You skip what comes from the ranks after yours. That would be right if each had one stretch of the text. In the
    zigzag, which of their two pieces stand before your second one?"""

    def receive(self, key, value):
        if held(self.rank, self.step + 1, self.n) > self.rank:
            self.step, self.key, self.value = self.step + 1, key, value
        else:
            super().receive(key, value)


class PassKeys__mask_of_its_own(PassKeys):
    """Your mask takes the keys that come for your own: they stand where the tokens of another rank do. Whose are
    they, at this step?"""

    def receive(self, key, value):
        self.key, self.value = key, value
        i = self.order[self.rank]
        part = attend(self.query, key, value, i, i)
        self.output, self.lse = merge(self.output, self.lse, *part)


class PassKeys__a_step_late(PassKeys):
    """Your mask is that of the keys you held before. They have been sent, and others have come: when do you count
    the step?"""

    def receive(self, key, value):
        i, j = self.order[self.rank], self.order[held(self.rank, self.step, self.n)]
        self.step, self.key, self.value = self.step + 1, key, value
        part = attend(self.query, key, value, i, j)
        self.output, self.lse = merge(self.output, self.lse, *part)


class PassKeys__computes_what_is_hidden(PassKeys):
    """Your results are right, but you compute what is hidden as well, and 0 times NaN is NaN: one bad value in the
    future spoils the past. And each step takes twice as long, so the cut might as well be unfair. Which queries
    see anything of what comes, and which keys are seen at all?"""

    def receive(self, key, value):
        self.step, self.key, self.value = self.step + 1, key, value
        i, j = self.order[self.rank], self.order[held(self.rank, self.step, self.n)]
        self.output, self.lse = merge(self.output, self.lse, *attend(self.query, key, value, i, j))


class PassKeys__sends_float32(PassKeys):
    """You compute in float32, which is right, and send in it, which takes twice as long. Which dtype had the keys
    when they came?"""

    def send(self):
        return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in super().send())


class PassQueries__dq_stays_at_home(PassQueries):
    """You send dq as zeros, and keep what you have added. The queries of others are not yours: who is to get what
    your keys add to their gradient?"""

    def send(self):
        *rest, dq = super().send()
        return *rest, torch.zeros_like(dq)


class PassQueries__dq_starts_anew(PassQueries):
    """The dq that you send is what your own keys have added, and what came with the queries is lost. Whose dq is it,
    and who has added to it before you?"""

    def send(self):
        *came, dq = self.parcel
        self.parcel = *came, torch.zeros_like(dq)
        return super().send()


class PassQueries__its_own_twice(PassQueries):
    """When your own queries are home again, you add to them once more. With which of the n steps did your own keys
    have their turn?"""

    def result(self):
        *_, dq = self.send()
        return dq, self.dk, self.dv


class PassQueries__positions_exchanged(PassQueries):
    """You mask as if the keys had come and the queries were yours, as in task 5. What travels now, and what
    stays?"""

    def send(self):
        kept, at = self.order, held(self.rank, self.step, self.n)
        swapped = kept.clone()
        swapped[at], swapped[self.rank] = kept[self.rank], kept[at]
        self.order = swapped
        sent = super().send()
        self.order = kept
        return sent


class PassQueries__softmax_of_its_own(PassQueries):
    """You compute weights anew, from your own keys alone: they add up to 1 at every rank. Over which keys did the
    query spread its attention, and which number remembers that?"""

    def send(self):
        query, grad, lse, delta, dq = self.parcel
        i, j = self.order[held(self.rank, self.step, self.n)], self.order[self.rank]
        own = attend(query, self.key, self.value, i, j)[1]
        self.parcel = query, grad, own.masked_fill(own == -INF, INF), delta, dq
        _, _, _, _, dq = super().send()
        return query, grad, lse, delta, dq


class PassQueries__d_is_forgotten(PassQueries):
    """dv is right, dk and dq are not: your dS is P · dP. A weight can only grow if others of its row become
    smaller. Which term says so?"""

    def __init__(self, rank, n, query, key, value, output, lse, grad_output):
        super().__init__(rank, n, query, key, value, 0 * output, lse, grad_output)


class PassQueries__not_scaled(PassQueries):
    """dv is right; dq and dk are too large by √d. The scores are products divided by √d, and so are their
    derivatives: where does it come in on the way back?"""

    def send(self):
        *rest, before = self.parcel
        *rest, dq = super().send()
        return *rest, before + (dq - before) * dq.shape[3] ** 0.5

    def result(self):
        dq, dk, dv = super().result()
        return dq, dk * dk.shape[3] ** 0.5, dv
