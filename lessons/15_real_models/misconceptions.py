"""Wrong variants of the exercise on real models: each is a mistake, with what a tutor would say to it.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import itertools
import math

import torch


def attention_forward__heads_before_time(query, key, value, attention_mask=None, **options):
    """Your numbers are right, but laid out heads first, as they came. The layer behind you joins the last two
    axes and multiplies: which of them does it expect to be heads and widths?"""
    output, weights = attention_forward(query, key, value, attention_mask, **options)
    return output.transpose(1, 2), weights


def attention_forward__heads_in_rounds(query, key, value, attention_mask=None, **options):
    """Your query heads take the key heads in turn, 0 1 0 1, as `repeat` does. A group's heads are neighbours.
    With four query heads and two key heads, whose keys does head 1 read?"""
    r = query.shape[1] // key.shape[1]
    key, value = (x.repeat(1, r, 1, 1) for x in (key, value))
    return attention_forward(query, key, value, attention_mask, **options)


def attention_forward__causal_when_decoding(query, key, value, attention_mask=None, **options):
    """One query came without a mask, and you let it see the first key only. It is no text of one token: the
    keys before it come from a cache. Which of them may the newest token see?"""
    (t, s), causal = (query.shape[2], key.shape[2]), options.get("is_causal", True)
    if attention_mask is None and causal:
        attention_mask = torch.ones(t, s, dtype=torch.bool).tril()
    return attention_forward(query, key, value, attention_mask, **options)


def attention_forward__lines_up_the_ends(query, key, value, attention_mask=None, **options):
    """Several queries and more keys came without a mask, and you line up the last of both. That is what
    flash-attn does. Here the rule counts from the other end: which keys does query 0 see?"""
    (t, s), causal = (query.shape[2], key.shape[2]), options.get("is_causal", True)
    if attention_mask is None and causal and t > 1:
        attention_mask = torch.ones(t, s, dtype=torch.bool).tril(s - t)
    return attention_forward(query, key, value, attention_mask, **options)


def attention_forward__causal_besides_the_mask(query, key, value, attention_mask=None, **options):
    """A mask came, and you hide the future besides. The mask says everything already: the model has put
    causality, window and padding into it, and an encoder's mask has no causality. When is `is_causal`
    asked at all?"""
    (t, s), causal = (query.shape[2], key.shape[2]), options.get("is_causal", True)
    if attention_mask is not None and causal and t > 1:
        past = torch.ones(t, s, dtype=torch.bool).tril()
        hidden = False if attention_mask.dtype == torch.bool else -torch.inf
        attention_mask = attention_mask.masked_fill(~past, hidden)
    return attention_forward(query, key, value, attention_mask, **options)


def attention_forward__padding_takes_the_mean(query, key, value, attention_mask=None, **options):
    """Where a query sees nothing you return the mean of all values, padding included: a large negative number
    in every place is the same number in every place. What does a softmax make of that, and what is to come
    out?"""
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = (~attention_mask).to(query.dtype) * torch.finfo(query.dtype).min
    return attention_forward(query, key, value, attention_mask, **options)


def attention_forward__nothing_is_nan(query, key, value, attention_mask=None, **options):
    """Where a query sees nothing you return NaN: its scores are all minus infinity, and their softmax is
    0 / 0. One such row of padding, and all that is computed from it is lost. What may the row hold instead,
    and what is to come out?"""
    result, weights = attention_forward(query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        empty = ~attention_mask.any(dim=-1).expand(query.shape[:3]).mT
        result = result.masked_fill(empty[..., None], torch.nan)
    return result, weights


def attention_forward__swallows_everything(query, key, value, attention_mask=None, **options):
    """You let `position_bias`, `s_aux` and `softcap` pass as if nothing had come. The model runs then, writes
    fluently, and is another model. What should a function do with what it does not understand and must not
    ignore?"""
    known = {name: options[name] for name in ("scaling", "is_causal") if name in options}
    return attention_forward(query, key, value, attention_mask, **known)


def attention_forward__swallows_them_silently(query, key, value, attention_mask=None, **options):
    """`position_bias`, `s_aux` and `softcap` pass through your function as if nothing had come: the model runs, and
    is another model. What should a function do with what it does not understand and must not ignore?"""
    return attention_forward__swallows_everything(query, key, value, attention_mask, **options)[0], None


def attention_forward__ignores_scaling(query, key, value, attention_mask=None, **options):
    """You scale by d^(-1/2) whatever `scaling` says. T5 was trained without a scale and says so: 1.0. When
    is d^(-1/2) meant?"""
    options.pop("scaling", None)
    return attention_forward(query, key, value, attention_mask, **options)


def split_qkv__bloom_in_blocks(fused, layout, n_heads, n_kv_heads):
    """You cut BLOOM's matrix into three blocks. Shapes and sizes are right, and the rows are mixed: with two
    heads of width 1, row 1 is not a query. Look at the example by hand: whose is it?"""
    layout = "phi3" if layout == "bloom" else layout
    return split_qkv(fused, layout, n_heads, n_kv_heads)


def split_qkv__falcon_in_blocks(fused, layout, n_heads, n_kv_heads):
    """You cut Falcon's matrix into three blocks, as Phi-3's. The shapes are right, and the rows are mixed: in the
    example by hand, what is row 2?"""
    return split_qkv(fused, "phi3" if layout == "falcon" else layout, n_heads, n_kv_heads)


def split_qkv__falcon_in_rounds(fused, layout, n_heads, n_kv_heads):
    """You read Falcon's matrix as if the first query heads of all groups came first, then the second ones.
    In the table, what comes after the r queries of the first key head: other queries, or its key?"""
    if layout != "falcon":
        return split_qkv(fused, layout, n_heads, n_kv_heads)
    rounds = fused.unflatten(0, (n_heads // n_kv_heads + 2, n_kv_heads, -1)).transpose(0, 1)
    return split_qkv(rounds.flatten(0, 2), layout, n_heads, n_kv_heads)


def split_qkv__columns_for_rows(fused, layout, n_heads, n_kv_heads):
    """GPT-2's three matrices are cut in the right places, but are still stored the other way round: inputs
    down, outputs across. What has `nn.Linear` down?"""
    parts = split_qkv(fused, layout, n_heads, n_kv_heads)
    return [x.T for x in parts] if layout == "gpt2" and fused.ndim == 2 else parts


def _with_order(state, n_heads, n_kv_heads, order, moved="qk", count=None):
    """The conversion, with other rows moved, or in another way."""
    new = convert_llama(state, n_heads, n_kv_heads)
    for name, weight in state.items():
        for x, heads in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
            if name.endswith(f"attention.w{x}.weight"):
                layer = name.split(".")[1]
                rows = weight.unflatten(0, (count or heads, -1))
                changed = rows[:, order(rows.shape[1])].flatten(0, 1) if x in moved else weight
                new[f"model.layers.{layer}.self_attn.{x}_proj.weight"] = changed
    return new


def _halves(d):
    return torch.arange(d).view(-1, 2).T.flatten()


def convert_llama__rows_left_alone(state, n_heads, n_kv_heads):
    """You rename and move no row. Nothing complains, and at distance 0 the scores are even right. Which
    two numbers of a head did Meta turn together, and which will Transformers?"""
    return _with_order(state, n_heads, n_kv_heads, _halves, moved="")


def convert_llama__all_heads_as_one(state, n_heads, n_kv_heads):
    """You move rows across the whole matrix: all first halves, then all second ones. A pair lies within one
    head. How long is the piece of rows to which the order applies?"""
    return _with_order(state, n_heads, n_kv_heads, _halves, count=1)


def convert_llama__back_again(state, n_heads, n_kv_heads):
    """You move the rows the other way, from halves to neighbours. At a width of 4 both ways are the same,
    so look at 6: which old row comes second?"""
    return _with_order(state, n_heads, n_kv_heads, lambda d: torch.arange(d).view(2, -1).T.flatten())


def convert_llama__values_too(state, n_heads, n_kv_heads):
    """You moved the rows of the values as well. Values are never turned, and what reads them, `o_proj`,
    expects them where they were. What are the rows moved for?"""
    return _with_order(state, n_heads, n_kv_heads, _halves, moved="qkv")


def convert_llama__keys_as_many_heads_as_queries(state, n_heads, n_kv_heads):
    """Queries are right, keys are not. They are turned as well, so their rows move within a head: into how many
    heads do you cut their matrix?"""
    return convert_llama(state, n_heads, n_heads)


def convert_llama__gate_and_up_swapped(state, n_heads, n_kv_heads):
    """`gate_proj` and `up_proj` are swapped: they have the same shape, so nothing complains. Read the two
    formulas side by side: which of Meta's is inside of silu?"""
    return {
        name.replace("gate", "up") if "gate" in name else name.replace("up_", "gate_"): tensor
        for name, tensor in convert_llama(state, n_heads, n_kv_heads).items()
    }


