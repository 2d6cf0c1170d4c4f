"""The proof of `real_models_modules`: each test is a claim that its page makes."""

import copy
import functools
from typing import Any

import pytest
import torch
import transformers
from tests.annotated_attention.test_real_models_interface_models import (
    VOCABULARY,
    assert_model_agrees,
    attending,
    inputs_of,
    randomised,
    softmax_in_float64,
)
from tests.proof import bare, normal
from torch import Tensor, nn

from annotated_attention import real_models_modules
from annotated_attention.alibi import alibi_bias
from annotated_attention.longformer import longformer_attention
from annotated_attention.real_models_modules import annotate, split_fused

__all__ = ["softmax_in_float64"]

# Twelve heads would do as well: what is wanted is no power of two.
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 42, "n_layer": 2, "n_head": 6, "eos_token_id": None}
LONGFORMER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "attention_window": [4, 8],
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
MODELS = {
    "bloom": (transformers.BloomConfig, transformers.BloomForCausalLM, BLOOM),
    "longformer": (transformers.LongformerConfig, transformers.LongformerForMaskedLM, LONGFORMER),
}


@functools.cache
def build(kind: str, name: str, dtype: torch.dtype, device: str) -> Any:
    """The library's model, or (`name` is "ours") one of the same weights with our modules."""
    config, architecture, sizes = MODELS[kind]
    model = randomised(architecture(config(**sizes))).to(device, dtype)
    if name == "ours":
        assert annotate(model) == 2
    return model


def logits(kind: str, name: str, dtype: torch.dtype, device: str, **more: Any) -> Tensor:
    tokens = inputs_of("llama", device)
    with torch.no_grad():
        return build(kind, name, dtype, device)(**tokens, **more).logits


def test_bloom(device: str) -> None:
    assert_model_agrees(lambda name, dtype: logits("bloom", name, dtype, device), "ours", "eager")


@pytest.mark.parametrize("side", ["left", "right"])
def test_bloom_with_padding(side: str, device: str) -> None:
    mask = torch.ones(2, 13, dtype=torch.long, device=device)
    mask[1, :4] = 0
    mask = mask if side == "left" else mask.flip(1)

    def real(name: str, dtype: torch.dtype) -> Tensor:
        return logits("bloom", name, dtype, device, attention_mask=mask)[mask.bool()]

    assert_model_agrees(real, "ours", "eager")
    moved = logits("bloom", "ours", torch.float64, device) - logits(
        "bloom", "ours", torch.float64, device, attention_mask=mask
    )
    assert (moved[1] != 0).any()


def test_a_hole_in_the_mask(device: str) -> None:
    mask = torch.ones(2, 13, dtype=torch.long, device=device)
    mask[:, 3:6] = 0
    ours, theirs = (
        logits("bloom", name, torch.float64, device, attention_mask=mask) for name in ("ours", "eager")
    )
    difference = (ours - theirs).abs().amax((0, 2))
    assert (difference[:3] < 1e-12).all()
    assert (difference[6:] > 1e-3).all()


def test_bloom_writes_the_same_tokens(device: str) -> None:
    """And, read in pieces behind the library's cache, gives the same logits: tokens alone may agree by chance."""
    tokens = inputs_of("llama", device)["input_ids"]
    written = [
        build("bloom", name, torch.float32, device).generate(
            tokens, max_new_tokens=9, do_sample=False, pad_token_id=0
        )
        for name in ("ours", "eager")
    ]
    assert written[0].shape == (2, 22)
    assert torch.equal(*written)

    def in_pieces(name: str, dtype: torch.dtype) -> Tensor:
        model, cache = build("bloom", name, dtype, device), transformers.DynamicCache()
        with torch.no_grad():
            pieces = [model(x, past_key_values=cache).logits for x in tokens.split((4, 1, 6, 2), 1)]
        return torch.cat(pieces, 1)

    assert_model_agrees(in_pieces, "ours", "eager")


