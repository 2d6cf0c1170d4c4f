"""The proof of `sliding_window`: each test is a claim that its page makes."""

from functools import partial

import torch
from tests.proof import assert_agrees, each_case, plain_attention

from annotated_attention.sliding_window import sliding_window_attention, sliding_window_mask


@each_case
def test_agrees_with_pytorch(case, device):
    mask = sliding_window_mask(case.t, case.s, 3, device=device)
    ours = partial(sliding_window_attention, window=3, block_size=2)
    assert_agrees(ours, partial(plain_attention, mask=mask), case.inputs(torch.float32, device))
