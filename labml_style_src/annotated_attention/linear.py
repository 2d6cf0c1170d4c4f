r"""# Linear attention

Under construction: the public names work.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b h s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b h s e` | what position $j$ gives |

**Source.** Katharopoulos et al. (2020), arXiv:2006.16236.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from annotated_attention.linear_features import (
    positive_random_features,
    relu_features,
    taylor_features,
)
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["LinearState", "elu_plus_one", "linear_attention"]
__all__ += ["linear_attention_step", "linear_chunks", "ratio"]
__all__ += ["positive_random_features", "relu_features", "taylor_features"]

FeatureMap = Callable[[Tensor], Tensor]
FORMS = ("parallel", "recurrent", "chunked")


class LinearState(NamedTuple):
    """All that was read."""

    matrix: Float[Tensor, "b h f e"]
    normaliser: Float[Tensor, "b h f"]

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + self.normaliser.nbytes


def elu_plus_one(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    r"""## A map that is positive"""
    return x.clamp(max=0).exp() + x.relu()


def linear_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
    *,
    is_causal: bool = True,
    feature_map: FeatureMap = elu_plus_one,
    form: str = "chunked",
    chunk_size: int = 64,
) -> Float[Tensor, "b h t e"]:
    r"""## One function, three forms"""
    check_inputs(query, key, value, None, is_causal)
    if form not in FORMS or chunk_size < 1:
        came = f"form is {form!r}, chunk_size is {chunk_size}"
        raise ValueError(f"{came}: one of {FORMS}, and at least 1, is wanted")
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k = feature_map(query.to(wide)), feature_map(key.to(wide))
    v, t = value.to(wide), query.shape[2]

    if form == "parallel":
        weights = torch.einsum("b h t f, b h s f -> b h t s", q, k)
        if is_causal:
            weights = weights.tril()
        blend = torch.einsum("b h t s, b h s e -> b h t e", weights, v)
        output = ratio(blend, weights.sum(-1))

    # Without a mask all queries read one state.
    elif not is_causal:
        matrix = torch.einsum("b h s f, b h s e -> b h f e", k, v)
        output = ratio(*look_up(q, LinearState(matrix, k.sum(2))))

    elif form == "recurrent":
        state, outputs = empty_state(k, v), []
        steps = (fit(x, max(t, 1)).split(1, dim=2) for x in (q, k, v))
        for q_i, k_i, v_i in zip(*steps, strict=True):
            state = add_token(k_i, v_i, state)
            outputs.append(ratio(*look_up(q_i, state)))
        output = torch.cat(outputs, dim=2)[:, :, :t]
    else:
        output, _ = linear_chunks(q, k, v, chunk_size)
    return output.to(query.dtype)


def linear_chunks(
    q: Float[Tensor, "b h t f"],
    k: Float[Tensor, "b h s f"],
    v: Float[Tensor, "b h s e"],
    chunk_size: int,
    state: LinearState | None = None,
) -> tuple[Float[Tensor, "b h t e"], LinearState]:
    r"""## Chunks: features in, outputs and the state after them out."""
    t, start = q.shape[2], empty_state(k, v) if state is None else state
    u = min(chunk_size, max(t, 1))
    n = max(1, -(-t // u))
    q = rearrange(fit(q, n * u), "b h (n u) f -> b h n u f", n=n)
    k = rearrange(fit(k, n * u), "b h (n u) f -> b h n u f", n=n)
    v = rearrange(fit(v, n * u), "b h (n u) e -> b h n u e", n=n)

    weights = torch.einsum("b h n u f, b h n a f -> b h n u a", q, k)
    weights = weights.tril()
    blend = torch.einsum("b h n u a, b h n a e -> b h n u e", weights, v)

    added = torch.einsum("b h n u f, b h n u e -> b h n f e", k, v)
    matrices = torch.cat([start.matrix[:, :, None], added], dim=2).cumsum(2)
    added = k.sum(3)
    normalisers = torch.cat([start.normaliser[:, :, None], added], dim=2).cumsum(2)

    past = matrices[:, :, :-1]
    blend = blend + torch.einsum("b h n u f, b h n f e -> b h n u e", q, past)
    past = normalisers[:, :, :-1]
    total = weights.sum(-1) + torch.einsum("b h n u f, b h n f -> b h n u", q, past)
    output = rearrange(ratio(blend, total), "b h n u e -> b h (n u) e")
    after = LinearState(matrices[:, :, -1].clone(), normalisers[:, :, -1].clone())
    return output[:, :, :t], after


def linear_attention_step(
    query: Float[Tensor, "b h 1 d"],
    key: Float[Tensor, "b h 1 d"],
    value: Float[Tensor, "b h 1 e"],
    state: LinearState | None,
    *,
    feature_map: FeatureMap = elu_plus_one,
) -> tuple[Float[Tensor, "b h 1 e"], LinearState]:
    r"""## One token"""
    check_inputs(query, key, value, None, False)
    if query.shape[2] != 1 or key.shape[2] != 1:
        came = f"query has {query.shape[2]} tokens, key {key.shape[2]}"
        raise ValueError(f"{came}: 1 is wanted")
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k = feature_map(query.to(wide)), feature_map(key.to(wide))
    v = value.to(wide)
    state = empty_state(k, v) if state is None else state
    wanted = (*k.shape[:2], k.shape[3], v.shape[3])
    if tuple(state.matrix.shape) != wanted:
        came = f"state has a matrix {tuple(state.matrix.shape)}"
        raise ValueError(f"{came}: {wanted} is wanted")
    state = add_token(k, v, state)
    return ratio(*look_up(q, state)).to(query.dtype), state


def ratio(
    blend: Float[Tensor, "*rows e"],
    total: Float[Tensor, "*rows"],
) -> Float[Tensor, "*rows e"]:
    r"""## Nothing in sight"""
    empty = total.abs() < torch.finfo(total.dtype).tiny
    return blend / total.masked_fill(empty, torch.inf)[..., None]


def empty_state(k: Tensor, v: Tensor) -> LinearState:
    b, h, _, f = k.shape
    return LinearState(k.new_zeros(b, h, f, v.shape[3]), k.new_zeros(b, h, f))


def add_token(k: Tensor, v: Tensor, state: LinearState) -> LinearState:
    return LinearState(
        state.matrix + torch.einsum("b h t f, b h t e -> b h f e", k, v),
        state.normaliser + k.sum(2),
    )


def look_up(q: Tensor, state: LinearState) -> tuple[Tensor, Tensor]:
    return (
        torch.einsum("b h t f, b h f e -> b h t e", q, state.matrix),
        torch.einsum("b h t f, b h f -> b h t", q, state.normaliser),
    )


def fit(x: Tensor, n: int) -> Tensor:
    """Exactly `n` tokens: zeros behind, or the first of them."""
    missing = n - x.shape[2]
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, h, t, s, d, e = (axes[name] for name in "bhtsde")
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, h, s, d), torch.randn(b, h, s, e)
    for form in FORMS:
        linear_attention(query, key, value, form=form)
    linear_attention(query, key, value, is_causal=False)
    query, key, value = (x[:, :, :1] for x in (query, key, value))
    linear_attention_step(query, key, value, None)