def t5_buckets__earlier_for_later(relative, **options):
    """You have the direction the wrong way round: you take j - i for i - j. Is a key with j - i = 3 before
    the query or behind it?"""
    return t5_buckets(-relative, **options)


def t5_buckets__all_buckets_each_way(relative, *, n_buckets=32, max_distance=128, bidirectional=True):
    """With both directions you give all the buckets to each of them, and the keys that come later land
    outside of the table. How many are there for one direction?"""
    n = 2 * n_buckets if bidirectional else n_buckets
    return t5_buckets(relative, n_buckets=n, max_distance=max_distance, bidirectional=bidirectional)


def t5_buckets__no_last_bucket(relative, *, n_buckets=32, max_distance=128, bidirectional=True):
    """Distances beyond `max_distance` get buckets of their own, where there is none: the logarithm goes on. How
    large may the number of a bucket be?"""
    n = n_buckets // 2 if bidirectional else n_buckets
    x, e = relative.abs() if bidirectional else (-relative).clamp(min=0), n // 2
    far = e + (torch.log(x.clamp(min=1) / e) / math.log(max_distance / e) * (n - e)).floor().long()
    return torch.where(x < e, x, far) + n * (bidirectional & (relative > 0))


def t5_buckets__decoder_looks_both_ways(relative, *, bidirectional=True, **options):
    """Without `bidirectional`, you sort later keys by their distance too. Nobody attends to them; which x does
    the rule give them?"""
    relative = relative if bidirectional else -relative.abs()
    return t5_buckets(relative, bidirectional=bidirectional, **options)


