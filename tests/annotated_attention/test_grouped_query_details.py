"""What the proof of `grouped_query` is made of, and the claims that its page need not make."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.proof import Case, assert_close, changed, normal, plain_attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    causal_grouped_attention,
    grouped_query_attention,
    mean_pool_kv_heads,
)
from annotated_attention.language_model import SelfAttention
from annotated_attention.rotary import apply_rotary, rotary_attention

# Six query heads on three heads of keys and values.
GROUPED, SQUARE = Case("grouped", r=2), Case("square", r=2, t=7, s=7)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that was allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


def layers(
    m: int, h: int, g: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[SelfAttention, GroupedQueryAttention]:
    """Random layers of both kinds, with weights that do not depend on the machine."""
    pair = SelfAttention(m, h), GroupedQueryAttention(m, h, g)
    for layer in pair:
        for name, weight in layer.named_parameters():
            weight.data = normal(name, *weight.shape, dtype=torch.float64) * weight.shape[1] ** -0.5
        layer.to(device, dtype)
    return pair


def tied_heads(layer: GroupedQueryAttention) -> SelfAttention:
    """Multi-head attention whose heads repeat the rows of the group that they belong to."""
    m, r = layer.w_q.in_features, layer.n_heads // layer.n_kv_heads
    d = m // layer.n_heads
    copy = SelfAttention(m, layer.n_heads).to(layer.w_q.weight)
    copy.w_q, copy.w_o = layer.w_q, layer.w_o
    for name in ("w_k", "w_v"):
        rows = getattr(layer, name).weight.detach().reshape(-1, d, m).repeat_interleave(r, 0).reshape(-1, m)
        getattr(copy, name).weight = torch.nn.Parameter(rows)
    return copy


# What is wrong, and what the message says.
REFUSED = {
    "heads": ({"key": (2, 4, 7, 11), "value": (2, 4, 7, 13)}, "key has 4 heads, query has 6"),
    "no key heads": ({"key": (2, 0, 7, 11), "value": (2, 0, 7, 13)}, "key has 0 heads"),
    "value heads": ({"value": (2, 6, 7, 13)}, "value has shape"),
    "width": ({"key": (2, 3, 7, 5)}, "key has shape"),
    "rank": ({"query": (6, 5, 11)}, "query is"),
    "mask": ({"attn_mask": (3, 5, 7)}, "attn_mask is"),
    "both": ({"attn_mask": (5, 7), "is_causal": True}, "together with is_causal"),
}


@pytest.mark.parametrize("scale", [0.0, 0.3, -2.0])
def test_scale_is_that_of_pytorch(scale: float, device: str) -> None:
    inputs = GROUPED.inputs(device=device)
    exact = plain_attention(*inputs, scale=scale)
    peer = F.scaled_dot_product_attention(*inputs, scale=scale, enable_gqa=True)
    assert_close(grouped_query_attention(*inputs, scale=scale), peer, exact)


@pytest.mark.parametrize("dtype", proof.DTYPES[2:], ids=["bfloat16", "float16"])
def test_half_precision_rounds_once(dtype: torch.dtype, device: str) -> None:
    inputs = replace(GROUPED, largest_score=1e3).inputs(dtype, device)
    wide = grouped_query_attention(*(x.float() for x in inputs))
    assert torch.equal(grouped_query_attention(*inputs), wide.to(dtype))


def test_groups_and_texts_are_independent(device: str) -> None:
    inputs = GROUPED.inputs(torch.float32, device)
    before = grouped_query_attention(*inputs)
    after = grouped_query_attention(*(changed(x, 0, 1, 2) for x in inputs))
    assert (before != after).flatten(1).any(1).tolist() == [False, True]
    moved = before != grouped_query_attention(changed(inputs[0], 1, 3, 4), *inputs[1:])
    assert moved.transpose(0, 1).flatten(1).any(1).tolist() == [n == 3 for n in range(6)]


@pytest.mark.parametrize("start", range(1, 7))
def test_future_moves_nothing(start: int, device: str) -> None:
    query, key, value = SQUARE.inputs(torch.float32, device)
    ours = partial(grouped_query_attention, is_causal=True)
    moved = (ours(query, key, value) != ours(query, changed(key, 2, start), changed(value, 2, start))).any(-1)
    assert (moved == (torch.arange(7, device=device) >= start)).all()


@pytest.mark.parametrize("positions", [torch.tensor([4, 1, 3]), torch.tensor([[4, 1, 3], [0, 1, 2]])])
def test_positions_reach_the_mask(positions: Tensor) -> None:
    layer, x = layers(66, 6, 2)[1], normal("x", 2, 3, 66)
    order = positions.expand(2, 3).argsort(-1)[..., None].expand(2, 3, 66)
    sorted_first = layer(x.gather(1, order))
    assert_close(layer(x, positions=positions).gather(1, order), sorted_first, sorted_first)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(6, 4), (6, 0), (6, 12), (0, 1)])
def test_heads_must_divide(n_heads: int, n_kv_heads: int) -> None:
    with pytest.raises(ValueError, match=f"n_heads is {n_heads}"):
        GroupedQueryAttention(66, n_heads, n_kv_heads)
    with pytest.raises(ValueError, match=f"n_heads is {n_heads}, n_kv_heads is {n_kv_heads}"):
        mean_pool_kv_heads(torch.ones(66, 5), n_heads, n_kv_heads)


def test_width_must_divide() -> None:
    with pytest.raises(ValueError, match="d_model is 64, n_heads is 6: a multiple of n_heads is wanted"):
        GroupedQueryAttention(64, 6, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_conversion_keeps_dtype_mode_and_attention(dtype: torch.dtype) -> None:
    source = layers(66, 6, 1, dtype)[0].eval()
    copy = GroupedQueryAttention.from_multi_head(source, 2)
    assert {x.dtype for x in copy.parameters()} == {dtype}
    assert not copy.training
    assert copy.attend is causal_grouped_attention
    copy.w_q.weight.data.zero_()
    assert (source.w_q.weight != 0).any()
    source.attend = rotary_attention
    with pytest.raises(ValueError, match="attend"):
        GroupedQueryAttention.from_multi_head(source, 2)
    attend = partial(rotary_attention, attend=causal_grouped_attention)
    assert GroupedQueryAttention.from_multi_head(source, 2, attend=attend).attend is attend


def test_pooling_by_hand() -> None:
    weight = torch.tensor([[0.0, 1], [2, 3], [10, 11], [12, 13], [20, 21], [22, 23], [30, 31], [32, 33]])
    assert mean_pool_kv_heads(weight, 4, 2).tolist() == [[5, 6], [7, 8], [25, 26], [27, 28]]
    assert mean_pool_kv_heads(weight[:, 0], 4, 2).tolist() == [5, 7, 25, 27]
    assert mean_pool_kv_heads(weight, 4, 1).tolist() == [[15, 16], [17, 18]]
    assert torch.equal(mean_pool_kv_heads(weight, 4, 4), weight)
    for wrong in (weight[:6], weight[None]):
        with pytest.raises(ValueError, match="weight has shape"):
            mean_pool_kv_heads(wrong, 4, 2)


def test_rotary_frees_turns_within_pairs(device: str) -> None:
    query, key, value = Case("even", t=7, s=7, d=10).inputs(device=device)
    positions, angles = torch.arange(7, device=device), normal("angles", 1, 5, device=device).expand(7, 5)
    attend = partial(rotary_attention, value=value, i=positions, j=positions)
    exact = attend(query, key)
    assert_close(attend(apply_rotary(query, angles), apply_rotary(key, angles)), exact, exact)
    # Without positions a turn across the pairs is free as well.
    across = torch.linalg.qr(normal("across", 10, 10, device=device)).Q
    plain = plain_attention(query, key, value)
    assert (plain_attention(query @ across, key @ across, value) - plain).abs().max() < 1e-12
    assert (attend(query @ across, key @ across) - exact).abs().max() > 0.1
