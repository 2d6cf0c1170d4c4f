"""The proof of `linear_decoding`: each test is a claim that its page makes."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_linear import plain
from tests.annotated_attention.test_sliding_window_details import Allocations
from tests.proof import assert_close, changed, normal
from torch import Tensor, nn

from annotated_attention.kv_cache import KVCache, kv_cache_bytes
from annotated_attention.language_model import (
    Cache,
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    generate,
)
from annotated_attention.linear import (
    elu_plus_one,
    linear_attention_piece,
    merge_states,
    ratio,
    read,
    state_of,
)
from annotated_attention.linear_decoding import LinearCache, LinearSelfAttention, linear_state_bytes
from annotated_attention.linear_features import taylor_features

T = 40


def model_of(n_layers: int = 2, positions: str = "none", **how) -> LanguageModel:
    """In float64, three heads of width 4, with weights that are not small."""

    def layer(config: LanguageModelConfig, n: int) -> LinearSelfAttention:
        return LinearSelfAttention(12, 3, chunk_size=7, **how)

    config = LanguageModelConfig(
        17, 2 * T, 12, n_layers, 3, position_embedding=positions, make_attention=layer
    )
    model = LanguageModel(config).double().eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.data = normal(name, *weight.shape) * weight.shape[1] ** -0.5
    return model


def whole(layer: LinearSelfAttention, x: Tensor) -> Tensor:
    """The layer by the plain formula, with all weights."""
    q, k, v = (w(x).unflatten(-1, (3, -1)).transpose(1, 2) for w in (layer.w_q, layer.w_k, layer.w_v))
    return layer.w_o(plain(q, k, v, feature_map=layer.feature_map).transpose(1, 2).flatten(2))


def text(device: str = "cpu", t: int = T) -> Tensor:
    return torch.arange(2 * t, device=device).view(2, t) ** 2 % 17


def layer_of(device: str = "cpu") -> tuple[LinearSelfAttention, Tensor]:
    torch.manual_seed(proof.SEED)
    layer = LinearSelfAttention(12, 3, chunk_size=7).double().to(device)
    return layer, normal("x", 2, T, 12, device=device)


@pytest.mark.parametrize("feature_map", [elu_plus_one, taylor_features])
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_a_stream_equals_the_full_pass(feature_map, dtype: torch.dtype, device: str) -> None:
    model, tokens = model_of(feature_map=feature_map).to(device), text(device)
    peer = copy.deepcopy(model)
    for block in peer.blocks:
        block.attention.forward = lambda x, layer=block.attention, **_: whole(layer, x)
    with torch.no_grad():
        exact = peer(tokens)
        rounded, model = peer.to(dtype)(tokens), model.to(dtype)
        caches = [LinearCache(), LinearCache()]
        steps = [model(token, caches=caches) for token in tokens.split(1, 1)]
        assert_close(model(tokens), rounded, exact)
        assert_close(torch.cat(steps, 1), rounded, exact)


@given(cuts=st.sets(st.integers(1, T - 1)))
def test_a_prompt_may_be_cut_anywhere(cuts: set[int], device: str) -> None:
    layer, x = layer_of(device)
    cache, marks = LinearCache(), itertools.pairwise([0, *sorted(cuts), T])
    with torch.no_grad():
        exact = whole(layer, x)
        pieces = [layer(x[:, a:z], cache=cache) for a, z in marks]
    assert_close(torch.cat(pieces, 1), exact, exact)
    assert cache.positions.tolist() == [T - 1]


def test_a_model_writes_the_same_text(device: str) -> None:
    model, texts = model_of().to(device), []
    for caches in (None, [LinearCache(), LinearCache()]):
        luck = torch.Generator(device).manual_seed(proof.SEED)
        texts.append(generate(model, text(device, 9), T, caches=caches, generator=luck))
    assert torch.equal(*texts)
    assert len(set(texts[0][0, 9:].tolist())) > 3


def test_the_state_does_not_grow(device: str) -> None:
    torch.manual_seed(proof.SEED)
    layer, cache = LinearSelfAttention(12, 3).to(device), LinearCache()
    x, sizes = normal("x", 2, 1, 12, device=device).float(), set()
    with torch.no_grad():
        layer(x, cache=cache)
        for n in range(1000):
            if n % 250:
                layer(x, cache=cache)
                continue
            with Allocations() as made:
                layer(x, cache=cache)
            sizes.add((made.total, made.largest, cache.nbytes))
    assert len(sizes) == 1
    assert cache.positions.tolist() == [1000]
    # After a prompt, too, the state holds its own memory only.
    prompt = LinearCache()
    layer(x.expand(2, 500, 12), cache=prompt)
    assert prompt.nbytes == sum(y.untyped_storage().nbytes() for y in prompt.state) == cache.nbytes


@given(cuts=st.sets(st.integers(1, T - 1), min_size=1))
def test_parts_are_read_apart(cuts: set[int], device: str) -> None:
    query, key, value = (normal(name, 2, 3, T, 4, device=device) for name in ("query", "key", "value"))
    k = elu_plus_one(key)
    parts = [state_of(k[:, :, a:z], value[:, :, a:z]) for a, z in itertools.pairwise([0, *sorted(cuts), T])]
    state = parts.pop(len(parts) // 2)
    for part in parts[::-1]:
        state = merge_states(part, state)
    exact = plain(query, key, value, is_causal=False)
    assert_close(ratio(*read(elu_plus_one(query), state)), exact, exact)


def test_the_past_has_no_order(device: str) -> None:
    layer, x = layer_of(device)
    order = torch.arange(T, device=device)
    order[[3, 11]] = order[[11, 3]]
    with torch.no_grad():
        first, other = layer(x)[:, -1], layer(x[:, order])[:, -1]
        assert_close(other, first, first)
        # Layers above saw another past at each token.
        model, tokens = model_of().to(device), text(device)
        assert (tokens[:, 3] != tokens[:, 11]).all()
        assert (model(tokens) - model(tokens[:, order]))[:, -1].abs().max() > 1e-3


def test_going_back_is_remembering(device: str) -> None:
    layer, x = layer_of(device)
    cache = LinearCache()
    with torch.no_grad():
        layer(x[:, :9], cache=cache)
        kept = copy.copy(cache)
        before = [y.clone() for y in cache.state]
        layer(x[:, 9:12] + 1, cache=cache)
        layer(x[:, 12:13] + 1, cache=cache)
        assert all(torch.equal(y, z) for y, z in zip(kept.state, before, strict=True))
        exact = whole(layer, x)
        assert_close(layer(x[:, 9:], cache=kept), exact[:, 9:], exact[:, 9:])


def test_learned_positions_count_on(device: str) -> None:
    model, tokens = model_of(positions="learned").to(device), text(device)
    caches = [LinearCache(), LinearCache()]
    with torch.no_grad():
        exact = model(tokens)
        pieces = [model(piece, caches=caches) for piece in tokens.split([1, 20, 1, 18], 1)]
        assert_close(torch.cat(pieces, 1), exact, exact)
        model(tokens, caches=caches)
        with pytest.raises(ValueError, match=f"tokens reach position {2 * T}"):
            model(tokens[:, :1], caches=caches)


def test_a_cache_without_keys(device: str) -> None:
    cache = LinearCache()
    assert isinstance(cache, Cache)
    assert (cache.nbytes, cache.positions.numel()) == (0, 0)
    layer, x = layer_of(device)
    layer(x, cache=cache)
    before = cache.state
    with torch.no_grad(), pytest.raises(ValueError, match="key has 40 tokens: a LinearCache keeps none"):
        SelfAttention(12, 3).double().to(device)(x, cache=cache)
    assert cache.state is before


def test_padding_sees_nothing_and_moves_nothing(device: str) -> None:
    layer, x = layer_of(device)
    with torch.no_grad():
        exact = whole(layer, x[:, 5:])
        left = torch.arange(T, device=device) - 5
        rows = torch.stack([left, left.roll(-5)])  # the second text is padded on the right
        rolled = torch.stack([x[0], x[1].roll(-5, 0)])
        for cache in (None, LinearCache()):
            padded = layer(rolled, positions=rows, cache=cache)
            assert not padded[0, :5].any()
            assert not padded[1, -5:].any()
            found = torch.stack([padded[0, 5:], padded[1, :-5]])
            assert_close(found, exact, exact)
        assert cache.positions.tolist() == [[T - 6], [T - 6]]
        loud = layer(changed(x, 1, 0, 5), positions=left)
        assert torch.equal(loud, layer(x, positions=left))
        # A piece of padding alone is nothing new, and the next token stands where it stood.
        layer(x[:, :3], positions=torch.full((3,), -1, device=device), cache=cache)
        assert cache.positions.tolist() == [[T - 6], [T - 6]]


def test_texts_of_different_lengths(device: str) -> None:
    model, tokens = model_of(positions="learned").to(device), text(device)
    count = torch.arange(20, device=device)
    with torch.no_grad():
        exact = model(tokens[:, :25])
        for places in (torch.where(count < 13, count, -1), count - 7):
            rows = torch.stack([count, places])
            prompt = tokens[:, :20].clone()
            prompt[1, places >= 0] = tokens[1, :13]
            caches = [LinearCache(), LinearCache()]
            read = model(prompt, positions=rows, caches=caches)
            assert_close(read[1, places >= 0], exact[1, :13], exact[1, :13])
            # The next tokens go on, each row behind its own text.
            more = torch.stack([tokens[0, 20:25], tokens[1, 13:18]])
            steps = torch.cat([model(token, caches=caches) for token in more.split(1, 1)], 1)
            wanted = torch.stack([exact[0, 20:25], exact[1, 13:18]])
            assert_close(steps, wanted, wanted)


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal("map", 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.to(x)).exp()


def test_a_map_may_be_trained(device: str) -> None:
    model = model_of(feature_map=Learned()).to(device)
    weights = [block.attention.feature_map.weight for block in model.blocks]
    model(text(device)).logsumexp(-1).mean().backward()
    assert all(weight.grad.abs().max() > 0 for weight in weights)


def test_it_learns(device: str) -> None:
    torch.manual_seed(proof.SEED)
    model, tokens = model_of(n_layers=1).float().to(device).train(), text(device)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_gradients_flow_through_the_state(device: str) -> None:
    layer, x = layer_of(device)
    x.requires_grad_()
    cache = LinearCache()
    layer(x[:, :9], cache=cache)
    (through,) = torch.autograd.grad(layer(x[:, 9:12], cache=cache).sum(), x)
    (exact,) = torch.autograd.grad(whole(layer, x)[:, 9:12].sum(), x)
    assert_close(through, exact, exact)
    assert through[:, :9].any()


def test_bytes_are_as_predicted(device: str) -> None:
    model = model_of(n_layers=3, feature_map=taylor_features).to(device)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        caches = [LinearCache() for _ in range(3)]
        model.to(dtype)(text(device), caches=caches)
        wide = torch.promote_types(dtype, torch.float32)
        predicted = linear_state_bytes(3, 3, 1 + 4 + 16, 4, batch=2, dtype=wide)
        assert sum(cache.nbytes for cache in caches) == predicted


@pytest.mark.parametrize(
    ("d", "f", "e", "dtype", "first"),
    [
        (64, 64, 64, torch.float32, 33),
        (64, 64, 64, torch.bfloat16, 66),
        (16, 273, 64, torch.float32, 222),
    ],
)
def test_where_the_cache_passes_the_state(d: int, f: int, e: int, dtype: torch.dtype, first: int) -> None:
    state = linear_state_bytes(1, 1, f, e)
    larger = [s for s in range(1, 300) if kv_cache_bytes(1, 1, d, s, e=e, dtype=dtype) > state]
    assert larger[0] == first
    assert first - 1 <= 4 / dtype.itemsize * f * (e + 1) / (d + e) < first
    # And the caches themselves.
    x = torch.randn(1, 1, first, d)
    cache = KVCache(first)
    cache.update(x.to(dtype), torch.randn(1, 1, first, e).to(dtype))
    assert cache.nbytes == kv_cache_bytes(1, 1, d, first, e=e, dtype=dtype) > state


def test_bytes_of_llama_2() -> None:
    assert linear_state_bytes(32, 32, 128, 128) == 64.5 * 2**20
    assert kv_cache_bytes(32, 32, 128, 4096) == 2 * 2**30


def test_wrong_input_is_refused() -> None:
    layer, x = layer_of()
    forward = proof.bare(LinearSelfAttention.forward)
    with pytest.raises(ValueError, match="cache is a KVCache: a LinearCache is wanted"):
        forward(layer, x, cache=KVCache(T))
    for wrong in ([0, 0, 1], [2, 1, 3], [5, -1, 3]):
        with pytest.raises(ValueError, match=r"positions are .*: each above those before it, or below 0"):
            forward(layer, x[:, :3], positions=torch.tensor(wrong))
    cache = LinearCache()
    forward(layer, x[:, :5], cache=cache)
    with pytest.raises(ValueError, match="positions are"):
        forward(layer, x[:, :1], positions=torch.tensor([4]), cache=cache)
    forward(layer, x[:, :1], positions=torch.tensor([5]), cache=cache)
    with pytest.raises(ValueError, match="state has"):
        linear_attention_piece(*(normal("q", 2, 3, 5, 7) for _ in range(3)), cache.state)
    for d_model, n_heads in ((12, 5), (12, 0), (0, 3)):
        with pytest.raises(ValueError, match=f"d_model is {d_model}, n_heads is {n_heads}"):
            LinearSelfAttention(d_model, n_heads)
