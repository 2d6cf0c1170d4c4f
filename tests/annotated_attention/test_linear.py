"""The proof of `linear`: each test is a claim that its page makes."""

import torch
from tests.proof import assert_close, each_case
from torch import Tensor

from annotated_attention.linear import elu_plus_one, linear_attention


def plain(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = True) -> Tensor:
    weights = elu_plus_one(query) @ elu_plus_one(key).mT
    weights = weights.tril() if is_causal else weights
    return (weights @ value) / weights.sum(-1, keepdim=True)


@each_case
def test_agrees_with_the_plain_formula(case, device):
    inputs = case.inputs(device=device)
    for form in ("parallel", "recurrent", "chunked"):
        assert_close(linear_attention(*inputs, form=form, chunk_size=3), plain(*inputs), plain(*inputs))
