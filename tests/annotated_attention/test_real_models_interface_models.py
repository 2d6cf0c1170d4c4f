"""The models of `real_models_interface`, and what is proven of them as wholes.

Every model has random weights, in its biases, norms and sinks too: what is zero or one hides mistakes. Where the
library computes in float32 whatever the dtype, it is brought to compute in float64 in float64, or its own
rounding would be the measure of ours.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from tests.proof import assert_close, normal
from torch import Tensor, nn

from annotated_attention import real_models_interface
from annotated_attention.real_models_interface import register

transformers.logging.set_verbosity_error()
register()

WINDOW, LENGTH, VOCABULARY = 5, 13, 59
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 42,
    "intermediate_size": 29,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
WHISPER = {
    "vocab_size": VOCABULARY,
    "d_model": 42,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 29,
    "decoder_ffn_dim": 29,
    "num_mel_bins": 7,
    "max_source_positions": 11,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": None,
    "suppress_tokens": None,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 42,
    "d_kv": 10,
    "d_ff": 29,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "pad_token_id": 0,
    "eos_token_id": None,
    "decoder_start_token_id": 0,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, SIZES),
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {**SIZES, "sliding_window": WINDOW},
    ),
    "gpt-oss": (
        transformers.GptOssConfig,
        transformers.GptOssForCausalLM,
        {
            **SIZES,
            "sliding_window": WINDOW,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
            "experts_implementation": "eager",
        },
    ),
    "whisper": (transformers.WhisperConfig, transformers.WhisperForConditionalGeneration, WHISPER),
    "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration, T5),
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM, BERT),
}


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter is drawn: matrices large enough for attention to choose, norms near one, all else normal."""
    for name, parameter in model.named_parameters():
        drawn = normal(name, *parameter.shape, dtype=torch.float32)
        if parameter.ndim > 1:
            drawn *= 1.5 * parameter.shape[-1] ** -0.5
        elif "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.3 * drawn
        parameter.data = drawn
    return model.eval()


@functools.cache
def build(kind: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The same weights, of float32, in every dtype."""
    config, architecture, sizes = MODELS[kind]
    model = randomised(architecture(config(**sizes)))
    if dtype == torch.float64:
        widen(model.double())
    return model.to(device)


def widen(model: nn.Module) -> None:
    """Norms that are computed in float32, though the model is not."""
    for module in model.modules():
        if "RMSNorm" in type(module).__name__ or type(module).__name__ == "T5LayerNorm":
            eps = module.variance_epsilon
            module.forward = functools.partial(
                nn.functional.rms_norm, normalized_shape=module.weight.shape, weight=module.weight, eps=eps
            )


@pytest.fixture(autouse=True)
def softmax_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmaxes that are computed in float32, though the scores are not."""
    softmax = nn.functional.softmax

    def wide(x: Tensor, dim: int, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **others)

    monkeypatch.setattr(nn.functional, "softmax", wide)


def inputs_of(kind: str, device: str = "cpu", dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    tokens = (normal("tokens", 2, LENGTH) * 1000).long().abs() % (VOCABULARY - 2) + 2
    inputs: dict[str, Tensor] = {"input_ids": tokens}
    if kind == "whisper":
        inputs = {"decoder_input_ids": tokens, "input_features": normal("sound", 2, 7, 22).to(dtype)}
    elif kind == "t5":
        inputs["decoder_input_ids"] = tokens.flip(1)[:, :7]
    return {name: x.to(device) for name, x in inputs.items()}


@contextlib.contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def logits(kind: str, implementation: str, dtype: torch.dtype, device: str, **more: Any) -> Tensor:
    model = build(kind, dtype, device)
    with attending(model, implementation), torch.no_grad():
        return model(**inputs_of(kind, device, dtype), **more).logits


def assert_model_agrees(run: Callable[[str, torch.dtype], Tensor], ours: str, *peers: str) -> None:
    """`run(implementation, dtype)` gives the same under `ours` as under the library's own."""
    exact = run("eager", torch.float64)
    for peer in peers:
        narrow = run(peer, torch.float32)
        assert_close(run(ours, torch.float32), narrow, exact, what=f"float32 beside {peer}")

        # In float64 the library is the oracle: its error in float32 says what rounding becomes in this model.
        shrunk = exact + (narrow.double() - exact) * 2.0**-29
        assert_close(run(ours, torch.float64), shrunk, exact, what=f"float64 beside {peer}")


def written(kind: str, implementation: str, device: str, **more: Any) -> Tensor:
    model = build(kind, torch.float32, device)
    inputs = inputs_of(kind, device, torch.float32)
    if kind in ("whisper", "t5"):
        del inputs["decoder_input_ids"]
    with attending(model, implementation):
        sampling = {"max_new_tokens": 11, "do_sample": False, "pad_token_id": 0}
        return model.generate(**inputs, **sampling, **more)


def padding(device: str) -> Tensor:
    mask = torch.ones(2, LENGTH, dtype=torch.long, device=device)
    mask[1, :6] = 0
    return mask


def test_our_functions_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal logits say nothing of a function that is not called: BLOOM's never is (`real_models_modules`)."""
    attend = real_models_interface.grouped_query_attention
    calls = []

    def counted(*inputs: Any, **more: Any) -> Tensor:
        calls.append(inputs[0].shape)
        return attend(*inputs, **more)

    monkeypatch.setattr(real_models_interface, "grouped_query_attention", counted)
    for kind, layers in (("llama", 3), ("mistral", 3), ("whisper", 2 + 2 * 2), ("t5", 2 + 2 * 2)):
        logits(kind, "annotated", torch.float32, "cpu")
        assert len(calls) == layers
        calls.clear()


def gradients(name: str, dtype: torch.dtype, device: str) -> Tensor:
    """Those of a random sum of all logits, at all parameters, as one vector."""
    model = build("llama", dtype, device)
    with attending(model, name):
        output = model(**inputs_of("llama", device)).logits
    upstream = normal("upstream", *output.shape, dtype=dtype, device=device)
    found = torch.autograd.grad(output, list(model.parameters()), upstream)
    return torch.cat([x.flatten() for x in found])


@pytest.mark.parametrize("ours", ["annotated", "annotated_tiled"])
def test_gradients_of_llama(ours: str, device: str) -> None:
    assert_model_agrees(lambda name, dtype: gradients(name, dtype, device), ours, "eager", "sdpa")
