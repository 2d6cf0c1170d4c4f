"""The proof of `kv_cache`: each test is a claim that its page makes."""

import torch

from annotated_attention.kv_cache import KVCache, generate_batch, kv_cache_bytes, make_caches
from annotated_attention.language_model import LanguageModel, LanguageModelConfig, generate


def small_model() -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageModelConfig(vocab_size=37, max_length=64, d_model=24, n_layers=3, n_heads=3)
    return LanguageModel(config).double()


def test_a_batch_equals_each_text_alone() -> None:
    model = small_model()
    prompts = [torch.arange(n) % 37 for n in (5, 11, 7)]
    for prompt, text in zip(prompts, generate_batch(model, prompts, 9, temperature=0.0), strict=True):
        alone = generate(model, prompt[None], 9, temperature=0.0)
        cached = generate(model, prompt[None], 9, temperature=0.0, caches=make_caches(model, 23))
        assert torch.equal(alone, text[None])
        assert torch.equal(alone, cached)


def test_bytes_are_as_predicted() -> None:
    cache = KVCache(17)
    cache.update(torch.randn(2, 3, 5, 11), torch.randn(2, 3, 5, 13))
    assert cache.nbytes == kv_cache_bytes(1, 3, 11, 17, batch=2, dtype=torch.float32, e=13)
