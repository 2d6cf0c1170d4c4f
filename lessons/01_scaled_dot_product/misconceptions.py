"""Wrong variants of the exercise on scaled dot-product attention: each is a mistake that people make,
with what a tutor would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import math

import numpy as np
import torch


def softmax__bare(scores):
    """Your softmax exponentiates the scores as they are. exp(1000) is infinite and exp(-1000) is 0: infinity
    by infinity is NaN, and so is 0 by 0. Which number may be taken from all scores of a row without changing
    its weights?"""
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softmax__no_maximum(scores):
    """Your softmax exponentiates the scores as they are. exp(1000) is infinite, and infinity by infinity
    is NaN. Which number may be taken from all scores of a row without changing its weights?"""
    exponentials = np.exp(scores)
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / np.where(total > 0, total, 1.0)


def softmax__one_maximum_for_all(scores):
    """You subtract the largest score of the whole array. A row that lies far below it becomes exp(-20000)
    = 0 throughout, and its weights with it. How many largest scores does an array of five rows have?"""
    exponentials = np.exp(scores - scores.max())
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / np.where(total > 0, total, 1.0)


def softmax__first_axis(scores):
    """Your weights sum to one along the first axis and not the last. Take a 2 x 3 array and look at the
    sums of its rows: each row is a query that shares itself out among the keys."""
    return softmax(scores.swapaxes(0, -1)).swapaxes(0, -1)


def softmax__no_keepdims(scores):
    """A maximum or a sum over the last axis of an array `5 7` has the shape `5`, and 5 numbers do not line
    up with rows of 7. With `keepdims=True` the axis stays, with length 1, and lines up with every entry of
    its row."""
    exponentials = np.exp(scores - scores.max(axis=-1))
    return exponentials / exponentials.sum(axis=-1)


def softmax__one_sum_for_all(scores):
    """All your weights together sum to one, instead of each row. `sum()` without an axis adds up the whole
    array, and so every query has to share with the others."""
    return softmax(scores.reshape(-1)).reshape(scores.shape)


def softmax__nan_for_an_empty_row(scores):
    """A row of -inf makes NaN in your softmax: its largest score is -inf, and -inf - (-inf) is not a
    number. What could be subtracted in such a row instead, and what could its sum, 0, be replaced by?"""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softmax__even_weights_for_an_empty_row(scores):
    """A row of -inf gets the same weight everywhere in your softmax. It has nothing to choose from, so it
    should take nothing: every key that was to be hidden is now used."""
    weights = softmax(scores)
    return np.where(weights.sum(axis=-1, keepdims=True) > 0, weights, 1 / scores.shape[-1])


def attention_weights__no_scale(query, key, attn_mask=None):
    """Your scores are the bare dot products. Their size grows with the width, and the softmax sharpens
    with it: the scale is missing."""
    return attention_weights(query * math.sqrt(query.shape[-1]), key, attn_mask)


def attention_weights__divides_by_d(query, key, attn_mask=None):
    """You divide by d. Dot products of width d have the variance d: what is then their typical size, and
    what has to be divided by to bring it to 1?"""
    return attention_weights(query / math.sqrt(query.shape[-1]), key, attn_mask)


def attention_weights__scale_from_the_number_of_keys(query, key, attn_mask=None):
    """You divide by the root of the number of keys. The scale belongs to the length of the sum in one dot
    product, which does not know how many keys there are: look at the axes of `key` again."""
    return attention_weights(query * math.sqrt(query.shape[-1] / key.shape[-2]), key, attn_mask)


def attention_weights__mask_inverted(query, key, attn_mask=None):
    """Your weights are 0 where the mask is True. Here True means attend, as in PyTorch's
    scaled_dot_product_attention; nn.MultiheadAttention means the opposite, which is where this often comes
    from."""
    return attention_weights(query, key, None if attn_mask is None else ~attn_mask)


def attention_weights__mask_after_softmax(query, key, attn_mask=None):
    """You zero the hidden weights after the softmax. The hidden keys have had their share of the sum by
    then, and what is left no longer sums to one: hide them before."""
    return attention_weights(query, key) * (1.0 if attn_mask is None else attn_mask)


def attention_weights__masked_score_zero(query, key, attn_mask=None):
    """Your hidden keys have the score 0. That is a middling score like any other: exp(0) is 1, so they
    still weigh. Which score has the exponential 0?"""
    scores = np.einsum("bhtd,bhsd->bhts", query, key) / math.sqrt(query.shape[-1])
    return softmax(scores if attn_mask is None else scores * attn_mask)


def attention_weights__large_negative_number(query, key, attn_mask=None):
    """Your mask puts a large negative number on hidden keys, such as -1e9. If all keys of a query are
    hidden, all have the same score, and the softmax gives each 1/s: the query reads the mean of what it
    must not see."""
    scores = np.einsum("bhtd,bhsd->bhts", query, key) / math.sqrt(query.shape[-1])
    return softmax(scores if attn_mask is None else np.where(attn_mask, scores, -1e9))


def attention__bottom_right(query, key, value, attn_mask=None, is_causal=False):
    """Your last query is level with the last key. That is how flash-attn aligns, and what a cache needs,
    but `is_causal` means the first query with the first key: query 0 sees key 0 alone, whatever t and s
    are."""
    if is_causal and attn_mask is None:
        (t, s), is_causal = (query.shape[-2], key.shape[-2]), False
        attn_mask = np.tril(np.ones((t, s), dtype=bool), k=s - t)
    return attention(query, key, value, attn_mask, is_causal)


def attention__not_itself(query, key, value, attn_mask=None, is_causal=False):
    """Your queries do not see their own position, so query 0 sees nothing. Query i sees the keys 0 to i,
    and i is one of them: look at the diagonal of your mask."""
    if is_causal and attn_mask is None:
        attn_mask, is_causal = np.tri(query.shape[-2], key.shape[-2], -1, dtype=bool), False
    return attention(query, key, value, attn_mask, is_causal)


def attention__sees_the_future(query, key, value, attn_mask=None, is_causal=False):
    """Your causal mask allows the future and hides the past. Print it for t = s = 3: the first row should
    have one True, the last row three."""
    if is_causal and attn_mask is None:
        attn_mask, is_causal = ~np.tri(query.shape[-2], key.shape[-2], -1, dtype=bool), False
    return attention(query, key, value, attn_mask, is_causal)


def attention__causal_ignored(query, key, value, attn_mask=None, is_causal=False):
    """`is_causal` changes nothing in your function: a query still sees keys behind it."""
    return attention(query, key, value, attn_mask)


def attention__mask_and_causal_accepted(query, key, value, attn_mask=None, is_causal=False):
    """You accept a mask together with `is_causal`. Whether the two are to be combined, or one is a
    mistake, only the caller knows: raise a ValueError."""
    return attention(query, key, value, attn_mask, is_causal and attn_mask is None)


def backward_with(to_scores, arguments, scale=None):
    """The gradients with another way from the weights' gradient to that of the scores."""
    grad_output, query, key, value, attn_mask = arguments
    weights = attention_weights(query, key, attn_mask)
    d_scores = to_scores(weights, grad_output @ value.swapaxes(-1, -2))
    d_scores = d_scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    dq, dk = d_scores @ key, d_scores.swapaxes(-1, -2) @ query
    return dq, dk, weights.swapaxes(-1, -2) @ grad_output


