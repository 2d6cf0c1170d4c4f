"""# Exercise: a language model

Six tasks, each a little harder than the one before, and the last is not answered on the page. In the end you
have a model that reads real checkpoints, a way to draw from it, and a program that compresses texts to the
number of bits that the model promises.
Axes are named as everywhere here: `b` batch, `h` heads, `t` tokens, `d` width of a head, `m` width of the
stream, and `v` for the tokens there are. You need `torch`, and may use `einops`. Write it out: `cross_entropy`,
`layer_norm`, `gelu` and `scaled_dot_product_attention` of PyTorch would leave nothing to learn.
A task may use the functions of the tasks before it.

Check your work as often as you like: `attn check language_model` says what is wrong and where, and
`attn check language_model --hint` gives one hint at a time.
"""

import math

import torch
from einops import rearrange
from torch import Tensor


def next_token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """Task 1: what a text costs.

    A model has read `tokens`, and after each it gives its logits for the *next* one. What it says after the
    last token cannot be judged, and the first token was never asked for. Return -ln P of all the others.
    Logits may be in the thousands, and the costs too.

    Two tokens, the text 0 0 1, and always the logits ln 3 and 0, by hand: P is 3/4 and 1/4. The second 0
    costs -ln 3/4 = 0.288, the 1 costs -ln 1/4 = 1.386.

    **Shapes.** `logits` is `b t v`, `tokens` is `b t`, the result is `b t-1`.
    """
    ### BEGIN SOLUTION
    logs = logits[:, :-1].log_softmax(dim=-1)
    return -logs.gather(-1, tokens[:, 1:, None])[..., 0]
    ### END SOLUTION


