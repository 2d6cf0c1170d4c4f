"""# Exercise: multi-head attention

Six tasks, each a little harder than the one before, and the last is not answered on the page.
Axes are named as everywhere here: `b` batch, `h` heads, `t` queries, `s` keys, `d` width of a head,
`m` width of the model, which is h times d. You need `torch`, and may use `einops`. Write the
attention out: `torch.nn.MultiheadAttention` and `scaled_dot_product_attention` would leave nothing
to learn. A task may use the functions of the tasks before it.

Check your work as often as you like: `attn check multi_head` says what is wrong and where, and
`attn check multi_head --hint` gives one hint at a time.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Task 1: heads are a reshape.

    Of the m numbers of a token, the first d belong to head 0, the next d to head 1, and so on. `n_heads`
    divides m.

    One text, two tokens, m = 4, two heads, by hand:

        x[0] = 1 2 3 4      head 0 = 1 2      head 1 = 3 4
               5 6 7 8               5 6               7 8

    **Shapes.** `x` is `b t m`; the result is `b h t d`.
    """
    ### BEGIN SOLUTION
    return rearrange(x, "b t (h d) -> b h t d", h=n_heads)
    ### END SOLUTION


def merge_heads(x: Tensor) -> Tensor:
    """Task 1, the way back: it undoes `split_heads`.

    **Shapes.** `x` is `b h t d`; the result is `b t m`.
    """
    ### BEGIN SOLUTION
    return rearrange(x, "b h t d -> b t (h d)")
    ### END SOLUTION


