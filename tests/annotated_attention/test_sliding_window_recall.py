"""The proof of `sliding_window_recall`: each test is a claim that its page makes."""

from functools import partial

import pytest
import torch
from torch import Tensor

from annotated_attention.bigbird import bigbird_plan, plan_mask
from annotated_attention.bigbird_graph import path_lengths
from annotated_attention.language_model import causal_attention
from annotated_attention.longformer import longformer_mask_mod
from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from annotated_attention.sliding_window import (
    causal_window_attention,
    receptive_field,
    sliding_window_mask,
)
from annotated_attention.sliding_window_recall import heard, planted_facts, reader, teach

SIZES = {"n_facts": 3, "n_values": 5, "length": 23}


def logits_by_value(window: int, n_layers: int, n_values: int, t: int, steps: int) -> Tensor:
    """Of the documents that differ in their one fact, at place 0: `v t` and the vocabulary."""
    torch.manual_seed(0)
    attend = partial(causal_window_attention, window=window)
    model = reader(attend, n_layers=n_layers, n_facts=1, n_values=n_values, length=t)
    teach(model, lambda: planted_facts(n_values, t, 1, n_values)[:2], steps=steps)
    tokens = torch.zeros(n_values, t, dtype=torch.long)
    tokens[:, 0] = 1 + torch.arange(n_values)
    with torch.no_grad():
        return model(tokens)


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize(("window", "n_layers"), [(2, 1), (4, 2), (3, 3)])
def test_unheard_facts_move_no_bit(window: int, n_layers: int, steps: int) -> None:
    logits = logits_by_value(window, n_layers, 5, 17, steps)
    moved = (logits != logits[:1]).any(dim=-1).any(dim=0)
    sees = sliding_window_mask(17, 17, window)
    assert torch.equal(moved, heard(sees, n_layers)[:, 0])


def test_a_guess_is_right_once_in_v() -> None:
    answers = logits_by_value(3, 2, 5, 17, steps=30).argmax(dim=-1)
    right = (answers == 1 + torch.arange(5)[:, None]).float().mean(dim=0)
    assert (right[5:] == 0.2).all()


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("window", "n_layers"), [(1, 3), (2, 1), (4, 3), (5, 2)])
def test_windows_hear_as_far_as_they_reach(window: int, n_layers: int, is_causal: bool) -> None:
    sees = sliding_window_mask(37, 37, window, is_causal=is_causal)
    reach = n_layers * (window - 1)
    assert torch.equal(heard(sees, n_layers), sliding_window_mask(37, 37, reach + 1, is_causal=is_causal))
    assert heard(sees, n_layers)[18].sum() == receptive_field(n_layers, window, is_causal=is_causal)

    # Who does not look at itself still knows what it knew: the residual stream.
    others = sees & ~torch.eye(37, dtype=torch.bool)
    assert torch.equal(heard(others, n_layers), heard(sees, n_layers))


@pytest.mark.parametrize("place", [0, 5, 22])
def test_a_hub_is_two_layers(place: int) -> None:
    is_global, i = (torch.arange(23) == place)[None], torch.arange(23)
    sees = longformer_mask_mod(2, is_global)(torch.tensor(0), torch.tensor(0), i[:, None], i)
    assert not heard(sees, 1).all()
    assert heard(sees, 2).all()


@pytest.mark.parametrize("n_random", [0, 1, 3])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 5])
def test_plans_hear_along_their_paths(n_layers: int, n_random: int) -> None:
    plan = bigbird_plan(19, n_window=3, n_global=0, n_random=n_random, seed=7)
    assert torch.equal(heard(plan_mask(plan), n_layers), path_lengths(plan) <= n_layers)


def test_documents_ask_for_what_they_told() -> None:
    n, v, b, t = 3, 5, 211, 13
    generator = torch.Generator().manual_seed(0)
    tokens, targets, where = planted_facts(b, t, n, v, places=(2, 11), generator=generator)
    is_fact = tokens >= n
    assert (is_fact.sum(dim=1) == n).all()
    assert torch.equal(is_fact.any(dim=0), (torch.arange(t) >= 2) & (torch.arange(t) < 11))
    assert torch.equal(targets < 0, is_fact)

    # The fact stands where it is said to, has the key that is asked for, and every key has one.
    asked = targets >= 0
    assert torch.equal(tokens.gather(1, where)[asked], targets[asked])
    assert torch.equal(((targets - n) // v)[asked], tokens[asked])
    keys = ((tokens[is_fact] - n) // v).view(b, n).sort(dim=1).values
    assert torch.equal(keys, torch.arange(n).expand(b, n))

    # Every fact there can be, and every question, occurs.
    assert torch.equal(tokens.unique(), torch.arange(n + n * v))


def test_wrong_input_is_refused() -> None:
    for n_facts, places in ((0, (0, 1)), (2, (0, 1)), (1, (3, 3)), (1, (-1, 2)), (1, (0, 8))):
        with pytest.raises(ValueError, match=f"n_facts is {n_facts}, places are .*, t is 7"):
            planted_facts(2, 7, n_facts, 3, places=places)


def test_the_mask_is_all_that_has_order() -> None:
    torch.manual_seed(0)
    model = reader(lambda q, k, v, i, j: scaled_dot_product_attention(q, k, v), n_layers=2, **SIZES)
    tokens = planted_facts(2, 23, 3, 5, places=(0, 23))[0]
    order = torch.randperm(23)
    with torch.no_grad():
        assert torch.allclose(model(tokens)[:, order], model(tokens[:, order]), atol=1e-5)


def test_a_fact_begins_near_its_key() -> None:
    torch.manual_seed(0)
    table = reader(causal_attention, n_layers=1, **SIZES).embedding.weight
    key, fact = table[:3], table[3:].unflatten(0, (3, 5))
    value = fact - key[:, None]
    assert torch.allclose(value, value[:1].expand_as(value), atol=1e-6)


def test_a_fact_is_learned_in_seconds() -> None:
    torch.manual_seed(0)
    model = reader(causal_attention, n_layers=1, n_facts=1, n_values=4, length=11)
    seen = []
    teach(model, lambda: planted_facts(16, 11, 1, 4)[:2], steps=60, report=seen.append)
    assert seen == list(range(1, 61))
    tokens, targets, _ = planted_facts(16, 11, 1, 4)
    with torch.no_grad():
        assert torch.equal(model(tokens).argmax(dim=-1)[:, 1:], targets[:, 1:])
