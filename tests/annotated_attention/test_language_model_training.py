"""The proof of `language_model_training`: each test is a claim that its page makes."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from annotated_attention import language_model_training
from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    causal_attention,
)
from annotated_attention.language_model_training import BEGIN, bits_per_byte, crops, rate_factor, train

V, LENGTH = 17, 11
CONFIG = LanguageModelConfig(
    vocab_size=V,
    max_length=LENGTH,
    d_model=22,
    n_layers=1,
    n_heads=2,
    dropout=0.1,
)
TEXT = torch.arange(301) * 7 % (V - 1) + 1


def run(seed: int = 0, steps: int = 8, text: Tensor = TEXT, **options) -> tuple[LanguageModel, list[float]]:
    torch.manual_seed(0)
    model = LanguageModel(options.pop("config", CONFIG)).to(options.pop("device", "cpu"))
    return model, train(model, text, steps=steps, seed=seed, warmup=2, every=3, **options)


def same(a: LanguageModel, b: LanguageModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def interrupt(after: int) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        if step == after:
            raise KeyboardInterrupt

    return report


@given(seed=st.integers(0, 999), length=st.integers(1, 300), size=st.integers(0, 5))
def test_crops_are_of_the_text(seed: int, length: int, size: int) -> None:
    text = torch.randperm(301, generator=torch.Generator().manual_seed(seed)) + 1
    where = {token: n for n, token in enumerate(text.tolist())}
    torch.manual_seed(seed)
    drawn = crops(text, size, length)
    assert drawn.shape == (size, length + 1)
    assert (drawn[:, 0] == BEGIN).all()
    for row in drawn[:, 1:].tolist():
        assert row == text[where[row[0]] :][:length].tolist()


def test_crops_begin_anywhere() -> None:
    torch.manual_seed(0)
    text = torch.arange(1, 8, dtype=torch.uint8)
    drawn = crops(text, 7000, 3)
    assert drawn.dtype == torch.long
    starts = torch.bincount(drawn[:, 1], minlength=8)
    assert starts[[0, 6, 7]].tolist() == [0, 0, 0]
    assert (starts[1:6] - 1400).abs().max() < 5 * math.sqrt(1400)
    assert torch.equal(crops(text, 1, 7), torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]]))
    with pytest.raises(ValueError, match="text has 7 tokens, a crop takes 8"):
        crops(text, 1, 8)


def test_crops_may_begin_without() -> None:
    text = torch.arange(1, 9)
    assert torch.equal(crops(text, 1, 7, begin=None), text[None])
    with pytest.raises(ValueError, match="a crop takes 9"):
        crops(text, 1, 8, begin=None)
    model, losses = run(draw=partial(crops, begin=None))
    assert len(losses) == 8
    assert not same(model, run()[0])


def test_rate_rises_and_falls() -> None:
    rates = [rate_factor(n, 30, 10) for n in range(30)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rates[10] == 1
    assert rates[20] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    assert [rate_factor(n, 2, 0) for n in range(2)] == pytest.approx([1, 0.5])


def test_loss_is_that_of_the_next_token(device: str) -> None:
    config = replace(CONFIG, dropout=0.0)
    losses = run(config=config, steps=1, device=device)[1]
    torch.manual_seed(0)
    fresh = LanguageModel(config).to(device)
    torch.manual_seed(0)
    tokens = crops(TEXT, 16, LENGTH).to(device)
    logs = fresh.double()(tokens[:, :-1]).log_softmax(-1)
    wanted = [-logs[b, i, tokens[b, i + 1]] for b in range(16) for i in range(LENGTH)]
    assert losses[0] == pytest.approx((sum(wanted) / len(wanted)).item(), rel=1e-5)


def test_a_model_learns(device: str) -> None:
    text = TEXT.to(device)
    model, losses = run(steps=150, learning_rate=1e-2, device=device, text=text)
    assert losses[0] == pytest.approx(math.log(V), abs=0.1)
    # After one byte of this text the rest is certain; the first one is one of 16.
    certain = 4 / LENGTH
    assert bits_per_byte(model, text[: 20 * LENGTH]) == pytest.approx(certain, abs=0.1)


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    model, losses = run()
    path = tmp_path / "model.pt"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, report=interrupt(6))
    torch.manual_seed(123)
    seen = []
    again, resumed = run(checkpoint=path, report=lambda step, loss: seen.append((step, loss)))
    assert resumed == losses
    assert same(model, again)
    assert seen == [(6, losses[6]), (7, losses[7])]
    # What is finished is read, and not trained further; the means of AdamW were resumed too.
    state = torch.load(path, weights_only=True)["optimizer"]["state"]
    assert {int(x["step"]) for x in state.values()} == {8}
    assert run(checkpoint=path)[1] == losses


def test_a_broken_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"

    def unplugged(state: object, where: Path) -> None:
        where.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, report=interrupt(4))
    half_way = path.read_bytes()
    monkeypatch.setattr(language_model_training.torch, "save", unplugged)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path)
    assert path.read_bytes() == half_way
    monkeypatch.undo()

    # Nothing is ever written to the place itself.
    real, written = torch.save, []
    monkeypatch.setattr(
        language_model_training.torch,
        "save",
        lambda state, where: (written.append(where), real(state, where)),
    )
    assert same(run(checkpoint=path)[0], run()[0])
    assert written
    assert path not in written


def test_a_checkpoint_has_three_numbers_for_each(tmp_path: Path) -> None:
    config = replace(CONFIG, d_model=128)
    model = run(config=config, checkpoint=tmp_path / "model.pt")[0]
    parameters = sum(x.numel() for x in model.parameters())
    assert (tmp_path / "model.pt").stat().st_size == pytest.approx(12 * parameters, rel=0.05)
    assert all(x.grad.nbytes == x.nbytes == 4 * x.numel() for x in model.parameters())


def other_attention(config: LanguageModelConfig, layer: int) -> torch.nn.Module:
    return SelfAttention(config.d_model, config.n_heads)


def attention_with(config: LanguageModelConfig, layer: int, attend: Callable) -> torch.nn.Module:
    return SelfAttention(config.d_model, config.n_heads, attend=attend)


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    run(checkpoint=path)
    changes = [
        ({"seed": 1}, "seed = 0, this run 1"),
        ({"steps": 9}, "steps = 8, this run 9"),
        ({"text": TEXT.flip(0)}, "text = "),
        ({"learning_rate": 1e-3}, r"learning_rate = 0.003, this run 0.001"),
        ({"config": replace(CONFIG, n_heads=1)}, "n_heads = 2, this run 1"),
        ({"config": replace(CONFIG, make_attention=other_attention)}, "make_attention = self_attention"),
        ({"draw": partial(crops, begin=None)}, "draw = crops, this run crops"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            run(checkpoint=path, **change)
    with pytest.raises(ValueError, match=r"dtype = torch.float32, this run torch.bfloat16"):
        train(LanguageModel(CONFIG).bfloat16(), TEXT, steps=8, warmup=2, checkpoint=path)
    # A function is known by its name, which is the same in the next process; one among arguments as well.
    make = partial(attention_with, attend=partial(causal_attention))
    options = {"draw": partial(crops, begin=None), "config": replace(CONFIG, make_attention=make)}
    run(checkpoint=tmp_path / "other.pt", **options)
    assert "0x" not in str(torch.load(tmp_path / "other.pt", weights_only=True)["settings"])
    # A file of another kind, half a file, a folder, and none to write to.
    torch.save({"model": {}}, path)
    (tmp_path / "half.pt").write_bytes(path.read_bytes()[:99])
    (tmp_path / "words.pt").write_text("no checkpoint")
    for name in ("model.pt", "half.pt", "words.pt", "."):
        with pytest.raises(ValueError, match="cannot be read as one: a file that `train` wrote is wanted"):
            run(checkpoint=tmp_path / name)
    with pytest.raises(ValueError, match="a folder that exists is wanted"):
        run(checkpoint=tmp_path / "none" / "model.pt")


def test_seeds_differ() -> None:
    models = [run(seed=seed)[0] for seed in (0, 1)]
    assert not same(*models)
    assert same(models[0], run(seed=0)[0])
    draws = [torch.rand(3, generator=torch.Generator().manual_seed(n)) for n in (7, 7 + (5 << 32))]
    assert torch.equal(*draws)


def test_the_callers_randomness_is_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    model = LanguageModel(CONFIG)
    torch.manual_seed(5)
    train(model, TEXT, steps=2)
    assert torch.equal(torch.rand(3), wanted)


def test_only_matrices_decay() -> None:
    config, shrunk = replace(CONFIG, dropout=0.0), []
    models = [run(config=config, steps=1, weight_decay=decay)[0] for decay in (0.0, 0.5)]
    for (name, plain), decayed in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if not torch.equal(plain, decayed):
            shrunk.append(name)
    assert shrunk == [name for name, x in models[0].named_parameters() if x.ndim == 2]


def test_long_gradients_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, rates = [], []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: object) -> object:
        gradients = [x.grad.flatten() for group in self.param_groups for x in group["params"]]
        lengths.append(torch.cat(gradients).norm().item())
        rates.append({group["lr"] for group in self.param_groups})
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    model.embedding.weight.data *= 50
    model.eval()
    train(model, TEXT, steps=3, warmup=1, learning_rate=0.5)
    assert lengths == pytest.approx([1.0] * 3, abs=1e-4)
    assert rates == [{0.5 * rate_factor(n, 3, 1)} for n in range(3)]
    assert model.training


def test_an_even_guess_is_eight_bits(device: str) -> None:
    model = LanguageModel(LanguageModelConfig(max_length=LENGTH)).to(device)
    model.embedding.weight.data.zero_()
    assert bits_per_byte(model, TEXT.to(torch.uint8)) == pytest.approx(8, abs=1e-6)


@pytest.mark.parametrize("n", [1, LENGTH - 1, LENGTH, LENGTH + 1, 5 * LENGTH + 3])
def test_bits_are_those_of_a_distribution(n: int, device: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(replace(CONFIG, dropout=0.5)).to(device)
    model.embedding.weight.data *= 20
    text, bits, sizes = TEXT[:n].to(device), 0.0, []
    single = copy.deepcopy(model).double().eval()
    for first in range(0, n, LENGTH):
        block = F.pad(text[first : first + LENGTH], (1, 0), value=BEGIN)
        for i in range(1, len(block)):
            probabilities = single(block[None, :i])[0, -1].softmax(-1)
            assert probabilities.sum().item() == pytest.approx(1)
            bits -= math.log2(probabilities[block[i]].item())
    model.train()
    model.embedding.register_forward_hook(lambda layer, inputs, output: sizes.append(output.numel()))
    assert bits_per_byte(model, text, batch_size=2) == pytest.approx(bits / n, rel=1e-5)
    assert model.training
    assert all(sizes)


def test_bits_of_a_small_dtype_are_added_in_a_wide_one() -> None:
    torch.manual_seed(0)
    model, text = LanguageModel(CONFIG).bfloat16().eval(), TEXT[: 9 * LENGTH]
    logits = model(F.pad(text.view(9, LENGTH), (1, 0))[:, :-1]).double()
    exact = F.cross_entropy(logits.flatten(0, 1), text).item() / math.log(2)
    assert bits_per_byte(model, text) == pytest.approx(exact, rel=1e-5)


def test_no_text_has_no_bits() -> None:
    model = LanguageModel(CONFIG)
    with pytest.raises(ValueError, match="learned positions end"):
        bits_per_byte(model, TEXT, length=2 * LENGTH)
    assert model.training
    with pytest.raises(ValueError, match="text is empty"):
        bits_per_byte(LanguageModel(CONFIG), TEXT[:0])
