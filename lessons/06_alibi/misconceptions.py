"""Wrong variants of the exercise on ALiBi: each is a mistake that somebody made, with what a tutor would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch


def power_of_two_slopes__counted_from_zero(n_heads):
    """Your exponents seem to be counted from 0, so the first slope is 1 and the last is too steep.
    How many steps of the ratio lead from 1 to the first slope of eight heads?"""
    return torch.exp2(-torch.arange(n_heads, dtype=torch.float64) * (8 / n_heads))


def power_of_two_slopes__halves_for_every_count(n_heads):
    """Your slopes are 1/2, 1/4, 1/8, ... whatever the number of heads. That is right for eight of
    them. Where should the last slope be when there are four heads, or sixteen?"""
    return torch.exp2(-torch.arange(1, n_heads + 1, dtype=torch.float64))


def power_of_two_slopes__evenly_spaced(n_heads):
    """Your slopes are evenly spaced between two ends. A geometric sequence has a constant ratio
    between neighbours, not a constant difference: write the slopes as powers of two and look at the
    exponents."""
    return torch.linspace(2.0 ** (-8 / n_heads), 2.0**-8, n_heads, dtype=torch.float64)


def power_of_two_slopes__in_float32(n_heads):
    """Your slopes are right, but in float32. They are few, and everything else is computed from
    them: in float64 they cost nothing, and a rounding made here would be seen in every score."""
    return power_of_two_slopes(n_heads).float()


def alibi_slopes__one_formula_for_all(n_heads):
    """You use 2^(-8k/n) for every head count. It is a common recipe, and it is right for powers of
    two only: published models with 12 heads were trained on other slopes, which differ by up to
    0.69. Read once more where the heads beyond the power of two come from."""
    if n_heads < 1:
        raise ValueError(f"n_heads is {n_heads}: at least 1 head is needed")
    return power_of_two_slopes(n_heads)


def alibi_slopes__extras_consecutive(n_heads):
    """Your missing heads take the first slopes of the next power of two, one after the other. Every
    second one of those is a slope that you have already: two heads would be alike."""
    if n_heads < 1:
        raise ValueError(f"n_heads is {n_heads}: at least 1 head is needed")
    closest = 1 << (n_heads.bit_length() - 1)
    return torch.cat([power_of_two_slopes(closest), power_of_two_slopes(2 * closest)[: n_heads - closest]])


def alibi_slopes__extras_are_the_doubled_ones(n_heads):
    """Your missing heads take every other slope of the next power of two, but they begin with the
    second. Those are the slopes that you have already: compare the two series side by side."""
    if n_heads < 1:
        raise ValueError(f"n_heads is {n_heads}: at least 1 head is needed")
    closest = 1 << (n_heads.bit_length() - 1)
    return torch.cat(
        [power_of_two_slopes(closest), power_of_two_slopes(2 * closest)[1::2][: n_heads - closest]]
    )


def alibi_slopes__sorted(n_heads):
    """Your slopes are the right ones, but sorted. A trained model's heads have an order: the head with
    index 8 of 12 learned with slope 2^-0.5, and must find it at index 8."""
    return alibi_slopes(n_heads).sort(descending=True).values


def alibi_slopes__first_of_the_next_power(n_heads):
    """You cut the series of the next power of two to length. That drops its flattest slopes, so no
    head is left that can look far back. Begin with the power of two *below*."""
    if n_heads < 1:
        raise ValueError(f"n_heads is {n_heads}: at least 1 head is needed")
    return power_of_two_slopes(1 << (n_heads - 1).bit_length())[:n_heads]


def alibi_bias__far_is_better(n_heads, t, s, *, offset=0):
    """Your bias grows with the distance: far keys are favoured. It is a penalty. Which sign makes a
    score lower?"""
    return -alibi_bias(n_heads, t, s, offset=offset)


def alibi_bias__sign_of_the_distance(n_heads, t, s, *, offset=0):
    """Your distance is i - j with its sign, so a key in the future gets a bonus. A causal mask
    would hide it, but this function does not know whether there is one: how far is key 3 from query
    1?"""
    distance = torch.arange(t)[:, None] + offset - torch.arange(s)
    return -alibi_slopes(n_heads)[:, None, None] * distance


def alibi_bias__offset_ignored(n_heads, t, s, *, offset=0):
    """Your bias does not depend on the offset: a new token is placed at position 0, where the
    oldest key is its nearest. Where does query i stand when `offset` tokens came before it?"""
    return alibi_bias(n_heads, t, s)


def alibi_bias__offset_moves_the_keys(n_heads, t, s, *, offset=0):
    """Your offset moves the keys. The keys are in the cache, counted from 0; it is the queries that
    come later."""
    return alibi_bias(n_heads, t, s, offset=-offset)


def alibi_bias__guesses_the_offset(n_heads, t, s, *, offset=0):
    """You line the last query up with the last key. That is a guess from the shapes, and it is
    wrong when t and s differ for another reason: only `offset` says where the queries stand."""
    return alibi_bias(n_heads, t, s, offset=s - t)


def alibi_bias__squared_distance(n_heads, t, s, *, offset=0):
    """Your penalty grows with the square of the distance. Linear is the L of ALiBi: each step costs
    the same."""
    distance = torch.arange(t)[:, None] + offset - torch.arange(s)
    return -alibi_slopes(n_heads)[:, None, None] * distance**2


def _attention(query, key, value, score, is_causal=True, offset=0, fill=float("-inf"), dim=-1):
    """Attention with the scores that `score(product, bias)` makes, masked by `fill`."""
    h, t, s = query.shape[1], query.shape[2], key.shape[2]
    product = torch.einsum("b h t d, b h s d -> b h t s", query, key)
    scores = score(product, alibi_bias(h, t, s, offset=offset).to(query.dtype))
    if is_causal:
        scores = scores.masked_fill(torch.arange(s) > torch.arange(t)[:, None] + offset, fill)
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.softmax(dim=dim).masked_fill(empty, 0.0) @ value


def alibi_attention__bias_scaled_too(query, key, value, *, is_causal=True, offset=0, scale=None):
    """You scale the sum of product and bias, so the slopes shrink by the scale as well. The scale
    tames the product of two vectors; a distance needs no taming. Which comes first?"""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda product, bias: (product + bias) * scale, is_causal, offset)


def alibi_attention__scale_forgotten(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your scores are not scaled: the product of query and key is used as it is. What does
    `scale=None` stand for?"""
    return _attention(query, key, value, lambda product, bias: product + bias, is_causal, offset)


