"""Wrong variants of the exercise on cross-attention: each is a mistake that somebody made, with what a tutor
would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch
from einops import rearrange
from torch import nn


def pad__true_is_padding(rows):
    """Your mask is True at the padding. PyTorch's `key_padding_mask` says it so; here, as in
    `scaled_dot_product_attention`, True means that a position takes part."""
    padded, mask = pad(rows)
    return padded, ~mask


def pad__zeros_are_padding(rows):
    """You read the mask off the numbers: a vector of zeros counts as padding. A real vector may be zero,
    as silence is. What else do you know of a context, before it is padded?"""
    padded, _ = pad(rows)
    return padded, (padded != 0).any(dim=-1)


def _attend(query, key, value, padding_mask, *, fill=float("-inf"), scale=None, dim=-1, allow=None):
    """The attention, with what a variant changes as arguments; `allow` replaces the mask that is `b 1 1 s`."""
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if allow is None and padding_mask is not None:
        allow = padding_mask[:, None, None]
    if allow is not None:
        scores = scores.masked_fill(~allow, fill)
    empty = (scores == float("-inf")).all(dim=dim, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(dim=dim).masked_fill(empty, 0.0)
    return torch.einsum("b h t s, b h s e -> b h t e", weights, value)


def cross_attention__causal(query, key, value, padding_mask=None):
    """You hide the keys with higher numbers than the query's. Position 3 of a translation is not before
    position 4 of the source: is there anything in the context that a query must not know yet?"""
    t, s = query.shape[2], key.shape[2]
    allow = torch.ones(t, s, dtype=torch.bool).tril()
    if padding_mask is not None:
        allow = allow & padding_mask[:, None, None]
    return _attend(query, key, value, padding_mask, allow=allow)


def cross_attention__padding_read(query, key, value, padding_mask=None):
    """Your queries take something from the padding: the mask has no effect. Zeros are keys as well, and
    their score of 0 is an ordinary score. What must it be for the weight to be 0?"""
    return _attend(query, key, value, None)


def cross_attention__inverted(query, key, value, padding_mask=None):
    """You hide what is real and read the padding. The mask is True where a key is real, and `masked_fill`
    fills where its argument is True."""
    return _attend(query, key, value, None if padding_mask is None else ~padding_mask)


def cross_attention__hides_queries(query, key, value, padding_mask=None):
    """Your mask lies along the queries. It is the context that was padded: which axis of the scores,
    `b h t s`, belongs to it?"""
    allow = None if padding_mask is None else padding_mask[:, None, :, None]
    return _attend(query, key, value, padding_mask, allow=allow)


def cross_attention__mask_of_the_wrong_axis(query, key, value, padding_mask=None):
    """Your mask, `b s`, meets scores that are `b h t s` as it is. Axes are lined up from the right, so
    each text's line is given to a *query*. If the two numbers differ, that is an error; if not, nobody
    notices. Where do two axes of length 1 belong?"""
    return _attend(query, key, value, padding_mask, allow=padding_mask)


def cross_attention__large_instead_of_infinite(query, key, value, padding_mask=None):
    """Your padding scores are a large negative number, such as -1e9. It works until a text has no real
    key: then all keys score the same, and you return the mean of the padding. What should a query find
    that has nothing to look at?"""
    return _attend(query, key, value, padding_mask, fill=-1e9)


def cross_attention__nan_without_keys(query, key, value, padding_mask=None):
    """A text without real keys has a row of minus infinities, and its softmax is 0 / 0: NaN, which spreads
    to everything it touches. Treat such a row separately."""
    output = cross_attention(query, key, value, padding_mask)
    if padding_mask is None:
        return output
    return output.masked_fill(~padding_mask.any(dim=1)[:, None, None, None], float("nan"))


def cross_attention__nan_in_the_gradient(query, key, value, padding_mask=None):
    """Your outputs are right, your gradients are NaN. Replacing a NaN repairs what comes after it; on the
    way back the gradient still passes through the softmax that was 0 / 0, and 0 times NaN is NaN. What
    could go into that softmax instead?"""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if padding_mask is not None:
        scores = scores + torch.where(padding_mask, 0.0, -torch.inf)[:, None, None]
    return scores.softmax(dim=-1).nan_to_num() @ value


class CrossAttention__with_biases(CrossAttention):
    """Your projections have biases: `nn.Linear` adds one unless it is told not to. This layer has none, like
    those of T5. Which argument leaves it out?"""

    def __init__(self, d_model, d_context, n_heads):
        nn.Module.__init__(self)
        self.n_heads = n_heads
        self.w_q = nn.Linear(d_model, d_model)
        self.w_k = nn.Linear(d_context, d_model)
        self.w_v = nn.Linear(d_context, d_model)
        self.w_o = nn.Linear(d_model, d_model)


class CrossAttention__heads_without_transpose(CrossAttention):
    """You view `b s m` straight as `b h s d`. The shape is right, the order is not: a head gets pieces of
    one position as if they were several. Cut first, then move the axis, and the same on the way back."""

    def project(self, context):
        return self.heads(self.w_k(context)), self.heads(self.w_v(context))

    def heads(self, x):
        return x.reshape(len(x), self.n_heads, x.shape[1], -1)

    def forward(self, x, context=None, *, keys_values=None, padding_mask=None):
        if (context is None) == (keys_values is None):
            raise ValueError("one of context and keys_values is wanted")
        key, value = self.project(context) if keys_values is None else keys_values
        heads = cross_attention(self.heads(self.w_q(x)), key, value, padding_mask)
        return self.w_o(heads.reshape(x.shape))


class CrossAttention__heads_dealt_out(CrossAttention):
    """You deal the numbers of a position out to the heads in turn: 0 to the first, 1 to the second, and so on.
    Here a head's numbers lie side by side, the first d of them are head 0's. In a pattern such as `(h d)` the
    axis that stands behind counts fastest: which one should that be?"""

    def project(self, context):
        return self.heads(self.w_k(context)), self.heads(self.w_v(context))

    def heads(self, x):
        return rearrange(x, "b s (d h) -> b h s d", h=self.n_heads)

    def forward(self, x, context=None, *, keys_values=None, padding_mask=None):
        if (context is None) == (keys_values is None):
            raise ValueError("one of context and keys_values is wanted")
        key, value = self.project(context) if keys_values is None else keys_values
        heads = cross_attention(self.heads(self.w_q(x)), key, value, padding_mask)
        return self.w_o(rearrange(heads, "b h t d -> b t (d h)"))


class CrossAttention__mask_only_with_context(CrossAttention):
    """Your mask is used with a context, but not with keys and values that are given. They were made of
    the same padded rows: what is in the keys at the padding?"""

    def forward(self, x, context=None, *, keys_values=None, padding_mask=None):
        mask = padding_mask if keys_values is None else None
        return super().forward(x, context, keys_values=keys_values, padding_mask=mask)


class ContextCache__projects_again(ContextCache):
    """Each of your answers projects the context anew: what is in `value` is not what the next step reads,
    and a text of a thousand tokens pays a thousand times. What does the layer take in place of a
    context?"""

    def __init__(self, layer, context, padding_mask):
        super().__init__(layer, context, padding_mask)
        self.pair = self.key.clone(), self.value.clone()

    def attend(self, x):
        kept = self.key, self.value
        self.key, self.value = self.pair
        output = super().attend(x)
        self.key, self.value = kept
        return output

    def keep(self, texts):
        super().keep(texts)
        self.pair = self.key, self.value


class ContextCache__beams_dealt_out(ContextCache):
    """Your beams go to the contexts in turn, as cards are dealt: that is `repeat`, or `(r b)`. The shapes
    are right, and most beams translate another text. Rows of one text are neighbours: which name comes
    first in `( )`?"""

    def attend(self, x):
        texts, t = len(self.key), x.shape[1]
        if len(x) % texts:
            raise ValueError(f"x has {len(x)} rows for {texts} texts")
        x = rearrange(x, "(r b) t m -> b (r t) m", b=texts)
        output = self.layer(x, keys_values=(self.key, self.value), padding_mask=self.padding_mask)
        return rearrange(output, "b (r t) m -> (r b) t m", t=t)


class ContextCache__a_copy_for_each_beam(ContextCache):
    """You keep the keys and values once for each beam. Four beams then need four times the memory, and
    the next call may bring another number of them. What is there to copy, if the beams of a text only
    ask different questions?"""

    def attend(self, x):
        output, r = super().attend(x), len(x) // len(self.key)
        self.key, self.value = self.key.repeat_interleave(r, 0), self.value.repeat_interleave(r, 0)
        self.padding_mask = self.padding_mask.repeat_interleave(r, 0)
        return output


class ContextCache__keeps_the_old_mask(ContextCache):
    """Your `keep` selects keys and values, but their mask stays that of the texts that came first. What
    else has one row for each text?"""

    def keep(self, texts):
        mask = self.padding_mask
        super().keep(texts)
        self.padding_mask = mask[: len(texts)]


class VisionProjector__no_gelu(VisionProjector):
    """Your projector has two linear maps and nothing in between. Two matrices in a row are one matrix:
    what keeps them apart?"""

    def forward(self, features):
        return self.w_out(self.w_in(features))


class VisionProjector__gelu_by_tanh(VisionProjector):
    """Your numbers are right to the first few digits: this is GELU by a formula with tanh, which stands in for
    the error function where that is slow. Which form does `nn.functional.gelu` take if nothing is said?"""

    def forward(self, features):
        return self.w_out(nn.functional.gelu(self.w_in(features), approximate="tanh"))


def _pieces(texts, embedding, images):
    """The pieces of each text, images by `None`; and the images of each text."""
    words = [[None if n == IMAGE else embedding[n, None] for n in text.tolist()] for text in texts]
    own = images.split([int((text == IMAGE).sum()) for text in texts])
    return words, own


def insert_images__before_the_text(texts, embedding, images):
    """Your images stand before their text. Where the image stands is part of what is said: "compare IMAGE
    with IMAGE" is another question if both come first."""
    insert_images(texts, embedding, images)
    words, own = _pieces(texts, embedding, images)
    rows = zip(own, words, strict=True)
    return pad([torch.cat([*images, *(w for w in row if w is not None)]) for images, row in rows])


