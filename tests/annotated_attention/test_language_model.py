"""The proof of `language_model`: each test is a claim that its page makes."""

import copy
import itertools
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import proof
from tests.proof import assert_agrees, assert_close, normal, plain_attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention import language_model_training
from annotated_attention.kv_cache import make_caches
from annotated_attention.language_model import (
    Block,
    LanguageModel,
    LanguageModelConfig,
    generate,
    language_model_cost,
    sinusoidal,
    train,
)

V, T, M = 17, 13, 22
CONFIG = LanguageModelConfig(vocab_size=V, max_length=23, d_model=M, n_layers=2, n_heads=2)
each_position = pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])


def build(device: str = "cpu", dtype: torch.dtype = torch.float64, **changes) -> LanguageModel:
    """A model whose parameters are far from their small beginning, so that every part of it shows."""
    torch.manual_seed(proof.SEED)
    model = LanguageModel(replace(CONFIG, **changes))
    for n, parameter in enumerate(model.parameters()):
        parameter.data += 0.3 * normal(f"parameter {n}", *parameter.shape, dtype=torch.float32)
    return model.to(device, dtype)


def some_tokens(device: str = "cpu", t: int = T) -> Tensor:
    return torch.randint(V, (3, t), generator=torch.Generator().manual_seed(1)).to(device)


def plain_model(model: LanguageModel, tokens: Tensor) -> Tensor:
    """The formulas of the page, spelled out with the model's parameters."""
    p, t = dict(model.named_parameters()), tokens.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def heads(x: Tensor, weight: Tensor) -> Tensor:
        return (x @ weight.mT).unflatten(-1, (2, -1)).transpose(1, 2)

    x = p["embedding.weight"][tokens] + p["position_embedding.weight"][:t]
    for n in range(2):
        name = f"blocks.{n}"
        normed = norm(x, f"{name}.attention_norm")
        q, k, v = (heads(normed, p[f"{name}.attention.w_{letter}.weight"]) for letter in "qkv")
        blend = plain_attention(q, k, v, proof.causal(t, t, str(x.device))).transpose(1, 2).flatten(2)
        x = x + blend @ p[f"{name}.attention.w_o.weight"].mT
        inner = norm(x, f"{name}.mlp_norm") @ p[f"{name}.mlp.0.weight"].mT + p[f"{name}.mlp.0.bias"]
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        x = x + inner @ p[f"{name}.mlp.2.weight"].mT + p[f"{name}.mlp.2.bias"]
    return norm(x, "norm") @ p["embedding.weight"].mT


def test_agrees_with_the_formulas(device: str) -> None:
    model, tokens = build(device, torch.float32), some_tokens(device)
    exact = plain_model(copy.deepcopy(model).double(), tokens)
    assert_close(model(tokens), plain_model(model, tokens), exact)
    assert torch.equal(model(tokens.to(torch.uint8)), model(tokens))


@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_layer_is_that_of_pytorch(dtype: torch.dtype, device: str) -> None:
    block = build(device, dtype).blocks[0]
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    peer = nn.TransformerEncoderLayer(M, 2, 4 * M, **options).to(device, dtype)
    w = block.attention
    with torch.no_grad():
        peer.self_attn.in_proj_weight.copy_(torch.cat([w.w_q.weight, w.w_k.weight, w.w_v.weight]))
    peer.self_attn.out_proj.weight.data = w.w_o.weight.data
    peer.linear1, peer.linear2 = block.mlp[0], block.mlp[2]
    peer.norm1, peer.norm2 = block.attention_norm, block.mlp_norm
    hidden = ~proof.causal(T, T, device)

    def torch_layer(x: Tensor) -> Tensor:
        twin = peer if x.dtype == dtype else copy.deepcopy(peer).to(x.dtype)
        return twin(x, src_mask=hidden)

    assert_agrees(block, torch_layer, [normal("x", 3, T, M, dtype=dtype, device=device)], names=["x"])


@each_position
def test_future_moves_nothing(position: str, device: str) -> None:
    model, tokens = build(device, torch.float32, position_embedding=position), some_tokens(device)
    before = model(tokens)
    for start in range(1, T):
        other = tokens.clone()
        other[:, start:] = (other[:, start:] + 1) % V
        moved = (before != model(other)).any(-1).any(0)
        assert (moved == (torch.arange(T, device=device) >= start)).all()


