"""Wrong variants of the exercise on flash attention: each is a mistake, with what a tutor would say to it.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch

INF = float("inf")


def add_block__factor_upside_down(m, l, o, scores, value):
    """What was summed before grows when a larger score comes: your factor is turned upside down. In the
    example the largest score doubles (ln 3 becomes ln 6). Are the old shares then worth twice as much, or
    half?"""
    highest = torch.maximum(m, scores.amax(dim=-1))
    safe = highest.masked_fill(highest == -INF, 0.0)
    grow = torch.exp(safe - m).masked_fill(m == -INF, 0.0)
    shares = torch.exp(scores - safe[..., None])
    return highest, grow * l + shares.sum(dim=-1), grow[..., None] * o + shares @ value


def add_block__nothing_is_rescaled(m, l, o, scores, value):
    """You add the new shares to the old sums as they are. The old ones were taken relative to another m: by
    which factor do they change when m does?"""
    m, l_new, o_new = add_block(torch.maximum(m, scores.amax(dim=-1)), 0 * l, 0 * o, scores, value)
    return m, l + l_new, o + o_new


def add_block__o_is_not_rescaled(m, l, o, scores, value):
    """m and l are right and o is not: you bring the old l to the new m, but not the old o. Is it a sum of the
    same shares?"""
    _, _, added = add_block(torch.maximum(m, scores.amax(dim=-1)), l, 0 * o, scores, value)
    return *add_block(m, l, o, scores, value)[:2], o + added


def add_block__divides_every_time(m, l, o, scores, value):
    """Your o is divided by l after every block, and the next block adds to it as if it were not. o is a sum, as
    l is. When is the one time to divide?"""
    m, l, o = add_block(m, l, o, scores, value)
    return m, l, o / l.masked_fill(l == 0, 1.0)[..., None]


def add_block__largest_of_this_block(m, l, o, scores, value):
    """Your m is the largest score of the newest block, and forgets those before. If an earlier one was larger,
    the old sums are multiplied by exp of a large number. Over which keys is m the largest?"""
    highest = scores.amax(dim=-1)
    safe = highest.masked_fill(highest == -INF, 0.0)
    keep, shares = torch.exp(m - safe), torch.exp(scores - safe[..., None])
    return highest, keep * l + shares.sum(dim=-1), keep[..., None] * o + shares @ value


def add_block__infinity_minus_infinity(m, l, o, scores, value):
    """A query that has seen nothing yet turns to NaN: its m is still -inf after the block, and -inf - (-inf)
    is no number. What can be taken away instead, so that exp(-inf) stays 0?"""
    highest = torch.maximum(m, scores.amax(dim=-1))
    keep, shares = torch.exp(m - highest), torch.exp(scores - highest[..., None])
    return highest, keep * l + shares.sum(dim=-1), keep[..., None] * o + shares @ value


def add_block__not_shifted(m, l, o, scores, value):
    """Your sums are not relative to m, they are those of exp(score) itself: with a score of 1,000 that is no
    float any more. What is the largest exponent if m is taken away first?"""
    shares = torch.exp(scores)
    return torch.maximum(m, scores.amax(dim=-1)), l + shares.sum(dim=-1), o + shares @ value


def finish__lse_without_m(m, l, o):
    """Your lse is the log of l alone. Each share in l was taken relative to m: exp(m) times l is the sum that
    the lse is the log of. What is missing?"""
    return finish(m, l, o)[0], torch.log(l)


def finish__nothing_by_nothing(m, l, o):
    """A query that saw nothing gets NaN: its o and its l are 0. The output is to be 0: by what can you divide
    there?"""
    return o / l[..., None], m + torch.log(l)


def merge_attention__mean(output_a, lse_a, output_b, lse_b):
    """Your output is the mean of the two, as if both sides had seen as much. The lse says how much it was:
    what share of the common denominator has each side?"""
    return (output_a + output_b) / 2, merge_attention(output_a, lse_a, output_b, lse_b)[1]


def merge_attention__weighted_by_the_lse(output_a, lse_a, output_b, lse_b):
    """You weigh the two outputs by their lse. That is a logarithm, and may be negative: of what? Weigh by that
    instead."""
    share = lse_a / (lse_a + lse_b)
    output = share[..., None] * output_a + (1 - share)[..., None] * output_b
    return output, merge_attention(output_a, lse_a, output_b, lse_b)[1]


def merge_attention__not_shifted(output_a, lse_a, output_b, lse_b):
    """exp of an lse of 10,000 is infinite, and infinity by infinity is NaN. What can be taken off both first?"""
    a, b = torch.exp(lse_a)[..., None], torch.exp(lse_b)[..., None]
    return (a * output_a + b * output_b) / (a + b), torch.log(a + b)[..., 0]


def merge_attention__two_empties_are_nan(output_a, lse_a, output_b, lse_b):
    """Where both sides saw nothing, both lse are -inf, and their difference is NaN. What is the result of
    nothing and nothing?"""
    highest = torch.maximum(lse_a, lse_b)
    a, b = torch.exp(lse_a - highest), torch.exp(lse_b - highest)
    output = (a[..., None] * output_a + b[..., None] * output_b) / (a + b)[..., None]
    return output, highest + torch.log(a + b)


def merge_attention__nan_on_the_way_back(output_a, lse_a, output_b, lse_b):
    """Your results are right, and your gradients NaN where both sides saw nothing: a NaN arises, and you put 0
    over it. On the way back 0 times NaN is NaN. Where does it arise, and what could stand there *before*?"""
    lse = torch.logaddexp(lse_a, lse_b)
    a, b = (torch.exp(x - lse).nan_to_num(0.0)[..., None] for x in (lse_a, lse_b))
    return a * output_a + b * output_b, lse


def _plan(t, s, block_q, block_k, is_causal, *, shift=0, strict=0, by_first=False, full=""):
    """A plan whose questions to the first and last query and key of a tile are not quite the right ones."""
    if not is_causal:
        return tile_plan(t, s, block_q, block_k)
    i, j = torch.arange(0, t, block_q)[:, None], torch.arange(0, s, block_k)
    i_last, j_last = i + block_q - 1, j + block_k - 1
    i_last = i_last if "q" in full else i_last.clamp(max=t - 1)
    j_last = j_last if "k" in full else j_last.clamp(max=s - 1)
    some, whole = j <= (i if by_first else i_last) + shift, j_last + strict <= i + shift
    return some.int() + whole.int()


def tile_plan__last_keys_as_if_full(t, s, block_q, block_k, *, is_causal=False):
    """You want a mask for a tile at the end in which all is seen: you let it reach as far as a full one. Which is
    the last key that is really there?"""
    return _plan(t, s, block_q, block_k, is_causal, full="k")


def tile_plan__last_queries_as_if_full(t, s, block_q, block_k, *, is_causal=False):
    """You keep tiles of the last queries in which nothing is seen: you let the row of tiles reach as far as a
    full one. Which is the last query that is really there?"""
    return _plan(t, s, block_q, block_k, is_causal, full="q")


def tile_plan__one_key_too_strict(t, s, block_q, block_k, *, is_causal=False):
    """You want a mask for tiles in which all is seen: those whose last key is that of their first query. Query i
    sees key i. Which is the last key of a tile that begins at j?"""
    return _plan(t, s, block_q, block_k, is_causal, strict=1)


def tile_plan__by_the_first_query(t, s, block_q, block_k, *, is_causal=False):
    """You leave out tiles in which something is seen: that their first query sees no key does not mean that
    none does. Which query of a tile sees the most?"""
    return _plan(t, s, block_q, block_k, is_causal, by_first=True)


def tile_plan__counts_tiles(t, s, block_q, block_k, *, is_causal=False):
    """You compare the number of the row with that of the column. That is right if tiles are square, and these
    may be wide or high. Compare where they begin and end."""
    plan = tile_plan(t, s, 1, 1)[::block_q, ::block_k]
    n, column = torch.arange(plan.shape[0])[:, None], torch.arange(plan.shape[1])
    return torch.where(column < n, 2, torch.where(column == n, 1, 0)) if is_causal else plan


def tile_plan__lines_up_the_ends(t, s, block_q, block_k, *, is_causal=False):
    """You line up the last query with the last key, as flash-attn does since 2.1. In this course, as in
    PyTorch, the first stands on the first: query i sees the keys j <= i. Which do you need?"""
    return _plan(t, s, block_q, block_k, is_causal, shift=s - t)


def _flash(given, options, *, within=False, skip=True, narrow=False, pad=False):
    """Flash attention with one of its parts done wrong."""
    (query, key, value), is_causal = given, options.get("is_causal", False)
    block_q, block_k = options.get("block_q", 32), options.get("block_k", 64)
    wide = query.dtype if narrow else torch.promote_types(query.dtype, torch.float32)
    plan = tile_plan(query.shape[2], key.shape[2], block_q, block_k, is_causal=is_causal)
    if pad:
        short = -key.shape[2] % block_k
        key, value = (torch.nn.functional.pad(x, (0, 0, 0, short)) for x in (key, value))
    results = []
    for n, q in enumerate(query.to(wide).split(block_q, dim=2)):
        m, l = torch.full_like(q[..., 0], -INF), torch.zeros_like(q[..., 0])
        o = q.new_zeros(*q.shape[:3], value.shape[3])
        tiles = zip(key.split(block_k, dim=2), value.split(block_k, dim=2), strict=True)
        for column, (k, v) in enumerate(tiles):
            if skip and plan[n, column] == 0:
                continue
            i, j = torch.arange(q.shape[2]), torch.arange(k.shape[2])
            if not within:
                i, j = i + n * block_q, j + column * block_k
            scores = q @ k.to(wide).mT * query.shape[3] ** -0.5
            if is_causal and (not skip or plan[n, column] == 1):
                scores = scores.masked_fill(j > i[:, None], -INF)
            m, l, o = add_block(m, l, o, scores, v.to(wide))
        results.append(finish(m, l, o))
    output, lse = (torch.cat(parts, dim=2) for parts in zip(*results, strict=True))
    return output.to(query.dtype), lse


def flash_attention__mask_of_the_tile(query, key, value, **options):
    """Your mask counts queries and keys from the corner of the tile. That is right only where the two begin at
    the same place. Where does the second row of tiles stand in the text, and where the second column?"""
    return _flash((query, key, value), options, within=True)


def flash_attention__not_scaled(query, key, value, **options):
    """Your scores are not scaled: the weights are too sharp, and the lse is too large. What stands under the
    products in softmax(query keyᵀ / √d)?"""
    return flash_attention(query * query.shape[3] ** 0.5, key, value, **options)


def flash_attention__reads_everything(query, key, value, **options):
    """Your results are right, but each query reads each value: 0 times NaN is NaN, so one bad value in the
    future spoils the past. Half of the work of a causal text is like that. Which tiles does the plan leave
    out?"""
    return _flash((query, key, value), options, skip=False)


def flash_attention__padding_is_attended(query, key, value, **options):
    """Your last tile of keys is filled up with zeros, and these are attended to: a key of zeros scores 0, and
    exp(0) is 1. The lse is too large, the output too small. Which keys of the last tile are there?"""
    return _flash((query, key, value), options, pad=True)


def flash_attention__sums_in_half_precision(query, key, value, **options):
    """In half precision your error grows with the number of tiles: m, l and o are rounded after each of them.
    In which dtype should be remembered what is added to many times?"""
    output, lse = _flash((query, key, value), options, narrow=True)
    return output, lse.to(torch.promote_types(lse.dtype, torch.float32))


def _backward(given, result, grad, options, *, d=True, own=False, tile=False, add=True, mask=True):
    """The way back, with one of its parts done wrong."""
    (query, key, value), is_causal = given, options.get("is_causal", False)
    block_q, block_k = options.get("block_q", 32), options.get("block_k", 64)
    t, s, c = query.shape[2], key.shape[2], query.shape[3] ** -0.5
    dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    output, lse = flash_attention(*given, is_causal=is_causal) if own else result
    delta = (grad * output).sum(dim=-1, keepdim=True) * d
    for n, column in tile_plan(t, s, block_q, block_k, is_causal=is_causal).nonzero().tolist():
        i, j = torch.arange(t)[n * block_q :][:block_q], torch.arange(s)[column * block_k :][:block_k]
        q, k, g = query[:, :, i], key[:, :, j], grad[:, :, i]
        p = torch.exp(q @ k.mT * c - lse[:, :, i, None])
        if is_causal and mask:
            p = p.masked_fill(j > i[:, None], 0.0)
        dp = g @ value[:, :, j].mT
        ds = p * (dp - ((p * dp).sum(dim=-1, keepdim=True) if tile else delta[:, :, i])) * c
        dq[:, :, i] += ds @ k
        dk[:, :, j] = dk[:, :, j] * add + ds.mT @ q
        dv[:, :, j] = dv[:, :, j] * add + p.mT @ g
    return dq, dk, dv


def flash_backward__without_d(query, key, value, output, lse, grad_output, **options):
    """dv is right, dq and dk are not: you take P · dP for dS. A weight cannot grow without the others of its
    row becoming smaller, for their sum is 1. Which term says so?"""
    return _backward((query, key, value), (output, lse), grad_output, options, d=False)


def flash_backward__d_of_the_tile(query, key, value, output, lse, grad_output, **options):
    """In place of D you take Σ P · dP over the keys of a tile. Over all keys that is D: over these it is a part.
    What do `output` and `grad_output` say without any key?"""
    return _backward((query, key, value), (output, lse), grad_output, options, tile=True)


def flash_backward__a_softmax_of_its_own(query, key, value, output, lse, grad_output, **options):
    """You compute the softmax anew from the keys that you are given. If these are only a piece of the text, it
    is another softmax. Where is the denominator of all keys kept, and the output?"""
    return _backward((query, key, value), (output, lse), grad_output, options, own=True)


def flash_backward__not_scaled(query, key, value, output, lse, grad_output, **options):
    """dv is right; dq and dk are too large by √d. The scores are products times a number, and so are their
    derivatives. Where does it come in on the way back?"""
    dq, dk, dv = flash_backward(query, key, value, output, lse, grad_output, **options)
    return dq * query.shape[3] ** 0.5, dk * query.shape[3] ** 0.5, dv


def flash_backward__gradient_of_the_scaled_query(query, key, value, output, lse, grad_output, **options):
    """Only dq is wrong, too large by √d. If you scale the queries before all else, dk comes out right by itself,
    and what arrives at the queries is the gradient of the scaled ones. What is left to do?"""
    dq, dk, dv = flash_backward(query, key, value, output, lse, grad_output, **options)
    return dq * query.shape[3] ** 0.5, dk, dv


def flash_backward__dk_scaled_twice(query, key, value, output, lse, grad_output, **options):
    """Only dk is wrong, too small by √d: your queries are scaled already when dS, scaled too, meets them. Which
    of the two has the scale in it?"""
    dq, dk, dv = flash_backward(query, key, value, output, lse, grad_output, **options)
    return dq, dk * query.shape[3] ** -0.5, dv


def flash_backward__overwritten(query, key, value, output, lse, grad_output, **options):
    """Your dk and dv are those of the last row of tiles: each row overwrites the one before. From how many
    queries does a key get its gradient?"""
    return _backward((query, key, value), (output, lse), grad_output, options, add=False)


def flash_backward__mask_forgotten(query, key, value, output, lse, grad_output, **options):
    """Your tiles on the diagonal have no mask on the way back: exp(score - lse) is a number for a hidden key as
    well. What is its weight?"""
    return _backward((query, key, value), (output, lse), grad_output, options, mask=False)


def flash_backward__reads_everything(query, key, value, output, lse, grad_output, **options):
    """Your gradients are right, but each query reads each key, and 0 times NaN is NaN: one bad key in the future
    spoils the past. Which tiles does the plan leave out?"""
    gradients = flash_backward(query, key, value, output, lse, grad_output, **options)
    return tuple(x + 0 * (key.sum() + value.sum()) for x in gradients)


def _without(outputs, lses):
    """Of each document, what is left if it is taken away from the result of all."""
    lse = lses.logsumexp(dim=0)
    shares = torch.exp(lses - lse.masked_fill(lse == -INF, 0.0))[..., None]
    return (shares * outputs).sum(dim=0) - shares * outputs, 1 - shares, lse


def leave_one_out__taken_away(outputs, lses):
    """You take each document away from the result of all. Where it was nearly everything, what is left is the
    difference of two numbers that are almost equal, and its digits were lost when it was added. Can you do
    without the sum of all?"""
    rest, share, lse = _without(outputs, lses)
    output = rest / share
    return output.masked_fill(share == 0, 0.0), lse + torch.log(share[..., 0])


def leave_one_out__shares_stay(outputs, lses):
    """You drop the document's term and leave the shares of the others as they are. They are shares of a
    denominator in which its keys still count. What do they sum to?"""
    return _without(outputs, lses)[0], leave_one_out(outputs, lses)[1]


def leave_one_out__with_itself(outputs, lses):
    """Each document is still there: what comes before it, in your lists, includes it. Which entry of the first
    list belongs to the first document?"""
    before = list(zip(outputs, lses, strict=True))
    for k in range(1, len(before)):
        before[k] = merge_attention(*before[k - 1], *before[k])
    rest = [(torch.zeros_like(outputs[0]), torch.full_like(lses[0], -INF))]
    for k in range(len(before) - 1, 0, -1):
        rest.insert(0, merge_attention(*rest[0], outputs[k], lses[k]))
    merged = [merge_attention(*a, *b) for a, b in zip(before, rest, strict=True)]
    return tuple(torch.stack(x) for x in zip(*merged, strict=True))


def leave_one_out__only_those_before(outputs, lses):
    """You stop at the document that is left out: what comes after it is missing. Which documents has the first
    one after it, and the last one?"""
    rest = torch.zeros_like(outputs[0]), torch.full_like(lses[0], -INF)
    merged = []
    for part in zip(outputs, lses, strict=True):
        merged.append(rest)
        rest = merge_attention(*rest, *part)
    return tuple(torch.stack(x) for x in zip(*merged, strict=True))
