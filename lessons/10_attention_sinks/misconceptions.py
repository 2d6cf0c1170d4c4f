"""Wrong variants of the exercise on attention sinks: each is a mistake that somebody made, with what a tutor
would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch


def softmax_off_by_one__added_after_the_softmax(scores):
    """You divide the weights of a finished softmax by 1 plus their sum. They sum to one, so that halves
    them, whatever the scores are. The 1 stands beside the exponentials of the scores: which score would a
    key need whose exponential is 1?"""
    weights = scores.softmax(dim=-1)
    return weights / (1 + weights.sum(dim=-1, keepdim=True))


def softmax_off_by_one__overflows(scores):
    """You take exp of the scores as they come. Above 709 that is infinite in float64, and infinity over
    infinity is NaN. What may you subtract from all exponents of a fraction, above and below?"""
    shares = torch.exp(scores)
    return shares / (1 + shares.sum(dim=-1, keepdim=True))


def softmax_off_by_one__one_is_not_shifted(scores):
    """You subtract the largest score from all scores, and leave the 1 as it is. In a plain softmax nobody
    sees what is subtracted, because it is subtracted everywhere. The 1 is exp(0): what becomes of it?"""
    shares = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return shares / (1 + shares.sum(dim=-1, keepdim=True))


def softmax_off_by_one__largest_of_the_keys_alone(scores):
    """You subtract the largest of the scores. Where all keys are masked that is -∞, and -∞ minus -∞ is NaN.
    There is one exponent more in the denominator than there are keys: which of them all is the largest
    then?"""
    top = scores.amax(dim=-1, keepdim=True)
    shares = torch.exp(scores - top)
    return shares / (torch.exp(-top) + shares.sum(dim=-1, keepdim=True))


def _plain(query, key, value, attn_mask=None, scale=None):
    """Plain attention, and the logarithm of its denominator."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    return weights @ value, scores.logsumexp(dim=-1, keepdim=True)


def sink_attention__logit_scaled(query, key, value, sink_logits, attn_mask=None, scale=None):
    """You scale the sink's logit like the products. It is no product of two vectors that would need taming,
    but a number that was learned as it is. What comes first, the scale or the sink?"""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return sink_attention(query, key, value, sink_logits * factor, attn_mask, scale)


def sink_attention__weights_made_to_sum_to_one(query, key, value, sink_logits, attn_mask=None, scale=None):
    """Your output is that of attention without a sink. Do you divide the weights by their sum once more,
    after the sink was taken away? Then what it took is given back: it is meant to be lost."""
    return _plain(query, key, value, attn_mask, scale)[0]


def sink_attention__logit_for_each_text(query, key, value, sink_logits, attn_mask=None, scale=None):
    """Your sink logits are lined up with the batch: text n gets number n. They belong to the heads. With as
    many texts as heads nothing is raised, so look at where the axis `h` stands in `b h t s`."""
    if len(query) != len(sink_logits):
        raise RuntimeError("shapes do not match")
    outputs = [
        sink_attention(q[None], k[None], v[None], sink.expand(len(sink_logits)), attn_mask, scale)
        for q, k, v, sink in zip(query, key, value, sink_logits, strict=True)
    ]
    return torch.cat(outputs)


def sink_attention__gate_upside_down(query, key, value, sink_logits, attn_mask=None, scale=None):
    """Your output is plain attention times the share of the *sink*: it vanishes where there is much to see,
    and comes out whole where there is nothing. Which share is left for the keys?"""
    output, lse = _plain(query, key, value, attn_mask, scale)
    return output * torch.sigmoid(sink_logits[:, None, None] - lse)


