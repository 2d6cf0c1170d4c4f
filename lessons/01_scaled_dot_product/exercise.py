"""# Exercise: scaled dot-product attention

Six tasks. The first four are NumPy, forward and then backward by hand; the fifth is PyTorch, with the
contract of the function that every library calls; the sixth is not answered on the page. A task may use the
functions of the tasks before it. `F.scaled_dot_product_attention`, `torch.softmax` and the like are the
answers and not the tools: build them.

The axes are named as everywhere in the course: `b` batch, `h` heads, `g` key heads, `t` queries, `s` keys,
`d` width of queries and keys, `e` width of values. No two of these sizes need be equal.

One tiny case comes back in most tasks, small enough for paper: one query and two keys of width 4, values of
width 1.

    query  [2, 0, 0, 0]
    keys   [0, 0, 0, 0]  [ln 3, 0, 0, 0]
    values [4]           [8]

Check your work as often as you like: `attn check scaled_dot_product` says what is wrong and where, and
`attn check scaled_dot_product --hint` gives one hint at a time.
"""

import math

import numpy as np
import torch


def softmax(scores: np.ndarray) -> np.ndarray:
    """Task 1: a softmax that cannot overflow.

    Turn scores into weights along the last axis: the weight of score z_j is exp(z_j) / sum over k of
    exp(z_k).

    The scores may be as large as 10,000, and exp(10,000) is no float. A score may be -inf: its weight is 0.
    If every score of a row is -inf there is nothing to choose from, and every weight of that row is 0 (not
    NaN).

    The tiny case: `softmax([0, ln 3])` is 1/4, 3/4, and so is `softmax([10000, 10000 + ln 3])`.

    **Shapes.** `scores` and the result are `... s`.
    """
    ### BEGIN SOLUTION
    top = scores.max(axis=-1, keepdims=True)
    # inf - inf is NaN, so a row of -inf is shifted by 0: it stays -inf, and exp makes it 0.
    exponentials = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / np.where(total > 0, total, 1.0)
    ### END SOLUTION


