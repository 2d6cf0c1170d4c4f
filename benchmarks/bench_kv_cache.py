"""Writing with a cache beside writing without one, on the model of lesson 3; reading; a batch; the bytes; a step
behind 1,000 to 100,000 tokens, with every kind of cache.

The weights are random: time does not depend on what is written."""

from functools import partial

import torch

from annotated_attention.kv_cache import KVCache, generate_batch, kv_cache_bytes, make_caches, prefill
from annotated_attention.language_model import LanguageModel, LanguageModelConfig, generate
from benchmarks.measure import compare, device

ROUNDS = 3


def with_cache(model: LanguageModel, tokens: torch.Tensor, n: int) -> torch.Tensor:
    return generate(model, tokens, n, caches=make_caches(model, tokens.shape[1] + n - 1))


def read(model: LanguageModel, prompt: torch.Tensor, chunk_size: int | None) -> torch.Tensor:
    return prefill(model, [prompt], make_caches(model, len(prompt)), chunk_size=chunk_size)


def one_by_one(model: LanguageModel, prompts: list[torch.Tensor], n: int) -> list[torch.Tensor]:
    return [with_cache(model, prompt[None], n) for prompt in prompts]


def run() -> list[dict]:
    torch.manual_seed(0)
    config = LanguageModelConfig(max_length=512)
    model = LanguageModel(config).to(device()).eval()
    prompts = [torch.randint(config.vocab_size, (16 + n,), device=device()) for n in range(8)]
    cases = []
    for n in (48, 240, 496):
        tokens = prompts[0][None]
        ms = compare(partial(with_cache, model, tokens, n), partial(generate, model, tokens, n), ROUNDS)
        about = {"case": "write", "prompt": 16, "tokens": n}
        cases.append(about | rates(n, "with_cache", ms["ours_ms"], "without", ms["peer_ms"]))

    long = torch.randint(config.vocab_size, (256,), device=device())
    ms = compare(partial(read, model, long, 64), partial(read, model, long, None), ROUNDS)
    about = {"case": "read", "prompt": 256, "chunk_size": 64}
    cases.append(about | rates(256, "in_chunks", ms["ours_ms"], "at_once", ms["peer_ms"]))

    ms = compare(partial(generate_batch, model, prompts, 64), partial(one_by_one, model, prompts, 64), ROUNDS)
    about = {"case": "write", "texts": 8, "tokens": 8 * 64}
    cases.append(about | rates(8 * 64, "in_a_batch", ms["ours_ms"], "one_by_one", ms["peer_ms"]))

    caches: list[KVCache] = make_caches(model, 256)
    prefill(model, [long], caches)
    d = config.d_model // config.n_heads
    predicted = kv_cache_bytes(config.n_layers, config.n_heads, d, 256, dtype=torch.float32)
    buffers = [buffer for cache in caches for buffer in (cache.keys, cache.values)]
    measured = sum(buffer.untyped_storage().nbytes() for buffer in buffers)
    cases.append({"case": "bytes", "tokens": 256, "predicted": predicted, "measured": measured})
    return cases


def rates(n: int, ours: str, ours_ms: float, peer: str, peer_ms: float) -> dict[str, float]:
    """Tokens a second of both, and how many times more ours are."""
    return {
        f"{ours}_tokens_s": 1e3 * n / ours_ms,
        f"{peer}_tokens_s": 1e3 * n / peer_ms,
        "speedup": peer_ms / ours_ms,
    }