def test_distances_round_better_than_positions() -> None:
    """BLOOM's line in bfloat16, and lesson 6's distances rounded as often, of the gentlest of 16 heads."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    s = 2048
    text = torch.ones(1, s, dtype=torch.long)
    line = build_alibi_tensor(text, 16, torch.bfloat16).double().view(16, s)
    exact = alibi_bias(16, 1, s, offset=s - 1, dtype=torch.float64)[:, 0]
    rounded = exact.to(torch.bfloat16).double()
    errors = [(x.softmax(-1) - exact.softmax(-1)).abs().max() for x in (line, rounded)]
    assert errors[0] > 20 * errors[1]


def test_a_cut_between_heads_keeps_them_whole() -> None:
    fused = normal("fused", 2, 5, 3 * 3 * 7)
    whole = split_fused(fused, 3)
    first = split_fused(fused[..., : 3 * 7], 1)
    assert torch.equal(first, whole[:, :, :1])
    thirds = fused.view(2, 5, 3, 3, 7).permute(2, 0, 3, 1, 4)
    assert thirds.shape == whole.shape
    assert not torch.equal(thirds, whole)


def global_mask(device: str) -> Tensor:
    mask = torch.zeros(2, 13, dtype=torch.long, device=device)
    mask[0, 0] = mask[0, 7] = mask[1, 5] = 1
    return mask


@pytest.mark.parametrize("with_global", [False, True], ids=["window", "global"])
def test_longformer(with_global: bool, device: str) -> None:
    more = {"global_attention_mask": global_mask(device)} if with_global else {}
    assert_model_agrees(
        lambda name, dtype: logits("longformer", name, dtype, device, **more), "ours", "eager"
    )


def test_longformer_with_padding(device: str) -> None:
    mask = torch.ones(2, 13, dtype=torch.long, device=device)
    mask[0, 9:] = mask[1, :2] = 0
    more = {"attention_mask": mask, "global_attention_mask": global_mask(device)}
    assert_model_agrees(
        lambda name, dtype: logits("longformer", name, dtype, device, **more), "ours", "eager"
    )


def broken(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    monkeypatch.setattr(real_models_modules, name, function)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_the_window_is_half_of_theirs_and_one(
    wrong: int, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    layer = build("longformer", "ours", torch.float64, device).longformer.encoder.layer[0].attention.self
    assert layer.window == 4 // 2 + 1

    def other(query: Tensor, key: Tensor, value: Tensor, window: int, *masks: Tensor, **more: Any) -> Tensor:
        return longformer_attention(query, key, value, window + wrong, *masks, **more)

    right = logits("longformer", "ours", torch.float64, device)
    broken(monkeypatch, "longformer_attention", other)
    assert (logits("longformer", "ours", torch.float64, device) - right).abs().max() > 1e-3


def test_global_tokens_have_projections_of_their_own(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    def plain(*inputs: Any, global_qkv: Any, **more: Any) -> Tensor:
        return longformer_attention(*inputs, global_qkv=None, **more)

    more = {"global_attention_mask": global_mask(device)}
    right = logits("longformer", "ours", torch.float64, device, **more)
    broken(monkeypatch, "longformer_attention", plain)
    assert (logits("longformer", "ours", torch.float64, device, **more) - right).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["bloom", "longformer"])
def test_the_name_changes_nothing(kind: str, device: str) -> None:
    model = copy.deepcopy(build(kind, "eager", torch.float64, device))
    before = model(**inputs_of("llama", device)).logits
    with attending(model, "annotated"):
        assert torch.equal(model(**inputs_of("llama", device)).logits, before)


@pytest.mark.parametrize("kind", ["bloom", "longformer"])
def test_weights_are_shared(kind: str) -> None:
    model = copy.deepcopy(build(kind, "eager", torch.float64, "cpu"))
    before = {name: x.data_ptr() for name, x in model.named_parameters()}
    annotate(model)
    assert {name: x.data_ptr() for name, x in model.named_parameters()} == before


def test_a_model_without_a_seam_is_refused() -> None:
    with pytest.raises(ValueError, match="model is Linear: a model with one of BloomAttention"):
        bare(annotate)(nn.Linear(2, 2))


def test_dropout_is_refused() -> None:
    sizes = {**BLOOM, "attention_dropout": 0.1}
    with pytest.raises(ValueError, match=r"dropout on the weights is 0.1: 0 is wanted"):
        annotate(transformers.BloomForCausalLM(transformers.BloomConfig(**sizes)))
    model = copy.deepcopy(build("longformer", "ours", torch.float32, "cpu")).train()
    with pytest.raises(ValueError, match=r"dropout on the weights is 0.1: 0 is wanted"):
        model(**inputs_of("llama"))


@pytest.mark.parametrize("kind", ["bloom", "longformer"])
def test_weights_are_not_handed_out(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^output_attentions is True: False is wanted"):
        logits(kind, "ours", torch.float32, "cpu", output_attentions=True)
