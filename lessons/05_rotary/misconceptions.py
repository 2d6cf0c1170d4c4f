"""Wrong variants of the exercise on rotary positions: each is a mistake that somebody made, with what a tutor
would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import math

import torch


def rotary_angles__exponent_half_as_large(positions, d, *, base=10000.0):
    """Your exponent is p/d, so the slowest pair turns only as slowly as the square root of the base allows.
    There are d/2 pairs: which exponent does the last of them get, and which should it get?"""
    return rotary_angles(positions, d, base=base**0.5)


def rotary_angles__last_pair_is_one_over_base(positions, d, *, base=10000.0):
    """Your exponents go from 0 to 1 with the last pair at 1, as `linspace` lays them out. They should be
    2p/d: what is the largest of them when p ends at d/2 - 1?"""
    exponents = torch.linspace(0, 1, d // 2, dtype=torch.float64)
    return positions.double()[..., None] * base**-exponents


def rotary_angles__counted_from_one(positions, d, *, base=10000.0):
    """Your p begins at 1, so no pair turns by one radian a position. Which pair is the fastest, and what
    should its exponent be?"""
    return rotary_angles(positions, d, base=base) * base ** (-2 / d)


def rotary_angles__base_upside_down(positions, d, *, base=10000.0):
    """Your pairs turn faster and faster: the base has the opposite exponent. Pair 0 turns by one radian a
    position. Should the next one turn by more, or by less?"""
    return rotary_angles(positions, d, base=1 / base)


def rotary_angles__degrees(positions, d, *, base=10000.0):
    """Your angles are in degrees. `torch.cos` will read them as radians, and so will every other function
    here: by how much should pair 0 turn from one position to the next?"""
    return rotary_angles(positions, d, base=base).rad2deg()


def rotary_angles__in_float32(positions, d, *, base=10000.0):
    """Your angles are computed in float32. That is exact enough for a short text; at position 1,000,003 its
    numbers are 0.06 radians apart. In which dtype should position and frequency meet?"""
    pair = torch.arange(d // 2, dtype=torch.float32)
    return (positions.float()[..., None] * base ** (-2 * pair / d)).double()


def rotary_angles__each_twice(positions, d, *, base=10000.0):
    """Your angles come d for each position, every one of them twice. Some code wants it so, for it turns
    number by number. Here an angle belongs to a pair: how many pairs does a vector of width d have?"""
    angles = rotary_angles(positions, d, base=base)
    return torch.cat([angles, angles], dim=-1)


def apply_rotary__turns_backwards(x, angles, *, interleaved=False):
    """You turn the other way: your sine has the wrong sign in both places. Scores would not notice, for
    only differences count, but a model trained elsewhere would. Multiply i by i: where does the minus go?"""
    return apply_rotary(x, -angles, interleaved=interleaved)


def apply_rotary__no_minus(x, angles, *, interleaved=False):
    """You add where a minus belongs, so a turned pair has not the length that it had before. In the product
    (a + ib)(cos φ + i sin φ), which term has i twice?"""
    r = angles.shape[-1]
    pairs = x[..., : 2 * r].unflatten(-1, (r, 2) if interleaved else (2, r))
    a, b = pairs.unbind(-1 if interleaved else -2)
    extra = torch.stack([2 * b * angles.sin().unsqueeze(-3), 0 * a], -1 if interleaved else -2).flatten(-2)
    turned = apply_rotary(x, angles, interleaved=interleaved)
    return torch.cat([turned[..., : 2 * r] + extra.to(x.dtype), turned[..., 2 * r :]], dim=-1)


def apply_rotary__other_layout(x, angles, *, interleaved=False):
    """Your pairs are those of the other layout here. Both layouts are right somewhere, and neither raises an
    error in the other's model. Which numbers are pair 0 when `interleaved` is True: 0 and 1, or 0 and r?"""
    return apply_rotary(x, angles, interleaved=not interleaved)


def apply_rotary__result_in_the_other_layout(x, angles, *, interleaved=False):
    """You pick interleaved pairs, turn them rightly, and then lay all first parts before all second ones.
    The result should have the layout of `x`: where did the two numbers of pair 0 come from?"""
    turned = apply_rotary(x, angles, interleaved=interleaved)
    if not interleaved:
        return turned
    return to_half_split(turned.movedim(-1, 0), 1, rotated=2 * angles.shape[-1]).movedim(0, -1)