def sink_attention__sink_is_not_shifted(query, key, value, sink_logits, attn_mask=None, scale=None):
    """You subtract the largest score from all scores, but not from the sink. Whoever subtracts it in a part
    of the fraction changes the fraction: either all exponents are shifted or none."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    shares = torch.exp(scores - scores.amax(dim=-1, keepdim=True).clamp(min=-1e9))
    return shares @ value / (shares.sum(dim=-1, keepdim=True) + sink_logits.exp()[:, None, None])


def sink_attention__nan_where_nothing_is_seen(query, key, value, sink_logits, attn_mask=None, scale=None):
    """A head without a sink and a query without a key: that row is all -∞, and its softmax is 0 / 0, a NaN
    that spreads to everything it touches. In all other rows the sink saved you. Treat this one
    separately."""
    output = sink_attention(query, key, value, sink_logits, attn_mask, scale)
    if attn_mask is None:
        return output
    unseen = ~attn_mask.expand(*output.shape[:3], -1).any(dim=-1, keepdim=True)
    return output.masked_fill(unseen & (sink_logits == float("-inf"))[:, None, None], float("nan"))


def kept__window_counts_the_sinks(n_read, n_sinks, window):
    """You hold `window` tokens in all, the sinks among them. Here the window counts the newest only, and the
    sinks lie beside it: 4 sinks and a window of 1,020 are 1,024 tokens. How many are held in the example?"""
    position = torch.arange(n_read)
    return position[(position < n_sinks) | (position >= n_read - max(window - n_sinks, 0))]


def kept__sinks_evicted(n_read, n_sinks, window):
    """You keep the newest tokens, as many as there is room for. That is a plain window, and the first tokens
    fall out of it, on which every head had parked its weight. Which tokens may never go?"""
    return torch.arange(max(n_read - n_sinks - window, 0), n_read)


def kept__sinks_twice(n_read, n_sinks, window):
    """Some tokens are held twice: while the text is short, the first tokens are among the newest too. Twice
    the same key gets twice the weight. At which length do the two begin to be apart?"""
    newest = torch.arange(max(n_read - window, 0), n_read)
    return torch.cat([torch.arange(min(n_sinks, n_read)), newest])


def inside__positions_of_the_text(n_read, n_sinks, window):
    """You give the held tokens the positions that they have in the text. These grow without end, and the
    model was never trained on them. In the cache there are no gaps: what stands behind the last sink?"""
    held, places = kept(n_read, n_sinks, window), torch.full((n_read,), -1)
    places[held] = held
    return places


class SinkCache__evicts_the_sinks(SinkCache):
    """Your ring runs over all slots, those of the sinks too. It goes well until the cache is full: which
    token is overwritten then, and which should be?"""

    def __init__(self, n_sinks, window):
        super().__init__(0, n_sinks + window)


class SinkCache__positions_are_slots(SinkCache):
    """Your positions are 0, 1, 2, ... in the order of the slots. That is so until the cache overwrites a
    slot for the first time. From then on the newest token lies between older ones, and its position is the
    largest all the same."""

    positions = property(lambda self: torch.arange(min(self.n_read, self.n_sinks + self.window)))


class SinkCache__positions_of_the_text(SinkCache):
    """Your positions are those of the text. They tell the order rightly, but they go on to grow: after a
    million tokens the query stands a million away from the sinks. Where does it stand in the cache?"""

    @property
    def positions(self):
        places = super().positions
        gone = max(self.n_read - self.n_sinks - self.window, 0)
        return torch.where(places < self.n_sinks, places, places + gone)


class SinkCache__newest_overwritten(SinkCache):
    """When your cache is full, the next token overwrites the one before it, and the window stands still.
    The token that has to go is the oldest that is not a sink: where does it lie?"""

    def update(self, key, value):
        full = self.n_read == self.n_sinks + self.window
        self.n_read -= full
        return super().update(key, value)

    positions = property(lambda self: torch.arange(min(self.n_read, self.n_sinks + self.window)))


class SinkCache__moves_everything(SinkCache):
    """Your answers are right, but every token of the window is moved to make room for a new one: the cost
    of a step grows with the window. Positions are numbers that may be changed without touching a key. Write
    the new token where the oldest was."""

    def update(self, key, value):
        if self.n_read >= self.n_sinks + self.window:
            first, rest = self.n_sinks, self.n_sinks + 1
            for memory in (self.keys, self.values):
                memory[:, :, first:-1] = memory[:, :, rest:].clone()
            self.keys[:, :, -1], self.values[:, :, -1] = key[:, :, 0], value[:, :, 0]
            self.n_read += 1
            return self.keys, self.values
        return super().update(key, value)

    positions = property(lambda self: torch.arange(min(self.n_read, self.n_sinks + self.window)))


def _read(query, keys, values, i, j):
    """Attention of one query at position i over keys at positions j."""
    return _plain(turn(query, torch.as_tensor(i)[None]), turn(keys, j), values)[0]


def next_token__query_at_its_place_in_the_text(query, key, value, cache):
    """Your keys stand inside the cache, your query still stands in the text, further and further away from
    all of them. Both must be counted in the same way: which key is the query's own, and where is that?"""
    keys, values = cache.update(key, value)
    return _read(query, keys, values, cache.n_read - 1, cache.positions)


