"""The proof of `attention_sinks`: each test is a claim that its page makes."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tests import proof
from tests.proof import Case, assert_close, normal
from torch import Tensor

from annotated_attention.attention_sinks import (
    SinkKVCache,
    alibi_by_position,
    read_stream,
    streaming_alibi,
    streaming_rotary,
)
from annotated_attention.language_model import (
    Attend,
    Cache,
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    generate,
)
from annotated_attention.rotary import rotary_attention

N, W, T = 3, 5, 61  # sinks, window, and a stream of more than ten windows
SCHEMES = {"rotary": (rotary_attention, streaming_rotary), "alibi": (alibi_by_position, streaming_alibi)}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def model(attend: Attend, dtype: torch.dtype = torch.float64, device: str = "cpu") -> LanguageModel:
    """Two layers, whose weights are large enough for positions to matter."""
    torch.manual_seed(proof.SEED)
    config = LanguageModelConfig(
        vocab_size=17,
        d_model=24,
        n_layers=2,
        n_heads=3,
        position_embedding="none",
        make_attention=lambda config, layer: SelfAttention(24, 3, attend=attend),
    )
    result = LanguageModel(config)
    for name, parameter in result.named_parameters():
        if parameter.ndim == 2:
            parameter.data = 0.5 * normal(name, *parameter.shape)
    return result.to(device, dtype)


def stream(t: int = T, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(proof.SEED)
    return torch.randint(17, (2, t), generator=generator).to(device)


def caches(n: int = N, w: int = W) -> list[SinkKVCache]:
    return [SinkKVCache(n, w) for _ in range(2)]


@each_scheme
@pytest.mark.parametrize("sizes", [(N, W), (0, W), (1, 1), (4, 1)], ids=str)
def test_every_step_equals_the_masked_full_forward(scheme: str, sizes: tuple[int, int], device: str) -> None:
    (in_cache, in_full), (n, w) = SCHEMES[scheme], sizes
    in_full = partial(in_full, n_sinks=n, window=w)
    tokens, memory = stream(device=device), caches(n, w)
    with torch.no_grad():
        exact = model(in_full, device=device)(tokens)
        whole = model(in_full, torch.float32, device)(tokens)
        one_by_one = model(in_cache, torch.float32, device)
        steps = [one_by_one(tokens[:, i : i + 1], caches=memory) for i in range(T)]
    assert_close(torch.cat(steps, 1), whole, exact)
