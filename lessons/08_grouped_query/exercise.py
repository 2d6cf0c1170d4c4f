"""# Exercise: grouped-query attention

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads of queries, `g` heads of keys and values, r = h / g
query heads in a group, `t` queries, `s` keys, `d` and `e` widths, `m` width of the model. You need `torch`,
and may use `einops`. Write the attention out: `scaled_dot_product_attention` would leave nothing to learn.
A task may use the functions of the tasks before it.

Check your work as often as you like: `attn check grouped_query` says what is wrong and where, and
`attn check grouped_query --hint` gives one hint at a time.
"""

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor


def key_heads(n_heads: int, n_kv_heads: int) -> Tensor:
    """Task 1: who reads what.

    Query heads that are neighbours share a head of keys and values, and all groups are of one size.
    For every query head, say which key head it reads. Heads are counted from 0.

    Six query heads and two key heads, by hand: 0 0 0 1 1 1.

    **Returns** the numbers of the key heads: shape `h`, whole numbers.

    **Raises** `ValueError` if `n_kv_heads` is less than 1, or `n_heads` is no multiple of it.
    """
    ### BEGIN SOLUTION
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"n_heads is {n_heads}: a multiple of n_kv_heads = {n_kv_heads} is wanted")
    return torch.arange(n_heads) // (n_heads // n_kv_heads)
    ### END SOLUTION


def fold_heads(query: Tensor, n_kv_heads: int) -> Tensor:
    """Task 2: a group is one head with more queries.

    The heads of a group have the same keys and values, and no query takes part in another's softmax. So
    they are one head that asks r t questions. Fold the groups: first come all the queries of the first head
    of a group, then all those of its second. Attention with `g` heads answers them, and no key is repeated.

    Four heads of two queries each, for two key heads, by hand. The queries are a0 a1, b0 b1, c0 c1, d0 d1.
    Key head 0 is asked a0 a1 b0 b1, and key head 1 is asked c0 c1 d0 d1.

    **Shapes.** `query` is `b h t d`, the result is `b g r*t d`.
    """
    ### BEGIN SOLUTION
    return rearrange(query, "b (g r) t d -> b g (r t) d", g=n_kv_heads)
    ### END SOLUTION


def unfold_heads(folded: Tensor, n_heads: int) -> Tensor:
    """Task 2, continued: give every head its own answers back.

    **Shapes.** `folded` is `b g r*t e`, in the order of `fold_heads`; the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    r = n_heads // folded.shape[1]
    return rearrange(folded, "b g (r t) e -> b (g r) t e", r=r)
    ### END SOLUTION


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Task 3: one function for all three.

    Multi-head, grouped or multi-query: the number of key heads says which. Each query takes the mean of
    the values with the weights softmax(query keyᵀ / √d).

    - `attn_mask` broadcasts to `b h t s`: it has two to four axes, lined up from the right, and each of
      them may be 1. A boolean mask is True where a query may attend, any other is added to the scores.
    - `is_causal` lets query i see the keys j ≤ i, whatever the lengths. Then there is no `attn_mask`.
    - A query that sees no key finds 0, and has gradients of 0, never NaN.

    Repeating the keys would give the same numbers, and no check sees memory. So this is left to you: do
    not repeat them, you have task 2.

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`; the result is `b h t e`.

    **Raises** `ValueError` if h is no multiple of g.
    """
    ### BEGIN SOLUTION
    (b, h, t, d), (g, s) = query.shape, key.shape[1:3]
    key_heads(h, g)
    scores = torch.einsum("b g n d, b g s d -> b g n s", fold_heads(query, g), key) * d**-0.5
    if is_causal:
        attn_mask = torch.ones(t, s, dtype=torch.bool).tril()
    if attn_mask is not None:
        mask = fold_heads(attn_mask.expand(b, h, t, s), g)
        no, yes = scores.new_tensor(float("-inf")), scores.new_tensor(0.0)
        scores = scores + (torch.where(mask, yes, no) if mask.dtype == torch.bool else mask)
    # Where nothing is seen, the softmax of nothing but -inf would be 0 / 0, in its gradient too.
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    return unfold_heads(torch.einsum("b g n s, b g s e -> b g n e", weights, value), h)
    ### END SOLUTION