def attention_backward__weights_are_independent(grad_output, query, key, value, attn_mask=None):
    """Your softmax passes weights * d_weights on, as if each weight depended on its own score only. The
    weights of a row share one sum: when one grows the others shrink. That part is missing."""
    return backward_with(lambda p, dp: p * dp, (grad_output, query, key, value, attn_mask))


def attention_backward__diagonal_of_the_jacobian(grad_output, query, key, value, attn_mask=None):
    """You use p (1 - p), the derivative of a weight by its own score. A score also moves all the other
    weights of its row, by - p_j p_k: the softmax has a matrix of derivatives, and you have its
    diagonal."""
    return backward_with(lambda p, dp: p * (1 - p) * dp, (grad_output, query, key, value, attn_mask))


def attention_backward__plain_mean(grad_output, query, key, value, attn_mask=None):
    """You subtract the plain mean of the row's gradients. The average has to be taken with the weights: a
    key that weighs little should count little in it."""
    arguments = (grad_output, query, key, value, attn_mask)
    return backward_with(lambda p, dp: p * (dp - dp.mean(axis=-1, keepdims=True)), arguments)


def attention_backward__sum_over_queries(grad_output, query, key, value, attn_mask=None):
    """The sum in your softmax's gradient runs over the queries. Queries do not share weights, keys do: the
    sum belongs to the last axis, of length s."""
    arguments = (grad_output, query, key, value, attn_mask)
    return backward_with(lambda p, dp: p * (dp - (p * dp).sum(axis=-2, keepdims=True)), arguments)


