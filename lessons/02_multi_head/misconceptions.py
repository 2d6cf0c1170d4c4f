"""Wrong variants of the exercise on multi-head attention, each with what a tutor would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch
from einops import rearrange


def split_heads__view_without_transpose(x, n_heads):
    """You view `b t m` straight as `b h t d`. The shape is right, the order is not: a view keeps the
    numbers in a row, so a head gets pieces of the same token as if they were several tokens."""
    b, t, m = x.shape
    return x.reshape(b, n_heads, t, m // n_heads)


def split_heads__interleaved(x, n_heads):
    """Your heads take every n-th number, as cards are dealt. Head 0 owns the first d numbers: in the
    cut of m into two axes, the head is the outer one."""
    return rearrange(x, "b t (d h) -> b h t d", h=n_heads)


def split_heads__heads_behind_tokens(x, n_heads):
    """Your result is `b t h d`: the cut is right, but the heads stand behind the tokens. Each head
    should be a plain attention with its tokens on the last axis but one."""
    return rearrange(x, "b t (h d) -> b t h d", h=n_heads)


def merge_heads__reshape_without_transpose(x):
    """You reshape `b h t d` straight to `b t m`. The shape is right, but a token gets the numbers of
    other tokens: the heads have to move back behind the tokens first."""
    b, h, t, d = x.shape
    return x.reshape(b, t, h * d)


def merge_heads__interleaved(x):
    """You merge the heads so that their numbers alternate. Next to each other is what `split_heads`
    undid: all numbers of head 0, then all of head 1."""
    return rearrange(x, "b h t d -> b t (d h)")


def _weights(q, k, attn_mask=None, is_causal=False, scale=None, fill=float("-inf"), dim=-1, diagonal=0):
    """The weights, with what a variant changes as arguments."""
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal exclude each other")
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(diagonal)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, fill)
    elif attn_mask is not None:
        scores = scores + attn_mask
    empty = (scores == float("-inf")).all(dim=dim, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=dim).masked_fill(empty, 0.0)


def attention_weights__scale_of_the_model(q, k, attn_mask=None, is_causal=False):
    """You divide by the root of the model's width. A score is a sum over the width of one head: that
    is the number of terms whose growth the scale takes back."""
    return _weights(q, k, attn_mask, is_causal, scale=(q.shape[1] * q.shape[3]) ** -0.5)


def attention_weights__no_scale(q, k, attn_mask=None, is_causal=False):
    """Your scores are not divided by √d. They then grow with the width of the head, and the softmax
    picks one key and forgets the rest."""
    return _weights(q, k, attn_mask, is_causal, scale=1.0)


def attention_weights__multiplied_by_the_root(q, k, attn_mask=None, is_causal=False):
    """You multiply the scores by √d in place of dividing: `d ** 0.5` and `d ** -0.5` look alike. The
    scale is there to keep scores small."""
    return _weights(q, k, attn_mask, is_causal, scale=q.shape[-1] ** 0.5)


def attention_weights__softmax_over_queries(q, k, attn_mask=None, is_causal=False):
    """Your softmax runs over the queries: the columns sum to one. A query divides its attention among
    the keys, so it is its row that sums to one."""
    return _weights(q, k, attn_mask, is_causal, dim=-2)


def attention_weights__mask_inverted(q, k, attn_mask=None, is_causal=False):
    """Your boolean mask works the wrong way round: True is forbidden. That is what it means in
    `torch.nn.MultiheadAttention`; here, as in `scaled_dot_product_attention`, True may be seen."""
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    return attention_weights(q, k, ~attn_mask if boolean else attn_mask, is_causal)


def attention_weights__masked_after_softmax(q, k, attn_mask=None, is_causal=False):
    """You set weights to 0 after the softmax. The others then no longer sum to one, because the
    hidden keys were counted in the denominator. A mask belongs before the softmax."""
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal exclude each other")
    if is_causal:
        attn_mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if attn_mask is None or attn_mask.dtype != torch.bool:
        return attention_weights(q, k, attn_mask)
    return attention_weights(q, k) * attn_mask


def attention_weights__large_instead_of_infinite(q, k, attn_mask=None, is_causal=False):
    """Your mask writes a large negative number, such as -1e9. It works until a query may see nothing:
    then all its scores are alike, and it attends to every key that it may not see."""
    return _weights(q, k, attn_mask, is_causal, fill=-1e9)


def attention_weights__nan_in_an_empty_row(q, k, attn_mask=None, is_causal=False):
    """A query that may see nothing has a row of minus infinities, and its softmax is 0 / 0: NaN. Such
    a row needs weights of 0."""
    weights = attention_weights(q, k, attn_mask, is_causal)
    return weights / weights.sum(dim=-1, keepdim=True)


def attention_weights__nan_overwritten(q, k, attn_mask=None, is_causal=False):
    """Your weights are right, but NaN was computed on the way and overwritten afterwards. The
    backward pass multiplies it by 0, and 0 times NaN is NaN: give an empty row harmless scores
    *before* the softmax."""
    if attn_mask is None or attn_mask.dtype == torch.bool:
        return attention_weights(q, k, attn_mask, is_causal)
    scores = (q @ k.mT) * q.shape[-1] ** -0.5 + attn_mask
    return scores.softmax(dim=-1).nan_to_num(0.0)


def attention_weights__causal_bottom_right(q, k, attn_mask=None, is_causal=False):
    """Your causal mask lines the last query up with the last key. That is right for a cache, and some
    libraries do it; `is_causal` here begins top left: query 0 sees key 0 and nothing else."""
    return _weights(q, k, attn_mask, is_causal, diagonal=k.shape[2] - q.shape[2])


def attention_weights__causal_hides_itself(q, k, attn_mask=None, is_causal=False):
    """Your causal mask hides a query's own key as well. Only what comes later is forbidden: query i
    sees the keys 0 to i, its own included."""
    return _weights(q, k, attn_mask, is_causal, diagonal=-1)


def attention_weights__float_mask_taken_as_boolean(q, k, attn_mask=None, is_causal=False):
    """You turn a float mask into a boolean one. Its numbers are to be added to the scores: 0 changes
    nothing, minus infinity forbids, and all between makes a key more or less likely."""
    return attention_weights(q, k, None if attn_mask is None else attn_mask.bool(), is_causal)


def attention_weights__mask_and_causal_together(q, k, attn_mask=None, is_causal=False):
    """You accept a mask together with `is_causal`. What the two mean together is not said anywhere, and
    a guess would be wrong in silence: refuse it with a ValueError."""
    return attention_weights(q, k, attn_mask, is_causal and attn_mask is None)


class MultiHeadAttention__no_last_projection(MultiHeadAttention):
    """Your output is what the heads found, side by side, without `w_o`. Then head 0 can only ever write
    into the first d numbers of a token. Which step lets the heads mix?"""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        _, weights = super().forward(query, key, value, attn_mask, is_causal)
        v = split_heads(self.w_v(value), self.n_heads)
        return merge_heads(self.dropout(weights) @ v), weights


class MultiHeadAttention__one_wide_head(MultiHeadAttention):
    """Your layer has one head as wide as the model: nothing is split. Compare the number of axes of
    your weights with `b h t s`."""

    def __init__(self, d_model, n_heads, *, dropout=0.0):
        super().__init__(d_model, 1, dropout=dropout)


class MultiHeadAttention__averages_the_weights(MultiHeadAttention):
    """You return the mean of the weights over the heads, as PyTorch's layer does unless told not to. It
    hides what there is to see: each head looks somewhere else."""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        output, weights = super().forward(query, key, value, attn_mask, is_causal)
        return output, weights.mean(dim=1)


class MultiHeadAttention__keys_from_the_query(MultiHeadAttention):
    """You project `query` three times. In self-attention nobody notices, since the three inputs are
    one; in cross-attention keys and values come from another text."""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        return super().forward(query, query, query, attn_mask, is_causal)


class MultiHeadAttention__values_not_projected(MultiHeadAttention):
    """You take the average of the values as they come, without `w_v`. Queries decide where to look, but
    a head also chooses what to carry over from there."""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        _, weights = super().forward(query, key, value, attn_mask, is_causal)
        v = split_heads(value, self.n_heads)
        return self.w_o(merge_heads(self.dropout(weights) @ v)), weights


class MultiHeadAttention__drops_in_evaluation(MultiHeadAttention):
    """You drop weights in evaluation mode too. A trained layer would then give another answer each
    time: `self.training` says which mode it is, and `nn.Dropout` asks it for you."""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        self.dropout.train()
        return super().forward(query, key, value, attn_mask, is_causal)


class MultiHeadAttention__never_drops(MultiHeadAttention):
    """Your layer drops nothing in training. Is `dropout` stored, and used in `forward`?"""

    def __init__(self, d_model, n_heads, *, dropout=0.0):
        super().__init__(d_model, n_heads)


class MultiHeadAttention__drops_without_scaling(MultiHeadAttention):
    """The weights that survive your dropout stay as they are, so a token takes less from the others in
    training than in evaluation. By what factor must they grow?"""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        output, weights = super().forward(query, key, value, attn_mask, is_causal)
        kept = 1 - self.dropout.p if self.training else 1.0
        return (output - self.w_o.bias) * kept + self.w_o.bias, weights


class MultiHeadAttention__keeps_with_probability_p(MultiHeadAttention):
    """You keep a weight with probability `dropout`, and so drop most of them. `dropout` is the share
    that goes."""

    def __init__(self, d_model, n_heads, *, dropout=0.0):
        super().__init__(d_model, n_heads, dropout=1 - dropout if dropout else 0.0)


class MultiHeadAttention__drops_the_output(MultiHeadAttention):
    """You drop numbers of the output. That is dropout too, and the paper has it, but this layer forgets
    *connections*: if query i loses key j, it loses the whole value."""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        self.dropout.eval()
        output, weights = super().forward(query, key, value, attn_mask, is_causal)
        self.dropout.train(self.training)
        return self.dropout(output), weights


class MultiHeadAttention__returns_dropped_weights(MultiHeadAttention):
    """You return the weights after dropout: some are 0, the others too large, and they do not sum to
    one. They are returned to be looked at, so return what the softmax said."""

    def forward(self, query, key, value, attn_mask=None, is_causal=False):
        output, weights = super().forward(query, key, value, attn_mask, is_causal)
        return output, self.dropout(weights)


def weights_from_torch__transposed(state):
    """You transpose the weights. Both layers keep them as `nn.Linear` does, output by input, so they can
    be handed over as they are."""
    return {name: part.mT if part.ndim == 2 else part for name, part in weights_from_torch(state).items()}


def weights_from_torch__wrong_order(state):
    """You take the three pieces of `in_proj_weight` in another order than query, key, value. The shapes
    cannot tell you, all three are alike."""
    right = weights_from_torch(state)
    swapped = {"w_k": "w_q", "w_q": "w_k"}
    return {f"{swapped.get(name[:3], name[:3])}{name[3:]}": part for name, part in right.items()}


def weights_from_torch__dealt_by_rows(state):
    """You take every third row of `in_proj_weight` for the queries. The three pieces lie one below the
    other, each in one block of m rows."""
    right = weights_from_torch(state)
    for part in ("weight", "bias"):
        for place, name in enumerate("qkv"):
            right[f"w_{name}.{part}"] = state[f"in_proj_{part}"][place::3]
    return right


def mask_from_torch__not_inverted(attn_mask, key_padding_mask):
    """You join the masks but keep PyTorch's meaning: True still forbids. In your layer True may be
    seen."""
    mask = mask_from_torch(attn_mask, key_padding_mask)
    return None if mask is None else ~mask


def mask_from_torch__either_is_enough(attn_mask, key_padding_mask):
    """Your mask lets a query see a key that only one of the two masks allows. A key is seen if *both*
    allow it: not (a or b) is not a and not b."""
    if attn_mask is None or key_padding_mask is None:
        return mask_from_torch(attn_mask, key_padding_mask)
    return ~attn_mask | ~key_padding_mask[:, None, None]


def mask_from_torch__padding_without_axes(attn_mask, key_padding_mask):
    """You join `b s` with `t s` as they are, and broadcasting lines the texts up with the queries. Give
    the padding mask the axes that it lacks: `b 1 1 s`."""
    if key_padding_mask is None:
        return mask_from_torch(attn_mask, None)
    return ~key_padding_mask if attn_mask is None else ~(attn_mask | key_padding_mask)


def remove_heads__rows_of_w_o(state, n_heads, removed, average):
    """You take the removed heads out of the rows of `w_o`. Its rows are the numbers of the output, to
    which every head adds; a head's own numbers meet its columns."""
    smaller = remove_heads(state, n_heads, removed, average)
    kept = [head for head in range(n_heads) if head not in removed]
    rows = rearrange(state["w_o.weight"], "(h d) m -> h d m", h=n_heads)[kept]
    return smaller | {"w_o.weight": rearrange(rows, "h d m -> (h d) m")}


