"""Wrong variants of the exercise on Longformer: each is a mistake that somebody made, with a tutor's words.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch


def longformer_mask__one_too_many(window, global_mask, padding_mask):
    """Your window reaches to |i - j| = window. Here it counts the token itself: how many neighbours has a
    token whose window is 1?"""
    return longformer_mask(window + 1, global_mask, padding_mask)


def longformer_mask__one_side(window, global_mask, padding_mask):
    """Your tokens look back only. That is the window of a model that writes. Longformer reads a text that is
    all there: which sign may i - j have?"""
    i = torch.arange(global_mask.shape[1])
    ahead = i > i[:, None]
    alone = longformer_mask(1, global_mask, padding_mask)
    return alone | (longformer_mask(window, global_mask, padding_mask) & ~ahead)


def longformer_mask__whole_width(window, global_mask, padding_mask):
    """You read `window` as the width of both sides together, as Transformers' `attention_window` does. Here
    it is the reach of one side, the token itself included: how far away is the last key that token i sees?"""
    return longformer_mask(window // 2 + 1, global_mask, padding_mask)


def longformer_mask__columns_only(window, global_mask, padding_mask):
    """Your global tokens are seen by all, and see no more than the others do. What could such a token pass
    on, if it knew its neighbours only?"""
    window_only = longformer_mask(window, torch.zeros_like(global_mask), padding_mask)
    return window_only | (longformer_mask(window, global_mask, padding_mask) & global_mask[:, None, :])


def longformer_mask__rows_only(window, global_mask, padding_mask):
    """Your global tokens see all, and nobody hears of it: their columns are empty outside the window. Which
    way does what they found get back to the others?"""
    window_only = longformer_mask(window, torch.zeros_like(global_mask), padding_mask)
    return window_only | (longformer_mask(window, global_mask, padding_mask) & global_mask[:, :, None])


def longformer_mask__global_padding(window, global_mask, padding_mask):
    """A padding that is called global comes back to life in your mask. There is nothing to see there: which
    of the two masks has the last word?"""
    window_only = longformer_mask(window, torch.zeros_like(global_mask), padding_mask)
    return window_only | global_mask[:, :, None] | global_mask[:, None, :]


def longformer_mask__padding_is_true(window, global_mask, padding_mask):
    """You read `padding_mask` the wrong way round, and only padding is left. The name is PyTorch's, where
    True is padding; what does True mean here, as in every mask of this course?"""
    return longformer_mask(window, global_mask, ~padding_mask)


def longformer_mask__padding_asks(window, global_mask, padding_mask):
    """Nobody sees your padding, but padding sees others: its rows are not empty. They cost as much as
    real ones. What should be left of a token that is none?"""
    everything = torch.ones_like(padding_mask)
    return longformer_mask(window, global_mask & padding_mask, everything) & padding_mask[:, None, :]


def count_scores__no_ends(t, window, positions):
    """Each of your tokens has a full window, 2 * window - 1 keys. Write down what the first token of the
    example sees: how many of its keys lie before the text?"""
    return count_scores(t, window, positions) - count_scores(t, window, []) + t * (2 * window - 1)


def count_scores__window_and_global(t, window, positions):
    """You add a row and a column for each global token to the band. Some of these pairs are in the band
    already. Which keys does a global token see without being global?"""
    k = len(positions)
    return count_scores(t, window, []) + 2 * t * k - k * k


def count_scores__pairs_twice(t, window, positions):
    """With one global token you are right, with two you count too many. Where does the row of one cross
    the column of the other?"""
    band = count_scores(t, window, [])
    return band + sum(count_scores(t, window, [p]) - band for p in positions)


def count_scores__itself_twice(t, window, positions):
    """A global token's score for itself lies in its row and in its column. Is it computed twice?"""
    return count_scores(t, window, positions) + len(positions)


def pack_globals__same_for_all(global_mask):
    """All your texts have the positions of the first. A batch holds questions of different lengths: do
    their global tokens stand in the same places?"""
    positions, real = pack_globals(global_mask[:1])
    return positions.expand(len(global_mask), -1), real.expand(len(global_mask), -1)


def take_tokens__first_text(x, positions):
    """Your positions are right, but you read them in the first text, for all texts. Which index must go
    along with a position, so that each text is asked for its own?"""
    return take_tokens(x[:1].expand_as(x), positions)


