"""Wrong variants of the exercise on sliding windows: each is a mistake, with what a tutor would say to it.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch
import torch.nn.functional as F


def sliding_window_mask__one_too_many(t, s, window, *, is_causal=True, offset=0):
    """Your windows hold one key too many on each side that they look to: a query sees `window` keys besides
    its own. Here the window counts that one as well (flash-attn, which asks for the keys on the left, does
    not). How far back is the furthest key of a window of 1?"""
    return sliding_window_mask(t, s, window + 1, is_causal=is_causal, offset=offset)


def sliding_window_mask__half_on_each_side(t, s, window, *, is_causal=True, offset=0):
    """Your two-sided window is divided between the two sides, as that of Longformer is in Transformers.
    Conventions differ, so read this one again: how many keys on *each* side?"""
    width = window if is_causal else window // 2 + 1
    return sliding_window_mask(t, s, width, is_causal=is_causal, offset=offset)


def sliding_window_mask__sees_the_future(t, s, window, *, is_causal=True, offset=0):
    """Your causal mask bounds the distance on one side only: a key that comes later is at a negative
    distance, and that is below any window. What is the nearest that a causal key may be?"""
    distance = torch.arange(t)[:, None] + offset - torch.arange(s)
    return distance < window if is_causal else distance.abs() < window


def sliding_window_mask__always_causal(t, s, window, *, is_causal=True, offset=0):
    """Your mask never looks ahead, even when `is_causal` is False. What does the second example by hand show
    in its first row?"""
    return sliding_window_mask(t, s, window, offset=offset)


def sliding_window_mask__offset_moves_the_keys(t, s, window, *, is_causal=True, offset=0):
    """Your offset moves the keys, or the queries the wrong way. Keys are counted from 0; it is the queries
    that come later. Where does query 0 stand when there were `offset` tokens before it?"""
    return sliding_window_mask(t, s, window, is_causal=is_causal, offset=-offset)


def sliding_window_mask__lines_up_the_ends(t, s, window, *, is_causal=True, offset=0):
    """You line up the last query with the last key (flash-attn does so since 2.1). Shapes cannot tell where
    queries stand: what is `offset` for?"""
    return sliding_window_mask(t, s, window, is_causal=is_causal, offset=s - t)


def sliding_window_mask__true_is_hidden(t, s, window, *, is_causal=True, offset=0):
    """Your mask is True where a key is hidden. That is what `nn.MultiheadAttention` wants; everything in this
    course wants the opposite. Which of the two says "attend"?"""
    return ~sliding_window_mask(t, s, window, is_causal=is_causal, offset=offset)


def _spans(x, block_size, before, after, n=None):
    s = x.shape[2]
    n = -(-s // block_size) if n is None else n
    j = torch.arange(n)[:, None] * block_size + torch.arange(-before, block_size + after)
    real = (j >= 0) & (j < s)
    return x[:, :, j.clamp(0, s - 1)] * real[:, :, None], torch.where(real, j, -1)


def key_spans__one_key_too_many(x, window, block_size, *, is_causal=True):
    """Your spans reach back `window` places before the block, one more than anybody looks. The first query of
    the block sees `window` keys: is its own one of them?"""
    return _spans(x, block_size, window, 0 if is_causal else window)


def key_spans__partial_block_dropped(x, window, block_size, *, is_causal=True):
    """The last queries are missing: you drop the block that is not full. How many blocks do 5 queries need if
    2 go into each? `//` rounds down."""
    after = 0 if is_causal else window - 1
    return _spans(x, block_size, window - 1, after, n=x.shape[2] // block_size)


def key_spans__ahead_instead_of_back(x, window, block_size, *, is_causal=True):
    """Your causal spans begin where their block begins and reach beyond it: keys of the future. On which
    side of `x` does the padding belong, so that a span begins `window - 1` places earlier?"""
    return _spans(x, block_size, *((0, window - 1) if is_causal else (window - 1, window - 1)))


def key_spans__edges_repeated(x, window, block_size, *, is_causal=True):
    """Where a span reaches beyond the text, you repeat the first or the last key, and say that it stands
    there once more. A query would count that token several times. What stands at position -2?"""
    _, j = key_spans(x, window, block_size, is_causal=is_causal)
    first = torch.arange(len(j))[:, None] * block_size - (window - 1)
    j = (first + torch.arange(j.shape[1])).clamp(0, x.shape[2] - 1)
    return x[:, :, j], j


def key_spans__padding_has_positions(x, window, block_size, *, is_causal=True):
    """You give positions to places where there is no key: those behind the end of the text go on counting.
    How will the attention know that these zeros are not keys?"""
    _, j = key_spans(x, window, block_size, is_causal=is_causal)
    counted = torch.arange(len(j))[:, None] * block_size + torch.arange(j.shape[1]) - (window - 1)
    return key_spans(x, window, block_size, is_causal=is_causal)[0], counted.clamp(min=-1)


def _attend(query, key, value, window, block_size, is_causal, *, band=True, real=True, guard=True, i=None):
    """The attention, with parts of its mask left out, or other positions for the queries."""
    t, d = query.shape[2:]
    keys, j = key_spans(key, window, block_size, is_causal=is_causal)
    values, _ = key_spans(value, window, block_size, is_causal=is_causal)
    starts = torch.arange(len(j))[:, None] * block_size
    queries = F.pad(query, (0, 0, 0, len(j) * block_size - t)).unflatten(2, (len(j), block_size))
    # Where the keys would stand if the padding were keys.
    places = starts + torch.arange(j.shape[1]) - (window - 1)
    i = starts + torch.arange(block_size) if i is None else i
    distance = i[:, :, None] - places[:, None, :]
    seen = torch.ones_like(distance, dtype=torch.bool)
    if band:
        seen = (distance.abs() < window) & (distance >= 0 if is_causal else True)
    if real:
        seen = seen & (j >= 0)[:, None]
    scores = (queries @ keys.mT * d**-0.5).masked_fill(~seen, float("-inf"))
    if guard:
        scores = scores.masked_fill(~seen.any(dim=-1, keepdim=True), 0.0)
    return (scores.softmax(dim=-1) @ values).flatten(2, 3)[:, :, :t]


def sliding_window_attention__padding_counts(query, key, value, window, *, block_size=64, is_causal=True):
    """The first queries come out too small: places before the text take part in your softmax. Their keys are
    zeros, so they score 0, and exp(0) is 1. Which places of a span are no keys?"""
    return _attend(query, key, value, window, block_size, is_causal, real=False)


def sliding_window_attention__whole_span(query, key, value, window, *, block_size=64, is_causal=True):
    """Your queries see the whole span of their block, which is more than their own window: the first query of
    a block sees its neighbours' future. What is the span for, and what decides within it?"""
    return _attend(query, key, value, window, block_size, is_causal, band=False)


