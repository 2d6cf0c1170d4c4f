"""Wrong variants of the exercise on linear attention: each is a mistake, with what a tutor would say to it.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch
import torch.nn.functional as F


def elu_plus_one__without_one(x):
    """Your features can be negative, and so can your weights and their sum, by which everything is divided.
    What does the `+ 1` lift above 0?"""
    return F.elu(x)


def elu_plus_one__rounded_away(x):
    """You take away 1 and add it again. elu(-40) is exp(-40) - 1, which is rounded to -1, so φ becomes 0. Can
    you have exp(x) below 0 and x + 1 above as a sum that never goes through -1?"""
    return F.elu(x) + 1


def elu_plus_one__both_sides_computed(x):
    """Your features are right, but their gradient is NaN where x is large. `torch.where` computes both
    sides, and on the way back 0 times infinity is NaN. Which side overflows though nobody wants it?"""
    return torch.where(x > 0, x + 1, x.exp())


def store__raw_keys(key, value):
    """You store the keys themselves, not their features. Then the weights can be negative. What stands in
    front of vⱼᵀ in the formula for S?"""
    return torch.einsum("b h s d, b h s e -> b h d e", key, value), elu_plus_one(key).sum(dim=2)


def store__counts_the_keys(key, value):
    """Your z is the number of keys, as for a plain mean. But not all keys have the same weight: what is to be
    summed, so that zᵀφ(q) is the sum of the weights?"""
    S, z = store(key, value)
    return S, torch.full_like(z, key.shape[2])


def read__no_denominator(query, state):
    """You do not divide: what you find grows with the number of keys. What is the sum of a query's weights,
    and where is it stored?"""
    return torch.einsum("b h t d, b h d e -> b h t e", elu_plus_one(query), state[0])


def read__raw_query(query, state):
    """You read with the query itself. The weight is φ(q)ᵀφ(k): whose features are missing?"""
    S, z = state
    return query @ S / torch.einsum("b h t d, b h d -> b h t", query, z)[..., None]


def read__a_little_more(query, state):
    """You add a small number to the denominator, to be safe from 0. Features are never 0, but all of a text's may
    be as small as exp(-40): what is left of your output then?"""
    S, z = state
    return elu_plus_one(query) @ S / (elu_plus_one(query) @ z[..., None] + 1e-6)


def read__heads_mixed(query, state):
    """Your heads are added up. In an einsum, a letter that the output lacks is summed over, and one that two
    inputs do not share is paired with everything. Does the head have one and the same letter in all three?"""
    (S, z), features = state, elu_plus_one(query)
    found = torch.einsum("b h t d, b g d e -> b h t e", features, S)
    return found / torch.einsum("b h t d, b g d -> b h t", features, z)[..., None]


def linear_attention_step__reads_first(query, key, value, state):
    """You read before you write: a token does not see itself, and the first finds 0/0. Which comes first?"""
    S, z = store(key, value)
    return read(query, state), (state[0] + S, state[1] + z)


def linear_attention_step__state_stays(query, key, value, state):
    """Your output is right, but you return the state as it came. What will the next token find of this one?"""
    return linear_attention_step(query, key, value, state)[0], state


def linear_attention_step__z_forgotten(query, key, value, state):
    """S grows with the text, and z knows the newest token only. Numerator and denominator are sums over the
    same tokens. What must a state carry besides S?"""
    S, z = store(key, value)
    state = state[0] + S, z
    return read(query, state), state


def _chunked(
    query, key, value, chunk_size, *, mask=True, itself=False, alone=False, apart=False, total=False
):
    """The chunked form, with one thing wrong."""
    query, key = elu_plus_one(query), elu_plus_one(key)
    value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
    S, outputs = key[:, :, :0].mT @ value[:, :, :0], []
    for q, k, v in zip(*(x.split(chunk_size, dim=2) for x in (query, key, value)), strict=True):
        table, new = q @ k.mT, S + k.mT @ v
        near, far = (table.tril() if mask else table) @ v, q @ (new if itself else S)
        if apart:
            near, far = (x / x[..., -1:].clamp(min=1e-300) for x in (near, far))
        far = far * (not alone)
        outputs.append(near[..., :-1] + far[..., :-1] if apart else near + far)
        S = new
    output = torch.cat(outputs, dim=2)
    if apart:
        return output
    return output[..., :-1] / (query @ S[..., -1:] if total else output[..., -1:])


def linear_attention__no_mask(query, key, value, *, chunk_size=64):
    """Within a chunk, your tokens see those that come later. The state knows nothing of the future, but the
    small table does. Which half of it is left?"""
    return _chunked(query, key, value, chunk_size, mask=False)


def linear_attention__counted_twice(query, key, value, *, chunk_size=64):
    """You add the chunk to the state before its queries read the state, so they find its tokens twice, the
    later ones too. The table has this chunk. What is the state to have?"""
    return _chunked(query, key, value, chunk_size, itself=True)


def linear_attention__chunks_alone(query, key, value, *, chunk_size=64):
    """Each of your chunks begins a new text: only the first is right. What is carried from chunk to chunk?"""
    return _chunked(query, key, value, chunk_size, alone=True)


def linear_attention__divided_apart(query, key, value, *, chunk_size=64):
    """You divide what the table finds and what the state finds by their own sums, and add two means. Both are
    parts of *one* mean. When is there one denominator to divide by?"""
    return _chunked(query, key, value, chunk_size, apart=True)


def linear_attention__denominator_of_the_whole_text(query, key, value, *, chunk_size=64):
    """Your numerator is causal, your denominator is not: it has the weights of all keys, and only the last
    token is right. Whose weights is token i to divide by?"""
    return _chunked(query, key, value, chunk_size, total=True)


def linear_attention__partial_chunk_dropped(query, key, value, *, chunk_size=64):
    """The last tokens are missing: you drop the chunk that is not full. How many chunks of 3 do 11 tokens
    need? `//` rounds down."""
    whole = query.shape[2] // chunk_size * chunk_size
    return linear_attention(*(x[:, :, :whole] for x in (query, key, value)), chunk_size=max(chunk_size, 1))


def linear_attention__one_table(query, key, value, *, chunk_size=64):
    """Your output is right, but it comes from one table of all pairs, most of it masked: 0 times NaN is NaN,
    so one bad value spoils the text before it. What do tokens need of earlier chunks, other than S and z?"""
    return _chunked(query, key, value, query.shape[2])


def decay_mask__fades_at_once(log_decay):
    """Your tokens fade before they are stored: token j has its own decay in it, and the diagonal is not 1. A
    decay is for what the state held *before* its token came. With which factor does the product begin?"""
    return decay_mask(log_decay) * log_decay.exp()[..., None, :]


def decay_mask__one_too_early(log_decay):
    """Your products begin at token j and end before token i. Each decay belongs to the token that brings it,
    and is for what was there before: which tokens came after j, up to i?"""
    return decay_mask(F.pad(log_decay[..., :-1], (1, 0)))


def decay_mask__ratio(log_decay):
    """You divide two running products, or multiply by exp of a positive number: that overflows, and infinity
    times 0 is NaN. Which sums of logarithms are never positive?"""
    total = log_decay.cumsum(dim=-1)
    return (total.exp()[..., :, None] * (-total).exp()[..., None, :]).tril()


def decay_mask__difference(log_decay):
    """You take differences of running sums. Where a logarithm is -∞, all sums after it are -∞ as well, and -∞
    minus -∞ is NaN. Can each column have a sum of its own, of what it needs and nothing else?"""
    total = log_decay.cumsum(dim=-1)
    table = total[..., :, None] - total[..., None, :]
    return table.masked_fill(torch.ones_like(table, dtype=torch.bool).triu(1), -torch.inf).exp()


def decayed_attention__hidden_too_late(query, key, value, log_decay):
    """Your output is right, the gradient is NaN. Above the diagonal your exponents are positive: exp
    overflows before you put 0 there, and on the way back 0 times infinity is NaN. What is hidden first?"""
    total = log_decay.cumsum(dim=-1)
    table = (total[..., :, None] - total[..., None, :]).exp()
    hidden = torch.ones_like(table, dtype=torch.bool).triu(1)
    return (query @ key.mT * table.masked_fill(hidden, 0.0)) @ value


def decayed_attention__softmax(query, key, value, log_decay):
    """Your scores pass through a softmax. The formula has no exponential and no denominator: what does the
    mask multiply?"""
    return (query @ key.mT).softmax(dim=-1) * decay_mask(log_decay) @ value


def summary__nothing_fades(key, value, log_decay):
    """Your piece leaves the plain sum of its tokens. By its end, what is left of its first token?"""
    return log_decay.sum(dim=-1), torch.einsum("b h t d, b h t e -> b h d e", key, value)


def summary__fades_at_once(key, value, log_decay):
    """In what your piece leaves, each token has faded by its own decay as well. That decay was for what stood
    there before it: at the end of the piece, by how much has its last token faded?"""
    return summary(key * log_decay.exp()[..., None], value, log_decay)


def summary__product_of_decays(key, value, log_decay):
    """You return A itself. Asked for is its logarithm, which does not vanish when a text is long: what
    becomes of 0.9 to the power of 10,000?"""
    total, state = summary(key, value, log_decay)
    return total.exp(), state


def summary__difference(key, value, log_decay):
    """You take differences of running sums, which are NaN behind a decay of 0. What is left of token j can be
    had without subtraction: from which side would you add?"""
    total = log_decay.cumsum(dim=-1)
    return total[..., -1], (key * (total[..., -1:] - total).exp()[..., None]).mT @ value


def join__nothing_fades(first, second):
    """You add the two states. Without decay that would be right. But while the second piece was read, what
    became of what the first one had left?"""
    return first[0] + second[0], first[1] + second[1]


def join__second_fades(first, second):
    """You let the wrong one fade: the second piece is the newer. Whose decays come after whose tokens?"""
    return first[0] + second[0], first[1] + first[0].exp()[..., None, None] * second[1]


def join__first_fades_by_itself(first, second):
    """The state of the first piece fades, but by the decays of the first piece, which are in it already. What
    came after it?"""
    return first[0] + second[0], first[0].exp()[..., None, None] * first[1] + second[1]


def join__multiplies_logarithms(first, second):
    """You multiply two logarithms. It is the decays that are multiplied: what does that do to their
    logarithms?"""
    return first[0] * second[0], second[0].exp()[..., None, None] * first[1] + second[1]


def _decayed(query, key, value, log_decay, chunk_size, since):
    outputs, carried = [], (log_decay[..., :0].sum(dim=-1), key[:, :, :0].mT @ value[:, :, :0])
    chunks = (x.split(chunk_size, dim=2) for x in (query, key, value, log_decay))
    for q, k, v, a in zip(*chunks, strict=True):
        left = since(a, carried[0][..., None]).exp()[..., None]
        outputs.append(decayed_attention(q, k, v, a) + left * (q @ carried[1]))
        carried = join(carried, summary(k, v, a))
    return torch.cat(outputs, dim=2)


def decayed_linear_attention__decay_one_late(query, key, value, log_decay, *, chunk_size=64):
    """From the second chunk on, your state fades one token too late: when a token reads, its own decay has
    not touched the state yet. Does the running sum include the token?"""

    def since(a, _):
        return F.pad(a.cumsum(dim=-1)[..., :-1], (1, 0))

    return _decayed(query, key, value, log_decay, chunk_size, since)


def decayed_linear_attention__fades_by_chunk(query, key, value, log_decay, *, chunk_size=64):
    """All tokens of a chunk read the state as it was when the chunk began. It fades from token to token, in
    between too. What stands between the state and token i of the chunk?"""
    return _decayed(query, key, value, log_decay, chunk_size, lambda a, _: torch.zeros_like(a))


def decayed_linear_attention__fades_by_the_past(query, key, value, log_decay, *, chunk_size=64):
    """When your chunk reads the carried state, it fades by log A of what was read *before*. Those decays are
    in the state already. Which came after it?"""
    return _decayed(query, key, value, log_decay, chunk_size, lambda a, carried: carried.expand_as(a))


def decayed_linear_attention__one_table(query, key, value, log_decay, *, chunk_size=64):
    """Your output is right, but it comes from one table of all pairs: 0 times NaN is NaN, so one bad value spoils
    the text before it. What do tokens need of earlier chunks, other than their summary?"""
    return decayed_attention(query, key, value, log_decay)


def _backward(query, key, value, log_decay, grad, *, late=False, summed=True, table=False):
    """The backward pass through the table of pairs, with one thing wrong."""
    weights = decay_mask(log_decay)
    if late:
        weights = weights * log_decay.exp()[..., None, :]
    both = weights * (grad @ value.mT)
    d_query = decay_mask(log_decay) * (grad @ value.mT) @ key
    if not table:
        # As a pass from the right does: what is behind token j sees nothing of `grad` before it.
        grad, both = grad.nan_to_num(), both.nan_to_num()
    d_key, d_value = both.mT @ query, (weights * (query @ key.mT)).mT @ grad
    by_sum = (query * d_query - key * d_key).sum(dim=-1)
    return d_query, d_key, d_value, by_sum.flip(-1).cumsum(dim=-1).flip(-1) if summed else by_sum


def decayed_backward__fades_too_early(query, key, value, log_decay, grad):
    """Your state from the right has faded by aⱼ when token j reads it. That decay was for what came before
    token j; what token j brought, later queries found without it. So when does R fade?"""
    return _backward(query, key, value, log_decay, grad, late=True)


def decayed_backward__only_its_own_sum(query, key, value, log_decay, grad):
    """Your last gradient is that by cᵢ, the sum of the logarithms up to i. In how many of these sums does one
    logarithm occur?"""
    return _backward(query, key, value, log_decay, grad, summed=False)


def decayed_backward__one_table(query, key, value, log_decay, grad):
    """Your gradients are right, but they come from a table of all pairs: masked or not, 0 times NaN is NaN.
    What do later queries ask of token j, all of them together?"""
    return _backward(query, key, value, log_decay, grad, table=True)


def decayed_backward__by_the_factor(query, key, value, log_decay, grad):
    """Your last gradient is that by aᵢ. Asked for is that by its logarithm: if log a grows a little, by how much
    does a grow?"""
    *three, by_log = decayed_backward(query, key, value, log_decay, grad)
    return *three, by_log / log_decay.exp()


def decayed_backward__queries_before_their_token(query, key, value, log_decay, grad):
    """Your gradient by the query comes from the state before token i has faded it and written to it. Which state
    did its output come from?"""
    d_query, *rest = decayed_backward(query, key, value, log_decay, grad)
    late = d_query - (grad * value).sum(dim=-1, keepdim=True) * key
    return late / log_decay.exp()[..., None], *rest
