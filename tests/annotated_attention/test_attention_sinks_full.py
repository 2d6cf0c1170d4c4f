"""The proof of `attention_sinks_full`: each test is a claim that its page makes."""

import torch

from annotated_attention.attention_sinks import streaming_mask


def test_mask_keeps_sinks_and_window() -> None:
    i = torch.arange(11)
    expected = [[k <= q and (k < 2 or q - k < 3) for k in range(11)] for q in range(11)]
    assert torch.equal(streaming_mask(i, i, 2, 3), torch.tensor(expected))
