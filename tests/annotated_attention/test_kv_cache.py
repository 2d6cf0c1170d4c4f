"""The proof of `kv_cache`: each test is a claim that its page makes. Whole models: `_generation`."""

import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_close
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from annotated_attention.kv_cache import KVCache, decode_cost, kv_cache_bytes
from annotated_attention.language_model import Cache, LanguageModelConfig, causal_attention


@proof.each_case
@proof.each_dtype
def test_update_writes_behind_each_text(case: Case, dtype: torch.dtype, device: str) -> None:
    _, key, value = case.inputs(dtype, device)
    cache = KVCache(2 * case.s + 5)
    assert isinstance(cache, Cache)
    for n, seen in enumerate(zip(cache.update(key, value), (key, value), strict=True)):
        assert torch.equal(*seen), n
    kept = [case.s - 1 - row for row in range(case.b)] if case.s > 1 else [1] * case.b
    cache.truncate(kept)
    keys, values = cache.update(2 * key, 3 * value)
    for row, n in enumerate(kept):
        assert torch.equal(keys[row, :, : n + case.s], torch.cat([key[row, :, :n], 2 * key[row]], 1))
        assert torch.equal(values[row, :, : n + case.s], torch.cat([value[row, :, :n], 3 * value[row]], 1))
        assert not keys[row, :, n + case.s :].any()
    assert keys.dtype == dtype
    assert str(keys.device).startswith(device)


steps = st.lists(st.one_of(st.integers(1, 7), st.lists(st.floats(0, 1), min_size=3, max_size=3)), max_size=9)


@given(steps=steps)
def test_positions_say_where_keys_stand(steps: list, device: str) -> None:
    """Any sequence of updates and truncations, beside plain lists of numbered tokens."""
    cache, texts, count = KVCache(64), [[], [], []], 0
    for step in steps:
        if isinstance(step, list):
            kept = [int(share * len(row)) for share, row in zip(step, texts, strict=True)]
            texts = [row[:n] for row, n in zip(texts, kept, strict=True)]
            if count:
                cache.truncate(kept)
            continue
        new = torch.arange(count, count + 3 * step).view(3, 1, step, 1)
        count += 3 * step
        key, _ = cache.update(*(sign * (1.0 + new.to(device)) for sign in (1, -1)))
        texts = [row + more for row, more in zip(texts, (1.0 + new).view(3, step).tolist(), strict=True)]
        assert key.shape[2] == max(map(len, texts))
    positions = cache.positions.tolist() if count else [[], [], []]
    keys, values = (x.squeeze(1).squeeze(-1) if count else x for x in (cache.keys, cache.values))
    for row, expected in enumerate(texts):
        empty = max(map(len, texts)) - len(expected)
        assert positions[row] == [*range(len(expected)), *([-1] * empty)]
        if count:
            assert keys[row].tolist() == expected + [0.0] * (64 - len(expected))
            assert torch.equal(values[row], -keys[row])


def test_update_copies_nothing(device: str) -> None:
    _, key, value = Case("t=s").inputs(device=device)
    cache = KVCache(16)
    first = cache.update(key, value)
    second = cache.update(key[:, :, :1], value[:, :, :1])
    for before, after in zip(first, second, strict=True):
        assert before.data_ptr() == after.data_ptr()
    cache.truncate([3, 5])
    assert not first[0][0, :, 3:].any()
    assert cache.update(key, value)[1].data_ptr() == second[1].data_ptr()


def test_an_empty_cache_takes_any_shape(device: str) -> None:
    _, key, value = Case("t=s").inputs(device=device)
    cache = KVCache(16)
    assert cache.nbytes == 0
    assert cache.positions.numel() == 0
    cache.update(key, value)
    cache.truncate([0, 0])
    assert cache.positions.numel() == 0
    keys, _ = cache.update(key[:1, :2, :3, :5].float(), value[:1, :2, :3].float())
    assert torch.equal(keys, key[:1, :2, :3, :5].float())
    assert cache.positions.tolist() == [[0, 1, 2]]