def attention_weights(
    q: Tensor, k: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Task 2: the weights of every head.

    Each head compares its own queries with its own keys: the softmax, over the keys, of q kᵀ / √d. A
    mask says which keys a query may see, and is broadcast to `b h t s` from the right, so `t s` and
    `h t s` and `b 1 1 s` are masks:

    - a boolean mask: True means that the query may see the key;
    - a float mask: it is added to the scores.

    `is_causal` lets query i see the keys 0 to i. A query that may see nothing has weights of 0, and its
    gradients are 0 too, never NaN.

    One query, two keys, all scores equal, by hand: the weights are 0.5, 0.5. With the mask False, True
    they are 0, 1; with False, False they are 0, 0.

    **Shapes.** `q` is `b h t d`, `k` is `b h s d`; the result is `b h t s`.

    **Raises** `ValueError` if there is a mask and `is_causal` as well.
    """
    ### BEGIN SOLUTION
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal exclude each other: put the causal part into the mask")
    scores = torch.einsum("b h t d, b h s d -> b h t s", q, k) * q.shape[-1] ** -0.5
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    # A row of nothing but -inf is 0 / 0 in the softmax and in its gradient: it gets harmless scores
    # before and weights of 0 after.
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
    ### END SOLUTION


class MultiHeadAttention(nn.Module):
    """Tasks 3 and 4: the layer.

    Project `query`, `key` and `value`, split the heads, attend in each, merge, project once more. The
    four projections are `nn.Linear` from m to m, with bias, under the names `w_q`, `w_k`, `w_v` and
    `w_o`: the checks put weights into them by `load_state_dict`.

    Task 4 is dropout. While the layer is in training mode, each weight is set to 0 with probability
    `dropout`, and the others grow so that their expected value stays what it was. In evaluation mode
    nothing happens. The weights that are returned are those *before* dropout.
    """

    def __init__(self, d_model: int, n_heads: int, *, dropout: float = 0.0):
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads = n_heads
        self.w_q = nn.Linear(d_model, d_model)
        self.w_k = nn.Linear(d_model, d_model)
        self.w_v = nn.Linear(d_model, d_model)
        self.w_o = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        ### END SOLUTION

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Shapes: `query` is `b t m`, `key` and `value` are `b s m`. The result is a pair: the output,
        `b t m`, and the weights of all heads, `b h t s`."""
        ### BEGIN SOLUTION
        q = split_heads(self.w_q(query), self.n_heads)
        k = split_heads(self.w_k(key), self.n_heads)
        v = split_heads(self.w_v(value), self.n_heads)
        weights = attention_weights(q, k, attn_mask, is_causal)
        heads = torch.einsum("b h t s, b h s d -> b h t d", self.dropout(weights), v)
        return self.w_o(merge_heads(heads)), weights
        ### END SOLUTION


def weights_from_torch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Task 5: moving in from torch.nn.MultiheadAttention.

    PyTorch's layer keeps its weights under other names: `in_proj_weight`, `3m m`, has those of query, key
    and value, in this order, one below the other; `in_proj_bias`, `3m`, likewise; then `out_proj.weight`
    and `out_proj.bias`. Return them under the names of your layer: `w_q.weight`, `w_q.bias` and so on,
    eight in all.
    """
    ### BEGIN SOLUTION
    renamed = {"w_o.weight": state["out_proj.weight"], "w_o.bias": state["out_proj.bias"]}
    for part in ("weight", "bias"):
        for name, chunk in zip("qkv", state[f"in_proj_{part}"].chunk(3), strict=True):
            renamed[f"w_{name}.{part}"] = chunk
    return renamed
    ### END SOLUTION


def mask_from_torch(attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    """Task 5, continued: its masks mean the opposite.

    In `torch.nn.MultiheadAttention` a boolean True *forbids*. It takes two masks: `attn_mask`, `t s`, and
    `key_padding_mask`, `b s`, True where a key is padding. Return one mask for your layer, True where a
    query may see a key under both. Each of the two may be None; return None if both are.

    **Shapes.** The result broadcasts to `b h t s`.
    """
    ### BEGIN SOLUTION
    if key_padding_mask is None:
        return None if attn_mask is None else ~attn_mask
    padding = key_padding_mask[:, None, None, :]
    return ~padding if attn_mask is None else ~(attn_mask | padding)
    ### END SOLUTION


def remove_heads(
    state: dict[str, Tensor], n_heads: int, removed: list[int], average: Tensor
) -> dict[str, Tensor]:
    """Task 6: a layer without some of its heads.

    Many heads of a trained layer can be taken out at little loss: whatever head h finds is replaced by
    one fixed vector, `average[h]`, the mean of what it found over many texts. A removed head then need
    not be computed, and its weights need not be stored.

    `state` has the eight weights of a layer with `n_heads` heads, under the names of task 3. Return the
    eight weights of the smaller layer, with the remaining heads in their old order. Computed with fewer
    heads and otherwise as before, it must give exactly what the large layer gives when each head h of
    `removed` finds `average[h]` for every query.

    **Shapes.** `average` is `h d`. With k heads left, the weights of `w_q`, `w_k` and `w_v` are `k*d m`
    and their biases `k*d`; that of `w_o` is `m k*d` and its bias `m`. At least one head is left.
    """
    ### BEGIN SOLUTION
    kept = [head for head in range(n_heads) if head not in removed]
    smaller = {}
    # nn.Linear multiplies by the transpose of its weight: a head owns rows of w_q, w_k and w_v ...
    for name in ("w_q", "w_k", "w_v"):
        for part in ("weight", "bias"):
            by_head = rearrange(state[f"{name}.{part}"], "(h d) ... -> h d ...", h=n_heads)
            smaller[f"{name}.{part}"] = rearrange(by_head[kept], "h d ... -> (h d) ...")
    # ... and columns of w_o. What a fixed vector adds to the output is fixed too: it joins the bias.
    columns = rearrange(state["w_o.weight"], "m (h d) -> m h d", h=n_heads)
    smaller["w_o.weight"] = rearrange(columns[:, kept], "m h d -> m (h d)")
    fixed = torch.einsum("m h d, h d -> m", columns[:, removed], average[removed])
    smaller["w_o.bias"] = state["w_o.bias"] + fixed
    return smaller
    ### END SOLUTION