def alibi_attention__bias_multiplied(query, key, value, *, is_causal=True, offset=0, scale=None):
    """You multiply the scores by the bias. Then the penalty depends on the score, and a negative
    score is turned into a bonus. A bias is added."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda product, bias: product * scale * bias, is_causal, offset)


def alibi_attention__bias_left_out(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your output is that of attention without any bias. Is it computed and then not used?"""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda product, bias: product * scale, is_causal, offset)


def alibi_attention__softmax_over_queries(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your softmax runs over the queries: the columns sum to one. A query divides its attention among
    the keys, so it is its row that sums to one."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda a, bias: a * scale + bias, is_causal, offset, dim=-2)


def alibi_attention__never_causal(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your queries see the future. The bias makes far keys weaker, on both sides, but it forbids
    nothing: that takes a mask."""
    return alibi_attention(query, key, value, is_causal=False, offset=offset, scale=scale)


def alibi_attention__always_causal(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your mask is there even when `is_causal` is False. An encoder looks both ways."""
    return alibi_attention(query, key, value, is_causal=True, offset=offset, scale=scale)


def alibi_attention__blind_to_itself(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your mask hides a query's own key too. A token may look at itself; what is forbidden is
    everything after it. Look at row 0: what is left for it to see?"""
    if not is_causal:
        return alibi_attention(query, key, value, is_causal=False, offset=offset, scale=scale)
    bias = alibi_bias(query.shape[1], query.shape[2], key.shape[2], offset=offset)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda product, _: product * scale + bias, True, offset - 1)


def alibi_attention__mask_without_offset(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your bias knows the offset, your mask does not: a new token at position 6 may look at key 0
    only. Use the same positions for both."""
    bias = alibi_bias(query.shape[1], query.shape[2], key.shape[2], offset=offset)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda product, _: product * scale + bias, is_causal, 0)


def alibi_attention__future_scores_zero(query, key, value, *, is_causal=True, offset=0, scale=None):
    """You set the scores of future keys to 0. A score of 0 is an ordinary score, and exp(0) is 1:
    which score becomes a weight of 0?"""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda a, bias: a * scale + bias, is_causal, offset, fill=0.0)


def alibi_attention__large_instead_of_infinite(query, key, value, *, is_causal=True, offset=0, scale=None):
    """Your mask is a large negative number, such as -1e9. It works until a query sees no key at
    all: then every key has the same large number, and you return the mean of the values, future
    included. What should a query that sees nothing return?"""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, lambda a, bias: a * scale + bias, is_causal, offset, fill=-1e9)


def alibi_attention__nan_where_nothing_is_seen(query, key, value, *, is_causal=True, offset=0, scale=None):
    """A query that sees no key has a row of minus infinities, and its softmax is 0 / 0: NaN, which
    spreads to everything it touches. Treat such a row separately."""
    output = alibi_attention(query, key, value, is_causal=is_causal, offset=offset, scale=scale)
    unseen = torch.arange(query.shape[2]) + offset < 0
    return output.masked_fill(unseen[:, None], float("nan")) if is_causal else output