def next_token__keys_turned_when_they_came(query, key, value, cache):
    """You turn a key once, when it comes, and store it turned. But its position inside the cache goes down
    with every token that is dropped, while the turn stays what it was. Store what does not change, and turn
    when you read."""
    i = torch.tensor([min(cache.n_read, cache.n_sinks + cache.window - 1)])
    keys, values = cache.update(turn(key, i), value)
    return _plain(turn(query, i), keys, values)[0]


def next_token__query_at_the_last_slot(query, key, value, cache):
    """Your query stands where the last key of the answer does. That is right until the ring goes round: then the
    newest token lies in another slot. Which of all the positions is always that of the newest?"""
    keys, values = cache.update(key, value)
    places = cache.positions
    no_sink = torch.full((query.shape[1],), float("-inf"), dtype=query.dtype)
    return sink_attention(turn(query, places[-1:]), turn(keys, places), values, no_sink)


def distances__of_the_text(t, n_sinks, window):
    """Your distances to the sinks are those of the text. In the cache nothing lies between the last sink and
    the oldest of the window, so no distance can be larger than the cache is long. From which token on does
    it stop growing?"""
    distance = torch.arange(t)[:, None] - torch.arange(t)
    return torch.where(distances(t, n_sinks, window) < 0, -1, distance)


def distances__one_too_far(t, n_sinks, window):
    """Once the cache is full, your queries stand one position too far from the sinks. It holds n_sinks +
    window tokens, the new one among them, and they are counted from 0."""
    distance, i = distances(t, n_sinks, window), torch.arange(t)[:, None]
    return distance + ((distance >= 0) & (torch.arange(t) < n_sinks) & (i >= n_sinks + window))


def distances__capped_distances(t, n_sinks, window):
    """You cap the distances. Then two sinks that stand side by side are equally far from a query. It is the
    query's position that has an end, and each sink is as far from there as it is."""
    distance, far = distances(t, n_sinks, window), torch.arange(t)[:, None] - torch.arange(t)
    return torch.where(distance < 0, -1, far.clamp(max=n_sinks + window - 1))


def all_at_once__one_position_for_all_keys(query, key, value, n_sinks, window):
    """You turn the query to its position inside the cache and the keys to theirs in the text. For the sinks
    that is right. Keys in the window are counted anew together with the query, so towards them nothing has
    moved: which of its two positions do they see?"""
    i = torch.arange(query.shape[2])
    scores = turn(query, i.clamp(max=n_sinks + window - 1)) @ turn(key, i).mT * query.shape[-1] ** -0.5
    hidden = distances(len(i), n_sinks, window) < 0
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value


