"""The proof of `sliding_window`: each test is a claim that its page makes."""

import torch
from tests.proof import assert_agrees, each_case
from torch.nn.functional import scaled_dot_product_attention

from annotated_attention.sliding_window import sliding_window_attention


@each_case
def test_agrees_with_pytorch(case, device):
    assert_agrees(sliding_window_attention, scaled_dot_product_attention, case.inputs(torch.float32, device))
