"""The proof of `sliding_window_tiles`: what is kept, what is made, and what comes back."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.annotated_attention.test_sliding_window_details import allocated
from tests.proof import Case, assert_agrees, assert_close, normal, plain_attention
from torch import Tensor

from annotated_attention.sliding_window import sliding_window_attention, sliding_window_mask
from annotated_attention.sliding_window_tiles import Tile, attend_in_tiles, fused

sdpa = partial(F.scaled_dot_product_attention, enable_gqa=True)


def scattered() -> Iterator[Tile]:
    """Five queries in two tiles: runs out of order, that overlap; and a mask."""
    yield slice(0, 2), [slice(4, 7), slice(0, 1), slice(1, 3)], None
    yield slice(2, 5), [slice(2, 6)], torch.ones(3, 4, dtype=torch.bool).tril()


def seen() -> Tensor:
    mask = torch.zeros(5, 7, dtype=torch.bool)
    for rows, columns, inside in scattered():
        j = torch.cat([torch.arange(run.start, run.stop) for run in columns])
        mask[rows, j] = True if inside is None else inside
    return mask


@proof.each_dtype
def test_agrees_with_the_masked_formula(dtype: torch.dtype) -> None:
    inputs = Case("scattered", b=2, g=3, r=2, t=5, s=7, d=4, e=6).inputs(dtype)
    ours = partial(attend_in_tiles, fused, scattered)
    assert_agrees(ours, partial(plain_attention, mask=seen()), inputs)


def test_gradcheck() -> None:
    inputs = Case("scattered", b=1, g=2, r=2, t=5, s=7, d=2, e=3).inputs()
    proof.assert_gradcheck(partial(attend_in_tiles, fused, scattered), inputs)


def test_shared_inputs_have_gradients() -> None:
    def biased(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        return fused(q, k + bias, v, mask)

    inputs = Case("shared", b=1, g=2, r=1, t=5, s=7, d=2, e=3).inputs()
    ours = partial(attend_in_tiles, biased, scattered)
    proof.assert_gradcheck(ours, [*inputs, normal("bias", 2)])


def test_gradients_are_summed_wide() -> None:
    def one_by_one() -> Iterator[Tile]:
        for i in range(600):
            yield slice(i, i + 1), [slice(0, 3)], None

    inputs = Case("many tiles", b=1, g=1, t=600, s=3).inputs(torch.bfloat16)
    assert_agrees(partial(attend_in_tiles, fused, one_by_one), plain_attention, inputs)


def test_nothing_is_kept_but_the_inputs(device: str) -> None:
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    inputs = [normal("text", 1, 2, 256, 8, device=device).requires_grad_() for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        sliding_window_attention(*inputs, 32, block_size=16)
    assert [x.data_ptr() for x in kept] == [x.data_ptr() for x in inputs]


def test_memory_is_that_of_the_results(device: str) -> None:
    ours = partial(sliding_window_attention, window=64, block_size=16)
    n_bytes = 4 * 2 * 1024 * 8
    for passed in allocated(ours, 1024, device):
        assert passed.largest == n_bytes


def test_autocast_stays_outside() -> None:
    inputs = Case("scattered", b=1, g=1, t=5, s=7).inputs(torch.float32)
    exact = proof.with_gradients(partial(attend_in_tiles, fused, scattered), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = proof.with_gradients(partial(attend_in_tiles, fused, scattered), inputs)
    for parts in zip(found, exact, strict=True):
        for ours, wanted in zip(*parts, strict=True):
            assert torch.equal(ours, wanted)


def test_not_twice_differentiable() -> None:
    query, key, value = (x.requires_grad_() for x in Case("scattered", t=5, s=7).inputs())
    output = attend_in_tiles(fused, scattered, query, key, value)
    with pytest.raises(RuntimeError, match="create_graph=True asks for a gradient of the gradient"):
        torch.autograd.grad(output.sum(), query, create_graph=True)


def test_slices_have_a_quadratic_backward(device: str) -> None:
    def sliced(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        for n in range(0, query.shape[2], 16):
            low = max(0, n - 63)
            mask = sliding_window_mask(16, n + 16 - low, 64, offset=n - low, device=device)
            sight = key[:, :, low : n + 16], value[:, :, low : n + 16]
            outputs.append(sdpa(query[:, :, n : n + 16], *sight, mask))
        return torch.cat(outputs, 2)

    ours = partial(sliding_window_attention, window=64, block_size=16)
    text = [normal("text", 1, 2, 512, 8, device=device) for _ in range(3)]
    assert_close(sliced(*text), ours(*text), ours(*text))
    growth = {}
    for name, function in {"ours": ours, "sliced": sliced}.items():
        short, long = (allocated(function, t, device)[1].total for t in (1024, 2048))
        growth[name] = long / short
    assert growth["ours"] == pytest.approx(2, rel=0.05)
    assert growth["sliced"] == pytest.approx(4, rel=0.1)