def apply_rotary__pairs_across_the_whole_width(x, angles, *, interleaved=False):
    """Your half-split pairs are p and p + d/2, even where fewer than d numbers are turned. With r angles the
    first 2r numbers are turned, and the halves are halves of those. Which number is the partner of 0?"""
    r, half = angles.shape[-1], x.shape[-1] // 2
    if interleaved or 2 * r == x.shape[-1]:
        return apply_rotary(x, angles, interleaved=interleaved)
    places = torch.cat([torch.arange(r), half + torch.arange(r)])
    result = x.clone()
    result[..., places] = apply_rotary(x[..., places], angles)
    return result


def apply_rotary__turns_the_last_numbers(x, angles, *, interleaved=False):
    """You turn the last 2r numbers and keep the first. Partial rotary turns the first ones: look at which
    entries came back unchanged."""
    unturned = x.shape[-1] - 2 * angles.shape[-1]
    turned = apply_rotary(x[..., unturned:], angles, interleaved=interleaved)
    return torch.cat([x[..., :unturned], turned], dim=-1)


def apply_rotary__angles_of_texts_given_to_heads(x, angles, *, interleaved=False):
    """Your angles `b t r` meet numbers `b h t r` without a place for the heads. Broadcasting lines axes up
    from the right, so b meets h. When both are 3, nothing is raised, and head 0 gets the positions of text
    0. Which axis is missing, and where?"""
    r = angles.shape[-1]
    layout = (r, 2) if interleaved else (2, r)
    a, b = x[..., : 2 * r].unflatten(-1, layout).unbind(-1 if interleaved else -2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1 if interleaved else -2)
    return torch.cat([turned.flatten(-2), x[..., 2 * r :]], dim=-1)


def apply_rotary__angles_rounded_first(x, angles, *, interleaved=False):
    """You round the angles to the dtype of `x` and take cos and sin afterwards. A cosine is at most 1, and
    rounding it costs nothing to speak of. An angle may be a million. Which of the two can be rounded?"""
    return apply_rotary(x, angles.to(x.dtype).double(), interleaved=interleaved)


def apply_rotary__result_in_float64(x, angles, *, interleaved=False):
    """Your numbers are right, but float64, whatever `x` was: the angles are, and the wider dtype wins. The
    next layer of a model in float32 would refuse them. What may be rounded after cos and sin are taken?"""
    return apply_rotary(x.double(), angles, interleaved=interleaved)


