"""The proof of `sliding_window_cache`: each test is a claim that its page makes."""

import torch

from annotated_attention.language_model import Cache
from annotated_attention.sliding_window_cache import RollingKVCache


def test_it_is_a_cache() -> None:
    cache = RollingKVCache(3)
    assert isinstance(cache, Cache)
    for n in range(7):
        cache.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert cache.positions.tolist() == [6, 4, 5]
