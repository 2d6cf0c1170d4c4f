"""The proof of `longformer`: each test is a claim that its page makes."""

import torch
from tests.proof import Case, assert_agrees, plain_attention
from torch import Tensor

from annotated_attention.longformer import longformer_attention


def test_agrees_with_the_dense_mask(device: str) -> None:
    case = Case("text", t=17, s=17)
    is_global = torch.zeros(2, 17, dtype=torch.bool, device=device)
    is_global[:, 0] = is_global[1, 5] = True
    i = torch.arange(17, device=device)
    band = (i[:, None] - i).abs() < 3
    mask = (band | is_global[:, None, :] | is_global[:, :, None])[:, None]

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return longformer_attention(query, key, value, 3, is_global)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return plain_attention(query, key, value, mask)

    assert_agrees(ours, dense, case.inputs(torch.float32, device))
