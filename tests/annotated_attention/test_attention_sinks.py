"""The proof of `attention_sinks`: each test is a claim that its page makes."""

import copy
import itertools
import runpy
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_sliding_window_details import Allocations
from tests.proof import Case, assert_close, changed, normal, plain_attention
from torch import Tensor

from annotated_attention.alibi import alibi_slopes
from annotated_attention.attention_sinks import SinkKVCache, alibi_by_position, read_stream
from annotated_attention.attention_sinks_full import streaming_alibi, streaming_rotary
from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.language_model import LanguageModel, LanguageModelConfig, generate
from annotated_attention.language_model_slot import Attend, Cache, SelfAttention
from annotated_attention.rotary import rotary_attention
from annotated_attention.scaled_dot_product import attention_weights

N, W, M, H = 3, 5, 24, 3
T, SHORT = 61, 29  # streams of more than twelve windows and of more than five
SCHEMES = {"rotary": (rotary_attention, streaming_rotary), "alibi": (alibi_by_position, streaming_alibi)}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
any_stream = given(n=st.integers(0, 5), w=st.integers(1, 7), tokens=st.integers(1, 40))
FIGURES = Path(__file__).parents[2] / "lessons" / "10_attention_sinks" / "figures.py"
silent_head = lru_cache(runpy.run_path(str(FIGURES))["silent_head"])


def build(attend: Attend, dtype=torch.float64, device: str = "cpu", positions: str = "none") -> LanguageModel:
    """Two layers, whose weights are so large that positions matter."""

    def layer(config: LanguageModelConfig, n: int) -> SelfAttention:
        return SelfAttention(M, H, attend=attend)

    config = LanguageModelConfig(17, 256, M, 2, H, 0.5, position_embedding=positions, make_attention=layer)
    model = LanguageModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.data = 0.5 * normal(name, *parameter.shape)
    return model.to(device, dtype).eval()


