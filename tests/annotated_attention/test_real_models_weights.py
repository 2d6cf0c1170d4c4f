"""The proof of `real_models_weights`: each test is a claim that its page makes."""

import copy
import functools
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from tests.annotated_attention.test_real_models_interface_models import (
    SIZES,
    WINDOW,
    assert_model_agrees,
    attending,
    inputs_of,
    randomised,
    softmax_in_float64,
    widen,
)
from tests.proof import bare, normal
from torch import Tensor, nn

from annotated_attention import real_models_weights
from annotated_attention.language_model_sampling import generate
from annotated_attention.real_models_weights import Llama, halves_from_neighbours, is_reachable, load
from annotated_attention.sliding_window import RollingKVCache, causal_window_attention

__all__ = ["softmax_in_float64"]

LLAMA = {**SIZES, "hidden_size": 60}
KINDS = {
    "all heads": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"num_key_value_heads": 6}),
    "as in Llama 3": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    ),
    "tied": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": WINDOW}),
}


@functools.cache
def theirs(kind: str, dtype: torch.dtype, device: str) -> Any:
    config, architecture, more = KINDS[kind]
    model = randomised(architecture(config(**LLAMA | more))).to(device)
    model.tie_weights()
    if dtype == torch.float64:
        widen(model.double())
        in_float64(model)
    return model


