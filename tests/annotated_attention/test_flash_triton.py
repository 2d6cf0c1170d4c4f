"""The proof of `flash_triton`: each test is a claim that its page makes."""

import pytest
import torch
from tests.proof import Case, assert_close, causal, plain_attention

from annotated_attention.flash_triton import flash_attention_triton


@pytest.mark.parametrize("is_causal", [False, True])
def test_agrees_with_the_formula(is_causal: bool, device: str) -> None:
    case = Case("text", r=2, t=37, s=53)
    inputs = case.inputs(torch.float32, device)
    mask = causal(37, 53, device) if is_causal else None
    exact = plain_attention(*(x.double() for x in inputs), mask)
    found = flash_attention_triton(*inputs, is_causal=is_causal)[0]
    assert_close(found, plain_attention(*inputs, mask), exact)