class GrowingBias__never_grows:
    """Your store is built once, for the first call. A longer text needs distances that it does not
    hold."""

    def __init__(self, n_heads):
        self.n_heads, self.size, self.row = n_heads, 0, None

    def add_to(self, scores, *, offset=0):
        t, s = scores.shape[-2:]
        distance = (torch.arange(t)[:, None] + offset - torch.arange(s)).abs()
        if self.row is None:
            self.size = 1 << int(distance.max()).bit_length()
            self.row = alibi_bias(self.n_heads, 1, self.size)[:, 0]
        return scores + self.row[:, distance.clamp(max=self.size - 1)].to(scores.dtype)


class GrowingBias__grows_by_what_is_needed(GrowingBias):
    """Your store grows to exactly what the call needs. A text that is written token by token then
    rebuilds it at every token, which is what it was meant to save. Leave room."""

    def add_to(self, scores, *, offset=0):
        t, s = scores.shape[-2:]
        needed = max(offset + t, s - offset)
        if needed > self.size:
            self.row = alibi_bias(self.n_heads, 1, needed)[:, 0]
        distance = (torch.arange(t)[:, None] + offset - torch.arange(s)).abs()
        return scores + self.row[:, distance].to(scores.dtype)


class GrowingBias__never_keeps(GrowingBias):
    """Your answers are right, but each call computes the bias anew: what is in `row` after one call is
    not what the next one reads. Which calls need a new row, and what can all others do without?"""

    def add_to(self, scores, *, offset=0):
        self.row = alibi_bias(self.n_heads, 1, self.size)[:, 0]
        return super().add_to(scores, offset=offset)


class GrowingBias__keeps_the_first_dtype(GrowingBias):
    """Your store has the dtype of the first scores that came. What float32 rounded away does not
    come back when a later call needs float64: keep the store as exact as you can, and round what
    you hand out."""

    def add_to(self, scores, *, offset=0):
        self.dtype = getattr(self, "dtype", scores.dtype)
        bias = super().add_to(torch.zeros_like(scores, dtype=torch.float64), offset=offset)
        return scores + bias.to(self.dtype).to(scores.dtype)


class GrowingBias__offset_ignored(GrowingBias):
    """Your store is read as if the queries began at position 0. A cache changes where numbers come
    from, not which ones they are: the distances depend on the offset."""

    def add_to(self, scores, *, offset=0):
        super().add_to(scores, offset=offset)
        return super().add_to(scores)


class RunningAlibi__total_does_not_fade(RunningAlibi):
    """Your weighted sum of values fades, but the sum of weights below it does not. They are the two
    halves of one fraction: what shrinks a key's share above must shrink it below."""

    def step(self, score, value):
        old_top, old_total, _ = self.state or (score, torch.zeros_like(score), value)
        super().step(score, value)
        top, _, weighted = self.state
        total = torch.exp(old_top - top) * old_total + torch.exp(score - top)
        self.state = top, total, weighted
        return weighted / total[..., None]


class RunningAlibi__overflows(RunningAlibi):
    """You take exp of the scores as they come. Above 709 that is infinite in float64, and infinity
    over infinity is NaN. Both sums may be held relative to the same number: which one keeps every
    exponent at or below 0?"""

    def step(self, score, value):
        total, weighted = self.state or (torch.zeros_like(score), torch.zeros_like(value))
        fade = torch.exp(-self.slopes.to(score.dtype))
        total = fade * total + torch.exp(score)
        weighted = fade[:, None] * weighted + torch.exp(score)[..., None] * value
        self.state = total, weighted
        return weighted / total[..., None]


class RunningAlibi__no_fading(RunningAlibi):
    """Your output is the softmax average of all values so far, with no penalty for distance. What
    does each step do to the shares of the keys that are already in the state?"""

    def __init__(self, n_heads, state=()):
        super().__init__(n_heads, state)
        self.slopes = torch.zeros_like(self.slopes)


class RunningAlibi__old_sums_not_rescaled(RunningAlibi):
    """You subtract the largest exponent from the new score, but the sums in the state are still
    relative to the old one. When the largest changes, what must happen to the sums so that they
    mean the same again?"""

    def step(self, score, value):
        top, total, weighted = self.state or (score, torch.zeros_like(score), torch.zeros_like(value))
        slopes = self.slopes.to(score.dtype)
        top = torch.maximum(top - slopes, score)
        new, fade = torch.exp(score - top), torch.exp(-slopes)
        total = fade * total + new
        weighted = fade[:, None] * weighted + new[..., None] * value
        self.state = top, total, weighted
        return weighted / total[..., None]


class RunningAlibi__keeps_all_tokens(RunningAlibi):
    """Your state grows with every token. The output is right, but the task is not to look back: which
    few numbers say all that the tokens so far will ever matter?"""

    def step(self, score, value):
        score, value = score[..., None], value[..., None, :]
        if self.state:
            score, value = (torch.cat(pair, dim=2) for pair in zip(self.state, (score, value), strict=True))
        self.state = score, value
        distance = torch.arange(score.shape[2]).flip(0)
        shares = torch.softmax(score - self.slopes[:, None] * distance, dim=-1)
        return torch.einsum("b h s, b h s e -> b h e", shares, value)