def in_float64(model: Any) -> None:
    """The library's turns are those of float32 angles, though the model is not; lesson 5's are not."""

    def angles(x: Tensor, position_ids: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
        base = real_models_weights.rotary_base(model.config)
        pair = torch.arange(5, dtype=torch.float64, device=x.device)
        turns = position_ids[..., None].double() * base ** (-pair / 5)
        return torch.cat([turns, turns], -1).cos(), torch.cat([turns, turns], -1).sin()

    model.model.rotary_emb.forward = angles


def logits(kind: str, name: str, dtype: torch.dtype, device: str) -> Tensor:
    tokens, source = inputs_of("llama", device)["input_ids"], theirs(kind, dtype, device)
    with torch.no_grad():
        if name == "ours":
            more = {"attend": partial(causal_window_attention, window=WINDOW)} if kind == "mistral" else {}
            return Llama.from_transformers(source, **more)(tokens)
        with attending(source, name):
            return source(tokens).logits


@pytest.mark.parametrize("kind", ["all heads", "as in Llama 3", "tied"])
def test_llama_without_the_library(kind: str, device: str) -> None:
    assert_model_agrees(lambda name, dtype: logits(kind, name, dtype, device), "ours", "eager", "sdpa")


def test_mistral_is_llama_with_a_window(device: str) -> None:
    assert_model_agrees(lambda name, dtype: logits("mistral", name, dtype, device), "ours", "eager", "sdpa")


@pytest.mark.parametrize("kind", ["as in Llama 3", "mistral"])
def test_it_writes_the_same_tokens(kind: str, device: str) -> None:
    source = theirs(kind, torch.float32, device)
    tokens = inputs_of("llama", device)["input_ids"]
    wanted = source.generate(tokens, max_new_tokens=9, do_sample=False)
    if kind == "mistral":
        model = Llama.from_transformers(source, attend=partial(causal_window_attention, window=WINDOW))
        caches: Any = [RollingKVCache(WINDOW) for _ in model.blocks]
    else:
        model = Llama.from_transformers(source)
        caches = model.make_caches(13 + 9)
    assert wanted.shape == (2, 22)
    assert torch.equal(generate(model, tokens, 9, temperature=0.0, caches=caches), wanted)


def to_neighbours(weight: Tensor, n_heads: int) -> Tensor:
    """The inverse of Transformers' converter: rows as Meta has them."""
    rows, columns = weight.shape
    return weight.view(n_heads, 2, -1, columns).transpose(1, 2).reshape(rows, columns)


def test_rows_are_those_of_the_converter() -> None:
    meta = normal("meta", 3 * 10, 7)
    # `permute` in convert_llama_weights_to_hf.py
    wanted = meta.view(3, 10 // 2, 2, 7).transpose(1, 2).reshape(30, 7)
    assert torch.equal(halves_from_neighbours(meta, 3), wanted)
    assert torch.equal(to_neighbours(wanted, 3), meta)
    for rows, heads in ((30, 4), (30, 0)):
        with pytest.raises(ValueError, match=f"weight has {rows} rows: a multiple of {heads} heads"):
            bare(halves_from_neighbours)(meta, heads)
    with pytest.raises(ValueError, match="d is 5: an even number"):
        bare(halves_from_neighbours)(meta[:15], 3)


def test_a_forgotten_permutation_is_right_at_the_first_token(device: str) -> None:
    source = theirs("as in Llama 3", torch.float64, device)
    tokens = inputs_of("llama", device)["input_ids"]
    model = Llama.from_transformers(source)
    right = model(tokens)
    for block in model.blocks:
        for layer, n_heads in ((block.attention.w_q, 6), (block.attention.w_k, 2)):
            layer.weight.data = to_neighbours(layer.weight.data, n_heads)
    wrong = (model(tokens) - right).abs().amax((0, 2))
    assert wrong[0] < 1e-12
    assert wrong[1:].min() > 1e-3
    for block in model.blocks:
        for layer, n_heads in ((block.attention.w_q, 6), (block.attention.w_k, 2)):
            layer.weight.data = halves_from_neighbours(layer.weight.data, n_heads)
    assert torch.equal(model(tokens), right)


def test_a_wrong_base_is_silent(device: str) -> None:
    source = theirs("as in Llama 3", torch.float64, device)
    tokens = inputs_of("llama", device)["input_ids"]
    right = Llama.from_transformers(source)(tokens)
    other = copy.deepcopy(source)
    other.config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
    wrong = (Llama.from_transformers(other)(tokens) - right).abs().amax((0, 2))
    assert wrong[0] < 1e-12
    assert wrong[1:].min() > 1e-6


def test_what_does_not_fit_is_refused() -> None:
    def build(**more: Any) -> Llama:
        return Llama.from_transformers(
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | more))
        )

    with pytest.raises(RuntimeError, match=r"Unexpected key.*w_q.bias"):
        build(attention_bias=True)
    wrong = {
        "head_dim is 12: 10 is wanted": {"head_dim": 12},
        "hidden_act is gelu: silu is wanted": {"hidden_act": "gelu"},
        "rope_type is linear: default is wanted": {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
        },
    }
    for message, more in wrong.items():
        with pytest.raises(ValueError, match=message):
            build(**more)
    granite = transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**{k: x for k, x in LLAMA.items() if k != "head_dim"})
    )
    with pytest.raises(ValueError, match=r"^model_type is granite: llama or mistral"):
        Llama.from_transformers(granite)
    with pytest.raises(ValueError, match=f"^sliding_window is {WINDOW}: attend="):
        Llama.from_transformers(theirs("mistral", torch.float32, "cpu"))


def test_offline_is_noticed_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is silent, one that refuses, and a machine that was told to stay offline."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    ended = []

    def silent(address: str, timeout: float) -> None:
        time.sleep(5 * timeout)
        ended.append(address)
        raise OSError

    monkeypatch.setattr("urllib.request.urlopen", silent)
    assert not is_reachable(0.1)
    assert not ended
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: nullcontext())
    assert is_reachable(5.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    assert not is_reachable(5.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.undo()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not is_reachable(5.0)


@pytest.mark.parametrize("where", ["cached", "downloaded", "out of reach", "missing there"])
def test_load_says_what_it_has(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published, random = nn.Linear(1, 1), nn.Linear(1, 1)

    def find(name: str, *, dtype: torch.dtype, local_files_only: bool = False) -> nn.Module:
        assert dtype == torch.float32
        if where == "cached" or (where == "downloaded" and not local_files_only):
            return published
        raise OSError("not here")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", find)
    monkeypatch.setattr(real_models_weights, "is_reachable", lambda: where != "out of reach")
    model, told = load("a/model", lambda: random)
    known = where in ("cached", "downloaded")
    assert model is (published if known else random)
    assert not model.training
    assert told == (f"a/model, {where}" if known else "random, for a/model is out of reach")
