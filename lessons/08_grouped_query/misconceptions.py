"""Wrong variants of the exercise on grouped-query attention: each is a mistake that somebody made, with what a
tutor would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch
from einops import rearrange, reduce


def key_heads__dealt_out(n_heads, n_kv_heads):
    """You deal the key heads out in turn, as cards are dealt. Then heads 0 and 1 never share. Who sits in a
    group with head 0, if neighbours do?"""
    key_heads(n_heads, n_kv_heads)
    return torch.arange(n_heads) % n_kv_heads


def key_heads__divided_by_the_groups(n_heads, n_kv_heads):
    """You divide by the number of key heads. With 6 heads and 2 key heads that counts up to 2, and there is
    no key head 2. How many heads are in a group?"""
    key_heads(n_heads, n_kv_heads)
    return torch.arange(n_heads) // n_kv_heads


def fold_heads__dealt_out(query, n_kv_heads):
    """Your groups take every g-th head: that is `(r g)`. The shape is right, and each head asks somebody
    else's keys. Which name comes first in `( )` where neighbours stay together?"""
    return rearrange(query, "b (r g) t d -> b g (r t) d", g=n_kv_heads)


def fold_heads__time_first(query, n_kv_heads):
    """You fold as `(t r)`: first come the first queries of all heads. That is a fold too, but another one,
    and masks and answers must be in the same order. What stays together in the example?"""
    return rearrange(query, "b (g r) t d -> b g (t r) d", g=n_kv_heads)


def unfold_heads__time_first(folded, n_heads):
    """You unfold as if the order were `(t r)`. Time and heads of a group are exchanged: look where the
    example puts the second query of head a."""
    return rearrange(folded, "b g (t r) e -> b (g r) t e", r=n_heads // folded.shape[1])


def _attend(query, key, value, attn_mask=None, is_causal=False, *, heads=None):
    """The attention with repeated keys; `heads` says which key head each query head reads."""
    heads = key_heads(query.shape[1], key.shape[1]) if heads is None else heads
    key, value = key[:, heads], value[:, heads]
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if is_causal:
        attn_mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        added = attn_mask.dtype != torch.bool
        scores = scores + attn_mask if added else scores.masked_fill(~attn_mask, float("-inf"))
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0) @ value


def grouped_attention__keys_dealt_out(query, key, value, attn_mask=None, is_causal=False):
    """Your query head 1 reads key head 1. That is what `repeat` does to keys: all of them, and then all
    again. It has the right shape and runs, and a trained model talks nonsense. Who shares with whom?"""
    h, g = query.shape[1], key.shape[1]
    key_heads(h, g)
    return _attend(query, key, value, attn_mask, is_causal, heads=torch.arange(h) % g)