def cache_bytes(
    n_tokens: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    *,
    n_devices: int = 1,
    itemsize: int = 2,
) -> int:
    """Task 4: what is kept.

    How many bytes of keys and values does each device keep for a text? A head is `d_model / n_heads`
    wide, a number takes `itemsize` bytes. The key heads are dealt out to the devices in equal parts. If
    there are more devices than key heads, heads are copied: every device keeps one, whole.

    1,000 tokens, width 32, 2 layers, 8 query heads and 4 key heads, by hand: a head is 4 wide, and the text
    takes 2 · 1,000 · 2 · 4 · 4 · 2 = 128,000 bytes. Of 2 devices each keeps 64,000, of 8 each 32,000.

    **Raises** `ValueError` if of `n_devices` and `n_kv_heads` neither is a multiple of the other.
    """
    ### BEGIN SOLUTION
    if n_kv_heads % n_devices and n_devices % n_kv_heads:
        raise ValueError(f"n_devices is {n_devices}: a multiple or a divisor of {n_kv_heads} is wanted")
    heads = max(n_kv_heads // n_devices, 1)
    return 2 * n_tokens * n_layers * heads * (d_model // n_heads) * itemsize
    ### END SOLUTION


class GroupedCache:
    """Task 4, continued: a text is written.

    - `step(query, key, value)` takes in the next tokens of every text, one or several, and returns what
      their queries find: each sees all tokens up to itself, in this step and in those before. Step by
      step, the answers are those that the whole text would get at once.
    - `key` and `value` are attributes, `b g s d` and `b g s e`: all tokens so far, and only `g` heads. A
      step reads what they hold.
    """

    def __init__(self):
        ### BEGIN SOLUTION
        self.key = self.value = None
        ### END SOLUTION

    def step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Shapes: `query` is `b h t d`, `key` is `b g t d`, `value` is `b g t e`; the result `b h t e`."""
        ### BEGIN SOLUTION
        self.key = key if self.key is None else torch.cat([self.key, key], dim=2)
        self.value = value if self.value is None else torch.cat([self.value, value], dim=2)
        t, s = query.shape[2], self.key.shape[2]
        # The new queries are the last t of s positions, so the diagonal ends in the corner.
        mask = torch.ones(t, s, dtype=torch.bool).tril(s - t)
        return grouped_attention(query, self.key, self.value, mask)
        ### END SOLUTION


def mean_pool_kv_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """Task 5: convert a checkpoint.

    A model was trained with as many key heads as query heads. In its W_K and in its W_V, let the heads of
    each group give way to their mean. The weight is that of an `nn.Linear`: the first d rows make head 0.

    Two heads of width 2 with the rows 1, 10 and 3, 30, by hand: one head is left, with the rows 2, 20.

    **Shapes.** `weight` is `h*d m`, or it is a bias, `h*d`; the result is `g*d m` or `g*d`.

    **Raises** `ValueError` if the rows are no multiple of `n_heads`, or that is none of `n_kv_heads`.
    """
    ### BEGIN SOLUTION
    key_heads(n_heads, n_kv_heads)
    if len(weight) % n_heads:
        raise ValueError(f"weight has {len(weight)} rows: a multiple of n_heads = {n_heads} is wanted")
    return reduce(weight, "(g r d) ... -> (g d) ...", "mean", g=n_kv_heads, r=n_heads // n_kv_heads)
    ### END SOLUTION


def repeat_kv_heads(weight: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    """Task 5, continued: and back.

    A program may know only multi-head attention. Make the weight that lets it compute exactly what the
    grouped layer computes: every query head gets a key head of its own.

    Two key heads of width 2 with the rows 1, 10 and 3, 30, for four query heads, by hand: the rows are
    1, 10, 1, 10, 3, 30, 3, 30.

    **Shapes.** `weight` is `g*d m`, or it is a bias, `g*d`; the result is `h*d m` or `h*d`.
    """
    ### BEGIN SOLUTION
    return repeat(weight, "(g d) ... -> (g r d) ...", g=n_kv_heads, r=n_heads // n_kv_heads)
    ### END SOLUTION


def shared_head(asks: Tensor, offers: Tensor) -> tuple[Tensor, Tensor]:
    """Task 6: a better head than the mean.

    Let `asks[n]` and `offers[n]` be the rows of W_Q and of W_K that belong to head n of a group. A token x
    that looks at a token y gives it the score (asks[n] x) · (offers[n] y), but for the scale. So all that
    scores know of a head is the matrix asks[n]ᵀ offers[n], `m m`, of rank d at most. The mean replaces the offers
    and leaves the asks as they are, made for a head that is gone. Here both may change: find `new` and
    `shared` such that

        Σₙ ‖ asks[n]ᵀ offers[n] - new[n]ᵀ shared ‖²

    is as small as it can be, where ‖ ‖² is the sum of the squares of all entries. (If the numbers in x and
    in y are independent, with mean 0 and variance 1, this is the mean squared error of the scores, summed
    over the heads.) Heads that compute the same in different bases lose nothing.

    Two heads, d = 1, m = 2, by hand: the asks are 1 0 and 0 1, the offers 2 0 and 0 1. The best shared
    head is 1 0, with the new asks 2 0 and 0 0: what head 1 did is lost, and the sum is 1. With the mean of
    the offers it is 2.5. A shared 2 0 with 1 0 and 0 0 is as good: only the products count.

    **Shapes.** `asks` and `offers` are `r d m`, and so is `new`; `shared` is `d m`. The result is the
    pair (new, shared). d is at most m.
    """
    ### BEGIN SOLUTION
    products = torch.einsum("r d m, r d n -> r m n", asks, offers)
    # All new matrices read y through the same d directions. Stacked, they are one matrix of rank d, and
    # the closest of those keeps the d largest singular values.
    shared = torch.linalg.svd(products.flatten(0, 1), full_matrices=False).Vh[: asks.shape[1]]
    return torch.einsum("r m n, d n -> r d m", products, shared), shared
    ### END SOLUTION


def share_kv_heads(
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    n_heads: int,
    n_kv_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Task 6, continued: a whole layer.

    Convert a multi-head layer so. The values have a partner as the keys have: what head n brings into the
    output of the layer is a mean of tokens y, each multiplied by W_O and W_V of this head, one `m m` matrix
    again. Keep these products as close as can be, too.

    **Shapes.** `w_q`, `w_k` and `w_v` are `h*d m`, `w_o` is `m h*d`, as `nn.Linear` keeps them. The result
    is the four weights of a grouped layer in the same order: `h*d m`, `g*d m`, `g*d m` and `m h*d`.
    """
    ### BEGIN SOLUTION
    sizes = {"g": n_kv_heads, "r": n_heads // n_kv_heads}
    query, key, value = (rearrange(w, "(g r d) m -> g r d m", **sizes) for w in (w_q, w_k, w_v))
    output = rearrange(w_o, "m (g r d) -> g r d m", **sizes)
    queries, keys = zip(*map(shared_head, query, key), strict=True)
    outputs, values = zip(*map(shared_head, output, value), strict=True)
    w_q = rearrange(list(queries), "g r d m -> (g r d) m")
    w_o = rearrange(list(outputs), "g r d m -> m (g r d)")
    return w_q, torch.cat(keys), torch.cat(values), w_o
    ### END SOLUTION
