"""The proof of `longformer_tiles`: that the work is as small as the pattern, and where tokens go and return."""

from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.annotated_attention.test_longformer import dense, ours
from tests.proof import Case, assert_agrees, normal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention import sliding_window
from annotated_attention.longformer import longformer_attention, longformer_mask_mod
from annotated_attention.longformer_tiles import longformer_scores, pack, strands, window_and_global


class Allocated(TorchDispatchMode):
    """The elements of the largest tensor that an operation returned, and of all that own their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                elements = x.untyped_storage().nbytes() // x.element_size()
                self.largest, self.total = max(self.largest, elements), self.total + elements
        return result


def scattered(t: int, n_global: int, device: str) -> Tensor:
    """Global tokens all over the text."""
    mask = torch.zeros(1, t, dtype=torch.bool, device=device)
    mask[0, torch.linspace(0, t - 1, n_global).long()] = True
    return mask


@given(t=st.integers(1, 29), window=st.integers(1, 40), share=st.floats(0, 1))
def test_pairs_are_counted(t: int, window: int, share: float) -> None:
    n_global, i, zero = round(share * t), torch.arange(t), torch.tensor(0)
    pairs = longformer_mask_mod(window, i[None] < n_global)(zero, zero, i[:, None], i)
    assert longformer_scores(t, window, n_global)[0] == pairs.sum()
    seen, computed = longformer_scores(4096, 257, 1)
    assert (seen, 4096**2) == (2_043_134, 16_777_216)
    assert round(100 * seen / 4096**2, 1) == 12.2
    assert round(computed / seen, 2) == 1.24


@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("window", [1, 33])
def test_work_is_linear(window: int, dilation: int, device: str) -> None:
    def flops(t: int, dilation: int = dilation) -> int:
        inputs = [normal(name, 1, 2, t, 4, device=device).requires_grad_() for name in ("q", "k", "v")]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            longformer_attention(*inputs, window, scattered(t, 3, device), dilation=dilation).sum().backward()
        return counter.get_total_flops()

    def predicted(t: int) -> int:
        # Two products forward, for the local queries again on the way back, and four backward, of 4 multiplications
        # and additions for each score of two heads. A strand is a text of its own.
        near = longformer_scores(t, window, 3)[1] - 3 * t
        return (8 * near + 6 * 3 * t) * 2 * 2 * 4

    for t in (512, 1024):
        assert flops(t * dilation) == dilation * predicted(t)
    # All but a few tiles at the ends of the text.
    once, twice, fourfold = (predicted(t) for t in (1024, 2048, 4096))
    assert fourfold - twice == 2 * (twice - once)
    # In a short text nothing costs more than what can be seen there.
    assert flops(16, dilation=1) == predicted(16)
    assert flops(16, dilation=99) == flops(16, dilation=16)


@pytest.mark.parametrize("dilation", [1, 4])
def test_memory_is_linear(dilation: int, device: str) -> None:
    def allocated(t: int) -> Allocated:
        inputs = [normal(name, 1, 1, t, 4, device=device).requires_grad_() for name in ("q", "k", "v")]
        starred = tuple(normal(name, 1, 1, t, 4, device=device).requires_grad_() for name in ("q", "k", "v"))
        places = scattered(t, 2, device)
        real = torch.arange(t, device=device)[None] < t - 9
        with Allocated() as seen:
            output = longformer_attention(
                *inputs, 33, places, global_qkv=starred, padding_mask=real, dilation=dilation
            )
            output.sum().backward()
        return seen

    once, twice, fourfold = (allocated(t) for t in (1024, 2048, 4096))
    assert twice.largest < 2.1 * once.largest
    assert fourfold.largest < 2.1 * twice.largest < 2 * 4096 * (4 + 4 * 2 * 33)
    assert twice.total < 2.1 * once.total
    assert fourfold.total < 2.1 * twice.total


def test_short_texts_are_cheaper_dense() -> None:
    def share(t: int) -> float:
        return longformer_scores(t, 257, 1)[1] / t**2

    assert min(map(share, range(1, 388))) >= 1
    assert max(map(share, range(388, 5000))) < 1
    assert 1 - share(512) == pytest.approx(1 / 8, abs=0.005)


@given(places=st.lists(st.lists(st.booleans(), min_size=13, max_size=13), min_size=1, max_size=4))
def test_packing_and_back(places: list[list[bool]], device: str) -> None:
    is_global = torch.tensor(places, device=device)
    b, n_global = len(places), max(sum(row) for row in places)
    found = torch.arange(n_global, device=device) < is_global.sum(1, keepdim=True)
    x = normal("x", b, 3, 13, 5, device=device)
    packed = pack(x, is_global, found)
    for n, row in enumerate(places):
        expected = x[n][:, torch.tensor(row, device=device)]
        assert torch.equal(packed[n, :, : sum(row)], expected)
        assert (packed[n, :, sum(row) :] == 0).all()
    back = torch.zeros_like(x)
    back.transpose(1, 2)[is_global] = packed.transpose(1, 2)[found]
    assert torch.equal(back, x * is_global[:, None, :, None])


@given(t=st.integers(0, 31), dilation=st.integers(1, 9))
def test_strands_hold_every_token_once(t: int, dilation: int) -> None:
    x = torch.arange(1, t + 1).expand(2, 1, t)[..., None] * torch.tensor([1, -1])[:, None, None, None]
    each = strands(x, dilation).reshape(2, dilation, -1)
    for c in range(dilation):
        text = torch.arange(1, t + 1)[c::dilation]
        assert torch.equal(each[0, c][: len(text)], text)
        assert torch.equal(each[1, c][: len(text)], -text)
        assert (each[:, c, len(text) :] == 0).all()


def weights(scores: Tensor, window: int, *places: int) -> Tensor:
    """`t t`, of a text whose key `j` has the score `scores[j]` with every query."""
    t, device = len(scores), scores.device
    key = scores[None, None, :, None]
    is_global = torch.zeros(1, t, dtype=torch.bool, device=device)
    is_global[0, list(places)] = True
    found = torch.ones(1, len(places), dtype=torch.bool, device=device)
    one_hot = torch.eye(t, dtype=scores.dtype, device=device)[None, None]
    real = torch.ones_like(is_global)
    return window_and_global(torch.ones_like(key), key, one_hot, window, is_global, real, found)[0, 0]


def test_global_tokens_count_once(device: str) -> None:
    rows = weights(torch.zeros(23, dtype=torch.float64, device=device), 4, 3, 11)
    # Scores are equal, so each key in sight has the same weight. The globals lie in the windows of some.
    for i in (j for j in range(23) if j not in (3, 11)):
        near = {j for j in range(23) if abs(i - j) < 4} | {3, 11}
        assert rows[i].nonzero()[:, 0].tolist() == sorted(near)
        assert torch.allclose(rows[i, sorted(near)], rows.new_tensor(1 / len(near)), rtol=1e-14)


def test_no_row_is_left_empty(device: str) -> None:
    x = normal("x", 3, 1, 23, 4, device=device)
    real = torch.ones(3, 23, dtype=torch.bool, device=device)
    real[0, 5:] = real[1] = False
    is_global = torch.arange(23, device=device).expand(3, 23) % 4 == 0
    is_global = is_global & torch.tensor([True, True, False], device=device)[:, None]
    kernel, masks = F.scaled_dot_product_attention, []

    def spy(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **rest: object) -> Tensor:
        masks.append(mask)
        return kernel(query, key, value, mask, **rest)  # type: ignore

    with mock.patch.object(F, "scaled_dot_product_attention", spy):
        longformer_attention(x, x, x, 2, is_global, padding_mask=real)
    assert len(masks) == 2
    assert all(mask.any(-1).all() for mask in masks)


def test_one_softmax_not_two(device: str) -> None:
    scores = torch.zeros(23, dtype=torch.float64, device=device)
    for score, expected in ((-60.0, 0.0), (60.0, 1.0)):
        scores[0] = score
        share = weights(scores, 4, 0)[1:, 0]
        assert torch.allclose(share, torch.full_like(share, expected), atol=1e-12)


def test_gradients_are_summed_wide(device: str) -> None:
    inputs = Case("many tiles", b=1, g=1, t=1000, s=1000).inputs(torch.bfloat16, device)
    places = torch.arange(1000, device=device)[None] == 0
    options = {"window": 4, "global_mask": places, "dilation": 2}
    with mock.patch.object(sliding_window, "BLOCK_SIZE", 4):
        assert_agrees(partial(ours, **options), partial(dense, **options), inputs)
