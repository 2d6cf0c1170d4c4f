"""The proof of `ring`: each test is a claim that its page makes."""

import torch
from tests.proof import assert_agrees, each_case
from torch.nn.functional import scaled_dot_product_attention

from annotated_attention.ring import ring_attention


@each_case
def test_agrees_with_pytorch(case, device):
    assert_agrees(ring_attention, scaled_dot_product_attention, case.inputs(torch.float32, device))