def global_rows__spare_slots_written(query, key, value, output, global_mask, padding_mask):
    """You write all slots back, also those that are not real. These hold the position 0: what becomes of
    token 0 in a text with fewer global tokens than another has?"""
    spare = ~pack_globals(global_mask & padding_mask)[1].all(dim=1, keepdim=True)
    first = torch.arange(query.shape[2]) == 0
    return global_rows(query, key, value, output, global_mask | (spare & first), padding_mask)


def global_rows__not_scaled(query, key, value, output, global_mask, padding_mask):
    """Your global queries ask with scores that are not divided by the root of d. Which of the two sharpens a
    softmax, a division or its absence?"""
    query = query * query.shape[-1] ** 0.5
    return global_rows(query, key, value, output, global_mask, padding_mask)


def global_rows__at_the_front(query, key, value, output, global_mask, padding_mask):
    """Your answers are right, and stand in the first rows. A slot is no position: whose row does the answer
    in slot 1 belong to?"""
    positions, real = pack_globals(global_mask & padding_mask)
    found = global_rows(query, key, value, output, global_mask, padding_mask)
    rows, k = output.clone(), real.shape[1]
    rows[:, :, :k] = take_tokens(found, positions).where(real[:, None, :, None], rows[:, :, :k])
    return rows


def global_rows__added(query, key, value, output, global_mask, padding_mask):
    """You add what a global token finds to what stood there. That is two softmaxes, and two units of
    attention. What did the first see that the second does not?"""
    rows = global_rows(query, key, value, output, global_mask, padding_mask)
    return torch.where((global_mask & padding_mask)[:, None, :, None], rows + output, rows)


def global_rows__padding_is_seen(query, key, value, output, global_mask, padding_mask):
    """Your global tokens see padding. They see everything, but is padding something? What would become of
    a short text that is put into a batch with a long one?"""
    return global_rows(query, key, value, output, global_mask & padding_mask, torch.ones_like(padding_mask))


def shared_softmax__counted_twice(window_scores, global_scores, positions, real, padding_mask):
    """A global token inside the window takes part twice in your softmax, once for the window and once for its
    slot. Is it worth twice as much to its neighbours as to tokens far away?"""
    far_away = positions + sum(window_scores.shape[2:])
    return shared_softmax(window_scores, global_scores, far_away, real, padding_mask)


def shared_softmax__spare_slots_seen(window_scores, global_scores, positions, real, padding_mask):
    """Slots that are not real take part in your softmax. Whose key is behind the score of a slot that nobody
    fills?"""
    # In a place beyond the text nobody takes them for a key of the window.
    spare = positions.where(real, 10 * window_scores.shape[2] + window_scores.shape[3])
    return shared_softmax(window_scores, global_scores, spare, torch.ones_like(real), padding_mask)