def test_stream_is_a_sum(device: str) -> None:
    model, tokens, added = build(device), some_tokens(device), []
    first = model.embedding(tokens) + model.place(torch.arange(T, device=device))
    for block in model.blocks:
        block.attention.register_forward_hook(lambda module, inputs, output: added.append(output))
        block.mlp.register_forward_hook(lambda module, inputs, output: added.append(output))
    logits = model(tokens)
    assert len(added) == 2 * CONFIG.n_layers
    total = F.linear(model.norm(first + sum(added)), model.embedding.weight)
    assert_close(logits, total, total)


def test_post_norm_halves_the_past() -> None:
    n, width = 12, 65536
    token = normal("token", width).requires_grad_()
    pre = post = F.layer_norm(token, (width,))
    for k in range(n):
        addition = F.layer_norm(normal(f"addition {k}", width), (width,))
        pre, post = pre + addition, F.layer_norm(post + addition, (width,))
    for stream, share, factor in ((pre, 1 / (1 + n), 1.0), (post, 2.0**-n, 2 ** (-n / 2))):
        correlation = F.cosine_similarity(stream, token, dim=0)
        assert correlation.item() == pytest.approx(math.sqrt(share), abs=0.01)
        (gradient,) = torch.autograd.grad(stream @ normal("direction", width), token, retain_graph=True)
        assert gradient.norm().item() == pytest.approx(factor * math.sqrt(width), rel=0.02)


def test_one_table_learns_twice(device: str) -> None:
    model, tokens = build(device), some_tokens(device)
    (both,) = torch.autograd.grad(model(tokens).square().sum(), model.embedding.weight)
    copied = model.embedding.weight.detach().clone().requires_grad_()
    original = F.linear
    used = []

    def untied(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        used.append(weight is model.embedding.weight)
        return original(x, copied if used[-1] else weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", untied)
        loss = model(tokens).square().sum()
    assert sum(used) == 1
    parts = torch.autograd.grad(loss, [model.embedding.weight, copied])
    assert all(part.norm() > 0 for part in parts)
    assert_close(parts[0] + parts[1], both, both, factor=3)


def test_a_shift_is_a_rotation(device: str) -> None:
    waves = sinusoidal(torch.arange(100, device=device), M).double()
    assert waves.shape == (100, M)
    for n in range(M // 2):
        angle = 7 * 10000 ** (-2 * n / M)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64, device=device)
        pair = waves[:, 2 * n : 2 * n + 2]
        assert (pair[7:] - pair[:-7] @ turn.mT).abs().max() < 1e-4
    assert sinusoidal(torch.arange(3), 5).shape == (3, 5)


def test_first_loss_is_a_fair_guess() -> None:
    torch.manual_seed(0)
    model, tokens = LanguageModel(LanguageModelConfig()), torch.randint(256, (4, 64))
    targets = torch.randint(256, (4, 64)).flatten()
    assert F.cross_entropy(model(tokens).flatten(0, 1), targets).item() == pytest.approx(
        math.log(256), abs=0.05
    )
    model.embedding.reset_parameters()
    assert F.cross_entropy(model(tokens).flatten(0, 1), targets) > 8 * math.log(256)


def test_a_new_model_expects_repetition() -> None:
    torch.manual_seed(0)
    model, tokens = LanguageModel(LanguageModelConfig()), torch.randint(256, (4, 64))
    probabilities = model(tokens).softmax(-1)
    assert (probabilities.argmax(-1) == tokens).float().mean() > 0.8
    repeated = probabilities.gather(-1, tokens[..., None])
    assert repeated.mean() > 2 / 256


def test_depth_does_not_widen_the_stream() -> None:
    def widening(n_layers: int, scaled: bool = True) -> float:
        torch.manual_seed(0)
        model = LanguageModel(LanguageModelConfig(n_layers=n_layers, d_model=64))
        for name, parameter in model.named_parameters():
            if not scaled and name.endswith(("w_o.weight", "mlp.2.weight")):
                parameter.data *= math.sqrt(2 * n_layers)
        x = first = model.embedding(torch.arange(64)[None])
        for block in model.blocks:
            x = block(x)
        return ((x - first).var() / first.var()).item()

    assert widening(24) == pytest.approx(widening(2), rel=0.2)
    assert widening(24, scaled=False) > 8 * widening(2, scaled=False)


def test_waves_would_drown_the_tokens() -> None:
    torch.manual_seed(0)
    model = LanguageModel(replace(CONFIG, d_model=128, position_embedding="sinusoidal"))
    where, token = torch.arange(23), model.embedding.weight.var().item()
    assert 0.0005 < token / (token + sinusoidal(where, 128).square().mean().item()) < 0.001
    assert model.place(where).square().mean().item() == pytest.approx(token, rel=0.05)


@each_position
@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, T - 1)))
def test_caches_continue_a_text(position: str, cuts: set[int], device: str) -> None:
    model, tokens = build(device, torch.float32, position_embedding=position), some_tokens(device)
    caches, marks = make_caches(model, T), [0, *sorted(cuts), T]
    with torch.no_grad():
        read = [model(tokens[:, a:z], caches=caches) for a, z in itertools.pairwise(marks)]
        whole, exact = model(tokens), copy.deepcopy(model).double()(tokens)
    assert_close(torch.cat(read, 1), whole, exact)