def remove_heads__average_forgotten(state, n_heads, removed, average):
    """You leave the removed heads out as if they had found 0. They found `average`, and that went
    through `w_o` into every output. Where can a constant be kept?"""
    return remove_heads(state, n_heads, removed, torch.zeros_like(average))


def remove_heads__average_not_projected(state, n_heads, removed, average):
    """You have thought of the average, but it does not go through `w_o`. A head's numbers are not the
    output's numbers: the average must take the way that the head's findings took."""
    smaller = remove_heads(state, n_heads, removed, torch.zeros_like(average))
    mask = torch.zeros(n_heads, 1, dtype=average.dtype)
    mask[removed] = 1
    return smaller | {"w_o.bias": state["w_o.bias"] + (mask * average).flatten()}


def remove_heads__heads_interleaved(state, n_heads, removed, average):
    """You take every n-th row of the projections for a head. Head h owns d rows in one block, as in
    `split_heads`."""
    smaller = remove_heads(state, n_heads, removed, average)
    kept = [head for head in range(n_heads) if head not in removed]
    for name in ("w_q", "w_k", "w_v"):
        for part in ("weight", "bias"):
            by_head = rearrange(state[f"{name}.{part}"], "(d h) ... -> h d ...", h=n_heads)
            smaller[f"{name}.{part}"] = rearrange(by_head[kept], "h d ... -> (h d) ...")
    return smaller