def attention_backward__no_keepdims(grad_output, query, key, value, attn_mask=None):
    """The row sums of your weights `b h t s` have the shape `b h t`, which does not line up with what they
    are subtracted from. `keepdims=True` keeps the summed axis, with length 1."""
    arguments = (grad_output, query, key, value, attn_mask)
    return backward_with(lambda p, dp: p * (dp - (dp * p).sum(axis=-1)), arguments)


def attention_backward__no_scale(grad_output, query, key, value, attn_mask=None):
    """Your dq and dk lack the scale. The scores are scale times a dot product, so the scale is a factor on
    the way back too. With it, each would be right."""
    arguments = (grad_output, query, key, value, attn_mask)
    return backward_with(lambda p, dp: p * (dp - (p * dp).sum(axis=-1, keepdims=True)), arguments, scale=1.0)


def attention_backward__key_last(grad_output, query, key, value, attn_mask=None):
    """Your third gradient is that of the keys. The chain rule reaches the values first, but the gradients
    are returned in the order of the inputs: (dq, dk, dv)."""
    dq, dk, dv = attention_backward(grad_output, query, key, value, attn_mask)
    return dv, dq, dk


def attention_backward__query_last(grad_output, query, key, value, attn_mask=None):
    """Your third gradient is that of the queries. The chain rule reaches them last, but the gradients are
    returned in the order of the inputs: (dq, dk, dv)."""
    return attention_backward(grad_output, query, key, value, attn_mask)[::-1]


def attention_backward__key_before_query(grad_output, query, key, value, attn_mask=None):
    """Your first gradient is that of the keys, your second that of the queries. The gradients are returned
    in the order of the inputs: (dq, dk, dv)."""
    dq, dk, dv = attention_backward(grad_output, query, key, value, attn_mask)
    return dk, dq, dv


