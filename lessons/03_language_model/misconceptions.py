"""Wrong variants of the exercise on the language model: each is a mistake that somebody made, with what a tutor
would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import math
from itertools import pairwise

import torch
from einops import rearrange


def next_token_nats__no_shift(logits, tokens):
    """You compare the logits after a token with that same token. The model has just read it, and a loss
    near 0 would prove nothing. Which token is it asked for?"""
    logs = logits.log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]
    return -logs[:, :-1]


def next_token_nats__shifted_back(logits, tokens):
    """You shift the wrong way: the logits after a token are compared with the token *before* it. Of logits and
    tokens, which loses its first and which its last?"""
    return -logits[:, 1:].log_softmax(dim=-1).gather(-1, tokens[:, :-1, None])[..., 0]


def next_token_nats__log_of_a_softmax(logits, tokens):
    """You take the logarithm of a softmax. With logits in the thousands a probability is rounded to 0, and its
    logarithm is infinite, though the cost is not. What is ln of e^z / Σ e^z, before anything is rounded?"""
    return -logits[:, :-1].softmax(dim=-1).gather(-1, tokens[:, 1:, None])[..., 0].log()


def bits_per_byte__nats(logits, tokens, lengths):
    """Your number is in nats. Two equally likely tokens cost ln 2 = 0.693 nats each, and one bit: how many
    bits is a nat?"""
    return bits_per_byte(logits, tokens, lengths) * math.log(2)


def bits_per_byte__mean_of_means(logits, tokens, lengths):
    """You take the mean of each text, and then the mean of those. A byte of a short text then counts more than
    one of a long text. What has to be summed before you divide?"""
    texts = [(logits[n : n + 1], tokens[n : n + 1], lengths[n : n + 1]) for n in range(len(tokens))]
    return torch.stack([bits_per_byte(*text) for text in texts]).mean()


def bits_per_byte__one_byte_too_many(logits, tokens, lengths):
    """You count one byte too many of each padded text: the cost at place i is that of byte i + 1, and of a text
    of n tokens only n - 1 were asked for. At which place is the last of them?"""
    return bits_per_byte(logits, tokens, (lengths + 1).clamp(max=tokens.shape[1]))


def layer_norm__over_the_tokens(x, weight, bias, eps=1e-5):
    """Your mean runs over the tokens of a text, not over the numbers of a vector. Then each token knows
    something of those after it. Which axis is the vector?"""
    return layer_norm(x.mT, torch.ones(1), torch.zeros(1), eps).mT * weight + bias


def layer_norm__one_less(x, weight, bias, eps=1e-5):
    """Your variance divides by m - 1, as `var` and `std` do unless they are told not to. That estimates the
    variance of a population from a sample; here the m numbers are all there are. By what is their sum
    divided in a mean?"""
    left = x - x.mean(dim=-1, keepdim=True)
    return left / (x.var(dim=-1, keepdim=True) + eps).sqrt() * weight + bias


def layer_norm__eps_outside(x, weight, bias, eps=1e-5):
    """You add eps to the root. Where the vector is small that is far from √(σ² + eps): √eps is 0.003, three
    hundred times as much as eps. What stands under the root?"""
    left = x - x.mean(dim=-1, keepdim=True)
    return left / (left.square().mean(dim=-1, keepdim=True).sqrt() + eps) * weight + bias


def layer_norm__difference_of_squares(x, weight, bias, eps=1e-5):
    """Your variance is the mean of the squares less the square of the mean. On paper that is the same. If the
    mean is large, two huge numbers agree in almost all their digits, and the difference is what rounding
    left of it, perhaps negative. What could be squared instead?"""
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.square().mean(dim=-1, keepdim=True) - mean.square()
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def _mlp(x, weights, gelu=torch.nn.functional.gelu):
    """The MLP alone."""
    inside = gelu(x @ weights["mlp.0.weight"].mT + weights["mlp.0.bias"])
    return inside @ weights["mlp.2.weight"].mT + weights["mlp.2.bias"]


def _norm(x, weights, name):
    return layer_norm(x, weights[f"{name}_norm.weight"], weights[f"{name}_norm.bias"])


def mlp_half__post_norm(x, weights):
    """You normalise after the addition, LN(x + MLP(x)), as in 2017. Then each layer halves what came before.
    What does the norm see in x + MLP(LN(x)), and what does it leave alone?"""
    return _norm(x + _mlp(x, weights), weights, "mlp")


def mlp_half__no_stream(x, weights):
    """You return what the MLP says, and the token itself is gone. Nothing later can bring it back. What does a
    layer do with the stream?"""
    return mlp_half(x, weights) - x


def mlp_half__tanh(x, weights):
    """Your GELU is the approximation with tanh. It is wrong by up to 0.0005, and a checkpoint was trained with
    one of the two. Which function gives Φ exactly? Its name is on the way from z to the normal
    distribution."""

    def gelu(z):
        return torch.nn.functional.gelu(z, approximate="tanh")

    return x + _mlp(_norm(x, weights, "mlp"), weights, gelu)


def _attention(x, weights, n_heads, *, causal=True, by=None):
    """What the heads find in a norm, projected."""
    parts = [x @ weights[f"attention.w_{n}.weight"].mT for n in "qkv"]
    query, key, value = (rearrange(part, "b t (h d) -> b h t d", h=n_heads) for part in parts)
    scores = query @ key.mT * (by or query.shape[-1]) ** -0.5
    if causal:
        scores = scores + torch.full(scores.shape[2:], float("-inf"), dtype=x.dtype).triu(1)
    found = rearrange(scores.softmax(dim=-1) @ value, "b h t d -> b t (h d)")
    return found @ weights["attention.w_o.weight"].mT


def block__sees_the_future(x, weights, n_heads):
    """Your tokens look ahead. In training each could read the answer it is asked for, the loss would be
    wonderful, and the model could write nothing. Which scores must become minus infinity?"""
    x = x + _attention(_norm(x, weights, "attention"), weights, n_heads, causal=False)
    return mlp_half(x, weights)


def block__scaled_by_the_stream(x, weights, n_heads):
    """You divide the scores by √m, the root of the width of the stream. With one head that is the same. How many
    products are added up in a score of one head?"""
    x = x + _attention(_norm(x, weights, "attention"), weights, n_heads, by=x.shape[-1])
    return mlp_half(x, weights)


def block__side_by_side(x, weights, n_heads):
    """Both halves read the same stream: the MLP does not see what attention has just brought. There are models
    built so (GPT-J), but this one goes in two steps. What is x when the second half begins?"""
    return mlp_half(x, weights) + _attention(_norm(x, weights, "attention"), weights, n_heads)


def language_model__places_from_one(tokens, embedding, places, blocks, norm, n_heads):
    """Your first token stands at place 1. Row 0 of the table is never used, and every token has the vector of
    its neighbour. From what are places counted?"""
    language_model(tokens, embedding, places, blocks, norm, n_heads)
    return language_model(tokens, embedding, places.roll(-1, 0), blocks, norm, n_heads)


def language_model__no_last_norm(tokens, embedding, places, blocks, norm, n_heads):
    """The last norm is missing. Every layer has added to the stream, so it is long, and the logits are as
    large. What does the page call the price of pre-norm?"""
    language_model(tokens, embedding, places, blocks, norm, n_heads)
    x = embedding[tokens] + places[: tokens.shape[1]]
    for weights in blocks:
        x = block(x, weights, n_heads)
    return x @ embedding.mT


def language_model__learns_from_the_logits_only(tokens, embedding, places, blocks, norm, n_heads):
    """Your logits are right, but the table learns only where it is read as logits: `detach`, `data` or
    `no_grad` cut the way back to the vectors that began the stream. A table that is used twice has how many
    gradients, and what becomes of them?"""
    language_model(tokens, embedding, places, blocks, norm, n_heads)
    x = embedding.detach()[tokens] + places[: tokens.shape[1]]
    for weights in blocks:
        x = block(x, weights, n_heads)
    return layer_norm(x, norm["weight"], norm["bias"]) @ embedding.mT


def _sampling(logits, temperature, top_p, *, crossing=True, again=True, undo=True, first_cut=False):
    """The distribution, with what a variant leaves out as arguments."""
    if temperature == 0:
        return sampling_probabilities(logits, temperature=0)
    logits = logits - logits.amax(dim=-1, keepdim=True)
    whole = (logits / temperature).softmax(dim=-1)
    judged = logits.softmax(dim=-1) if first_cut else whole
    ordered, index = judged.sort(dim=-1, descending=True, stable=True)
    total = ordered.cumsum(dim=-1)
    kept = total - ordered < top_p if crossing else total <= top_p
    kept = whole.gather(-1, index) * kept
    kept = kept / kept.sum(dim=-1, keepdim=True) if again else kept
    return torch.zeros_like(kept).scatter(-1, index, kept) if undo else kept


def sampling_probabilities__multiplied(logits, *, temperature=1.0, top_p=1.0):
    """You multiply by the temperature, so a cold model is the wild one. What should happen to the differences
    between logits as it falls towards 0?"""
    sampling_probabilities(logits, temperature=temperature, top_p=top_p)
    return sampling_probabilities(logits * temperature, top_p=top_p)


def sampling_probabilities__crossing_token_dropped(logits, *, temperature=1.0, top_p=1.0):
    """You drop the token with which the sum crosses top_p. What is left has less than top_p, and where one
    token is likelier than that, nothing is left at all. Which sum decides about a token: with it, or of those
    before it?"""
    sampling_probabilities(logits, temperature=temperature, top_p=top_p)
    return _sampling(logits, temperature, top_p, crossing=False)


def sampling_probabilities__not_again(logits, *, temperature=1.0, top_p=1.0):
    """What you keep does not sum to 1. `multinomial` would not mind, but a probability that is compared or
    summed must be one. By what do you divide?"""
    sampling_probabilities(logits, temperature=temperature, top_p=top_p)
    return _sampling(logits, temperature, top_p, again=False)


def sampling_probabilities__order_not_undone(logits, *, temperature=1.0, top_p=1.0):
    """Your probabilities are right, but sorted: the first is that of the likeliest token, not that of token 0.
    A model would write byte 0 most of the time. `sort` also returns where each came from: how do they get
    home?"""
    sampling_probabilities(logits, temperature=temperature, top_p=top_p)
    return _sampling(logits, temperature, top_p, undo=False)


def sampling_probabilities__cut_before_temperature(logits, *, temperature=1.0, top_p=1.0):
    """You choose the tokens before the temperature is applied. The share that they have afterwards is another
    one. Of which distribution do the kept ones have to hold top_p?"""
    sampling_probabilities(logits, temperature=temperature, top_p=top_p)
    return _sampling(logits, temperature, top_p, first_cut=True)


def encode__floats(tokens, counts):
    """Your part of the line is held in floating-point numbers. After some 50 bits its two ends round to the
    same number, and all texts that begin alike get one code. Which numbers of Python have as many digits as
    they need?"""
    low, size = 0.0, 1.0
    for previous, token in pairwise(tokens):
        row = counts[previous].tolist()
        low, size = low + size * sum(row[:token]) / sum(row), size * row[token] / sum(row)
    for n in range(64):
        first = math.ceil(low * 2.0**n)
        if (first + 1) / 2.0**n <= low + size:
            return f"{first:0{n}b}" if n else ""
    return f"{first:0{n}b}"


def encode__a_point_is_enough(tokens, counts):
    """Your bits name a *number* that lies in the part, but not all that begin with them do: if other bits
    follow, it may become another text. How long is the part of n bits, and where does it end?"""
    low, size, total = 0, 1, 1
    for previous, token in pairwise(tokens):
        row = counts[previous].tolist()
        low = low * sum(row) + size * sum(row[:token])
        size, total = size * row[token], total * sum(row)
    n = 0
    while -(-(low << n) // total) * total >= (low + size) << n:
        n += 1
    return f"{-(-(low << n) // total):0{n}b}" if n else ""


def decode__one_row_for_all(code, counts, first, n_tokens):
    """You read all tokens with the row of the first. Once a token is known it is itself a predecessor: whose
    row comes next?"""
    return decode(code, counts[[first] * len(counts)], first, n_tokens)