def sliding_window_attention__counts_within_the_block(
    query, key, value, window, *, block_size=64, is_causal=True
):
    """Only your first block is right. In the others the queries are counted from 0 again, while the keys are
    counted from the beginning of the text. Where does query 1 of block 2 stand?"""
    return _attend(query, key, value, window, block_size, is_causal, i=torch.arange(block_size)[None])


def sliding_window_attention__not_scaled(query, key, value, window, *, block_size=64, is_causal=True):
    """The right queries meet the right keys, but your weights are too sharp. What stands under the products
    in softmax(query keyᵀ / √d)?"""
    return sliding_window_attention(
        query * query.shape[-1] ** 0.5, key, value, window, block_size=block_size, is_causal=is_causal
    )


def sliding_window_attention__dense(query, key, value, window, *, block_size=64, is_causal=True):
    """Your output is right, but every query reads every key: 0 times NaN is NaN, so one bad value spoils the
    whole text. A mask hides scores that were computed. Which of them need never be computed?"""
    t, d = query.shape[2:]
    mask = sliding_window_mask(t, t, window, is_causal=is_causal)
    scores = (query @ key.mT * d**-0.5).masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value


def sliding_window_attention__nan_in_what_is_cut_off(
    query, key, value, window, *, block_size=64, is_causal=True
):
    """The outputs are right, the gradients are NaN. Beyond the end of the text your last block has places
    whose softmax is 0 / 0; you cut them off, but on the way back 0 times NaN is NaN. What may such a row hold
    instead of nothing but -inf?"""
    return _attend(query, key, value, window, block_size, is_causal, guard=False)


class RollingKVCache__one_slot_too_few(RollingKVCache):
    """A query sees one key less than the window says: you hold `window - 1`. Before the update that is
    enough. And after it, when the token's own key is there as well?"""

    def __init__(self, window):
        super().__init__(max(window - 1, 1))


class RollingKVCache__grows_by_concatenation(RollingKVCache):
    """You join the new token to the old ones and cut off the oldest, as Transformers does. What you return
    is right, but each token copies the whole window. Which one slot is there to be written?"""

    def update(self, key, value):
        if self.count:
            key, value = torch.cat([self.keys, key], dim=2), torch.cat([self.values, value], dim=2)
        self.keys, self.values = key[:, :, -self.window :], value[:, :, -self.window :]
        self.count += 1
        return self.keys, self.values

    @property
    def positions(self):
        return torch.arange(max(self.count - self.window, 0), self.count)


class RollingKVCache__shifts(RollingKVCache):
    """What you return is right, but at each token all that you hold is moved by one place, to keep it in
    order. Attention does not care about the order of keys. Which slot holds the only token to be replaced?"""

    def update(self, key, value):
        if self.count < self.window:
            return super().update(key, value)
        self.keys[:] = torch.cat([self.keys[:, :, 1:], key], dim=2)
        self.values[:] = torch.cat([self.values[:, :, 1:], value], dim=2)
        self.count += 1
        return self.keys, self.values

    @property
    def positions(self):
        return torch.arange(max(self.count - self.window, 0), self.count)


