"""The proof of `real_models_interface`: each test is a claim that its page makes. The models: `_models`."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tests import proof
from tests.annotated_attention.test_real_models_interface_models import (
    MODELS,
    WINDOW,
    assert_model_agrees,
    attending,
    build,
    inputs_of,
    logits,
    padding,
    softmax_in_float64,
    written,
)
from tests.annotated_attention.test_sliding_window_details import Allocations
from tests.proof import assert_close, normal
from torch import Tensor, nn

from annotated_attention.attention_sinks_logits import sink_attention
from annotated_attention.real_models_interface import (
    library,
    masked,
    no_mask,
    register,
    tiled,
)
from annotated_attention.sliding_window import sliding_window_mask

__all__ = ["softmax_in_float64"]


def test_llama(device: str) -> None:
    assert_model_agrees(
        lambda name, dtype: logits("llama", name, dtype, device), "annotated", "eager", "sdpa"
    )


def test_mistral(device: str) -> None:
    assert_model_agrees(
        lambda name, dtype: logits("mistral", name, dtype, device), "annotated", "eager", "sdpa"
    )


def test_gpt_oss(device: str) -> None:
    assert build("gpt-oss", torch.float64, device).config.layer_types[:2] == [
        "sliding_attention",
        "full_attention",
    ]
    assert_model_agrees(lambda name, dtype: logits("gpt-oss", name, dtype, device), "annotated", "eager")


def test_whisper(device: str) -> None:
    assert_model_agrees(
        lambda name, dtype: logits("whisper", name, dtype, device), "annotated", "eager", "sdpa"
    )


def test_t5(device: str) -> None:
    assert_model_agrees(lambda name, dtype: logits("t5", name, dtype, device), "annotated", "eager", "sdpa")


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt-oss", "bert"])
def test_tiles_agree(kind: str, device: str) -> None:
    assert_model_agrees(lambda name, dtype: logits(kind, name, dtype, device), "annotated_tiled", "eager")


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        *[(kind, "annotated") for kind in MODELS if kind != "bert"],
        *[(kind, "annotated_tiled") for kind in ("llama", "mistral", "gpt-oss")],
    ],
)
def test_generation_writes_the_same_tokens(kind: str, ours: str, device: str) -> None:
    """Past the window: its cache has dropped keys by then."""
    wanted = written(kind, "eager", device)
    assert wanted.shape[1] >= 11
    assert torch.equal(written(kind, ours, device), wanted)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt-oss"])
def test_left_padding(kind: str, device: str) -> None:
    """Real tokens alone: in rows of padding `eager` has the mean of all values, and we 0."""
    mask = padding(device)

    def real(name: str, dtype: torch.dtype) -> Tensor:
        return logits(kind, name, dtype, device, attention_mask=mask)[mask.bool()]

    assert_model_agrees(real, "annotated", "eager")
    wanted = written(kind, "eager", device, attention_mask=mask)
    assert torch.equal(written(kind, "annotated", device, attention_mask=mask), wanted)
    # With sinks, a row that sees nothing spends all on nothing, and returns 0 under `eager` too.
    ours, blind = (
        logits(kind, name, torch.float64, device, attention_mask=mask)[1, 0]
        for name in ("annotated", "eager")
    )
    assert ((ours - blind).abs().max() > 0.1) == (kind != "gpt-oss")


def test_without_a_mask_function_padding_is_attended_to(device: str) -> None:
    transformers.AttentionInterface.register("annotated_alone", masked)
    mask = padding(device)
    alone, right, unpadded = (
        logits("llama", name, torch.float64, device, attention_mask=given)[1, -1]
        for name, given in (("annotated_alone", mask), ("annotated", mask), ("annotated", None))
    )
    assert torch.equal(alone, unpadded)
    assert (alone - right).abs().max() > 0.1


def layer(is_causal: bool | None = None) -> nn.Module:
    module = nn.Module()
    if is_causal is not None:
        module.is_causal = is_causal
    return module


@pytest.mark.parametrize("ours", [masked, tiled])
def test_none_means_causal_but_for_one_query(ours: Callable[..., Any], device: str) -> None:
    query, key, value = proof.Case("text", r=2, t=7, s=7).inputs(device=device)
    for module, more, is_causal in (
        (layer(), {}, True),
        (layer(True), {}, True),
        (layer(False), {}, False),
        (layer(True), {"is_causal": False}, False),
        (layer(False), {"is_causal": True}, True),
    ):
        output, _ = ours(module, query, key, value, None, scaling=0.7, **more)
        mask = proof.causal(7, 7, device) if is_causal else None
        exact = proof.plain_attention(query, key, value, mask, 0.7).transpose(1, 2)
        assert_close(output, exact, exact)
    last, _ = ours(layer(True), query[:, :, -1:], key, value, None, scaling=0.7)
    exact = proof.plain_attention(query[:, :, -1:], key, value, None, 0.7).transpose(1, 2)
    assert_close(last, exact, exact)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_a_bias_joins_any_mask(kind: str, device: str) -> None:
    query, key, value = proof.Case("text", r=2, t=7, s=7).inputs(device=device)
    bias, seen = normal("bias", 1, 6, 7, 7, device=device), proof.causal(7, 7, device)[None, None]
    hidden = torch.zeros(1, 1, 7, 7, dtype=torch.float64, device=device).masked_fill(~seen, -torch.inf)
    mask = {"none": None, "bool": seen, "float": hidden}[kind]
    output, _ = masked(layer(True), query, key, value, mask, position_bias=bias, scaling=1.0)
    exact = proof.plain_attention(query, key, value, bias + hidden, scale=1.0).transpose(1, 2)
    assert_close(output, exact, exact)


@pytest.mark.parametrize("ours", ["annotated", "annotated_tiled"])
def test_the_answer_has_time_before_heads(ours: str, device: str) -> None:
    function = masked if ours == "annotated" else tiled
    query, key, value = proof.Case("text", r=2).inputs(device=device)
    output, weights = function(layer(False), query, key, value, None)
    assert output.shape == (2, 5, 6, 13)
    assert output.is_contiguous()
    assert weights is None

    def exchanged(*inputs: Any, **more: Any) -> tuple[Tensor, None]:
        return function(*inputs, **more)[0].transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("annotated_exchanged", exchanged)
    wrong, right = (logits("llama", name, torch.float64, device) for name in ("annotated_exchanged", ours))
    assert (wrong - right).abs().max() > 0.1


def without(*names: str) -> Callable[..., Any]:
    def function(*inputs: Any, **more: Any) -> Any:
        return masked(*inputs, **{name: x for name, x in more.items() if name not in names})

    return function


@pytest.mark.parametrize(("kind", "name"), [("gpt-oss", "s_aux"), ("t5", "position_bias"), ("t5", "scaling")])
def test_dropped_sinks_are_silent(kind: str, name: str, device: str) -> None:
    transformers.AttentionInterface.register("annotated", without(name))
    try:
        wrong = logits(kind, "annotated", torch.float64, device)
    finally:
        register()
    assert (wrong - logits(kind, "annotated", torch.float64, device)).abs().max() > 0.1


def test_what_cannot_be_done_is_refused() -> None:
    query, key, value = proof.Case("text").inputs()
    refused = {"softcap": 30.0, "cache": object(), "dropout": 0.5, "output_attentions": True}
    for name, x in refused.items():
        for ours in (masked, tiled):
            with pytest.raises(ValueError, match=f"^{name} is "):
                ours(layer(), query, key, value, None, **{name: x})
    bias = normal("bias", 1, 3, 5, 7)
    with pytest.raises(ValueError, match=r"^a mask or a bias came"):
        tiled(layer(), query, key, value, None, position_bias=bias)
    with pytest.raises(ValueError, match=r"^a window of 5 looks both ways"):
        tiled(layer(False), query, key, value, None, sliding_window=5)
    with pytest.raises(ValueError, match=r"^a mask or a bias came"):
        proof.bare(tiled)(layer(), query, key, value, proof.causal(5, 7))


def test_tiles_refuse_what_needs_a_mask() -> None:
    assert no_mask(batch_size=2, attention_mask=torch.ones(2, 3, dtype=torch.bool)) is None
    with pytest.raises(ValueError, match="attention_mask hides padding"):
        logits("mistral", "annotated_tiled", torch.float32, "cpu", attention_mask=padding("cpu"))
    with pytest.raises(ValueError, match="two-sided windows"):
        no_mask(allow_is_causal_skip=False, allow_is_bidirectional_skip=True, local_size=3)
    packed = torch.tensor([[*range(6), *range(7)]]).expand(2, -1)
    with pytest.raises(ValueError, match="packed texts"):
        logits("llama", "annotated_tiled", torch.float32, "cpu", position_ids=packed, use_cache=False)
    with pytest.raises(ValueError, match="a static cache"):
        written("llama", "annotated_tiled", "cpu", cache_implementation="static")
    chunked = {"hidden_size": 16, "num_hidden_layers": 1, "num_local_experts": 1, "vocab_size": 7}
    chunked |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
    llama_4 = transformers.Llama4TextModel(transformers.Llama4TextConfig(**chunked, attention_chunk_size=4))
    llama_4.set_attn_implementation("annotated_tiled")
    with pytest.raises(ValueError, match="attention is chunked"):
        llama_4(torch.ones(1, 5, dtype=torch.long))
    right = written("llama", "eager", "cpu")
    assert torch.equal(written("llama", "annotated", "cpu", cache_implementation="static"), right)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt-oss"])
@pytest.mark.parametrize("ours", ["annotated", "annotated_tiled"])
def test_tiles_read_in_pieces(kind: str, ours: str, device: str) -> None:
    """Pieces of 4, 1, 6 and 2 tokens, behind the library's cache."""
    model, exact = build(kind, torch.float64, device), logits(kind, "eager", torch.float64, device)
    narrow = logits(kind, "eager", torch.float32, device)
    tokens = inputs_of(kind, device)["input_ids"]
    cache = transformers.DynamicCache(config=model.config)
    with attending(model, ours), torch.no_grad():
        pieces = [model(x, past_key_values=cache).logits for x in tokens.split((4, 1, 6, 2), 1)]
    assert_close(torch.cat(pieces, 1), exact + (narrow.double() - exact) * 2.0**-29, exact)
    if kind != "llama":
        assert cache.layers[0].keys.shape[2] == WINDOW - 1


