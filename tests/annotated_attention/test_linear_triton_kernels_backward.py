"""The proof of `linear_triton_kernels_backward`: its formulas, and what is rounded. The kernels are held against
autograd by `test_linear_triton`."""

import pytest
import torch
from tests.annotated_attention.test_linear import plain
from tests.proof import Case, assert_close, normal, with_gradients

from annotated_attention.linear import elu_plus_one

pytest.importorskip("triton", reason="needs Triton")

TEXT = Case("text", t=11, s=11)


def test_the_formulas_are_the_gradient(device: str) -> None:
    """Over all tokens, without chunks: both states at every position."""
    inputs = TEXT.inputs(device=device)
    output, exact = with_gradients(plain, inputs)
    (query, key, value), o = inputs, output[0]
    do = normal("upstream 0", *o.shape, device=device)
    q, k, v = elu_plus_one(query), elu_plus_one(key), value
    S, z = (k[..., None] * v[..., None, :]).cumsum(2), k.cumsum(2)
    r = (q * z).sum(-1, keepdim=True)
    d = (o * do).sum(-1, keepdim=True)
    R = (q[..., None] / r[..., None] * do[..., None, :]).flip(2).cumsum(2).flip(2)
    w = (d * q / r).flip(2).cumsum(2).flip(2)
    dq = ((S @ do[..., None])[..., 0] - d * z) / r
    dk = (R @ v[..., None])[..., 0] - w
    dv = (R.mT @ k[..., None])[..., 0]
    slopes = [x.clamp(max=0).exp() for x in (query, key)]
    for ours, gradient in zip((dq * slopes[0], dk * slopes[1], dv), exact, strict=True):
        assert_close(ours, gradient, gradient)


def test_divide_the_query(device: str) -> None:
    """Values around 10, and numbers that a product takes in bf16: who is divided and rounded?"""
    query, key, value = Case("text", b=1, t=256, s=256, d=64, e=64).inputs(torch.float64, device)
    q, k, v = elu_plus_one(query), elu_plus_one(key), (value + 10).bfloat16().double()
    do = normal("upstream", *v.shape, device=device).bfloat16().double()
    weights = (q @ k.mT).tril()
    r = weights.sum(-1, keepdim=True)
    d = ((weights / r) @ v * do).sum(-1, keepdim=True)

    def rounded(x):
        return x.bfloat16().double()

    exact = ((do @ v.mT - d) / r).tril().mT @ q
    divided = (do @ v.mT - d).tril().mT @ rounded(q / r)
    other = ((rounded(do / r) @ v.mT) - d / r).tril().mT @ rounded(q)
    errors = [(x - exact).norm() / exact.norm() for x in (divided, other)]
    assert errors[0] < 2**-8
    assert errors[1] > 5 * errors[0]
