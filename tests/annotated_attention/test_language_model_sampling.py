"""The proof of `language_model_sampling`: each test is a claim that its page makes."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import normal
from torch import Tensor

from annotated_attention.kv_cache import make_caches
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_sampling import generate, sample

V, LENGTH = 17, 23
each_position = pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])


def build(device: str = "cpu", position: str = "learned", dropout: float = 0.0) -> LanguageModel:
    """A model in float64 that has opinions: its parameters are far from their small beginning."""
    torch.manual_seed(proof.SEED)
    config = LanguageModelConfig(
        vocab_size=V,
        max_length=LENGTH,
        d_model=22,
        n_layers=2,
        n_heads=2,
        position_embedding=position,
        dropout=dropout,
    )
    model = LanguageModel(config)
    for n, parameter in enumerate(model.parameters()):
        parameter.data += 0.3 * normal(f"parameter {n}", *parameter.shape, dtype=torch.float32)
    return model.to(device, torch.float64)


def some_tokens(device: str = "cpu", t: int = 5) -> Tensor:
    return torch.randint(V, (3, t), generator=torch.Generator().manual_seed(1)).to(device)


@each_position
def test_caches_write_the_same_text(position: str, device: str) -> None:
    model, tokens = build(device, position), some_tokens(device)
    texts = []
    for caches in (None, make_caches(model, 23)):
        generator = torch.Generator(device).manual_seed(0)
        options = {"temperature": 0.9, "top_p": 0.95, "generator": generator}
        texts.append(generate(model, tokens, 18, caches=caches, **options))
    assert torch.equal(*texts)
    assert torch.equal(texts[0][:, :5], tokens)
    assert texts[0].shape == (3, 23)


def test_a_text_goes_on_where_it_stopped(device: str) -> None:
    model, tokens = build(device), some_tokens(device)
    caches, whole = make_caches(model, 22), generate(model, tokens, 18, temperature=0.0)
    text = generate(model, tokens, 7, temperature=0.0, caches=caches)
    assert caches[0].longest == text.shape[1] - 1
    more = generate(model, text[:, -1:], 11, temperature=0.0, caches=caches)
    assert torch.equal(torch.cat([text, more[:, 1:]], 1), whole)


def test_generate_evaluates_and_goes_back() -> None:
    model, tokens = build(dropout=0.5), some_tokens()
    model.train()
    quiet = generate(model, tokens, 5, temperature=0.0)
    assert model.training
    assert torch.equal(quiet, generate(model.eval(), tokens, 5, temperature=0.0))
    assert not model.training
    assert torch.equal(generate(model, tokens.to(torch.uint8), 5, temperature=0.0), quiet)
    model.train()
    with pytest.raises(ValueError, match="learned positions end at max_length - 1 = 22"):
        generate(model, tokens, 20)
    assert model.training
    assert (model(tokens) != model(tokens)).any()


@given(seed=st.integers(0, 99), top_p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_nucleus(seed: int, top_p: float) -> None:
    probabilities = (2 * normal(f"logits {seed}", V)).softmax(-1)
    order = probabilities.argsort(descending=True)
    size = next(n for n in range(1, V + 1) if n == V or probabilities[order[:n]].sum() >= top_p - 1e-6)
    generator = torch.Generator().manual_seed(seed)
    drawn = sample(probabilities.log().expand(999, V), top_p=top_p, generator=generator)
    assert {*drawn.tolist()} <= {*order[:size].tolist()}
    # Nothing of the nucleus is lost, and within it the proportions stay.
    counts = torch.bincount(drawn, minlength=V)[order[:size]] / 999
    kept = probabilities[order[:size]] / probabilities[order[:size]].sum()
    assert (counts - kept).abs().max() < 5 * math.sqrt(0.25 / 999)


def test_a_share_of_one_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, drawn_from, real = normal("logits", 1, 200_000, dtype=torch.float32), [], torch.multinomial
    ordered = logits.softmax(-1).sort(descending=True).values
    assert (ordered.cumsum(-1) - ordered >= 1).any()
    monkeypatch.setattr(torch, "multinomial", lambda x, *_, **__: drawn_from.append(x) or real(x, 1))
    sample(logits)
    assert (drawn_from[0] > 0).all()
    # What is impossible stays so.
    logits[:, 5:] = -torch.inf
    assert all(sample(logits.expand(99, -1)) < 5)


def test_temperature_sharpens(device: str) -> None:
    logits = normal("logits", V, device=device).expand(9999, V)
    for temperature in (0.3, 1.0, 2.0):
        generator = torch.Generator(device).manual_seed(0)
        drawn = sample(logits, temperature=temperature, generator=generator)
        wanted = (logits[0] / temperature).softmax(-1)
        assert (torch.bincount(drawn, minlength=V) / 9999 - wanted).abs().max() < 5 * math.sqrt(0.25 / 9999)
    for cold in (0.0, 1e-20, 1e-40):
        assert (sample(1e4 * logits[:9].float(), temperature=cold) == logits[0].argmax()).all()


def test_texts_are_drawn_one_by_one() -> None:
    # Two equal texts go their own ways, and each token is drawn from what the model says after the text.
    model, tokens = build(), some_tokens()[:1]
    texts = generate(model, tokens.expand(999, 5), 2, generator=torch.Generator().manual_seed(0))
    for first in range(V):
        mine = texts[texts[:, 5] == first, 6]
        if len(mine) > 99:
            wanted = model(torch.cat([tokens[0], torch.tensor([first])])[None])[0, -1].softmax(-1)
            counted = torch.bincount(mine, minlength=V) / len(mine)
            assert (counted - wanted).abs().max() < 5 * math.sqrt(0.25 / len(mine))
    assert len({*texts[:, 5].tolist()}) > 1
    assert len({*texts[:, 6].tolist()}) > 1


def test_small_dtypes_are_widened() -> None:
    logits = normal("logits", 3, V).to(torch.bfloat16)
    for top_p, temperature in itertools.product((0.3, 1.0), (0.0, 0.5)):
        drawn = [
            sample(x, top_p=top_p, temperature=temperature, generator=torch.Generator().manual_seed(0))
            for x in (logits, logits.float())
        ]
        assert torch.equal(*drawn)


def test_wrong_input_is_refused() -> None:
    for options in ({"temperature": -0.1}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
            sample(normal("logits", 3, V), **options)
    with pytest.raises(ValueError, match="b t with at least one token"):
        generate(build(), some_tokens()[:, :0], 1)