def shared_softmax__padding_asks(window_scores, global_scores, positions, real, padding_mask):
    """The rows of padding have weights. Nobody asked there: what is a row of zeros to the sum that follows,
    and what is one of weights?"""
    weights = shared_softmax(window_scores, global_scores, positions, real, padding_mask)
    t, a = window_scores.shape[2:]
    j = torch.arange(t)[:, None] + torch.arange(a) - a // 2
    near = padding_mask[:, j.clamp(0, t - 1)] & (j >= 0) & (j < t)
    far = real[:, None] & ((positions[:, None] - torch.arange(t)[:, None]).abs() > a // 2)
    sees = torch.cat([near, far], dim=-1)[:, None]
    scores = torch.cat([window_scores, global_scores], dim=-1).masked_fill(~sees, float("-inf"))
    asked = scores.softmax(dim=-1).nan_to_num()
    rows = padding_mask[:, None, :, None]
    return weights[0].where(rows, asked[..., :a]), weights[1].where(rows, asked[..., a:])


def shared_softmax__two_softmaxes(window_scores, global_scores, positions, real, padding_mask):
    """You take two softmaxes, one for the window and one for the global tokens. Each sums to one, so a query
    spreads two units. And how would a global key tell the window that it is the better one?"""
    nothing = torch.zeros_like(real)
    near, _ = shared_softmax(window_scores, global_scores, positions, nothing, padding_mask)
    _, far = shared_softmax(window_scores, global_scores, positions, real, padding_mask)
    return near, far / far.sum(dim=-1, keepdim=True).clamp(min=1e-300)


def shared_softmax__beyond_the_text(window_scores, global_scores, positions, real, padding_mask):
    """Near the ends of the text, your queries give weight to keys that do not exist. What do the first
    window - 1 numbers of query 0 stand for?"""
    side, t = window_scores.shape[-1] // 2, window_scores.shape[2]
    longer = [torch.nn.functional.pad(x, (0, 0, side, side)) for x in (window_scores, global_scores)]
    padding_mask = torch.nn.functional.pad(padding_mask, (side, side), value=True)
    weights = shared_softmax(*longer, positions + side, real, padding_mask)
    return tuple(part[:, :, side : side + t] for part in weights)


def longformer_attention__global_keys_for_all(query, key, value, window, global_mask, **options):
    """Your local queries meet a global token in the keys and values of `global_qkv`. Those were projected for
    global queries only. Which of its two keys does a token show to a query that is not global?"""
    own, (_, keys, values) = (query, key, value), options.get("global_qkv") or (query, key, value)
    key, value = (
        other.where(global_mask[:, None, :, None], x) for x, other in ((key, keys), (value, values))
    )
    options["global_qkv"] = options.get("global_qkv") or own
    return longformer_attention(query, key, value, window, global_mask, **options)


def longformer_attention__global_qkv_unused(query, key, value, window, global_mask, **options):
    """Your global tokens ask with the same projections as all others. What were the three of `global_qkv` made
    for, and who asks with them?"""
    options["global_qkv"] = None
    return longformer_attention(query, key, value, window, global_mask, **options)


def longformer_attention__not_scaled(query, key, value, window, global_mask, **options):
    """Your local queries ask with scores that are not divided by the root of d. The softmax of this task takes
    scores as they come: who divides?"""
    # The global queries are scaled in task 4, so they keep their own.
    own = options.pop("global_qkv", None) or (query, key, value)
    query = query * query.shape[-1] ** 0.5
    return longformer_attention(query, key, value, window, global_mask, global_qkv=own, **options)


def longformer_attention__only_queries_projected(query, key, value, window, global_mask, **options):
    """Your global queries are those of `global_qkv`, but they meet the keys and values of all others. Six
    projections make three pairs: with which keys was a global query trained?"""
    options["global_qkv"] = ((options.get("global_qkv") or (query,))[0], key, value)
    return longformer_attention(query, key, value, window, global_mask, **options)


def layers_needed__reach_is_the_window(source, target, t, layers, positions):
    """You let a layer reach `window` tokens far. The window counts the token itself, so how far away is the
    last of three keys, the nearest of which is at distance 0?"""
    layers = [[(window + 1, dilation) for window, dilation in heads] for heads in layers]
    return layers_needed(source, target, t, layers, positions)


def layers_needed__no_gaps(source, target, t, layers, positions):
    """You count how far a dilated head reaches, and forget what it steps over. With dilation 2, from token
    10, which tokens are reached in any number of layers?"""
    layers = [[((window - 1) * dilation + 1, 1) for window, dilation in heads] for heads in layers]
    return layers_needed(source, target, t, layers, positions)


def layers_needed__through_the_hub_at_once(source, target, t, layers, positions):
    """With a global token, all your tokens are connected after one layer. In that layer the global token
    itself still looks at what the others were before: when can it pass on what it found?"""
    if positions and layers and source != target:
        return 1
    return layers_needed(source, target, t, layers, positions)


def layers_needed__one_head_after_another(source, target, t, layers, positions):
    """What one head finds, your next head passes on in the same layer. All heads of a layer read the same
    input. When can a head see what another one found?"""
    ends = [n for n, heads in enumerate(layers, start=1) for _ in heads]
    needed = layers_needed(source, target, t, [[head] for heads in layers for head in heads], positions)
    return needed and ends[needed - 1]


def layers_needed__outside_the_text(source, target, t, layers, positions):
    """Your path leaves the text and comes back. Before token 0 there is no token that could pass on
    anything, so the order of the layers matters. Is there a way that stays inside?"""
    side = sum(max((w - 1) * dilation for w, dilation in heads) for heads in layers)
    positions = [p + side for p in positions]
    return layers_needed(source + side, target + side, t + 2 * side, layers, positions)
