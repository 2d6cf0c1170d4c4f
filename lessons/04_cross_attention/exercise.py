"""# Exercise: cross-attention

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` and `e` widths of
keys and of values, `m` width of the model. The vectors of a context have a width of their own, c. You
need `torch`, and may use `einops`. Write the attention out: `scaled_dot_product_attention` would
leave nothing to learn. A task may use the functions of the tasks before it.

Check your work as often as you like: `attn check cross_attention` says what is wrong and where, and
`attn check cross_attention --hint` gives one hint at a time.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Task 1: contexts of different lengths.

    A batch is a rectangle; sentences and recordings are not. Put each context at the beginning of its
    row, fill the rest of the row with zeros up to the longest, and say which positions are real.

    Two contexts of width 1, by hand: 7 8 9 and 5 become

        7 8 9      True True  True
        5 0 0      True False False

    **Shapes.** Each of `rows` is `s c` with an s of its own, which may be 0; at least one is given. The
    result is a pair: the contexts, `b s c`, and the padding mask, `b s`, boolean.
    """
    ### BEGIN SOLUTION
    lengths = torch.tensor([len(row) for row in rows])
    padded = rows[0].new_zeros(len(rows), int(lengths.max()), rows[0].shape[1])
    for row, space in zip(rows, padded, strict=True):
        space[: len(row)] = row
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
    ### END SOLUTION


