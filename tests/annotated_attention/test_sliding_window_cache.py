"""The proof of `sliding_window_cache`: each test is a claim that its page makes."""

import copy
import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_sliding_window_details import Allocations, masked_attention, model_of
from tests.proof import Case, assert_close, normal
from torch import Tensor

from annotated_attention.kv_cache import kv_cache_bytes, make_caches, prefill
from annotated_attention.language_model import (
    Cache,
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    causal_attention,
    generate,
)
from annotated_attention.rotary import rotary_attention
from annotated_attention.sliding_window import causal_window_attention
from annotated_attention.sliding_window_cache import RollingKVCache, rolling_kv_cache_bytes

# A text of more than ten windows.
TEXT, WINDOW = 64, 5


def numbered(first: int, n: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Keys that say where they stand, and values that say it negatively: 2 texts, 3 heads."""
    place = torch.arange(first, first + n, dtype=torch.float64, device=device)
    key = place[:, None].expand(2, 3, n, 4)
    return key, -key[..., :1]


@given(sizes=st.lists(st.integers(0, 9), max_size=12), window=st.integers(1, 7))
def test_positions_say_who_is_where(sizes: list[int], window: int, device: str) -> None:
    cache, read = RollingKVCache(window), 0
    assert isinstance(cache, Cache)
    for n in sizes:
        keys, values = cache.update(*numbered(read, n, device))
        read += n
        assert torch.equal(keys, cache.positions[:, None].expand_as(keys).to(keys))
        assert torch.equal(values, -keys[..., :1])
        # What the queries may need, and nothing else: the window of each, up to the newest.
        needed = range(max(0, read - n - window + 1), read)
        assert sorted(cache.positions.tolist()) == list(needed)
        assert cache.positions.device == keys.device
    held = cache.keys[0, 0, :, 0].tolist() if any(sizes) else []
    for position in range(max(0, read - window), read):
        assert held[position % window] == position


def test_positions_go_on_counting() -> None:
    cache = RollingKVCache(6)
    cache.update(*numbered(0, 99_990))
    for position in range(99_990, 100_000):
        cache.update(*numbered(position, 1))
    assert sorted(cache.positions.tolist()) == list(range(99_994, 100_000))


def test_a_step_writes_in_place(device: str) -> None:
    cache = RollingKVCache(256)
    token = [normal("token", 2, 3, 1, 32, device=device) for _ in range(2)]
    cache.update(*(x.expand(2, 3, 300, 32) for x in token))
    ring = cache.keys.data_ptr(), cache.values.data_ptr()
    for _ in range(3):
        with Allocations() as made:
            seen = cache.update(*token)
        assert tuple(x.data_ptr() for x in seen) == ring
        # A few numbers a slot, for the positions: not the 2 * 3 * 32 of its key.
        assert made.largest <= 256 * 8


def test_memory_never_grows(device: str) -> None:
    cache, read, states = RollingKVCache(7), 0, set()
    for n in [3, 1, 1, 20, *[1] * 20, 5, 100]:
        cache.update(*numbered(read, n, device))
        read += n
        states.add((cache.nbytes, cache.keys.data_ptr(), cache.values.data_ptr()))
    assert len(states) == 1


def fillings(attend) -> dict[str, partial]:
    return {"plain": partial(attend, window=WINDOW), "rotary": turned(partial(attend, window=WINDOW))}


def turned(attend) -> partial:
    return partial(rotary_attention, attend=attend)


@pytest.mark.parametrize("filling", ["plain", "rotary"])
@pytest.mark.parametrize("g", [None, 2], ids=["all heads", "grouped"])
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_stream_equals_the_masked_forward_pass(
    filling: str, g: int | None, dtype: torch.dtype, device: str
) -> None:
    fast, slow = (
        model_of(fillings(f)[filling], 3, h=4, g=g).to(device)
        for f in (causal_window_attention, masked_attention)
    )
    tokens = torch.arange(2 * TEXT, device=device).view(2, TEXT) ** 2 % 17
    with torch.no_grad():
        exact = slow(tokens)
        peer = copy.deepcopy(slow).to(dtype)(tokens)
        caches = [RollingKVCache(WINDOW) for _ in range(3)]
        fast = fast.to(dtype)
        steps = [fast(token, caches=caches) for token in tokens.split(1, 1)]
    assert_close(torch.cat(steps, 1), peer, exact)
    # Not for want of a difference: with all keys, the text would be another one.
    whole = model_of(causal_attention if filling == "plain" else rotary_attention, 3, h=4).to(device)
    if g is None:
        assert (whole(tokens) - exact)[:, WINDOW:].abs().max() > 0.01


@given(cuts=st.sets(st.integers(1, 36)), window=st.integers(1, 9))
def test_pieces_of_any_size_are_the_same_text(cuts: set[int], window: int, device: str) -> None:
    attend = turned(partial(causal_window_attention, window=window))
    slow = turned(partial(masked_attention, window=window))
    x = normal("x", 2, 37, 24, device=device)
    torch.manual_seed(proof.SEED)
    layer = SelfAttention(24, 3, attend=attend).double().to(device)
    cache, marks = RollingKVCache(window), itertools.pairwise([0, *sorted(cuts), 37])
    with torch.no_grad():
        pieces = [layer(x[:, a:z], cache=cache) for a, z in marks]
        layer.attend = slow
        exact = layer(x)
    assert_close(torch.cat(pieces, 1), exact, exact)


def test_a_piece_needs_the_window_in_its_attention(device: str) -> None:
    slow = model_of(partial(masked_attention, window=WINDOW), 1).to(device)
    plain = model_of(causal_attention, 1).to(device)
    tokens = torch.arange(TEXT, device=device)[None] ** 2 % 17
    with torch.no_grad():
        exact = slow(tokens)
        for size in (1, 2):
            caches = [RollingKVCache(WINDOW)]
            read = torch.cat([plain(piece, caches=caches) for piece in tokens.split(size, 1)], 1)
            if size == 1:
                assert_close(read, exact, exact)
            else:
                assert (read - exact).abs().max() > 0.01


def test_a_model_writes_the_same_text(device: str) -> None:
    model = model_of(fillings(causal_window_attention)["rotary"], 2).to(device)
    prompt = torch.arange(18, device=device).view(2, 9) ** 2 % 17
    texts = []
    for caches in (None, [RollingKVCache(WINDOW) for _ in range(2)]):
        luck = torch.Generator(device).manual_seed(proof.SEED)
        texts.append(generate(model, prompt, TEXT, caches=caches, generator=luck))
    assert torch.equal(*texts)
    assert len(set(texts[0][0, 9:].tolist())) > 3


def test_learned_positions_count_on(device: str) -> None:
    def layer(config: LanguageModelConfig, n: int) -> SelfAttention:
        return SelfAttention(24, 3, attend=partial(causal_window_attention, window=WINDOW))

    torch.manual_seed(proof.SEED)
    model = LanguageModel(LanguageModelConfig(17, TEXT, 24, 2, 3, make_attention=layer)).double().to(device)
    tokens = torch.arange(TEXT, device=device)[None] ** 2 % 17
    caches = [RollingKVCache(WINDOW) for _ in range(2)]
    with torch.no_grad():
        exact = model(tokens)
        read = torch.cat(
            [model(piece, caches=caches) for piece in tokens.split([1] * 20 + [24] + [1] * 20, 1)], 1
        )
        assert_close(read, exact, exact)
        with pytest.raises(ValueError, match=f"tokens reach position {TEXT}"):
            model(tokens[:, :1], caches=caches)


def test_what_is_refused_leaves_the_ring_alone(device: str) -> None:
    _, key, value = Case("s=7").inputs(device=device)
    cache = RollingKVCache(4)
    cache.update(key, value)
    before, update = copy.deepcopy(vars(cache)), proof.bare(RollingKVCache.update)
    refused = [
        (key[:, :, :1], value[:, :, :0], r"value is .* \(2, 3, 0, 13\) .* \(2, 3, 1, 13\) .* wanted"),
        (key[:, :1, :1], value[:, :1, :1], r"key is .* \(2, 1, 1, 11\) .* \(2, 3, 1, 11\) .* wanted"),
        (key[:1, :, :1], value[:1, :, :1], "key is"),
        (key.float(), value.float(), "key is torch.float32 .* torch.float64 .* wanted"),
        (key.to("meta"), value, "key is .* on meta"),
    ]
    for new_key, new_value, message in refused:
        with pytest.raises(ValueError, match=message):
            update(cache, new_key, new_value)
    with torch.enable_grad(), pytest.raises(ValueError, match="value wants a gradient"):
        cache.update(key, value.clone().requires_grad_())
    for name, state in vars(cache).items():
        assert torch.equal(state, before[name]) if isinstance(state, Tensor) else state == before[name]
    empty = RollingKVCache(3)
    for new_key, new_value in ((key, value[:, :, 1:]), (key[0], value[0]), (key, value.float())):
        with pytest.raises(ValueError, match=r"(is|are) wanted"):
            update(empty, new_key, new_value)
        assert (empty.nbytes, empty.length, empty.positions.numel()) == (0, 0, 0)
    with pytest.raises(ValueError, match="window is 0"):
        RollingKVCache(0)


def test_bytes_of_the_ring() -> None:
    for t in (1, 3, 11):
        cache = RollingKVCache(5)
        _, key, value = Case("text", s=t).inputs(torch.bfloat16)
        cache.update(key, value)
        assert cache.nbytes == 2 * 3 * 5 * (11 + 13) * 2
    cache = RollingKVCache(5)
    _, key, value = Case("text", d=13).inputs(torch.float64)
    cache.update(key, value)
    assert cache.nbytes == rolling_kv_cache_bytes(1, 3, 13, 5, 7, batch=2, dtype=torch.float64)


def test_bytes_of_mistral() -> None:
    ring = partial(rolling_kv_cache_bytes, 32, 8, 128, 4096)
    assert ring(1) == 128 * 2**10
    assert ring(4096) == ring(32_768) == ring(10**7) == 512 * 2**20
    assert kv_cache_bytes(32, 8, 128, 32_768) == 4 * 2**30 == 8 * ring(32_768)


def test_a_ring_has_no_way_back() -> None:
    model = model_of(partial(causal_window_attention, window=WINDOW), 2).float()
    prompts = [torch.arange(9), torch.arange(7)]
    prefill(model, prompts, make_caches(model, 9))
    assert not hasattr(RollingKVCache, "truncate")
    with pytest.raises(AttributeError, match="RollingKVCache"):
        proof.bare(prefill)(model, prompts, [RollingKVCache(WINDOW) for _ in range(2)])
