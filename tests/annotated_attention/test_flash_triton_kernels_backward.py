"""The proof of `flash_triton_kernels_backward`: each test is a claim that its page makes."""

from functools import partial

import torch
from tests import proof
from tests.annotated_attention.test_flash_triton import GROUPED, OPTIONS, inputs_of, ours


def test_the_kernels_have_the_same_bits_every_time(device: str) -> None:
    options = OPTIONS["all"]
    inputs = inputs_of(GROUPED, torch.float32, device, options)
    first, second = (proof.with_gradients(partial(ours, **options), inputs)[1] for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