def all_at_once__positions_of_the_text(query, key, value, n_sinks, window):
    """Your mask is right, but all positions are those of the text: the sinks lie as far back as they do
    there. This is a window with sinks before it is counted anew. Which distances does task 5 list?"""
    i = torch.arange(query.shape[2])
    mask = distances(len(i), n_sinks, window) >= 0
    return _plain(turn(query, i), turn(key, i), value, mask)[0]


def with_sink__logit_not_divided(query, key, value, sink_logits, attn_mask=None):
    """The kernel multiplies every product by the scale, that of the sink's key too, so your logits come out
    scaled. What must stand in the key so that the logit is what is left?"""
    return with_sink(query, key, value, sink_logits * query.shape[-1] ** -0.5, attn_mask)


def with_sink__scale_of_the_new_width(query, key, value, sink_logits, attn_mask=None):
    """Your scale is that of d + 1 dimensions. The products of queries and keys are what they were, for the
    new dimension adds 0 to them, so they want the old scale."""
    query, key, value, attn_mask, scale = with_sink(query, key, value, sink_logits, attn_mask)
    wider = query.shape[-1] ** -0.5
    key = torch.cat([key[:, :, :-1], key[:, :, -1:] * scale / wider], dim=2)
    return query, key, value, attn_mask, wider


def with_sink__mask_hides_the_sink(query, key, value, sink_logits, attn_mask=None):
    """Your mask hides the new key from every query. It hides keys of the text; the sink is always there. What
    do you append to the mask?"""
    query, key, value, mask, scale = with_sink(query, key, value, sink_logits, attn_mask)
    if mask is not None:
        mask = torch.cat([mask[..., :-1], torch.zeros_like(mask[..., -1:])], dim=-1)
    return query, key, value, mask, scale


def with_sink__mask_of_numbers(query, key, value, sink_logits, attn_mask=None):
    """Your mask carries the logits: it adds them to the scores. PyTorch's attention would take that, this
    kernel does not, for its mask says yes or no. What else makes a score, if not a mask?"""
    scale, (b, h, t, _) = query.shape[-1] ** -0.5, query.shape
    seen = torch.ones(t, key.shape[2]).bool() if attn_mask is None else attn_mask
    numbers = torch.zeros(b, h, t, key.shape[2], dtype=query.dtype).masked_fill(~seen, float("-inf"))
    numbers = torch.cat([numbers, sink_logits[:, None, None].expand(b, h, t, 1)], dim=-1)
    key, value = (torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2) for x in (key, value))
    return query, key, value, numbers, scale


def merged__a_sink_in_every_part(outputs, lses, sink_logits):
    """Your result has a sink for every part: with more devices more weight is lost, though the text is the
    same. There is one denominator for all keys. How often does the sink stand in it?"""
    total = torch.logaddexp(lses, sink_logits[:, None].expand_as(lses))
    parts = outputs * torch.sigmoid(lses - sink_logits[:, None])[..., None]
    weights = total.softmax(dim=0).nan_to_num(0.0)
    return (weights[..., None] * parts.nan_to_num(0.0)).sum(dim=0)


def merged__mean_of_the_parts(outputs, lses, sink_logits):
    """You give each part the same weight. A part whose keys have higher scores has a larger denominator, and
    takes a larger share of the whole: that is what the logarithms are there for."""
    lse = lses.logsumexp(dim=0)
    gate = torch.sigmoid(lse - sink_logits[:, None]).nan_to_num(0.0)
    return outputs.mean(dim=0) * gate[..., None]


def merged__nan_where_nothing_is_seen(outputs, lses, sink_logits):
    """Where no part saw a key and the head has no sink, all logarithms are -∞: your shares are 0 / 0, a NaN.
    What does a query find that sees nothing at all?"""
    total = torch.logaddexp(lses.logsumexp(dim=0), sink_logits[:, None])
    return (torch.exp(lses - total)[..., None] * outputs).sum(dim=0)