def insert_images__mask_of_the_words(texts, embedding, images):
    """Your mask was made before the images came, one place for each. What is real now is longer: the last
    words of a text with an image would not be seen."""
    padded, _ = insert_images(texts, embedding, images)
    return padded, torch.arange(padded.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]


def insert_images__looks_the_place_up(texts, embedding, images):
    """You look IMAGE up in the embedding and let the image follow. An index of -200 is no error, it
    counts from the end of a large table: what is left of the place when the image has come?"""
    insert_images(texts, embedding, images)
    words, own = _pieces(texts, embedding, images)
    rows = []
    for row, rest in zip(words, map(iter, own), strict=True):
        parts = [[embedding[IMAGE, None], next(rest)] if w is None else [w] for w in row]
        rows.append(torch.cat([part for pair in parts for part in pair]))
    return pad(rows)


def ask__scale_of_the_context(x, w_q, w_k, n_heads):
    """Your question is right but for its length: `cross_attention` divides by the root of the width that it
    sees, which is that of the context. By what did the layer of task 3 divide?"""
    asked = ask(x, w_q, w_k, n_heads)
    return asked * (w_q.shape[0] / n_heads / w_k.shape[1]) ** 0.5


def ask__scaled_twice(x, w_q, w_k, n_heads):
    """You divide by √d, and `cross_attention` divides by √c after you. It cannot be told not to: by what must
    you multiply, so that its root goes and yours stays?"""
    return ask(x, w_q, w_k, n_heads) * w_k.shape[1] ** -0.5


def answer__every_head_all_of_w_v(found, w_v, w_o):
    """You take the mean of what the heads found before `w_v`. Head 0 made its own d numbers from what it
    found, with its own rows of `w_v`: which?"""
    return found.mean(dim=1) @ w_v.mT @ w_o.mT
