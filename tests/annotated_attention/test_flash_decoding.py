"""The proof of `flash_decoding`: each test is a claim that its page makes."""

from collections.abc import Callable
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_flash_details import GROUPED, assert_lse, plain_lse
from tests.annotated_attention.test_grouped_query_details import Largest
from tests.annotated_attention.test_sliding_window_details import model_of
from tests.annotated_attention.test_sliding_window_stack import PLACES as OF_LESSON_9
from tests.proof import Case, assert_agrees, assert_close, plain_attention
from torch import Tensor

from annotated_attention.flash import flash_attention, merge_attention
from annotated_attention.flash_decoding import (
    causal_flash_attention,
    first_of_run,
    flash_behind_a_cache,
    shared_prefix_attention,
    split_attention,
)
from annotated_attention.kv_cache import make_caches
from annotated_attention.language_model import causal_attention, generate
from annotated_attention.sliding_window import RollingKVCache

PLACES = {
    **OF_LESSON_9,
    "before": (range(2, 7), range(4, 11)),
    "one before": ([2], range(4, 11)),
    "one within": ([6], range(4, 11)),
    "behind": (range(9, 14), range(2, 7)),
}
CACHE = Case("cache", r=2, t=1, s=23)


@given(n_splits=st.integers(1, 40), s=st.integers(0, 37), t=st.integers(1, 3))
def test_any_number_of_readers_is_one(n_splits: int, s: int, t: int, device: str) -> None:
    inputs = Case("cache", b=1, g=2, r=2, t=t, s=s, d=4, e=3).inputs(device=device)
    exact = plain_attention(*inputs)
    output, lse = split_attention(*inputs, n_splits)
    assert_close(output, exact, exact)
    whole = flash_attention(*inputs)[1]
    assert_lse(lse, whole, whole)


@proof.each_dtype
@pytest.mark.parametrize("n_splits", [1, 5, 23])
def test_readers_agree_in_every_dtype(dtype: torch.dtype, n_splits: int, device: str) -> None:
    assert_agrees(lambda *x: split_attention(*x, n_splits)[0], plain_attention, CACHE.inputs(dtype, device))
    # What is merged is not rounded before the last merge.
    inputs = CACHE.inputs(dtype, device)
    wide = [x.to(torch.promote_types(dtype, torch.float32)) for x in inputs]
    assert torch.equal(split_attention(*inputs, n_splits)[0], split_attention(*wide, n_splits)[0].to(dtype))


@given(order=st.permutations(range(6)))
def test_readers_may_return_in_any_order(order: list[int], device: str) -> None:
    query, key, value = CACHE.inputs(device=device)
    parts = [flash_attention(query, k, v) for k, v in zip(key.split(4, 2), value.split(4, 2), strict=True)]
    output, lse = reduce(lambda a, b: merge_attention(*a, *b), [parts[n] for n in order])
    exact = split_attention(query, key, value, 6)
    assert_close(output, exact[0], exact[0])
    assert_close(lse, exact[1], exact[1])


@proof.each_dtype
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_shared_prefix_is_a_longer_text(dtype: torch.dtype, is_causal: bool, device: str) -> None:
    case = Case("texts", b=3, r=2, t=5, s=5)
    beginning = Case("beginning", b=1, t=1, s=11)
    inputs = [*case.inputs(dtype, device), *(x + 1 for x in beginning.inputs(dtype, device)[1:])]

    def ours(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor) -> Tensor:
        own = key, value
        return shared_prefix_attention(query, prefix_key, prefix_value, *own, is_causal=is_causal)[0]

    def longer(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor) -> Tensor:
        keys = torch.cat([prefix_key.expand(3, -1, -1, -1), key], 2)
        values = torch.cat([prefix_value.expand(3, -1, -1, -1), value], 2)
        mask = torch.ones(5, 16, dtype=torch.bool, device=device).tril(11) if is_causal else None
        return plain_attention(query, keys, values, mask)

    names = ["query", "key", "value", "prefix_key", "prefix_value"]
    assert_agrees(ours, longer, inputs, names=names)
    # No text at all, and texts without a query.
    for query, *own in ([x[:0] for x in inputs[:3]], [x[:, :, :0] for x in inputs[:3]]):
        output, lse = shared_prefix_attention(query, *inputs[3:], *own)
        assert (output.shape, lse.shape) == ((*query.shape[:3], 13), query.shape[:3])


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("dtype", proof.DTYPES[:3:2], ids=["float64", "bfloat16"])
def test_slot_is_by_position(name: str, dtype: torch.dtype, device: str) -> None:
    i, j = (
        torch.tensor([list(x) for x in places] if name.endswith("rows") else list(places))
        for places in PLACES[name]
    )
    rows, columns = i.expand(2, -1).tolist(), j.expand(2, -1).tolist()
    mask = torch.tensor(
        [[[0 <= k <= q for k in c] for q in r] for r, c in zip(rows, columns, strict=True)], device=device
    )
    inputs = Case(name, r=2, t=i.shape[-1], s=j.shape[-1]).inputs(dtype, device)
    exact = plain_attention(*(x.double() for x in inputs), mask[:, None])
    found = causal_flash_attention(*inputs, i.to(device), j.to(device))
    assert found.dtype == dtype
    assert_close(found, plain_attention(*inputs, mask[:, None]), exact)
    if name in ("text", "piece", "apart", "token"):
        wide = causal_flash_attention(*(x.double() for x in inputs), i.to(device), j.to(device))
        half = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 1e-12
        assert (found.double() - wide).abs().max() <= 1.01 * half * wide.abs().max()


