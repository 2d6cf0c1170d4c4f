r"""# Scaled dot-product attention

(first version; the chapter follows)
"""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "attention_weights",
    "numpy_attention",
    "numpy_attention_backward",
    "numpy_weights",
    "scaled_dot_product_attention",
]


def numpy_weights(
    query: Float[np.ndarray, "b h t d"],
    key: Float[np.ndarray, "b h s d"],
    attn_mask: Shaped[np.ndarray, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[np.ndarray, "b h t s"]:
    check_inputs(query, key, None, attn_mask, is_causal)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * np.einsum("b h t d, b h s d -> b h t s", query, key, dtype=np.float64)
    if is_causal:
        attn_mask = np.tri(*scores.shape[-2:], dtype=bool)
    if attn_mask is not None and attn_mask.dtype == bool:
        scores = np.where(attn_mask, scores, -np.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    maximum = scores.max(axis=-1, keepdims=True, initial=np.finfo(np.float64).min)
    exponentials = np.exp(scores - maximum)
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / np.maximum(total, 1.0)


def numpy_attention(
    query: Float[np.ndarray, "b h t d"],
    key: Float[np.ndarray, "b h s d"],
    value: Float[np.ndarray, "b h s e"],
    attn_mask: Shaped[np.ndarray, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[np.ndarray, "b h t e"]:
    check_inputs(query, key, value, attn_mask, is_causal)
    weights = numpy_weights(query, key, attn_mask, is_causal, scale)
    output = np.einsum("b h t s, b h s e -> b h t e", weights, value)
    return output.astype(query.dtype)


def numpy_attention_backward(
    grad_output: Float[np.ndarray, "b h t e"],
    query: Float[np.ndarray, "b h t d"],
    key: Float[np.ndarray, "b h s d"],
    value: Float[np.ndarray, "b h s e"],
    attn_mask: Shaped[np.ndarray, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[
    Float[np.ndarray, "b h t d"], Float[np.ndarray, "b h s d"], Float[np.ndarray, "b h s e"]
]:
    check_inputs(query, key, value, attn_mask, is_causal)
    weights = numpy_weights(query, key, attn_mask, is_causal, scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dv = np.einsum("b h t s, b h t e -> b h s e", weights, grad_output)
    d_weights = np.einsum("b h t e, b h s e -> b h t s", grad_output, value)
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
    dq = scale * np.einsum("b h t s, b h s d -> b h t d", d_scores, key)
    dk = scale * np.einsum("b h t s, b h t d -> b h s d", d_scores, query)
    return dq.astype(query.dtype), dk.astype(query.dtype), dv.astype(query.dtype)


def attention_weights(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t s"]:
    check_inputs(query, key, None, attn_mask, is_causal)
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * torch.einsum("b h t d, b h s d -> b h t s", query.to(wide), key.to(wide))
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.to(wide)
    empty = (scores == -torch.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1)
    return weights.masked_fill(empty, 0.0).to(query.dtype)


def scaled_dot_product_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    attn_mask: Shaped[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "b h t e"]:
    check_inputs(query, key, value, attn_mask, is_causal, enable_gqa)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p is {dropout_p}: it must lie between 0 and 1")
    if enable_gqa:
        shared = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(shared, dim=1)
        value = value.repeat_interleave(shared, dim=1)
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = attention_weights(query.to(wide), key.to(wide), attn_mask, is_causal, scale)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    output = torch.einsum("b h t s, b h s e -> b h t e", weights, value.to(wide))
    return output.to(query.dtype)


def check_inputs(query, key, value=None, attn_mask=None, is_causal=False, enable_gqa=False):
    arrays = {"query": query, "key": key} | ({} if value is None else {"value": value})
    for name, array in arrays.items():
        if array.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(array.shape)}: it must have four axes, b h t d")
        if array.dtype != query.dtype or "float" not in str(array.dtype):
            raise ValueError(f"{name} is {array.dtype}, query is {query.dtype}: one floating dtype is wanted")
    b, h, t, d = query.shape
    _, g, s, _ = key.shape
    if key.shape[0] != b:
        raise ValueError(f"key has batch {key.shape[0]}, query has {b}: they must be equal")
    if key.shape[3] != d:
        raise ValueError(f"key has width {key.shape[3]}, query has {d}: they must be equal")
    if enable_gqa and h % g:
        raise ValueError(f"key has {g} heads, query has {h}: query heads must be a multiple of key heads")
    if not enable_gqa and h != g:
        raise ValueError(f"key has {g} heads, query has {h}: they must be equal unless enable_gqa")
    if value is not None and value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value is {tuple(value.shape)}, key is {tuple(key.shape)}: b, heads and s must be equal")
    if attn_mask is None:
        return
    if is_causal:
        raise ValueError("attn_mask and is_causal are both set: fold the causal part into the mask")
    if not any(kind in str(attn_mask.dtype) for kind in ("bool", "float")):
        raise ValueError(f"attn_mask is {attn_mask.dtype}: it must be bool (True = attend) or floating (added)")
    wanted = (b, h, t, s)[-attn_mask.ndim :]
    fits = all(size in (1, full) for size, full in zip(attn_mask.shape, wanted, strict=False))
    if not (2 <= attn_mask.ndim <= 4 and fits):
        raise ValueError(f"attn_mask has shape {tuple(attn_mask.shape)}: it must broadcast to {(b, h, t, s)}")
