"""The proof of `grouped_query`: each test is a claim that its page makes."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_agrees, assert_close, causal, changed, draw_mask, normal, plain_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    causal_grouped_attention,
    decode_cost,
    fused_grouped_attention,
    grouped_query_attention,
    mean_pool_kv_heads,
)
from annotated_attention.language_model import SelfAttention, causal_attention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

sdpa = partial(F.scaled_dot_product_attention, enable_gqa=True)
# Six query heads on three heads of keys and values.
GROUPED, SQUARE = Case("grouped", r=2), Case("square", r=2, t=7, s=7)
every_g = pytest.mark.parametrize("g", [6, 3, 2, 1])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that was allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.known = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


class Held:
    """The least that a cache can be: lists of what came."""

    def __init__(self) -> None:
        self.key = self.value = None

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.key = key if self.key is None else torch.cat([self.key, key], 2)
        self.value = value if self.value is None else torch.cat([self.value, value], 2)
        return self.key, self.value

    @property
    def positions(self) -> Tensor:
        return torch.arange(0 if self.key is None else self.key.shape[2])

    @property
    def nbytes(self) -> int:
        return self.key.nbytes + self.value.nbytes


def layers(m: int, h: int, g: int, dtype: torch.dtype = torch.float64) -> tuple[SelfAttention, GroupedQueryAttention]:
    """Random layers of both kinds, with weights that do not depend on the machine."""
    pair = SelfAttention(m, h), GroupedQueryAttention(m, h, g)
    for layer in pair:
        for name, weight in layer.named_parameters():
            weight.data = normal(name, *weight.shape, dtype=torch.float64) * weight.shape[1] ** -0.5
        layer.to(dtype)
    return pair


def turned_to_multi_head(layer: GroupedQueryAttention) -> SelfAttention:
    """Multi-head attention whose heads repeat the rows of the group that they belong to."""
    m, r = layer.w_q.in_features, layer.n_heads // layer.n_kv_heads
    d = m // layer.n_heads
    copy = SelfAttention(m, layer.n_heads).to(layer.w_q.weight)
    copy.w_q, copy.w_o = layer.w_q, layer.w_o
    for name in ("w_k", "w_v"):
        rows = getattr(layer, name).weight.detach().reshape(-1, d, m).repeat_interleave(r, 0).reshape(-1, m)
        getattr(copy, name).weight = torch.nn.Parameter(rows)
    return copy


@proof.each_case
@proof.each_dtype
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_agrees_with_pytorch(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    case = replace(case, r=2)
    oracle = partial(plain_attention, mask=causal(case.t, case.s, device) if is_causal else None)
    ours = partial(grouped_query_attention, is_causal=is_causal)
    peer = partial(sdpa, is_causal=is_causal)
    assert_agrees(ours, peer, case.inputs(dtype, device), oracle=oracle)


@proof.each_mask
@proof.each_dtype
def test_masks_agree_with_pytorch(mask_kind: str, dtype: torch.dtype, device: str) -> None:
    inputs, mask = GROUPED.inputs(dtype, device), draw_mask(mask_kind, GROUPED, dtype, device)
    if mask.dtype == torch.bool:
        ours, peer, oracle = (proof.masked(f, mask) for f in (grouped_query_attention, sdpa, plain_attention))
        assert_agrees(ours, peer, inputs, oracle=oracle)
    else:
        names = ("query", "key", "value", "attn_mask")
        assert_agrees(grouped_query_attention, sdpa, (*inputs, mask), oracle=plain_attention, names=names)


@every_g
@pytest.mark.parametrize("shape", [(1, 7), (5, 1), (1, 5, 7), (6, 1, 7), (6, 5, 1), (2, 1, 1, 7), (1, 6, 5, 7), (2, 6, 1, 1)])
def test_masks_broadcast(shape: tuple[int, ...], g: int, device: str) -> None:
    inputs = Case("shared", g=g, r=6 // g).inputs(device=device)
    bias = normal("bias", *shape, device=device)
    for mask in (bias, bias < 0.5):
        exact = plain_attention(*inputs, mask)
        assert_close(grouped_query_attention(*inputs, mask), exact, exact)


@pytest.mark.parametrize("kind", [None, "causal", "bool-rank-3", "float-rank-4", "bool-empty-rows"])
def test_gradcheck(kind: str | None) -> None:
    case = Case("small", g=2, r=3, t=3, s=5, d=2, e=3, b=1)
    mask = None if kind in (None, "causal") else draw_mask(kind, case)
    ours = partial(grouped_query_attention, attn_mask=mask, is_causal=kind == "causal")
    proof.assert_gradcheck(ours, case.inputs())


@pytest.mark.parametrize("scale", [0.0, 0.3, -2.0])
def test_scale_is_that_of_pytorch(scale: float, device: str) -> None:
    inputs = GROUPED.inputs(device=device)
    exact = plain_attention(*inputs, scale=scale)
    assert_close(grouped_query_attention(*inputs, scale=scale), sdpa(*inputs, scale=scale), exact)


@every_g
@proof.each_dtype
def test_one_function_from_multi_head_to_multi_query(g: int, dtype: torch.dtype, device: str) -> None:
    inputs = query, key, value = Case("shared", g=g, r=6 // g).inputs(dtype, device)
    ours = partial(grouped_query_attention, is_causal=True)
    assert_agrees(ours, partial(sdpa, is_causal=True), inputs, oracle=partial(plain_attention, mask=causal(5, 7, device)))
    if g == 6:
        assert torch.equal(ours(*inputs), scaled_dot_product_attention(*inputs, is_causal=True))
    if g == 1:
        # Every head alone with the only key head.
        heads = [ours(query[:, n, None], key, value) for n in range(6)]
        exact = plain_attention(*(x.double() for x in inputs), causal(5, 7, device))
        assert_close(torch.cat(heads, 1), sdpa(*inputs, is_causal=True), exact)


@every_g
def test_neighbours_share_a_head(g: int, device: str) -> None:
    inputs = query, key, value = Case("shared", g=g, r=6 // g).inputs(device=device)
    before, readers = grouped_query_attention(*inputs), []
    for u in range(g):
        after = grouped_query_attention(query, changed(key, 1, u, u + 1), value)
        other = grouped_query_attention(query, key, changed(value, 1, u, u + 1))
        moved = [(x != before).transpose(0, 1).flatten(1).any(1).nonzero()[:, 0].tolist() for x in (after, other)]
        assert moved[0] == moved[1]
        readers.append(moved[0])
    assert readers == [[n for n in range(6) if n // (6 // g) == u] for u in range(g)]
    # `repeat` deals the key heads out in turn: for 1 < g < h that is another model.
    dealt = plain_attention(query, *(x.repeat(1, 6 // g, 1, 1) for x in (key, value)))
    assert ((dealt - before).abs().max() > 0.1) == (g in (2, 3))


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_keys_are_never_repeated(part: str, device: str) -> None:
    case = Case("decoding", r=5, t=1, s=64, d=32, e=32)
    inputs = [x.requires_grad_(part == "backward") for x in case.inputs(torch.float32, device)]

    def largest(function) -> int:
        with Largest() as seen:
            output = function(*inputs)
            if part == "backward":
                output.sum().backward()
        return seen.elements

    def repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa(query, key.repeat_interleave(5, 1), value.repeat_interleave(5, 1))

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return sdpa(query, key, value)

    keys = case.b * case.g * case.s * case.d
    assert largest(grouped_query_attention) == keys
    assert largest(repeated) == 5 * keys
    assert largest(plain) >= 5 * keys


def test_a_group_is_one_head_with_more_queries(device: str) -> None:
    query, key, value = GROUPED.inputs(device=device)
    longer = query.reshape(2, 3, 2 * 5, 11)
    exact = plain_attention(query, key, value)
    folded = scaled_dot_product_attention(longer, key, value).reshape(2, 6, 5, 13)
    assert_close(folded, grouped_query_attention(query, key, value), exact)


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


REFUSED = {
    "heads": ({"key": (2, 4, 7, 11), "value": (2, 4, 7, 13)}, "key has 4 heads, query has 6"),
    "no key heads": ({"key": (2, 0, 7, 11), "value": (2, 0, 7, 13)}, "key has 0 heads"),
    "value heads": ({"value": (2, 6, 7, 13)}, "value has shape"),
    "width": ({"key": (2, 3, 7, 5)}, "key has shape"),
    "rank": ({"query": (6, 5, 11)}, "query is"),
    "mask": ({"attn_mask": (3, 5, 7)}, "attn_mask is"),
    "both": ({"attn_mask": (5, 7), "is_causal": True}, "together with is_causal"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused(name: str) -> None:
    wrong, message = REFUSED[name]
    shapes = {"query": (2, 6, 5, 11), "key": (2, 3, 7, 11), "value": (2, 3, 7, 13)}
    inputs = [torch.ones(wrong.get(x, shapes[x])) for x in shapes]
    mask = torch.ones(wrong["attn_mask"], dtype=torch.bool) if "attn_mask" in wrong else None
    with pytest.raises(ValueError, match=message):
        proof.bare(grouped_query_attention)(*inputs, mask, wrong.get("is_causal", False))


@pytest.mark.parametrize(("h", "g"), [(8, 8), (8, 4), (8, 1), (6, 3)])
def test_operations_per_byte(h: int, g: int) -> None:
    case = Case("one token", g=g, r=h // g, t=1, s=37, d=11, e=11)
    inputs = case.inputs(torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        grouped_query_attention(*inputs)
    cost = counter.get_total_flops(), inputs[1].nbytes + inputs[2].nbytes
    assert cost == decode_cost(case.b, h, g, case.s, case.d)
    assert cost[0] / cost[1] == h // g


def test_operations_do_not_depend_on_g() -> None:
    counts = set()
    for g in (6, 3, 2, 1):
        with FlopCounterMode(display=False) as counter:
            grouped_query_attention(*Case("prefill", g=g, r=6 // g).inputs(), is_causal=True)
        counts.add(counter.get_total_flops())
    assert counts == {2 * 2 * 6 * 5 * 7 * (11 + 13)}


def test_cache_table() -> None:
    def kibibytes(layers: int, g: int, d: int) -> float:
        return layers * decode_cost(1, g, g, 1, d)[1] / 1024

    assert [kibibytes(32, g, 128) for g in (32, 8)] == [512, 128]
    assert [kibibytes(80, g, 128) for g in (64, 8)] == [2560, 320]
    assert [kibibytes(32, g, 64) for g in (71, 1)] == [568, 8]
    assert kibibytes(80, 64, 128) * 4096 == 10 * 1024**2
    assert 6.7e9 * 2 / (512 * 1024) == pytest.approx(25_000, rel=0.03)


@every_g
@proof.each_dtype
def test_is_multi_head_with_tied_weights(g: int, dtype: torch.dtype) -> None:
    layer = layers(66, 6, g, dtype)[1]
    wide = layers(66, 6, g)[1]
    x = normal("x", 2, 7, 66, dtype=dtype)
    exact = turned_to_multi_head(wide)(x.double())
    assert_close(layer(x), turned_to_multi_head(layer)(x), exact)


def test_layer_with_all_heads_is_self_attention() -> None:
    multi_head, grouped = layers(66, 6, 6)
    grouped.load_state_dict(multi_head.state_dict())
    x = normal("x", 2, 7, 66)
    assert torch.equal(multi_head(x), grouped(x))


@every_g
@given(cuts=st.sets(st.integers(1, 10)))
def test_decoding_equals_prefill(g: int, cuts: set[int]) -> None:
    layer, x, cache = layers(66, 6, g)[1], normal("x", 2, 11, 66), Held()
    marks = [0, *sorted(cuts), 11]
    with torch.no_grad():
        steps = [layer(x[:, a:z], cache=cache) for a, z in zip(marks, marks[1:], strict=False)]
        exact = layer(x)
    assert_close(torch.cat(steps, 1), exact, exact)


@every_g
def test_cache_is_g_over_h(g: int) -> None:
    x, held = normal("x", 2, 11, 66), []
    for layer in layers(66, 6, g):
        cache = Held()
        layer(x, cache=cache)
        held.append(cache.nbytes)
    assert held[1] * 6 == held[0] * g
    assert held[1] == 11 * decode_cost(2, 6, g, 1, 11, itemsize=8)[1]


@pytest.mark.parametrize("positions", [torch.tensor([4, 1, 3]), torch.tensor([[4, 1, 3], [0, 1, 2]])])
def test_positions_reach_the_mask(positions: Tensor) -> None:
    layer, x = layers(66, 6, 2)[1], normal("x", 2, 3, 66)
    order = positions.expand(2, 3).argsort(-1)[..., None].expand(2, 3, 66)
    sorted_first = layer(x.gather(1, order))
    assert_close(layer(x, positions=positions).gather(1, order), sorted_first, sorted_first)


@pytest.mark.parametrize("sizes", [(7, 3, 1), (6, 0, 1), (6, 4, 1)][:2])
def test_layer_refuses_heads_that_do_not_divide(sizes) -> None:
    with pytest.raises(ValueError, match="n_heads"):
        GroupedQueryAttention(*sizes)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(6, 4), (6, 0), (6, 12), (0, 1)])
def test_heads_must_divide(n_heads: int, n_kv_heads: int) -> None:
    with pytest.raises(ValueError, match=f"n_heads is {n_heads}"):
        GroupedQueryAttention(66, n_heads, n_kv_heads)
    with pytest.raises(ValueError, match=f"n_heads is {n_heads}, n_kv_heads is {n_kv_heads}"):
        mean_pool_kv_heads(torch.ones(66, 5), n_heads, n_kv_heads)