def sdpa__heads_dealt_out(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """Your query heads take the key heads in turn: 0, 1, 0, 1. Neighbours share a key head: 0, 0, 1, 1.
    `repeat` puts whole copies behind each other, and the shape is the same."""
    if query.shape[1] % key.shape[1] == 0:
        key, value = (x.repeat(1, query.shape[1] // key.shape[1], 1, 1) for x in (key, value))
    return sdpa(query, key, value, attn_mask, is_causal, scale)


def sdpa__mask_inverted(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """You hide the keys whose mask is True. True means attend; `masked_fill` fills where its mask is True,
    so it wants to be told the opposite."""
    if is_causal and attn_mask is None:
        attn_mask, is_causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(), False
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask
    return sdpa(query, key, value, attn_mask, is_causal, scale)


def sdpa__scale_ignored(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """You always divide by the root of d, also when `scale` is given. It replaces that factor."""
    return sdpa(query, key, value, attn_mask, is_causal)


def sdpa__scale_on_top(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """You multiply by `scale` and divide by the root of d as well. When `scale` is given it takes the
    place of 1 / sqrt(d)."""
    scale = None if scale is None else scale * query.shape[-1] ** -0.5
    return sdpa(query, key, value, attn_mask, is_causal, scale)


def sdpa__float_mask_as_boolean(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """You read a float mask as if it were boolean. It holds numbers to add to the scores: 0 means no
    change, and is not False."""
    mask = attn_mask if attn_mask is None else attn_mask.bool()
    return sdpa(query, key, value, mask, is_causal, scale)


def sdpa__boolean_mask_added(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """You add a boolean mask to the scores as if it were one of floats. True then counts 1 and False 0:
    that favours the keys that may be seen, and hides none. Which score must a hidden key have?"""
    return sdpa(query, key, value, None if attn_mask is None else attn_mask.double(), is_causal, scale)


def sdpa__nan_replaced_afterwards(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """Your output is right and your gradient is NaN. A row of -inf makes a NaN on the way that is replaced
    forward, but the gradient of 0 meets it on the way back, and 0 times NaN is NaN. It must not arise."""
    if attn_mask is None:
        return sdpa(query, key, value, attn_mask, is_causal, scale)
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale) + attn_mask
    return torch.softmax(scores, dim=-1).nan_to_num(0.0) @ value


class RunningAttention__never_rescaled(RunningAttention):
    """You subtract the largest score so far, but what was summed before is still measured against the old
    one. When the largest score changes, both sums have to be brought to the new one."""

    def update(self, key, value):
        top, total, mixed = self.state
        scores = self.query @ key
        higher = np.maximum(top, scores)
        add = np.exp(scores - higher)
        self.state = (higher, total + add, mixed + add[:, None] * value)


class RunningAttention__sum_not_rescaled(RunningAttention):
    """You rescale the sum of the values and not the sum of the weights, or the other way round. Both were
    made with the old largest score, so both need the same factor."""

    def update(self, key, value):
        total = self.state[1]
        super().update(key, value)
        top, _, mixed = self.state
        self.state = (top, total + np.exp(self.query @ key - top), mixed)


class RunningAttention__no_maximum(RunningAttention):
    """Your sums of exp(score) overflow: scores go up to 10,000. Keep the largest score so far and measure
    all others against it; what to do when a larger one comes is the point of this task."""

    def update(self, key, value):
        _, total, mixed = self.state
        add = np.exp(self.query @ key)
        self.state = (np.zeros(len(add)), total + add, mixed + add[:, None] * value)


class RunningAttention__no_scale(RunningAttention):
    """Your scores are the bare dot products: the factor 1/sqrt(d) is missing."""

    def __init__(self, query, e, state=None):
        super().__init__(query * math.sqrt(query.shape[-1]), e, state)


class RunningAttention__keeps_all_keys(RunningAttention):
    """Your state grows with every key. The output is right, but the task is to forget: which few numbers
    for each query say all that the keys so far will ever matter?"""

    def __init__(self, query, e, state=None):
        self.query, self.e = query[None, None], e
        self.state = state or (np.zeros((0, query.shape[-1])), np.zeros((0, e)))

    def update(self, key, value):
        self.state = (np.vstack([self.state[0], key]), np.vstack([self.state[1], value]))

    def read(self):
        keys, values = (part[None, None] for part in self.state)
        return (
            attention(self.query, keys, values)[0, 0]
            if keys.size
            else np.zeros((self.query.shape[2], self.e))
        )


class RunningAttention__nan_before_the_first_key(RunningAttention):
    """Before the first key your sum of weights is 0, and 0/0 is NaN. Attention over no keys is 0, as for a
    query whose keys are all hidden."""

    def read(self):
        _, total, mixed = self.state
        return mixed / total[:, None]