def attention_weights(query: np.ndarray, key: np.ndarray, attn_mask: np.ndarray | None = None) -> np.ndarray:
    """Task 2: attention weights.

    Score every query against every key with a dot product, divide by the square root of d, hide what the
    mask hides, and take the softmax over the keys.

    `attn_mask` is boolean, and **True means attend**. It may have any shape that broadcasts to `b h t s`,
    such as `t s` or `b 1 t s`. A query that may see no key gets a row of zeros.

    The tiny case: the dot products are 0 and 2 ln 3. Halved, since d is 4, they are 0 and ln 3, so the
    weights are 1/4, 3/4. With the mask True, False they are 1, 0; with False, False they are 0, 0.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, the result is `b h t s`.
    """
    ### BEGIN SOLUTION
    scores = np.einsum("bhtd,bhsd->bhts", query, key) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf)
    return softmax(scores)
    ### END SOLUTION


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None = None,
    is_causal: bool = False,
) -> np.ndarray:
    """Task 3: attention.

    Mix the values with the weights. With `is_causal`, query i sees the keys 0 to i and no other. There may
    be more keys than queries, or fewer; the first query is always level with the first key (PyTorch's
    convention, "top-left"). A mask together with `is_causal` says one thing twice, or two different things:
    raise a `ValueError`.

    The tiny case: 1/4 of 4 and 3/4 of 8 make 7. With `is_causal` the query sees only the first key: 4.

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`, the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal were both given: pass one of them")
        attn_mask = np.tril(np.ones((query.shape[-2], key.shape[-2]), dtype=bool))
    weights = attention_weights(query, key, attn_mask)
    return np.einsum("bhts,bhse->bhte", weights, value)
    ### END SOLUTION


def attention_backward(
    grad_output: np.ndarray,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Task 4: the backward pass by hand.

    A loss sends back `grad_output`, its derivative by each number of the output. Send it on to query, key
    and value, and return the three gradients `(dq, dk, dv)`. No autograd: this is the chain rule on three
    lines of the forward pass, read from the last to the first.

    The tiny case, with a `grad_output` of 1:

        by the values    [1/4]              [3/4]
        by the weights   4                  8
        by the scores    -3/4               3/4
        by the query     [3/8 ln 3, 0, 0, 0]
        by the keys      [-3/4, 0, 0, 0]    [3/4, 0, 0, 0]

    **Shapes.** `grad_output` is `b h t e`; each gradient has the shape of its input.
    """
    ### BEGIN SOLUTION
    scale = 1 / math.sqrt(query.shape[-1])
    weights = attention_weights(query, key, attn_mask)
    dv = np.einsum("bhts,bhte->bhse", weights, grad_output)
    d_weights = np.einsum("bhte,bhse->bhts", grad_output, value)
    # One more weight for this key is less for the others: the row's mean gradient is taken off each.
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
    dq = np.einsum("bhts,bhsd->bhtd", d_scores, key) * scale
    dk = np.einsum("bhts,bhtd->bhsd", d_scores, query) * scale
    return dq, dk, dv
    ### END SOLUTION


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Task 5: the contract of a library.

    The same in PyTorch, with what real models ask for. Autograd must be able to go through it.

    - Keys and values may have fewer heads than queries: g of them, where h is a multiple of g. The query
      heads 0 to h/g - 1 share key head 0, the next h/g share key head 1, and so on. If h is no multiple of
      g, raise a `ValueError`.
    - `attn_mask` is boolean (True means attend) or of floats, which are added to the scaled scores; -inf
      hides a key. A mask together with `is_causal` is a `ValueError` again.
    - `scale` replaces 1/sqrt(d) when it is given.
    - A query that sees no key gives 0, and **gradients of 0**. A NaN in the gradient of one row would
      spread to every weight of a model.

    A tiny case: with h = 4 and g = 2, the query heads use the key heads 0, 0, 1, 1.

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, the result is `b h t e`.
    """
    ### BEGIN SOLUTION
    (h, t, d), (g, s) = query.shape[1:], key.shape[1:3]
    if h % g:
        raise ValueError(f"query has {h} heads, key has {g}: query heads must be a multiple of key heads")
    key, value = (x.repeat_interleave(h // g, dim=1) for x in (key, value))
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) * (d**-0.5 if scale is None else scale)
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal were both given: pass one of them")
        attn_mask = torch.ones(t, s, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
    # As in task 1, no NaN is ever made, so none has to be removed, forward or backward.
    top = scores.amax(dim=-1, keepdim=True).detach()
    exponentials = torch.exp(scores - top.masked_fill(top == -math.inf, 0.0))
    total = exponentials.sum(dim=-1, keepdim=True)
    weights = exponentials / total.masked_fill(total == 0, 1.0)
    return torch.einsum("bhts,bhse->bhte", weights, value)
    ### END SOLUTION


class RunningAttention:
    """Task 6: keys that arrive one by one.

    The softmax divides by a sum over all keys, so it seems that all keys must be there at once. They need
    not. Write an object that is given keys and values one at a time, forgets each of them, and can say at
    any moment what attention over all keys so far would have returned.

    - `query` is `t d` (no batch, no heads), and `e` is the width of the values to come.
    - `update(key, value)` takes in one key, `d`, and its value, `e`.
    - `read()` is the output so far, `t e`: zeros before the first key. Reading changes nothing.
    - `state` is an attribute: a tuple of NumPy arrays, all that the object remembers of the keys. Together
      they hold at most t (e + 2) numbers, however many keys came. `RunningAttention(query, e, state)` goes
      on from there.

    Scores still go up to 10,000, and the largest may come first or last.

    The tiny case: after the first key `read()` is 4, after the second it is 7.
    """

    def __init__(self, query: np.ndarray, e: int, state: tuple[np.ndarray, ...] | None = None) -> None:
        ### BEGIN SOLUTION
        t, d = query.shape
        self.query = query / math.sqrt(d)
        # The largest score so far, the sum of exp(score - largest), and the values weighted by the same.
        self.state = state or (np.full(t, -np.inf), np.zeros(t), np.zeros((t, e)))
        ### END SOLUTION

    def update(self, key: np.ndarray, value: np.ndarray) -> None:
        """Take in one `key` (`d`) and its `value` (`e`)."""
        ### BEGIN SOLUTION
        top, total, mixed = self.state
        scores = self.query @ key
        higher = np.maximum(top, scores)
        # What was summed against the old maximum shrinks to the new one; at the start, exp(-inf) is 0.
        keep, add = np.exp(top - higher), np.exp(scores - higher)
        self.state = (higher, keep * total + add, keep[:, None] * mixed + add[:, None] * value)
        ### END SOLUTION

    def read(self) -> np.ndarray:
        """Attention over all keys so far, `t e`."""
        ### BEGIN SOLUTION
        _, total, mixed = self.state
        return mixed / np.where(total > 0, total, 1.0)[:, None]
        ### END SOLUTION