def cross_attention(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Task 2: the attention.

    Every query takes the mean of the values with the weights softmax(query keyᵀ / √d). Keys and values
    come from another sequence, which is there as a whole before the first query is asked: there is no
    future in it. `padding_mask` is what task 1 returns, True where a key is real; None means that all
    are. Padding has no weight at all. If a text has no real key, its queries find 0, and the
    gradients there are 0 too, never NaN.

    One query, keys that all score the same, values 1, 3 and 100, by hand: with the mask True, True, False
    the answer is 2. With False, False, False it is 0.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`, `padding_mask` is `b s`;
    the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * query.shape[-1] ** -0.5
    if padding_mask is None:
        padding_mask = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool)
    padding = ~padding_mask[:, None, None, :]
    # Where all is padding, the softmax of nothing but -inf would be 0 / 0, in its gradient too: such a
    # row gets harmless scores before it and weights of 0 after it.
    empty = padding.all(dim=-1, keepdim=True)
    scores = scores.masked_fill(padding & ~empty, float("-inf"))
    weights = scores.softmax(dim=-1).masked_fill(empty, 0.0)
    return torch.einsum("b h t s, b h s e -> b h t e", weights, value)
    ### END SOLUTION


class CrossAttention(nn.Module):
    """Task 3: the layer.

    Queries are made of `x`, keys and values of `context`, which may have another width. The four
    projections are `nn.Linear` without bias, under the names `w_q`, `w_k`, `w_v` and `w_o`: the checks
    put weights into them by `load_state_dict`. Queries, keys and values are `d_model` wide, and so is the
    output; heads are cut as in lesson 2: the first d numbers belong to head 0.

    - `project(context)` returns the pair (key, value), each `b h s d`.
    - `forward(x, context)` attends to a context, `forward(x, keys_values=...)` to a pair that `project`
      returned some time ago. Both take `padding_mask`, `b s`.

    **Raises** `ValueError` if `forward` gets both, a context and a pair, or neither.
    """

    def __init__(self, d_model: int, d_context: int, n_heads: int):
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads = n_heads
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_context, d_model, bias=False)
        self.w_v = nn.Linear(d_context, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)
        ### END SOLUTION

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: `context` is `b s c`; key and value are `b h s d`."""
        ### BEGIN SOLUTION
        key, value = (
            rearrange(project(context), "b s (h d) -> b h s d", h=self.n_heads)
            for project in (self.w_k, self.w_v)
        )
        return key, value
        ### END SOLUTION

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        keys_values: tuple[Tensor, Tensor] | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Shapes: `x` is `b t m`, and so is the result."""
        ### BEGIN SOLUTION
        if (context is None) == (keys_values is None):
            raise ValueError("one of context and keys_values is wanted, not both and not neither")
        key, value = self.project(context) if keys_values is None else keys_values
        query = rearrange(self.w_q(x), "b t (h d) -> b h t d", h=self.n_heads)
        heads = cross_attention(query, key, value, padding_mask)
        return self.w_o(rearrange(heads, "b h t d -> b t (h d)"))
        ### END SOLUTION


class ContextCache:
    """Task 4: one context, many steps, several beams.

    A decoder asks the same context at every token, and in beam search it writes r candidates, the beams,
    of each text at a time. The context is the same for all of them, so project it once and keep one copy.

    - `ContextCache(layer, context, padding_mask)` projects the context with a layer of task 3.
    - `key` and `value` are attributes, `b h s d`: what is kept. Attending reads them and does not change
      them, however many beams there are.
    - `attend(x)` returns the layer's output for `x`, which is `b*r t m`: the beams of text 0 come first,
      then those of text 1. r may differ from call to call.
    - `keep(texts)` drops the texts that are finished. `texts` holds the numbers of those that go on, and
      from now on text n is the one that was `texts[n]`.

    By hand: with 2 texts and 6 rows in `x`, r is 3, and rows 0, 1, 2 ask context 0. After
    `keep(torch.tensor([1]))` there is one context left, and all 6 rows ask it.

    **Raises** `ValueError` if the rows of `x` are no multiple of the texts.
    """

    def __init__(self, layer: CrossAttention, context: Tensor, padding_mask: Tensor):
        ### BEGIN SOLUTION
        self.layer, self.padding_mask = layer, padding_mask
        self.key, self.value = layer.project(context)
        ### END SOLUTION

    def attend(self, x: Tensor) -> Tensor:
        """Shapes: `x` is `b*r t m`, and so is the result."""
        ### BEGIN SOLUTION
        texts, (rows, t, _) = len(self.key), x.shape
        if rows % texts:
            raise ValueError(f"x has {rows} rows: a multiple of the {texts} texts is wanted")
        # No query knows of another here, so the beams of a text are nothing but more queries.
        x = rearrange(x, "(b r) t m -> b (r t) m", b=texts)
        output = self.layer(x, keys_values=(self.key, self.value), padding_mask=self.padding_mask)
        return rearrange(output, "b (r t) m -> (b r) t m", t=t)
        ### END SOLUTION

    def keep(self, texts: Tensor) -> None:
        """`texts` is a row of whole numbers."""
        ### BEGIN SOLUTION
        self.key, self.value = self.key[texts], self.value[texts]
        self.padding_mask = self.padding_mask[texts]
        ### END SOLUTION


class VisionProjector(nn.Module):
    """Task 5: images as tokens.

    LLaVA has no cross-attention. It brings the vectors of an image to the width of the model and lets
    them stand among the words: one linear map to the new width, GELU in its exact form, one more linear
    map. Both are `nn.Linear` with bias, under the names `w_in` and `w_out`.

    **Shapes.** `features` is `b s c`, the result `b s m`.
    """

    def __init__(self, d_vision: int, d_model: int):
        super().__init__()
        ### BEGIN SOLUTION
        self.w_in = nn.Linear(d_vision, d_model)
        self.w_out = nn.Linear(d_model, d_model)
        ### END SOLUTION

    def forward(self, features: Tensor) -> Tensor:
        ### BEGIN SOLUTION
        return self.w_out(nn.functional.gelu(self.w_in(features)))
        ### END SOLUTION


IMAGE = -200  # what stands in a text where an image belongs; it is no row of the embedding


def insert_images(texts: list[Tensor], embedding: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Task 5, continued: the words around them.

    A text is a row of token numbers, and `IMAGE` stands in it wherever an image belongs, any number of
    times. Each word becomes its row of the embedding, each `IMAGE` becomes all vectors of the next image:
    images are in reading order, those of text 0 first. The results differ in length, so pad them.

    An image of two vectors i and j, by hand: the texts 5, IMAGE, 7 and 6 become

        e[5] i    j    e[7]      True True  True  True
        e[6] 0    0    0         True False False False

    **Shapes.** `embedding` is `v m`, `images` is `n s m`: n images of s vectors each, projected. The
    result is a pair as in task 1.

    **Raises** `ValueError` if the texts have not as many places as there are images.
    """
    ### BEGIN SOLUTION
    places = sum(int((text == IMAGE).sum()) for text in texts)
    if places != len(images):
        raise ValueError(f"{len(images)} images for {places} places: as many are wanted")
    rest = iter(images)
    rows = []
    for text in texts:
        parts = [next(rest) if token == IMAGE else embedding[token, None] for token in text.tolist()]
        rows.append(torch.cat(parts))
    return pad(rows)
    ### END SOLUTION


def ask(x: Tensor, w_q: Tensor, w_k: Tensor, n_heads: int) -> Tensor:
    """Task 6: a layer that stores nothing.

    A cache keeps 2 m numbers for each position of the context, in every layer. The context itself has c,
    and all layers share it. So let a layer attend to the bare context: no key and no value is ever made.
    Find what must be done before and after, so that

        bare = context[:, None].expand(-1, n_heads, -1, -1)
        output = answer(cross_attention(ask(x, w_q, w_k, n_heads), bare, bare, padding_mask), w_v, w_o)

    is the output of a layer of task 3 with these weights. `cross_attention` stays as it is in task 2. The
    price is arithmetic: a score is now a sum over c numbers, no longer over d. (DeepSeek-V2 keeps one short
    vector a token in place of keys and values, and is served this way.)

    One head, m = 1, c = 4, by hand: x = 5, w_q = 3 and w_k = 1 0 2 0 make the result 30 0 60 0.

    **Shapes.** `x` is `b t m`; `w_q` is `m m` and `w_k` is `m c`, as `nn.Linear` keeps them. The result
    is `b h t c`: what each head asks, in the context's own coordinates.
    """
    ### BEGIN SOLUTION
    query = rearrange(x @ w_q.mT, "b t (h d) -> b h t d", h=n_heads)
    # A score is q · (W c) = (Wᵀ q) · c: the key's projection moves to the query's side.
    asked = torch.einsum("b h t d, h d c -> b h t c", query, rearrange(w_k, "(h d) c -> h d c", h=n_heads))
    # `cross_attention` will divide by the root of the width that it sees, c. It should be d.
    return asked * (asked.shape[-1] / query.shape[-1]) ** 0.5
    ### END SOLUTION


def answer(found: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    """Task 6, continued: what happens after.

    **Shapes.** `found` is `b h t c`; `w_v` is `m c` and `w_o` is `m m`, as `nn.Linear` keeps them. The
    result is `b t m`.
    """
    ### BEGIN SOLUTION
    # A mean of projected vectors is the projection of their mean.
    by_head = rearrange(w_v, "(h d) c -> h d c", h=found.shape[1])
    heads = torch.einsum("b h t c, h d c -> b h t d", found, by_head)
    return rearrange(heads, "b h t d -> b t (h d)") @ w_o.mT
    ### END SOLUTION