def stream(t: int = SHORT, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(proof.SEED)
    return torch.randint(17, (2, t), generator=generator).to(device)


def caches(n: int = N, w: int = W) -> list[SinkKVCache]:
    return [SinkKVCache(n, w) for _ in range(2)]


@torch.no_grad()
def one_by_one(model: LanguageModel, tokens: Tensor, memory: list[SinkKVCache]) -> Tensor:
    return torch.cat([model(token, caches=memory) for token in tokens.split(1, 1)], 1)


def filled(n: int, w: int, tokens: int) -> SinkKVCache:
    """Keys that are the numbers of their tokens."""
    cache = SinkKVCache(n, w)
    for token in range(tokens):
        cache.update(torch.full((1, 1, 1, 1), float(token)), torch.full((1, 1, 1, 1), -float(token)))
    return cache


@each_scheme
@pytest.mark.parametrize("sizes", [(N, W), (4, 1)], ids=str)
def test_every_step_equals_the_full_forward(scheme: str, sizes: tuple[int, int], device: str) -> None:
    (in_cache, in_full), (n, w) = SCHEMES[scheme], sizes
    in_full, tokens = partial(in_full, n_sinks=n, window=w), stream(T, device)
    with torch.no_grad():
        exact = build(in_full, device=device)(tokens)
        whole = build(in_full, torch.float32, device)(tokens)
    steps = one_by_one(build(in_cache, torch.float32, device), tokens, caches(n, w))
    assert_close(steps, whole, exact, factor=3)
    # Bounds that small are worth something only if another window gives something else.
    other = one_by_one(build(in_cache, device=device), tokens[:, :20], caches(n, w + 1))
    assert (other - exact[:, :20])[:, -1].abs().max() > 0.01


def test_only_the_first_key_is_seen_by_all() -> None:
    assert proof.causal(7, 7).all(0).tolist() == [True] + [False] * 6


def test_a_silent_head_parks_on_the_first_token() -> None:
    head = silent_head(True, False)
    silent = ~head["asked"]
    silent[:, :2] = False
    assert head["weights"][..., 0][silent].mean() > 0.99
    assert head["weights"][..., 0][head["asked"]].mean() < 0.01
    assert head["value"][:, 0].max() < 0.01 * head["value"][:, 1:].mean()


def test_a_silent_head_breaks_without_its_sink() -> None:
    head = silent_head(True, False)
    assert head["error"] < 0.001
    assert head["error_evicted"] > 1


def test_eviction_multiplies_all_other_weights(device: str) -> None:
    kept = (torch.arange(7, device=device) >= 2).expand(7, 7)

    def predicted(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        weights = attention_weights(query, key)
        left = 1 - weights[..., :2].sum(-1, keepdim=True)
        return weights[..., 2:] / left, (weights @ value - weights[..., :2] @ value[:, :, :2]) / left

    inputs = Case("t=s", t=7, s=7).inputs(torch.float32, device)
    after = attention_weights(*inputs[:2], kept)[..., 2:], plain_attention(*inputs, kept)
    exact = predicted(*(x.double() for x in inputs))
    for ours, peer, oracle in zip(after, predicted(*inputs), exact, strict=True):
        assert_close(ours, peer, oracle)


@any_stream
def test_only_the_distance_to_the_sinks_is_capped(n: int, w: int, tokens: int) -> None:
    cache = filled(n, w, tokens)
    true, newest = cache.keys[0, 0, : cache.held, 0].int().tolist(), min(tokens - 1, n + w - 1)
    for token, place in zip(true, cache.positions.tolist(), strict=True):
        distance = tokens - 1 - token
        assert newest - place == (min(distance, n + w - 1 - token) if token < n else distance)


@any_stream
def test_positions_are_those_in_the_cache(n: int, w: int, tokens: int) -> None:
    cache = filled(n, w, tokens)
    held = [*range(min(n, tokens)), *range(max(n, tokens - w), tokens)]
    assert cache.positions.sort().values.tolist() == list(range(len(held)))
    # In the order of their places the keys are those of the sinks and of the window, oldest first.
    order = cache.positions.argsort()
    assert cache.keys[0, 0, order, 0].tolist() == held
    assert cache.values[0, 0, order, 0].tolist() == [-x for x in held]


@each_scheme
def test_nothing_grows_at_token_four_million(scheme: str, device: str) -> None:
    attend, answers, costs = SCHEMES[scheme][0], [], []
    for seen in (0, 4_000_000):
        _, key, value = Case("keys", s=N + W, d=12).inputs(torch.float32, device)
        cache = SinkKVCache(N, W)
        cache.update(key, value)
        cache.seen += seen
        query = normal("query", 2, 3, 1, 12, dtype=torch.float32, device=device)
        with Allocations() as made:
            keys, values = cache.update(key[:, :, :1] + 1, value[:, :, :1])
            answers.append(attend(query, keys, values, cache.positions.amax()[None], cache.positions))
        costs.append((keys.shape[2], made.largest, made.total))
    assert 4_000_000 % W == 0
    assert costs[0] == costs[1]
    assert torch.equal(*answers)


@each_scheme
def test_without_sinks_counting_anew_changes_nothing(scheme: str, device: str) -> None:
    """Against a plain window at true positions, which knows nothing of a cache."""

    def window(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return plain_attention(query, key, value, (j <= i[:, None]) & (i[:, None] - j < W))

    def window_alibi(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        slopes = alibi_slopes(H, dtype=torch.float64, device=device)[:, None, None]
        seen = (j <= i[:, None]) & (i[:, None] - j < W)
        bias = (-slopes * (i[:, None] - j)).masked_fill(~seen, -torch.inf)
        return plain_attention(query, key, value, bias)

    attend = partial(rotary_attention, attend=window) if scheme == "rotary" else window_alibi
    tokens = stream(device=device)
    with torch.no_grad():
        exact, peer = (build(attend, dtype, device)(tokens) for dtype in (torch.float64, torch.float32))
    ours = one_by_one(build(SCHEMES[scheme][0], torch.float32, device), tokens, caches(0, W))
    assert_close(ours, peer, exact, factor=3)


def test_far_away_sinks_are_lost_to_alibi() -> None:
    """One sink scores 8 more than sixteen newer keys, which all score the same; the head is the gentlest."""
    slope = alibi_slopes(8)[-1].item()
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([8.0] + [0.0] * 16)[None, None, :, None]
    near = torch.arange(15, -1, -1)
    weight = {}
    for distance in (16, 4096):
        bias = -slope * torch.cat([torch.tensor([distance]), near])[None]
        weight[distance] = attention_weights(query, key, bias)[0, 0, 0, 0].item()
    assert weight[16] > 0.99
    assert weight[4096] < 0.0001


def test_a_prompt_of_newlines_stays(device: str) -> None:
    model, newlines = build(rotary_attention, device=device), torch.full((2, 4), 10)
    streams = stream(device=device), stream(device=device)
    streams[1][:, 0] = (streams[0][:, 0] + 1) % 17
    # Through two layers a token reaches 2 (w - 1) tokens on, and the fourth of them is gone.
    reach, after = 2 * (W - 1), []
    for tokens in streams:
        memory = caches(4, W)
        read_stream(model, newlines.to(device), memory)
        sinks = [cache.keys[:, :, :4].clone() for cache in memory]
        after.append(read_stream(model, tokens, memory))
        assert all(torch.equal(cache.keys[:, :, :4], kept) for cache, kept in zip(memory, sinks, strict=True))
    assert torch.equal(after[0][:, reach + 1 :], after[1][:, reach + 1 :])
    assert (after[0] != after[1])[:, : reach + 1].any(-1).all()
    # Without them the first token of the stream is the sink, and is felt for ever.
    first, second = (read_stream(model, tokens, caches(4, W)) for tokens in streams)
    assert (first != second).any(-1).all()


@each_scheme
def test_a_run_of_one_token_is_one_key(scheme: str, device: str) -> None:
    model, memory = build(SCHEMES[scheme][0], device=device), caches(4, W)
    read_stream(model, torch.full((2, 4), 10, device=device), memory)
    for cache in memory:
        for held in (cache.keys, cache.values):
            four, one = held[:, :, :4], held[:, :, :1].expand(-1, -1, 4, -1)
            assert_close(four, one, one)
    read_stream(model, stream(4, device), other := caches(4, W))
    keys = other[1].keys
    assert (keys[:, :, 1:4] - keys[:, :, :1]).abs().amax((1, 3)).min() > 0.1


@proof.each_dtype
def test_four_equal_sinks_are_one(dtype: torch.dtype, device: str) -> None:
    query, key, value = Case("t<s").inputs(dtype, device)
    four = [torch.cat([x[:, :, :1].expand(-1, -1, 3, -1), x], 2) for x in (key, value)]
    raised = torch.zeros(5, 7, dtype=torch.float64, device=device)
    raised[:, 0] = torch.tensor(4.0, dtype=torch.float64).log()
    one = partial(plain_attention, mask=raised)
    exact = one(query.double(), key.double(), value.double())
    assert_close(plain_attention(query, *four), one(query, key, value), exact)


@proof.each_case
@proof.each_dtype
def test_update_writes_in_place(case: Case, dtype: torch.dtype, device: str) -> None:
    _, key, value = case.inputs(dtype, device)
    cache = SinkKVCache(2, case.s)
    assert isinstance(cache, Cache)
    first = cache.update(key, value)
    for ours, given_ in zip(first, (key, value), strict=True):
        assert torch.equal(ours, given_)
    for step in range(1, 4):
        after = cache.update(step * key[:, :, :1], step * value[:, :, :1])
        for before, now in zip(first, after, strict=True):
            assert now.data_ptr() == before.data_ptr()
            assert now.dtype == dtype
    assert torch.equal(first[0][:, :, 0], key[:, :, 0])
    # The third of them found the cache full and took the place of the oldest of the window.
    assert torch.equal(cache.keys[:, :, 2], 3 * key[:, :, 0])


def test_memory_does_not_move(device: str) -> None:
    cache, places, update = SinkKVCache(2, 7), set(), proof.bare(SinkKVCache.update)
    _, key, value = Case("stream", b=1, s=3000).inputs(torch.float32, device)
    for new in zip(key.split(1, 2), value.split(1, 2), strict=True):
        held = update(cache, *new)
        taken = sum(x.untyped_storage().nbytes() for x in held)
        places.add((held[0].data_ptr(), held[1].data_ptr(), cache.nbytes, taken))
    assert len(places) == 1
    assert cache.nbytes == taken == kv_cache_bytes(1, 3, 11, 9, dtype=torch.float32, e=13)
    assert sorted(cache.values[0, 0, :, 0].tolist()) == sorted(value[0, 0, [0, 1, *range(-7, 0)], 0].tolist())


def test_a_chunk_may_fill_the_cache(device: str) -> None:
    layer = SelfAttention(M, H, attend=rotary_attention).to(device)
    x = normal("x", 2, N + W, M, dtype=torch.float32, device=device)
    with torch.no_grad():
        whole, exact = layer(x), copy.deepcopy(layer).double()(x.double())
        for cuts in ((), (1,), (2, 3, 7)):
            marks, cache = itertools.pairwise([0, *cuts, N + W]), SinkKVCache(N, W)
            assert_close(torch.cat([layer(x[:, a:z], cache=cache) for a, z in marks], 1), whole, exact)


@each_scheme
def test_read_stream_equals_one_by_one(scheme: str, device: str) -> None:
    attend, tokens = SCHEMES[scheme][0], stream(device=device)
    model = build(attend, torch.float32, device)
    exact = one_by_one(build(attend, device=device), tokens, caches())
    peer = one_by_one(model, tokens, caches())
    for cuts in ((), (1, 8, 11), (13,)):
        memory, marks = caches(), itertools.pairwise([0, *cuts, SHORT])
        model.train()
        read = torch.cat([read_stream(model, tokens[:, a:z], memory) for a, z in marks], 1)
        assert model.training
        assert_close(read, peer, exact)
    assert read_stream(model, tokens[:0], caches()).shape == (0, SHORT, 17)
    with pytest.raises(ValueError, match=r"tokens is \(2, 0\): at least one is wanted"):
        read_stream(model, tokens[:, :0], caches())


def test_generation_goes_on_beyond_the_cache(device: str) -> None:
    model, prompt = build(rotary_attention, device=device), stream(5, device)
    written = generate(model, prompt, 40, temperature=0.0, caches=caches())
    logits = one_by_one(model, written, caches())
    assert written.shape == (2, 45)
    assert torch.equal(logits[:, 4:-1].argmax(-1), written[:, 5:])


def test_what_is_evicted_is_forgotten(device: str) -> None:
    """Through two layers, each of which looks back over w - 1 tokens; a sink is felt for ever."""
    model = build(rotary_attention, device=device)
    for place, last in ((N + 1, N + 1 + 2 * (W - 1)), (N - 1, SHORT - 1)):
        tokens = stream(device=device)
        before = one_by_one(model, tokens, caches())
        tokens[:, place] = (tokens[:, place] + 1) % 17
        moved = (before != one_by_one(model, tokens, caches())).any(-1).all(0)
        assert moved.tolist() == [place <= n <= last for n in range(SHORT)]


def test_learned_positions_pile_up(device: str) -> None:
    model = build(rotary_attention, device=device, positions="learned")
    place = model.position_embedding.weight.data = normal("place", 256, M, device=device)
    before = one_by_one(model, stream(device=device), caches())
    for changed_place, first in ((N + W + 1, SHORT), (N + W, N + W)):
        model.position_embedding.weight.data = changed(place, 0, changed_place, changed_place + 1)
        moved = before != one_by_one(model, stream(device=device), caches())
        assert moved.any(-1).all(0).tolist() == [step >= first for step in range(SHORT)]


def test_what_is_refused_changes_nothing(device: str) -> None:
    _, key, value = Case("s=7").inputs(device=device)
    cache = SinkKVCache(2, 6)
    cache.update(key, value)
    before, update = copy.deepcopy(vars(cache)), proof.bare(SinkKVCache.update)
    refused = [
        (key[:, :, :2], value[:, :, :2], "holds 7 of 8 tokens, 2 more came: .* one at a time is wanted"),
        (key[:, :, :1], value[:, :, :0], r"value is .* \(2, 3, 0, 13\) .* \(2, 3, 1, 13\) .* wanted"),
        (key[:, :1, :1], value[:, :1, :1], r"key is .* \(2, 1, 1, 11\) .* wanted"),
        (key[:1, :, :1], value[:1, :, :1], "key is"),
        (key[:, :, :1].float(), value[:, :, :1].float(), "key is torch.float32 .* torch.float64 .* wanted"),
        (key[:, :, :1].to("meta"), value[:, :, :1], "key is .* on meta"),
    ]
    for new_key, new_value, message in refused:
        with pytest.raises(ValueError, match=message):
            update(cache, new_key, new_value)
    with torch.enable_grad(), pytest.raises(ValueError, match="value wants a gradient"):
        cache.update(key[:, :, :1], value[:, :, :1].clone().requires_grad_())
    for name, state in vars(cache).items():
        assert torch.equal(state, before[name]) if isinstance(state, Tensor) else state == before[name]
    empty = SinkKVCache(2, 3)
    for new_key, new_value in ((key, value), (key[0], value[0]), (key[:, :, :1], value.float()[:, :, :1])):
        with pytest.raises(ValueError, match=r"(is|are) wanted"):
            update(empty, new_key, new_value)
        assert (empty.nbytes, empty.seen, empty.positions.numel()) == (0, 0, 0)
    for sizes in ((-1, 3), (0, 0)):
        with pytest.raises(ValueError, match=r"n_sinks is .*, window is .*: at least 0 and 1 are wanted"):
            SinkKVCache(*sizes)