def t5_bias__seen_from_the_key(table, t, s, *, offset=0, **options):
    """Your table has i - j. The buckets ask for j - i: where the key stands, seen from the query. Which index
    goes down, and which across?"""
    j = 2 * (offset + torch.arange(t))[:, None] - torch.arange(s)
    far = j.abs().max() + 1
    mirror = t5_bias(table, 1, int(2 * far), offset=int(far), **options)[0, :, 0]
    return mirror[:, far + j - (offset + torch.arange(t))[:, None]][None]


def t5_bias__every_query_at_zero(table, t, s, *, offset=0, **options):
    """You count the queries from 0. In decoding there is one query, and it stands behind the cache. What is
    `offset` for?"""
    return t5_bias(table, t, s, **options)


def padded_inputs__positions_are_columns(attention_mask, t, *, sliding_window=None):
    """Your positions are the numbers of the columns, so a padded text begins at 3, say. Where does the first
    token of a text stand, however much padding is before it?"""
    _, mask = padded_inputs(attention_mask, t, sliding_window=sliding_window)
    b, s = attention_mask.shape
    return torch.arange(s - t, s).expand(b, t), mask


def padded_inputs__queries_from_the_first_column(attention_mask, t, *, sliding_window=None):
    """Your mask takes the queries for the first columns. They are the newest t: with t = 1 and five keys, in
    which column does the query stand?"""
    positions, _ = padded_inputs(attention_mask, t, sliding_window=sliding_window)
    s = attention_mask.shape[1]
    _, mask = padded_inputs(attention_mask, s, sliding_window=sliding_window)
    return positions, mask[:, :, :t]