@pytest.mark.parametrize("position", ["sinusoidal", "none"])
def test_without_a_table_longer_texts_are_read(position: str) -> None:
    model, tokens = build(position_embedding=position), some_tokens(t=60)
    start = model(tokens[:, :23])
    assert_close(model(tokens)[:, :23], start, start)
    assert generate(model, tokens, 2).shape == (3, 62)


def test_cost_counts_the_products() -> None:
    model, tokens = LanguageModel(CONFIG), some_tokens()
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(tokens).sum().backward()
    products, operations = language_model_cost(CONFIG, T)
    assert counter.get_total_flops() == operations * tokens.numel()
    matrices = [x for name, x in model.named_parameters() if x.ndim == 2 and "position" not in name]
    assert products == sum(x.numel() for x in matrices)
    assert sum(x.numel() for x in model.blocks[0].mlp.parameters() if x.ndim == 2) == 8 * M * M
    products, operations = language_model_cost(LanguageModelConfig(), 256)
    assert (round(products / 1e6, 2), round(operations / 1e6, 1)) == (0.82, 6.5)
    layers = LanguageModelConfig(vocab_size=1)
    assert language_model_cost(layers, 6 * 128)[1] == pytest.approx(2 * 6 * 12 * 4 * 128**2, rel=0.001)


def test_bytes_are_tokens() -> None:
    model = LanguageModel(replace(CONFIG, vocab_size=256))
    tokens = some_tokens()
    assert model(tokens.to(torch.uint8)).equal(model(tokens))


def test_wrong_input_is_refused() -> None:
    model, tokens = build(), some_tokens()
    call = proof.bare(LanguageModel.forward)
    for wrong in (tokens[0], tokens.float()):
        with pytest.raises(ValueError, match=r"tokens is torch.* of shape .* are wanted"):
            call(model, wrong)
    for wrong in (tokens - 1, tokens - tokens.max() + V):
        with pytest.raises(ValueError, match=r"tokens lie between .* vocab_size - 1 = 16 is wanted"):
            model(wrong)
    with pytest.raises(ValueError, match="tokens reach position 23"):
        model(some_tokens(t=24))
    with pytest.raises(ValueError, match="caches are 1: one for each of 2 layers"):
        model(tokens, caches=make_caches(model, 9)[:1])
    changes = {"vocab_size": 0, "max_length": 0, "n_layers": 0, "n_heads": 3, "dropout": 1.0}
    for name, value in {**changes, "position_embedding": "rotary"}.items():
        with pytest.raises(ValueError, match=f"{name} is {value!r}"):
            LanguageModel(replace(CONFIG, **{name: value}))


@pytest.mark.parametrize("first", ["language_model", "language_model_training"])
def test_training_belongs_to_the_model(first: str) -> None:
    # In a process of its own, for the order of imports is what is tested.
    other = {"language_model", "language_model_training"} - {first}
    lines = [f"from annotated_attention.{name} import train" for name in (first, *other)]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    assert train is language_model_training.train


def test_dropout_acts_on_what_enters_the_stream() -> None:
    model, tokens, passed = build(dropout=0.5), some_tokens(), []
    places = [model.dropout, *(block.dropout for block in model.blocks)]
    for place in places:
        place.register_forward_hook(lambda layer, inputs, output: passed.append(layer))
    quiet = model.eval()(tokens)
    assert passed == [places[0], *(place for place in places[1:] for _ in range(2))]
    for place in places:
        place.train()
        assert (model(tokens) != quiet).any()
        place.eval()
    assert torch.equal(model(tokens), quiet)


def test_empty_batches_and_padding_pass(device: str) -> None:
    model, tokens = build(device), some_tokens(device)
    assert model(tokens[:0]).shape == (0, T, V)
    assert Block(CONFIG, 0)(normal("x", 0, 3, M, dtype=torch.float32)).shape == (0, 3, M)
    where = torch.arange(T, device=device) - torch.tensor([[4], [0], [0]], device=device)
    alone = model(tokens[:1, 4:])
    assert_close(model(tokens, positions=where)[:1, 4:], alone, alone)