def bits_per_byte(logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Task 1, continued: one number.

    The texts of a batch are padded at the end: of text n only the first `lengths[n]` tokens are real. What
    does a byte cost, on average over all bytes of all texts that were asked for? A bit is the cost of one
    of two equally likely tokens.

    The text above, by hand: 0.415 bits and 2 bits, so 1.208 bits a byte.

    **Shapes.** `lengths` is `b`, whole numbers; the result is one number.
    """
    ### BEGIN SOLUTION
    nats = next_token_nats(logits, tokens)
    is_real = torch.arange(1, tokens.shape[1]) < lengths[:, None]
    return nats[is_real].mean() / math.log(2)
    ### END SOLUTION


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Task 2: one half of a layer.

    First the norm. From each vector subtract its mean μ, and divide by √(σ² + eps), where σ² is the mean
    square of what is left. Then multiply by `weight` and add `bias`. The mean may be a million times larger
    than what is left.

    1 3 with eps 0, weight 2 2 and bias 1 1, by hand: first -1 1, then -1 3.

    **Shapes.** `x` is `b t m`, `weight` and `bias` are `m`, the result is `b t m`.
    """
    ### BEGIN SOLUTION
    left = x - x.mean(dim=-1, keepdim=True)
    return left / (left.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight + bias
    ### END SOLUTION


def mlp_half(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Task 2, continued: the half that works within a token.

    It is pre-norm: x + MLP(LN(x)), where the MLP is W₂ GELU(W₁ x + b₁) + b₂, and GELU(z) = z Φ(z), Φ being
    the distribution function of the standard normal distribution. Not an approximation of it.

    `weights` has the names of a checkpoint: `mlp_norm.weight` and `mlp_norm.bias` for the norm,
    `mlp.0.weight` and `mlp.0.bias` for W₁ and b₁, `mlp.2.weight` and `mlp.2.bias` for W₂ and b₂. Matrices lie
    as in `nn.Linear`, one row for each output.

    1 3 with a norm of weight 1 and bias 0, W₁ and W₂ that change nothing, no biases, by hand: the norm gives
    -1 1, GELU makes -0.159 0.841 of it, and the result is 0.841 3.841.

    **Shapes.** `x` is `b t m`, and so is the result.
    """
    ### BEGIN SOLUTION
    normed = layer_norm(x, weights["mlp_norm.weight"], weights["mlp_norm.bias"])
    z = normed @ weights["mlp.0.weight"].mT + weights["mlp.0.bias"]
    bent = z * (1 + torch.erf(z / math.sqrt(2))) / 2
    return x + bent @ weights["mlp.2.weight"].mT + weights["mlp.2.bias"]
    ### END SOLUTION


def block(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    """Task 3: a whole layer.

    First the half that looks back, x + Attention(LN(x)), then that of task 2, on what came out. Queries, keys
    and values are three projections of the same norm, each cut into `n_heads` heads: the first d numbers are
    head 0. A token sees itself and those before it. What the heads found is put side by side and projected.

    `weights` has these names too: `attention_norm.weight`, `attention_norm.bias`, and the projections
    `attention.w_q.weight`, `attention.w_k.weight`, `attention.w_v.weight`, `attention.w_o.weight`, all `m m`
    and without biases.

    If W_Q is 0, by hand: all scores are 0, and token i finds the mean of the values of the tokens 0 to i.

    **Shapes.** `x` is `b t m`, and so is the result.
    """
    ### BEGIN SOLUTION
    normed = layer_norm(x, weights["attention_norm.weight"], weights["attention_norm.bias"])
    query, key, value = (
        rearrange(normed @ weights[f"attention.w_{n}.weight"].mT, "b t (h d) -> b h t d", h=n_heads)
        for n in "qkv"
    )
    scores = query @ key.mT * query.shape[-1] ** -0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    found = scores.masked_fill(future, float("-inf")).softmax(dim=-1) @ value
    x = x + rearrange(found, "b h t d -> b t (h d)") @ weights["attention.w_o.weight"].mT
    return mlp_half(x, weights)
    ### END SOLUTION


def language_model(
    tokens: Tensor,
    embedding: Tensor,
    places: Tensor,
    blocks: list[dict[str, Tensor]],
    norm: dict[str, Tensor],
    n_heads: int,
) -> Tensor:
    """Task 4: the model.

    The stream begins as the sum of two vectors, that of the token and that of its place, counted from 0. It
    goes through all layers, and through one last norm (`norm` has a `weight` and a `bias`). The logit of a
    token is the product of what came out with the vector of that token, from the same table.

    No layers, places of zeros, three tokens with the vectors 1 -1, -1 1 and 2 2, by hand: the norm leaves
    1 -1 as it is (nearly, for eps), so after token 0 the logits are 2, -2, 0.

    **Shapes.** `tokens` is `b t`, `embedding` is `v m`, and `places` has a row for each place that the model
    knows. The result is `b t v`.

    **Raises** `ValueError` if a text is longer than `places`.
    """
    ### BEGIN SOLUTION
    t = tokens.shape[1]
    if t > len(places):
        raise ValueError(f"tokens has length {t}: at most {len(places)} places are known")
    x = embedding[tokens] + places[:t]
    for weights in blocks:
        x = block(x, weights, n_heads)
    return layer_norm(x, norm["weight"], norm["bias"]) @ embedding.mT
    ### END SOLUTION


def sampling_probabilities(logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Task 5: what is drawn from.

    Divide the logits by the temperature and take the softmax. Of the result, keep the likeliest tokens: as
    few as have a sum of at least `top_p`. All others get 0, and what is kept is made to sum to 1 again. Of
    tokens that are equally likely, the one with the lower number counts as likelier.

    Temperature 0 is what remains as it becomes ever smaller: all for the largest logit, for the first one if
    there are several. Logits may be in the thousands, and a temperature 1e-307.

    The probabilities 1/2, 1/4, 1/8, 1/8, by hand. At temperature 1/2 they are as 16, 4, 1, 1. At
    temperature 1, top_p = 0.6 leaves 2/3, 1/3, 0, 0, and top_p = 0.8 leaves 4/7, 2/7, 1/7, 0.

    **Shapes.** `logits` is `b v`, and so is the result.

    **Raises** `ValueError` if the temperature is negative, or `top_p` is not above 0 and at most 1.
    """
    ### BEGIN SOLUTION
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature is {temperature}, top_p is {top_p}: no distribution")
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # With the largest at 0, nothing overflows, however cold it is.
    logits = logits - logits.amax(dim=-1, keepdim=True)
    ordered, index = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    kept = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= top_p, 0.0)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, index, kept)
    ### END SOLUTION


def encode(tokens: list[int], counts: Tensor) -> str:
    """Task 6: the bits are real.

    A loss in bits is a promise: a text whose probability is P can be written in about -log₂ P bits. Keep it.
    The model is the oldest one, and all about it is exact: `counts[x, y]` says how often y followed x, and P
    of a token is its count by the sum of the row of its predecessor.

    Think of all texts as parts of the line from 0 to 1. At first you have all of it. Each token cuts what you
    have into parts as long as the probabilities, in the order of their numbers, and leaves you the part of
    the token that came. In the end you hold [low, low + P), and no other text of this length has a piece of it.

    A string of n bits, read as 0.bits in base 2, is such a part too, 2⁻ⁿ long: that of all numbers that begin
    with these bits. Return the shortest string whose part lies *wholly* in yours. Then any other bits may
    follow. If there are several, return the first. The first token is known and costs nothing.

    0 0 1 with the row 3 1 after a 0, by hand: the 0 leaves [0, 3/4), the 1 leaves the last quarter of that,
    [9/16, 12/16). The part of 10 is [8/16, 12/16): it begins too early. That of 101 is [10/16, 12/16): three
    bits, and task 1 promised 2.415.

    **Shapes.** `counts` is `v v`, whole numbers. The result is a text of the letters 0 and 1, maybe empty.
    A text may be hundreds of tokens long.
    """
    ### BEGIN SOLUTION
    # The part is [low, low + size), all in units of 1/total: whole numbers, as long as they need to be.
    low, size, total = 0, 1, 1
    for i in range(1, len(tokens)):
        row, token = counts[tokens[i - 1]].tolist(), tokens[i]
        low = low * sum(row) + size * sum(row[:token])
        size, total = size * row[token], total * sum(row)
    n = 0
    while True:
        first = -(-(low << n) // total)
        if (first + 1) * total <= (low + size) << n:
            return f"{first:0{n}b}" if n else ""
        n += 1
    ### END SOLUTION


def decode(code: str, counts: Tensor, first: int, n_tokens: int) -> list[int]:
    """Task 6, continued: and back.

    Return the text of which `encode` made this code: `first`, and `n_tokens` more. Other bits may follow the
    code: they belong to something else, and change nothing.

    101 with the row 3 1 after a 0, two tokens after a 0, by hand: 0.101 is 5/8. It lies below 3/4, so a 0
    comes next. Of [0, 3/4) the last quarter begins at 9/16, and 5/8 = 10/16 lies in it: then comes a 1.
    """
    ### BEGIN SOLUTION
    number, n = int(code or "0", 2), len(code)
    low, size, total, tokens = 0, 1, 1, [first]
    for _ in range(n_tokens):
        row = counts[tokens[-1]].tolist()
        low, total = low * sum(row), total * sum(row)
        token = 0
        while number * total >= (low + size * row[token]) << n:
            low, token = low + size * row[token], token + 1
        size *= row[token]
        tokens.append(token)
    return tokens
    ### END SOLUTION