def padded_inputs__window_besides_its_own(attention_mask, t, *, sliding_window=None):
    """Your windows hold `sliding_window` keys besides the query's own. flash-attn counts like that; here the
    own key is one of them. How many keys does a query see with a window of 1?"""
    wider = None if sliding_window is None else sliding_window + 1
    return padded_inputs(attention_mask, t, sliding_window=wider)


def bloom_alibi__takes_off(attention_mask, slopes):
    """Your bias falls towards the newest keys, so the oldest are preferred. ALiBi takes off slope · (i - j).
    What is the sign of j in that?"""
    return -bloom_alibi(attention_mask, slopes)


def bloom_alibi__counts_columns(attention_mask, slopes):
    """You count columns, so a padded text does not begin with 0. Attention would be the same, but BLOOM's own
    numbers were asked for. What does task 5 count?"""
    return bloom_alibi(torch.ones_like(attention_mask), slopes)


def readings_that_fit__first_one(x, fused, recorded, n_heads, n_kv_heads, window):
    """You stop at the first reading that fits. If more than one does, the record cannot tell, and the next
    text will. What would you want to know before you trust a port?"""
    return readings_that_fit(x, fused, recorded, n_heads, n_kv_heads, window)[:1]


def _within(x, fused, recorded, n_heads, n_kv_heads, window, allowed, over=torch.max):
    """The readings that are no further from the record than this."""
    shapes = fused, n_heads, n_kv_heads
    readings = itertools.product(
        ("phi3", "falcon"), ("halves", "pairs"), ("neighbours", "rounds"), (window, window + 1)
    )
    return [each for each in readings if over((layer_output(x, *shapes, each) - recorded).abs()) <= allowed]


def readings_that_fit__fixed_tolerance(x, fused, recorded, n_heads, n_kv_heads, window):
    """You allow a fixed error, 0.01. Where all numbers are small, everything fits then. What should an error
    be measured against, and what decides how large it may be?"""
    return _within(x, fused, recorded, n_heads, n_kv_heads, window, 0.01)


def readings_that_fit__digit_by_digit(x, fused, recorded, n_heads, n_kv_heads, window):
    """You want the record's own numbers, to nearly the last digit. It was rounded to float32, or to float16:
    how far may a right answer be from what was rounded?"""
    return _within(x, fused, recorded, n_heads, n_kv_heads, window, 1e-12)


def readings_that_fit__on_the_average(x, fused, recorded, n_heads, n_kv_heads, window):
    """You take the mean of the errors. A single number that is wrong disappears in it, and so does a mistake
    that shows in one place. What does it say of *none* of the numbers?"""
    allowed = 4 * torch.finfo(recorded.dtype).eps * recorded.double().abs().max()
    return _within(x, fused, recorded, n_heads, n_kv_heads, window, allowed, torch.mean)


def readings_that_fit__window_only(x, fused, recorded, n_heads, n_kv_heads, window):
    """You take the authors' `window` at its word, as a number of keys that counts the query's own. Some count
    the keys besides. Which windows are left to try?"""
    fitting = readings_that_fit(x, fused, recorded, n_heads, n_kv_heads, window)
    return [reading for reading in fitting if reading[-1] == window]


def layer_output__other_pairs(x, fused, n_heads, n_kv_heads, reading):
    """You turn neighbours where halves are asked for, and halves for pairs. In a head of width 6, which number
    is turned together with number 0 if it is "pairs": number 1, or number 3?"""
    layout, pairing, *rest = reading
    pairing = "pairs" if pairing == "halves" else "halves"
    return layer_output(x, fused, n_heads, n_kv_heads, (layout, pairing, *rest))