def test_memory_of_the_tiles_is_linear(device: str) -> None:
    def largest(t: int, **more: Any) -> int:
        inputs = proof.Case("text", b=1, g=1, r=2, t=t, s=t, d=8, e=8).inputs(torch.float32, device)
        with Allocations() as seen:
            tiled(layer(), *inputs, None, **more)
        return seen.largest

    sinks = torch.zeros(2, device=device)
    for more in ({}, {"s_aux": sinks}, {"sliding_window": 64}, {"sliding_window": 64, "s_aux": sinks}):
        assert largest(4096, **more) <= 2 * largest(2048, **more)
        assert largest(4096, **more) < 4096 * 4096 / 8


@pytest.mark.parametrize("past", [0, 9])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
def test_tiles_are_masks(past: int, window: int | None, sinks: bool, device: str) -> None:
    """Across several tiles, with a scale of the model's own, a window and sinks or not."""
    t, s = 300, 300 + past
    inputs = proof.Case("text", r=2, t=t, s=s).inputs(device=device)
    logit = normal("sinks", 6, device=device) if sinks else torch.full((6,), -torch.inf, device=device)
    more = {"s_aux": logit} if sinks else {}
    output, _ = tiled(layer(), *inputs, None, scaling=0.7, sliding_window=window, **more)
    mask = sliding_window_mask(t, s, window or s, offset=past, device=device)
    exact = sink_attention(*inputs, logit, mask, scale=0.7).transpose(1, 2)

    # The gate is a few roundings more than the formula: in float32, what the formula loses is the measure.
    narrow = sink_attention(*(x.float() for x in inputs), logit.float(), mask, scale=0.7).transpose(1, 2)
    assert_close(output, exact + (narrow.double() - exact) * 2.0**-29, exact)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "annotated-attention\[models\]"'):
        library()