class RollingKVCache__positions_are_slots(RollingKVCache):
    """Your positions are the numbers of the slots. After the first round, the token in slot 0 is not token 0
    any more. How many times was each slot written?"""

    @property
    def positions(self):
        return torch.arange(min(self.count, self.window))


class RollingKVCache__positions_in_order(RollingKVCache):
    """Your positions are the right ones, in order from old to new, but the keys are not in that order: the
    newest stands wherever the oldest was. Which position is that of slot 0?"""

    @property
    def positions(self):
        return torch.arange(max(self.count - self.window, 0), self.count)


class RollingKVCache__reads_before_it_writes(RollingKVCache):
    """You return what was held before the new token came, so its query cannot see its own key. Which comes
    first, writing or reading?"""

    def update(self, key, value):
        held = (key, value) if self.keys is None else (self.keys, self.values)
        old = [x[:, :, : min(self.count, self.window)].clone() for x in held]
        super().update(key, value)
        return tuple(old)


class RollingKVCache__empty_slots_are_token_0(RollingKVCache):
    """You return all slots from the beginning, and those without a token say 0: as if token 0 stood there,
    several times. A key of zeros scores 0, which is a score like any other. What may an empty slot say?"""

    def update(self, key, value):
        super().update(key, value)
        return self.keys, self.values

    @property
    def positions(self):
        return F.pad(super().positions, (0, max(self.window - self.count, 0)))


def receptive_field__product(windows, length, i, *, is_causal=True):
    """You multiply the windows. A second layer does not see a window of windows that lie side by side: those
    of two neighbours overlap, all but one key. How many *new* keys does each layer add?"""
    reach = 1
    for window in windows:
        reach *= length if window is None else window
    reach = min(reach, length) - 1
    return max(i - reach, 0), i if is_causal else min(i + reach, length - 1)


def receptive_field__sum_of_windows(windows, length, i, *, is_causal=True):
    """You add up the windows, as Mistral's paper does: 32 layers of 4,096 are "approximately 131K" tokens.
    Each window counts the token from which it looks back. How often have you counted it?"""
    tokens = sum(length if window is None else window for window in windows)
    return max(i - tokens + 1, 0), i if is_causal else min(i + tokens - 1, length - 1)


def receptive_field__a_window_back(windows, length, i, *, is_causal=True):
    """Each of your layers looks a whole window back. A window of 2 is the token itself and the one before it:
    how many steps back is that?"""
    return receptive_field([w and w + 1 for w in windows], length, i, is_causal=is_causal)


def receptive_field__beyond_the_text(windows, length, i, *, is_causal=True):
    """Your first position can be negative, or the last one behind the text. Which tokens are there to see?"""
    reach = sum(length if window is None else window - 1 for window in windows)
    return i - reach, i if is_causal else i + reach


def receptive_field__no_window_no_reach(windows, length, i, *, is_causal=True):
    """You let `None` add nothing. It does not mean that a layer sees nothing: how far does a layer see if
    there is no window to stop it?"""
    return receptive_field([w or 1 for w in windows], length, i, is_causal=is_causal)


def layers_needed__divides_by_the_window(window, distance):
    """You divide by the window. How far back does one layer with a window of 4 look: 4, or 3?"""
    return layers_needed(window + 1, distance) if window > 1 else layers_needed(window, distance)


def layers_needed__rounds_down(window, distance):
    """You round down. If two layers reach 6 back and the token stands 7 before, are two enough?"""
    return distance // (window - 1) if window > 1 else layers_needed(window, distance)


class RewindableKVCache__no_room_for_drafts(RewindableKVCache):
    """You hold `window` tokens, as in task 4. When two drafts come at once, the first of them is to see
    `window - 1` tokens before it, but the second has already pushed one of those out. How many slots do all
    queries of an update need together?"""

    def __init__(self, window, draft):
        super().__init__(window, draft)
        self.positions = self.positions[:window]


class RewindableKVCache__forgets_only_the_count(RewindableKVCache):
    """After a rewind your tokens are still there, with their positions: whoever reads the cache finds drafts
    that were taken back. What should their slots say?"""

    def rewind(self, n):
        positions = self.positions.clone()
        super().rewind(n)
        self.positions = positions


class RewindableKVCache__each_rewind_alone(RewindableKVCache):
    """You allow a rewind after a rewind, as if the first had left all that it found. It empties slots but
    brings nothing back. After two in a row, are all keys there that the next query sees?"""

    def rewind(self, n):
        if n > min(self.draft, self.count):
            raise ValueError(f"n is {n}, draft is {self.draft}")
        lost, self.lost = self.lost, 0
        super().rewind(n)
        self.lost = lost


class RewindableKVCache__only_full_windows(RewindableKVCache):
    """You refuse a rewind that is possible. The next query brings one key of its window itself: how many
    must still be held before it comes? And does a young text need any?"""

    def rewind(self, n):
        if self.lost and max(self.count - n - self.window, 0) < self.lost:
            raise ValueError("too far")
        super().rewind(n)
