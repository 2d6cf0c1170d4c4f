"""The proof of `grouped_query`: each test is a claim that its page makes."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_grouped_query_details import REFUSED, Largest, layers, tied_heads
from tests.proof import Case, assert_agrees, assert_close, causal, changed, draw_mask, normal, plain_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    causal_grouped_attention,
    fused_grouped_attention,
    grouped_query_attention,
    grouped_query_cost,
    mean_pool_kv_heads,
)
from annotated_attention.kv_cache import KVCache, kv_cache_bytes
from annotated_attention.multi_head import split_heads
from annotated_attention.rotary import rotary_attention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

sdpa = partial(F.scaled_dot_product_attention, enable_gqa=True)
# Six query heads on three heads of keys and values.
GROUPED = Case("grouped", r=2)
every_g = pytest.mark.parametrize("g", [6, 3, 2, 1])


def inputs_of(case: Case, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """Large scores from numbers that bfloat16 holds, so that their sum is exact in float64, whatever its order:
    at 1e4, a difference in the last place of a score is one of 1e-12 in the weights."""
    coarse = torch.bfloat16 if case.largest_score else dtype
    return tuple(x.to(dtype) for x in case.inputs(coarse, device))


@proof.each_case
@proof.each_dtype
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_agrees_with_pytorch(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    case = replace(case, r=2)
    oracle = partial(plain_attention, mask=causal(case.t, case.s, device) if is_causal else None)
    ours = partial(grouped_query_attention, is_causal=is_causal)
    peer = partial(sdpa, is_causal=is_causal)
    assert_agrees(ours, peer, inputs_of(case, dtype, device), oracle=oracle)


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
@pytest.mark.parametrize(
    "shape", [(1, 7), (5, 1), (1, 5, 7), (6, 1, 7), (6, 5, 1), (2, 1, 1, 7), (1, 6, 5, 7), (2, 6, 1, 1)]
)
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


@every_g
@proof.each_dtype
def test_one_function_from_multi_head_to_multi_query(g: int, dtype: torch.dtype, device: str) -> None:
    inputs = query, key, value = Case("shared", g=g, r=6 // g).inputs(dtype, device)
    ours = partial(grouped_query_attention, is_causal=True)
    assert_agrees(
        ours,
        partial(sdpa, is_causal=True),
        inputs,
        oracle=partial(plain_attention, mask=causal(5, 7, device)),
    )
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
        moved = [
            (x != before).transpose(0, 1).flatten(1).any(1).nonzero()[:, 0].tolist() for x in (after, other)
        ]
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
    assert cost == grouped_query_cost(case.b, h, g, case.s, case.d)
    assert cost[0] / cost[1] == h // g


def test_operations_do_not_depend_on_g() -> None:
    counts = set()
    for g in (6, 3, 2, 1):
        with FlopCounterMode(display=False) as counter:
            grouped_query_attention(*Case("prefill", g=g, r=6 // g).inputs(), is_causal=True)
        counts.add(counter.get_total_flops())
    assert counts == {2 * 2 * 6 * 5 * 7 * (11 + 13)}


def test_cache_table() -> None:
    models = {(32, 32, 32, 128): (512, 512), (80, 64, 8, 128): (2560, 320)}
    models |= {(32, 32, 8, 128): (512, 128), (32, 71, 1, 64): (568, 8)}
    for (n_layers, h, g, d), kibibytes in models.items():
        assert [kv_cache_bytes(n_layers, heads, d, 1) / 1024 for heads in (h, g)] == list(kibibytes)
        assert kv_cache_bytes(n_layers, g, d, 1) == n_layers * grouped_query_cost(1, h, g, 1, d)[1]
    assert kv_cache_bytes(80, 64, 128, 4096) == 10 * 2**30
    assert 2 * 6.7e9 / kv_cache_bytes(32, 32, 128, 1) == pytest.approx(25_000, rel=0.03)


@every_g
@proof.each_dtype
def test_is_multi_head_with_tied_weights(g: int, dtype: torch.dtype, device: str) -> None:
    layer, wide = (layers(66, 6, g, kind, device)[1] for kind in (dtype, torch.float64))
    x = normal("x", 2, 7, 66, dtype=dtype, device=device)
    exact = tied_heads(wide)(x.double())
    assert_close(layer(x), tied_heads(layer)(x), exact)


def test_layer_with_all_heads_is_self_attention() -> None:
    multi_head, grouped = layers(66, 6, 6)
    grouped.load_state_dict(multi_head.state_dict())
    x = normal("x", 2, 7, 66)
    exact = multi_head(x)
    assert_close(grouped(x), exact, exact)


@every_g
@given(cuts=st.sets(st.integers(1, 10)))
def test_decoding_equals_prefill(g: int, cuts: set[int], device: str) -> None:
    layer, cache = layers(66, 6, g, device=device)[1], KVCache(11)
    x = normal("x", 2, 11, 66, device=device)
    marks = [0, *sorted(cuts), 11]
    with torch.no_grad():
        steps = [layer(x[:, a:z], cache=cache) for a, z in itertools.pairwise(marks)]
        exact = layer(x)
    assert_close(torch.cat(steps, 1), exact, exact)


@every_g
def test_cache_is_g_over_h(g: int) -> None:
    x, held = normal("x", 2, 11, 66), []
    for layer in layers(66, 6, g):
        cache = KVCache(11)
        with torch.no_grad():
            layer(x, cache=cache)
        held.append(cache.nbytes)
    assert held[1] * 6 == held[0] * g
    assert held[1] == kv_cache_bytes(1, g, 11, 11, batch=2, dtype=torch.float64)
    assert held[1] == 4 * grouped_query_cost(2, 6, g, 11, 11)[1]  # float64, not bfloat16


@every_g
def test_rotary_and_groups_compose(g: int, device: str) -> None:
    layer, cache = layers(60, 6, g, device=device)[1], KVCache(7)
    x = normal("x", 2, 7, 60, device=device)
    layer.attend = partial(rotary_attention, attend=causal_grouped_attention)
    tied = tied_heads(layer)
    tied.attend = rotary_attention
    exact = tied(x)
    assert_close(layer(x), exact, exact)
    with torch.no_grad():
        steps = [layer(token, cache=cache) for token in x.split(1, 1)]
    assert_close(torch.cat(steps, 1), exact, exact)
    assert cache.nbytes == kv_cache_bytes(1, g, 10, 7, batch=2, dtype=torch.float64)


@pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1])
def test_equal_heads_convert_exactly(n_kv_heads: int, device: str) -> None:
    grouped, x = layers(66, 6, n_kv_heads, device=device)[1], normal("x", 2, 7, 66, device=device)
    source = tied_heads(grouped)
    exact = source(x)
    assert_close(GroupedQueryAttention.from_multi_head(source, n_kv_heads)(x), exact, exact)
    # Heads that differ do not.
    source = layers(66, 6, 1, device=device)[0]
    loss = (GroupedQueryAttention.from_multi_head(source, n_kv_heads)(x) - source(x)).abs().max()
    assert loss < 1e-12 if n_kv_heads == 6 else loss > 0.01


@given(seed=st.integers(0, 999), g=st.sampled_from([1, 2, 3, 6]))
def test_mean_is_least_squares(seed: int, g: int) -> None:
    heads = normal("heads", g, 6 // g, 11, 5)
    mean = mean_pool_kv_heads(heads.reshape(66, 5), 6, g).reshape(g, 1, 11, 5)
    other = mean + normal(f"step {seed}", g, 1, 11, 5)
    errors = [((heads - x) ** 2).sum().item() for x in (mean, other)]
    assert errors[1] - errors[0] == pytest.approx(6 // g * ((other - mean) ** 2).sum().item())


@every_g
def test_pooling_weights_pools_keys(g: int) -> None:
    weight, x = normal("weight", 66, 5), normal("x", 2, 7, 5)
    keys = split_heads(x @ weight.T, 6).unflatten(1, (g, 6 // g)).mean(2)
    pooled = split_heads(x @ mean_pool_kv_heads(weight, 6, g).T, g)
    assert_close(pooled, keys, keys)


@pytest.mark.parametrize("r", [2, 4, 8])
def test_mean_of_unlike_heads_is_short(r: int) -> None:
    # Uncorrelated and of equal size: orthonormal, taken as vectors.
    heads = torch.linalg.qr(normal("heads", 64 * 128, r)).Q.T.reshape(r, 64, 128)
    mean = mean_pool_kv_heads(heads.reshape(r * 64, 128), r, 1)
    assert mean.norm().item() == pytest.approx(r**-0.5)
    # So the scores shrink as much, and the weights are spread over more keys.
    x, query = normal("x", 512, 128), normal("asked", 512, 64)
    scores = [8 * query @ (x @ w.T).T for w in (heads[0], mean)]
    assert (scores[1].std() / scores[0].std()).item() == pytest.approx(r**-0.5, rel=0.05)
    first, pooled = (torch.special.entr(z.softmax(-1)).sum(-1).mean() for z in scores)
    assert pooled > first


def test_pooling_depends_on_the_basis() -> None:
    source, turned, x = layers(66, 6, 1)[0], layers(66, 6, 1)[0], normal("x", 2, 7, 66)
    turns = torch.linalg.qr(normal("turns", 6, 11, 11)).Q
    with torch.no_grad():
        for w in (turned.w_q, turned.w_k):
            w.weight.copy_((turns @ w.weight.reshape(6, 11, 66)).reshape(66, 66))
    exact = source(x)
    assert_close(turned(x), exact, exact, factor=8)
    one, other = (GroupedQueryAttention.from_multi_head(layer, 2)(x) for layer in (source, turned))
    assert (one - other).abs().max() > 0.01


def test_turned_heads_can_be_turned_back() -> None:
    key = normal("key", 1, 11, 66)
    turns = torch.linalg.qr(normal("turns", 6, 11, 11)).Q
    heads = turns @ key
    assert (mean_pool_kv_heads(heads.reshape(66, 66), 6, 1).norm() / key.norm()) < 0.7
    # Procrustes: the turn that brings head n closest to head 0 comes from a singular value decomposition.
    u, _, v = torch.linalg.svd(heads[0] @ heads.mT)
    aligned = u @ v @ heads
    assert_close(mean_pool_kv_heads(aligned.reshape(66, 66), 6, 1), heads[0], heads[0], factor=8)


@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
@pytest.mark.parametrize("batched", [False, True])
def test_fused_attention_agrees(dtype: torch.dtype, batched: bool, device: str) -> None:
    inputs, j = GROUPED.inputs(dtype, device), torch.arange(7, device=device)
    i = torch.tensor([[2, 3, 4, 5, 6], [0, 1, 2, 3, 4]], device=device)
    i = i if batched else i[0]
    mask = (j <= i[..., None]).reshape(-1, 1, 5, 7)
    ours, fused = (partial(f, i=i, j=j) for f in (causal_grouped_attention, fused_grouped_attention))
    oracle = partial(plain_attention, mask=mask)
    assert_agrees(fused, oracle, inputs)
    assert_agrees(ours, oracle, inputs)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_flex_attention_agrees(dtype: torch.dtype, device: str) -> None:
    inputs = GROUPED.inputs(dtype, device)
    block_mask = create_block_mask(lambda b, n, i, j: j <= i, None, None, 5, 7, device=device)
    flex = flex_attention(*inputs, block_mask=block_mask, enable_gqa=True)
    exact = plain_attention(*GROUPED.inputs(device=device), causal(5, 7, device))
    assert isinstance(flex, Tensor)
    assert_close(flex, grouped_query_attention(*inputs, is_causal=True), exact)