@proof.each_dtype
@pytest.mark.parametrize("past", [0, 1, 6, 13])
def test_a_piece_is_two_readers(past: int, dtype: torch.dtype, device: str) -> None:
    """Of 11 keys, a piece of 5 queries sees its own and those before it; behind the last key it sees all."""
    inputs = Case("piece", r=2, t=5, s=11).inputs(dtype, device)
    output, lse = flash_behind_a_cache(*inputs, past, scale=0.3)
    assert output.dtype == dtype
    mask = torch.ones(5, 11, dtype=torch.bool, device=device).tril(past)
    wide, narrow = ([x.to(kind) for x in inputs] for kind in (torch.float64, lse.dtype))
    assert_close(output, plain_attention(*inputs, mask, 0.3), plain_attention(*wide, mask, 0.3))
    assert_lse(lse, *(plain_lse(*x[:2], mask, 0.3) for x in (narrow, wide)))


def test_a_run_is_the_same_for_all_texts() -> None:
    runs = {
        (0, 1, 2): 0,
        (5, 6): 5,
        (7,): 7,
        (): None,
        (-1, 0): None,
        (0, 2): None,
        (1, 0): None,
        ((3, 4), (3, 4)): 3,
        ((3, 4), (4, 5)): None,
    }
    for positions, first in runs.items():
        assert first_of_run(torch.tensor(positions, dtype=torch.long)) == first


def test_a_model_trains_and_writes_the_same(device: str) -> None:
    fast, slow = (model_of(attend, 2).to(device) for attend in (causal_flash_attention, causal_attention))
    tokens = torch.arange(29, device=device).expand(2, 29) ** 2 % 17
    outputs = []
    for model in (fast, slow):
        logits = model(tokens)
        loss = logits.square().mean()
        loss.backward()
        outputs.append([logits, *(x.grad for x in model.parameters())])
    for found, exact in zip(*outputs, strict=True):
        assert_close(found, exact, exact, factor=proof.GRADIENT_FACTOR)
    written = [
        generate(model, tokens[:, :7], 12, temperature=0.0, caches=make_caches(model, 32))
        for model in (fast, slow)
    ]
    assert torch.equal(*written)
    with torch.no_grad():
        exact = slow(tokens)
        for sizes in ([9, 1, 1, 7, 11], [1] * 29):
            caches = make_caches(fast, 29)
            read = torch.cat([fast(piece, caches=caches) for piece in tokens.split(sizes, 1)], 1)
            assert_close(read, exact, exact)
        # A ring that still holds the whole text, and has begun to write over it in places.
        rings = [RollingKVCache(29) for _ in range(2)]
        read = torch.cat([fast(piece, caches=rings) for piece in tokens.split([1] * 20 + [9], 1)], 1)
        assert_close(read, exact, exact)


def test_training_memory_is_linear(device: str) -> None:
    def largest(attend: Callable[..., Tensor], t: int) -> int:
        model = model_of(attend, 1).to(device)
        with Largest() as seen:
            model(torch.arange(t, device=device)[None] % 17).sum().backward()
        return seen.elements

    mlp = 4 * 24
    assert largest(causal_flash_attention, 4096) == 4096 * mlp
    assert largest(causal_attention, 1024) >= 1024 * 1024


def test_bits_depend_on_the_number_of_readers(device: str) -> None:
    inputs = Case("cache", t=7, s=64).inputs(torch.float32, device)
    outputs = [split_attention(*inputs, n)[0] for n in (1, 7)]
    assert not torch.equal(*outputs)
    exact = plain_attention(*(x.double() for x in inputs))
    assert_close(outputs[1], outputs[0], exact)


def test_wrong_input_is_refused() -> None:
    query, key, value = GROUPED.inputs()
    split, shared = proof.bare(split_attention), proof.bare(shared_prefix_attention)
    with pytest.raises(ValueError, match="n_splits is 0: at least 1 is wanted"):
        split(query, key, value, 0)
    with pytest.raises(ValueError, match="value has shape"):
        split(query, key, value[:, :2], 2)
    with pytest.raises(ValueError, match="past is -1: at least 0 is wanted"):
        proof.bare(flash_behind_a_cache)(query, key, value, -1)
    with pytest.raises(ValueError, match="value has shape"):
        proof.bare(flash_behind_a_cache)(query, key, value[:, :2], 2)
    with pytest.raises(ValueError, match="key has 3 heads, query has 5"):
        split(query[:, :5], key, value, 2)
    with pytest.raises(ValueError, match=r"prefix_key is .* \(2, 3, 7, 11\): \(1, 3, 7, 11\)"):
        shared(query, key, value, key, value)
    with pytest.raises(ValueError, match=r"prefix_key is torch\.float32"):
        shared(query, key[:1].float(), value[:1], key, value)
    with pytest.raises(ValueError, match=r"prefix_value is .* \(1, 3, 7, 9\): \(1, 3, 7, 13\)"):
        shared(query, key[:1], value[:1, ..., :9], key, value)
    with pytest.raises(ValueError, match="value has shape"):
        shared(query, key[:1], value[:1], key, value[:, :, :4])