def grouped_attention__one_mask_for_a_group(query, key, value, attn_mask=None, is_causal=False):
    """All heads of a group get the mask of its first one. They share keys, not masks: along which axis of
    the folded scores does the mask of the second head lie?"""
    if attn_mask is not None:
        (b, h, t, _), (g, s) = query.shape, key.shape[1:3]
        attn_mask = attn_mask.expand(b, h, t, s)[:, key_heads(h, g) * (h // g)]
    return _attend(query, key, value, attn_mask, is_causal)


def grouped_attention__mask_time_first(query, key, value, attn_mask=None, is_causal=False):
    """You fold queries and mask differently: the rows of the mask come as `(t r)`, each of them r times
    in a row (`repeat_interleave`). In which order do the folded queries come?"""
    if is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    if attn_mask is not None:
        (b, h, t, _), (g, s) = query.shape, key.shape[1:3]
        key_heads(h, g)
        folded = rearrange(attn_mask.expand(b, h, t, s), "b (g r) t s -> b g (t r) s", g=g)
        attn_mask = unfold_heads(folded, h)
    return _attend(query, key, value, attn_mask)


def grouped_attention__rank_three_is_batch(query, key, value, attn_mask=None, is_causal=False):
    """You read a mask of three axes as `b t s`. Axes are lined up from the right: `b h t s` without its
    first is `h t s`. If b and h differ this is an error; if not, nobody notices."""
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask[:, None]
    return _attend(query, key, value, attn_mask, is_causal)


def grouped_attention__causal_over_the_fold(query, key, value, attn_mask=None, is_causal=False):
    """Your causal mask was made for the folded queries. To it, the first query of the second head is number
    t, and sees what it must not. At which time does that query stand?"""
    if is_causal:
        h, t, s = *query.shape[1:3], key.shape[2]
        r = h // key.shape[1]
        tall = torch.ones(r * t, s, dtype=torch.bool).tril()
        attn_mask = rearrange(tall, "(r t) s -> r t s", r=r).repeat(h // r, 1, 1)
    return _attend(query, key, value, attn_mask)


def grouped_attention__gradient_of_one_head(query, key, value, attn_mask=None, is_causal=False):
    """Your output is right, but only the first head of each group sends a gradient to the key that they
    share. A copy made by `detach`, `data` or under `no_grad` breaks the way back. A key that r heads read
    has moved r outputs: what is its gradient?"""
    h, g = query.shape[1], key.shape[1]
    first = (torch.arange(h) % (h // g) == 0)[:, None, None]
    key, value = (part[:, key_heads(h, g)] for part in (key, value))
    key, value = (torch.where(first, part, part.detach()) for part in (key, value))
    return _attend(query, key, value, attn_mask, is_causal)


def cache_bytes__as_many_as_queries(n_tokens, d_model, n_layers, n_heads, n_kv_heads, **options):
    """Your text takes as much as with all heads: you count query heads, or make each key head
    d_model / n_kv_heads wide. What is saved by sharing? And how wide is a key that has to fit a query?"""
    per_head = cache_bytes(n_tokens, d_model, n_layers, n_heads, n_kv_heads, **options) // n_kv_heads
    return per_head * n_heads


def cache_bytes__keys_only(*args, **options):
    """You have half of it. The softmax needs the keys. What else of the old tokens does a step read?"""
    return cache_bytes(*args, **options) // 2


def cache_bytes__cuts_heads(n_tokens, d_model, n_layers, n_heads, n_kv_heads, *, n_devices=1, itemsize=2):
    """You divide the bytes by the devices, whatever their number. 8 heads on 32 devices would be a quarter
    of a head each, and no score could be computed where it is needed. What must a device keep at least?"""
    args = n_tokens, d_model, n_layers, n_heads, n_kv_heads
    cache_bytes(*args, n_devices=n_devices)
    return cache_bytes(*args, itemsize=itemsize) // n_devices


class GroupedCache__keeps_query_heads(GroupedCache):
    """Your cache holds a key for every *query* head, so it is as large as with multi-head attention. When do
    the query heads come in, when tokens are stored or when they are read?"""

    def step(self, query, key, value):
        heads = key_heads(query.shape[1], key.shape[1])
        return super().step(query, key[:, heads], value[:, heads])


class GroupedCache__top_left(GroupedCache):
    """Your mask begins at the top left: to it, the query of a new token is query 0, which sees the first key
    only. The new queries stand at the end of the text: which row of the whole mask is theirs?"""

    def step(self, query, key, value):
        super().step(query, key, value)
        return grouped_attention(query, self.key, self.value, is_causal=True)


class GroupedCache__sees_the_whole_step(GroupedCache):
    """Your queries see all that is in the cache. With one new token that is right; with several, they see
    those that came in the same step, but after them. Which keys does the first of them see?"""

    def step(self, query, key, value):
        super().step(query, key, value)
        return grouped_attention(query, self.key, self.value)


def mean_pool_kv_heads__sum(weight, n_heads, n_kv_heads):
    """You add the heads up. The keys become r times as long as their mean, the scores too, and the softmax is
    sharper than the model was trained for. If all heads of a group were equal, what should be left?"""
    return mean_pool_kv_heads(weight, n_heads, n_kv_heads) * (n_heads // n_kv_heads)


def mean_pool_kv_heads__dealt_out(weight, n_heads, n_kv_heads):
    """You pool heads that lie g apart. The query heads that will read the result are neighbours: whose keys
    should they find in it?"""
    mean_pool_kv_heads(weight, n_heads, n_kv_heads)
    return reduce(weight, "(r g d) ... -> (g d) ...", "mean", g=n_kv_heads, r=n_heads // n_kv_heads)


def mean_pool_kv_heads__neighbouring_rows(weight, n_heads, n_kv_heads):
    """You take the mean of neighbouring rows. Those are different dimensions of one head. Which rows of
    two heads mean the same?"""
    mean_pool_kv_heads(weight, n_heads, n_kv_heads)
    return reduce(weight, "(g d r) ... -> (g d) ...", "mean", g=n_kv_heads, r=n_heads // n_kv_heads)


def repeat_kv_heads__row_by_row(weight, n_heads, n_kv_heads):
    """You repeat each row r times in a row. That would be right if a head were one row wide; now a head
    consists of copies of a few of its dimensions. What has to be repeated as a whole?"""
    return weight.repeat_interleave(n_heads // n_kv_heads, dim=0)


def repeat_kv_heads__all_and_all_again(weight, n_heads, n_kv_heads):
    """You repeat all heads, and then all again. In the larger model head 1 then has the keys of head 1; whose
    keys did it read in the grouped one?"""
    return torch.cat([weight] * (n_heads // n_kv_heads))


def shared_head__mean(asks, offers):
    """You take the mean of the offers, and the asks stay. That is task 5: the best for asks that may not
    change. What could the asks do, if they knew what the new head offers?"""
    return asks, offers.mean(dim=0)


def shared_head__best_for_the_offers(asks, offers):
    """You find the directions that describe the *offers* best. But what has to stay are the products, and
    a direction that no query asks for adds nothing to them. Of which matrix do you need the directions?"""
    products = asks.mT @ offers
    shared = torch.linalg.svd(offers.flatten(0, 1), full_matrices=False).Vh[: asks.shape[1]]
    return (products @ shared.mT).mT, shared


def share_kv_heads__values_are_pooled(w_q, w_k, w_v, w_o, n_heads, n_kv_heads):
    """Queries and keys are right, but the values are only pooled, and W_O is what it was. W_O W_V is a
    product like W_Qᵀ W_K: which of the two takes the place of the asks?"""
    query, key, _, _ = share_kv_heads(w_q, w_k, w_v, w_o, n_heads, n_kv_heads)
    return query, key, mean_pool_kv_heads(w_v, n_heads, n_kv_heads), w_o