def test_what_is_refused_changes_nothing(device: str) -> None:
    _, key, value = Case("s=7").inputs(device=device)
    cache = KVCache(8)
    cache.update(key, value)
    cache.truncate([5, 7])
    before = copy.deepcopy(vars(cache))
    update, some = proof.bare(KVCache.update), torch.float32
    refused = [
        (key[:, :, :3], value[:, :, :3], "cache holds 7 of 8 tokens, 3 more came: capacity 10 is wanted"),
        (key[:, :, :1], value[:, :, :0], r"value is .* \(2, 3, 0, 13\) .* \(2, 3, 1, 13\) .* wanted"),
        (key[:, :1, :1], value[:, :1, :1], r"key is .* \(2, 1, 1, 11\) .* \(2, 3, 1, 11\) .* wanted"),
        (key[:, :, :1, :5], value[:, :, :1], "key is"),
        (key[:1, :, :1], value[:1, :, :1], "key is"),
        (key[:, :, :1].to(some), value[:, :, :1].to(some), "key is torch.float32 .* torch.float64 .* wanted"),
        (key[:, :, :1].to("meta"), value[:, :, :1], "key is .* on meta"),
    ]
    for new_key, new_value, message in refused:
        with pytest.raises(ValueError, match=message):
            update(cache, new_key, new_value)
    with torch.enable_grad(), pytest.raises(ValueError, match="value wants a gradient"):
        cache.update(key[:, :, :1], value[:, :, :1].clone().requires_grad_())
    for lengths in ([5], [5, 8], [6, 7], [-1, 7], [5, 7, 0]):
        with pytest.raises(ValueError, match=r"lengths is .* at most \[5, 7\] is wanted"):
            proof.bare(KVCache.truncate)(cache, lengths)
    for name, state in vars(cache).items():
        assert torch.equal(state, before[name]) if isinstance(state, Tensor) else state == before[name]

    empty = KVCache(3)
    for new_key, new_value in ((key, value), (key[0], value[0]), (key[:, :, :1], value.float()[:, :, :1])):
        with pytest.raises(ValueError, match=r"(is|are) wanted"):
            update(empty, new_key, new_value)
        assert (empty.nbytes, empty.longest, len(empty.lengths)) == (0, 0, 1)
    with pytest.raises(ValueError, match="capacity is 0"):
        KVCache(0)


def test_bytes_of_known_models() -> None:
    llama_2, llama_3 = partial(kv_cache_bytes, 32, 32, 128), partial(kv_cache_bytes, 32, 8, 128)
    assert (llama_2(1), llama_2(4096)) == (512 * 2**10, 2 * 2**30)
    assert (llama_3(1), llama_3(8192)) == (128 * 2**10, 2**30)
    config = LanguageModelConfig()
    sizes = (config.n_layers, config.n_heads, config.d_model // config.n_heads)
    assert sizes == (4, 4, 32)
    assert kv_cache_bytes(*sizes, 1, dtype=torch.float32) == 4 * 2**10
    assert kv_cache_bytes(*sizes, config.max_length, dtype=torch.float32) == 2**20


def test_one_operation_for_a_byte_of_cache() -> None:
    for length, batch in itertools.product((1, 1000), (1, 64)):
        operations, read = decode_cost(6_738_415_616, 32, 32, 128, length, batch=batch)
        of_weights, weights = decode_cost(6_738_415_616, 32, 32, 128, 0, batch=batch)
        assert of_weights == batch * weights
        assert operations - of_weights == read - weights
    assert round(989 / 3.35) == 295


def test_the_cache_outgrows_the_weights() -> None:
    m, inner, vocabulary = 4096, 11008, 32000
    layer = 4 * m * m + 3 * m * inner + 2 * m  # attention, gated MLP, two norms
    weights = 2 * (32 * layer + 2 * vocabulary * m + m)
    assert weights == 2 * 6_738_415_616
    llama_2 = partial(kv_cache_bytes, 32, 32, 128)
    assert llama_2(25_705) < weights < llama_2(25_706)
    assert llama_2(4096, batch=6) < weights < llama_2(4096, batch=7)


@proof.each_dtype
def test_sdpa_with_a_cache(dtype: torch.dtype, device: str) -> None:
    query, key, value = Case("chunk", t=5, s=17).inputs(dtype, device)
    cache = KVCache(17)
    cache.update(key[:, :, :12], value[:, :, :12])
    keys, values = cache.update(key[:, :, 12:], value[:, :, 12:])
    ours = causal_attention(query, keys, values, torch.arange(12, 17, device=device), cache.positions)
    exact = proof.plain_attention(
        query.double(), key.double(), value.double(), proof.causal(17, 17)[12:].to(device)
    )
    chunk = F.scaled_dot_product_attention(query, keys, values, attn_mask=causal_lower_right(5, 17))
    one = F.scaled_dot_product_attention(query[:, :, 4:], keys, values)
    assert_close(ours, chunk, exact)
    assert_close(chunk, ours, exact)
    assert_close(one, ours[:, :, 4:], exact[:, :, 4:])
    wrong = F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    assert torch.equal(wrong[:, :, 0], value[:, :, 0])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_with_a_cache(device: str) -> None:
    query, key, value = Case("ragged", t=1, s=17).inputs(torch.float32, device)
    cache = KVCache(19)
    cache.update(key[:, :, :16], value[:, :, :16])
    cache.truncate([16, 11])
    keys, values = cache.update(key[:, :, 16:], value[:, :, 16:])
    i, j = cache.positions.amax(-1, keepdim=True), cache.positions

    def mask_mod(b, h, row, slot):
        return (j[b, slot] >= 0) & (j[b, slot] <= i[b, row])

    block_mask = create_block_mask(mask_mod, 2, None, 1, 17, device=device)
    flex = flex_attention(query, keys, values, block_mask=block_mask)
    assert isinstance(flex, Tensor)
    wide = (x.double() for x in (query, keys, values))
    assert_close(flex, causal_attention(query, keys, values, i, j), causal_attention(*wide, i, j))