def to_half_split__inverse(weight, n_heads, *, rotated=None):
    """You reorder in the opposite direction: this leads from half-split to interleaved. For width 4 both
    directions are the same, for 6 no longer. Which old row should be new row 1?"""
    heads = weight.unflatten(0, (n_heads, -1))
    end = heads.shape[1] if rotated is None else rotated
    pairs = torch.stack([heads[:, : end // 2], heads[:, end // 2 : end]], dim=2).flatten(1, 2)
    return torch.cat([pairs, heads[:, end:]], dim=1).flatten(0, 1)


def to_half_split__across_heads(weight, n_heads, *, rotated=None):
    """You take the even rows of the whole matrix and then its odd rows. A pair never leaves its head: with
    three heads of width 10, which rows belong to head 0, and where may they go?"""
    part = None if rotated is None else n_heads * rotated
    return to_half_split(weight, 1, rotated=part)


def to_half_split__heads_inside(weight, n_heads, *, rotated=None):
    """You read the rows as `(d h)`, as if neighbouring rows belonged to different heads. Head 0 has the
    first d rows: which comes first when you split that axis, the heads or the width?"""
    heads = weight.unflatten(0, (-1, n_heads)).transpose(0, 1).flatten(0, 1)
    mixed = to_half_split(heads, n_heads, rotated=rotated)
    return mixed.unflatten(0, (n_heads, -1)).transpose(0, 1).flatten(0, 1)


def to_half_split__moves_what_is_not_turned(weight, n_heads, *, rotated=None):
    """You reorder all rows of a head, also those of the numbers that are not turned. Those are no pairs.
    Which rows does `rotated` leave where they are?"""
    return to_half_split(weight, n_heads)


def rotary_attention__values_turned(query, key, value, i, j, *, base=10000.0):
    """You turn the values too. Turned queries and keys meet in a product, where only the difference of their
    positions is left. What would be left of a value's position in the output?"""
    value = apply_rotary(value, rotary_angles(j, value.shape[-1], base=base))
    return rotary_attention(query, key, value, i, j, base=base)


def rotary_attention__keys_not_turned(query, key, value, i, j, *, base=10000.0):
    """You turn the queries only. Then a score depends on where the query stands and not on where the key
    does. Which of the two has to be turned so that the difference of positions remains?"""
    key = apply_rotary(key, -rotary_angles(j, key.shape[-1], base=base))
    return rotary_attention(query, key, value, i, j, base=base)


def rotary_attention__keys_turned_backwards(query, key, value, i, j, *, base=10000.0):
    """You turn the keys the other way, so a score depends on the sum of both positions. A product of two
    vectors that are turned the same way keeps the difference: is a sign too much?"""
    key = apply_rotary(key, -2 * rotary_angles(j, key.shape[-1], base=base))
    return rotary_attention(query, key, value, i, j, base=base)


def rotary_attention__places_instead_of_positions(query, key, value, i, j, *, base=10000.0):
    """You turn by the place in the tensor: the first query by 0, whatever `i` says. A new token is alone in
    its tensor, and still it is the hundredth of its text."""
    d = query.shape[-1]
    query = apply_rotary(query, rotary_angles(torch.arange(i.shape[-1]) - i, d, base=base))
    key = apply_rotary(key, rotary_angles(torch.arange(j.shape[-1]) - j, d, base=base))
    return rotary_attention(query, key, value, i, j, base=base)


def rotary_attention__keys_at_the_places_of_queries(query, key, value, i, j, *, base=10000.0):
    """You turn the keys by `i`, where the queries stand. In a whole text that makes no difference. A key
    that was written long before its query has a position of its own."""
    if i.shape[-1] not in (1, j.shape[-1]):  # PyTorch would complain of sizes, as it does of other mistakes
        return rotary_attention(query, key, value, i, j, base=base)
    return rotary_attention(query, key, value, i, i, base=base)


def rotary_attention__mask_by_places(query, key, value, i, j, *, base=10000.0):
    """Your turns know the positions, your mask does not: it lines query 0 up with key 0, so a new token sees
    the oldest key only. What is a later key, in terms of `i` and `j`?"""
    d = query.shape[-1]
    query = apply_rotary(query, rotary_angles(i - torch.arange(i.shape[-1]), d, base=base))
    key = apply_rotary(key, rotary_angles(j - torch.arange(j.shape[-1]), d, base=base))
    return rotary_attention(
        query, key, value, torch.arange(i.shape[-1]), torch.arange(j.shape[-1]), base=base
    )


def rotary_attention__sees_the_future(query, key, value, i, j, *, base=10000.0):
    """Your queries see every key. Turns tell a query how far away a key is, and on which side, but they
    forbid nothing: that takes a mask."""
    # Whoever stands at the end of all sees everything: the queries are moved there and turned back.
    end = torch.full_like(i, int(j.max()) + int(i.max()))
    query = apply_rotary(query, rotary_angles(i - end, query.shape[-1], base=base))
    return rotary_attention(query, key, value, end, j, base=base)


def ntk_base__multiplied_by_the_factor(base, factor, d):
    """You multiply the base by the factor itself. The last pair turns by base^(-(d - 2)/d), not by 1/base:
    how much slower does it get, and what exponent of the factor makes up for that?"""
    return base * factor


def ntk_base__exponent_upside_down(base, factor, d):
    """The exponent of your factor is (d - 2)/d. That is what the last pair does to the base; you want to
    undo it. Put your base into the frequency of the last pair: by how much did it slow down?"""
    return base * factor ** ((d - 2) / d)


def yarn_frequencies__everything_slowed(d, factor, original_length, *, base=10000.0, **turns):
    """All your frequencies are divided by the factor, as if positions were. The fast pairs tell neighbours
    apart: what does your ramp say about pair 0?"""
    return rotary_angles(torch.ones(1), d, base=base)[0] / factor


def yarn_frequencies__ramp_reversed(d, factor, original_length, *, base=10000.0, **turns):
    """Your ramp runs the wrong way: fast pairs are slowed, and slow ones stay. Which of them has come to
    angles in a longer text that it never saw in training?"""
    theta = rotary_angles(torch.ones(1), d, base=base)[0]
    return theta + theta / factor - yarn_frequencies(d, factor, original_length, base=base, **turns)


def yarn_frequencies__linear_in_turns(
    d, factor, original_length, *, base=10000.0, beta_fast=32.0, beta_slow=1.0
):
    """Your ramp is linear in the number of turns. That is how the paper writes it; the code that models run
    with, and this task, have it linear in the index of the pair. Turns shrink by the same ratio from pair to
    pair: what does half of the way mean in each?"""
    theta = rotary_angles(torch.ones(1), d, base=base)[0]
    turns = original_length * theta / (2 * math.pi)
    gamma = ((turns - beta_slow) / (beta_fast - beta_slow)).clamp(0, 1)
    return gamma * theta + (1 - gamma) * theta / factor


def yarn_frequencies__radians_for_turns(d, factor, original_length, *, base=10000.0, **turns):
    """You count radians as if they were turns. A pair that went through 6.28 radians has come round once:
    where does 2π stand in the number of turns?"""
    return yarn_frequencies(d, factor, 2 * math.pi * original_length, base=base, **turns)


def yarn_frequencies__ramp_without_ends(
    d, factor, original_length, *, base=10000.0, beta_fast=32.0, beta_slow=1.0
):
    """Your ramp has no ends: beyond `high` it falls below 0, and pairs are slowed by more than the factor,
    some of them until they turn backwards. What should γ be there?"""
    theta = rotary_angles(torch.ones(1), d, base=base)[0]
    ends = [d / 2 * math.log(original_length / (2 * math.pi * n), base) for n in (beta_fast, beta_slow)]
    low, high = max(math.floor(ends[0]), 0), math.ceil(ends[1])
    gamma = (high - torch.arange(d // 2, dtype=torch.float64)) / (high - low)
    return gamma * theta + (1 - gamma) * theta / factor


class RotatedCache__gap_stays(RotatedCache):
    """Your keys are removed, but those behind them are still turned for where they stood. A later query
    would find a gap where the forgotten tokens were. How far did each of the others move?"""

    @property
    def key(self):
        return self.given


class RotatedCache__turned_the_wrong_way(RotatedCache):
    """Your keys are turned in the wrong direction, twice as far from their place as if you had done nothing.
    From position 5 to position 2: is the difference positive or negative?"""

    @property
    def key(self):
        shift = self.positions - torch.arange(len(self.positions))
        return apply_rotary(self.given, shift.double()[:, None] * self.frequencies)


class RotatedCache__all_are_moved(RotatedCache):
    """You turn every key back by the number of forgotten tokens. Those before the gap did not move: which
    position has token 0 after `forget(2, 5)`?"""

    def forget(self, start, stop):
        super().forget(start, stop)
        self.positions[:start] += stop - start


class RotatedCache__turned_a_second_time(RotatedCache):
    """You turn each key for its position, but it came turned already. What is left to do when a token stands
    where it stood when it came?"""

    @property
    def key(self):
        positions = torch.arange(len(self.positions), dtype=torch.float64)
        return apply_rotary(self.given, positions[:, None] * self.frequencies)


class RotatedCache__counts_what_was_forgotten(RotatedCache):
    """Your cache counts all tokens that ever came, so a token that comes after a `forget` is taken for one
    further on. It comes turned for the number of tokens that are in the cache *now*."""

    def append(self, key, value):
        before = getattr(self, "before", 0)
        super().append(key, value)
        self.positions[-key.shape[2] :] = torch.arange(before, before + key.shape[2])
        self.before = before + key.shape[2]


class RotatedCache__values_turned(RotatedCache):
    """Your values are turned as well. They were never turned for a position, so there is nothing to move."""

    @property
    def value(self):
        if self.plain is None:
            return None
        shift = (torch.arange(len(self.positions)) - self.positions).double()[:, None]
        return apply_rotary(self.plain, shift * self.frequencies[: self.plain.shape[-1] // 2])

    @value.setter
    def value(self, value):
        self.plain = value


class RotatedCache__turned_at_each_forget(RotatedCache):
    """Your keys are right after one `forget` and worn out after many: each of them turns and rounds again.
    Differences of positions are whole numbers, and add up without rounding. What could be kept until the key
    is read?"""

    def forget(self, start, stop):
        super().forget(start, stop)
        self.given = self.key
        self.positions = torch.arange(len(self.positions))
