"""What the proof of `sliding_window` is made of, and the claims that its page need not make."""

import pytest
import torch
from tests.proof import Case, assert_close, changed, normal, plain_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention.grouped_query import GroupedQueryAttention
from annotated_attention.language_model import LanguageModel, LanguageModelConfig, SelfAttention
from annotated_attention.sliding_window import sliding_window_attention

# Six query heads on three of keys and values; equal widths, which PyTorch's fused kernels ask for.
GROUPED, FUSED = Case("grouped", r=2), Case("fused", r=2, t=13, s=11, d=16, e=16)


def in_window(i: int, j: int, window: int, is_causal: bool) -> bool:
    return 0 <= i - j < window if is_causal else abs(i - j) < window


def dense(case: Case, window: int, is_causal: bool, device: str = "cpu") -> Tensor:
    """The mask of all pairs, one by one."""
    rows = [[in_window(i, j, window, is_causal) for j in range(case.s)] for i in range(case.t)]
    return torch.tensor(rows, device=device)


def flops(function, *inputs: Tensor) -> int:
    """What PyTorch counts, on any device, if it computes attention by its plain formula."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


class Allocations(TorchDispatchMode):
    """The bytes of the largest tensor that was made, and of all of them. A view makes none."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = {x.untyped_storage().data_ptr() for x in given}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
                self.total += x.untyped_storage().nbytes()
        return result


def allocated(function, t: int, device: str) -> tuple[Allocations, Allocations]:
    """What is made forward, and backward, for a text of `t` tokens in 2 heads of width 8."""
    inputs = [normal("text", 1, 2, t, 8, device=device).float().requires_grad_() for _ in range(3)]
    with Allocations() as forward:
        output = function(*inputs)
    with Allocations() as backward:
        output.backward(torch.ones_like(output))
    return forward, backward


def model_of(attend, n_layers: int, *, m: int = 24, h: int = 3, g: int | None = None) -> LanguageModel:
    """In float64, without positions of its own, with weights that are not small."""

    def layer(config: LanguageModelConfig, n: int):
        return (
            SelfAttention(m, h, attend=attend) if g is None else GroupedQueryAttention(m, h, g, attend=attend)
        )

    config = LanguageModelConfig(17, 1, m, n_layers, h, position_embedding="none", make_attention=layer)
    model = LanguageModel(config).double().eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.data = normal(name, *weight.shape) * weight.shape[1] ** -0.5
    return model


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor, *, window: int
) -> Tensor:
    """The matrix of all pairs, masked: what everything here must be equal to."""
    distance = i[:, None] - j
    return plain_attention(query, key, value, (distance >= 0) & (distance < window))


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_scale_is_that_of_pytorch(scale: float, device: str) -> None:
    inputs, mask = GROUPED.inputs(device=device), dense(GROUPED, 3, True, device)
    exact = plain_attention(*inputs, mask, scale=scale)
    assert_close(sliding_window_attention(*inputs, 3, scale=scale), exact, exact)


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_neighbours_move_nothing(dim: int, device: str) -> None:
    inputs = Case("text", t=7, s=7).inputs(torch.float32, device)
    before = sliding_window_attention(*inputs, 3, block_size=2)
    after = sliding_window_attention(*(changed(x, dim, 1, 2) for x in inputs), 3, block_size=2)
    moved = (before != after).transpose(0, dim).flatten(1).any(1)
    assert moved.tolist() == [n == 1 for n in range(before.shape[dim])]
