"""The proof of `sliding_window` in models: the slot, a stream, and how far a stack of layers sees."""

import math
from functools import partial

import pytest
import torch
from tests.annotated_attention.test_sliding_window_details import flops, masked_attention, model_of
from tests.proof import Case, assert_close, normal, plain_attention
from torch import Tensor

from annotated_attention.rotary import rotary_attention
from annotated_attention.sliding_window import (
    RollingKVCache,
    causal_window_attention,
    receptive_field,
    sliding_window_attention,
)

both_directions = pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
PLACES = {
    "text": (range(7), range(7)),
    "piece": (range(9, 14), range(7, 14)),
    "apart": (range(40, 44), range(3, 14)),
    "token": ([13], range(3, 14)),
    "ring": ([13, 14], [14, 10, 11, 12, 13]),
    "gaps": ([2, 3, 7], [0, 2, 3, 6, 7]),
    "padding": (range(-3, 5), range(-3, 5)),
    "rows": ([[2, 3, 4], [5, 6, 7]], [range(5), range(3, 8)]),
    "padded rows": ([[2, 3, 4], [-1, 0, 1]], [range(5), range(-3, 2)]),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("window", [1, 3, 20])
def test_slot_is_by_position(name: str, window: int, device: str) -> None:
    i, j = (
        torch.tensor([list(x) for x in places] if name.endswith("rows") else list(places))
        for places in PLACES[name]
    )
    rows, columns = i.expand(2, -1).tolist(), j.expand(2, -1).tolist()
    mask = torch.tensor(
        [[[0 <= q - k < window and k >= 0 for k in c] for q in r] for r, c in zip(rows, columns, strict=True)]
    )
    inputs = Case(name, r=2, t=i.shape[-1], s=j.shape[-1]).inputs(device=device)
    exact = plain_attention(*inputs, mask[:, None].to(device))
    found = causal_window_attention(*inputs, i.to(device), j.to(device), window=window)
    assert_close(found, exact, exact)


def test_mistral_streams_in_constant_memory(device: str) -> None:
    fast, slow = (
        model_of(partial(rotary_attention, attend=partial(f, window=5)), 2, h=4, g=2).to(device)
        for f in (causal_window_attention, masked_attention)
    )
    tokens = torch.arange(64, device=device).expand(1, 64) ** 2 % 17
    exact = slow(tokens)
    assert_close(fast(tokens), exact, exact)
    caches, sizes = [RollingKVCache(5) for _ in range(2)], set()
    with torch.no_grad():
        steps = []
        for token in tokens.split(1, 1):
            steps.append(fast(token, caches=caches))
            sizes.add(sum(cache.nbytes for cache in caches))
    assert_close(torch.cat(steps, 1), exact, exact)
    assert sizes == {2 * 2 * 5 * (6 + 6) * 8}


def test_training_is_linear() -> None:
    model = model_of(partial(causal_window_attention, window=5), 2)
    counts = []
    for t in (256, 512, 1024):
        tokens = torch.arange(t)[None] % 17
        counts.append(flops(lambda x: model(x).sum().backward(), tokens))
    once, twice, fourfold = counts
    assert fourfold - twice == 2 * (twice - once)


@both_directions
@pytest.mark.parametrize(("n_layers", "window"), [(0, 3), (1, 4), (2, 1), (2, 4), (3, 3)])
def test_receptive_field_by_gradients(n_layers: int, window: int, is_causal: bool) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return sliding_window_attention(query, key, value, window, is_causal=is_causal, block_size=4)

    x = normal("x", 1, 31, 24).requires_grad_()
    stream, last = x, 30 if is_causal else 15
    for block in model_of(attend, max(n_layers, 1)).blocks[:n_layers]:
        stream = block(stream)
    (gradient,) = torch.autograd.grad(stream[0, last].sum() + 0 * x.sum(), x)
    read = gradient[0].norm(dim=-1).nonzero()[:, 0].tolist()
    reach = n_layers * (window - 1)
    assert len(read) == receptive_field(n_layers, window, is_causal=is_causal)
    assert read == list(range(last - reach, last + 1 if is_causal else last + reach + 1))


def test_receptive_field_of_mistral() -> None:
    assert receptive_field(32, 4096) == 131_041
    assert 32 * 4096 == 131_072


@pytest.mark.parametrize(("n_layers", "w"), [(1, 5), (3, 4), (4, 3)])
def test_influence_is_a_sum_of_dice(n_layers: int, w: int) -> None:
    # Equal scores, and the identity for values: the output says how much of each token arrives.
    t = receptive_field(n_layers, w)
    zeros = torch.zeros(1, 1, t, 1, dtype=torch.float64)
    arrived = torch.eye(t, dtype=torch.float64)[None, None]
    for _ in range(n_layers):
        arrived = sliding_window_attention(zeros, zeros, arrived, w)
    influence = arrived[0, 0, -1].flip(0)
    dice = [0] * t
    for throws in range(w**n_layers):
        dice[sum(throws // w**n % w for n in range(n_layers))] += 1
    assert influence.tolist() == pytest.approx([ways / w**n_layers for ways in dice])
    assert dice[-1] == 1
    r = torch.arange(t)
    mean = (influence * r).sum()
    assert mean.item() == pytest.approx(n_layers * (w - 1) / 2)
    variance = (influence * (r - mean) ** 2).sum()
    assert variance.item() == pytest.approx(n_layers * (w * w - 1) / 12)
    # Mistral's sizes.
    assert 32 * 4095 / 2 == 65_520
    assert math.sqrt(32 * (4096**2 - 1) / 12) == pytest.approx(6_689, abs=0.5)
    assert 4096.0**-32 == 2.0**-384
    assert torch.tensor(2.0**-384, dtype=torch.float32) == 0
