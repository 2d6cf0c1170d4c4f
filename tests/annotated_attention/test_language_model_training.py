"""The proof of `language_model_training`: each test is a claim that its page makes."""

import contextlib
from pathlib import Path

import torch

from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_training import bits_per_byte, train

CONFIG = LanguageModelConfig(
    vocab_size=17,
    max_length=11,
    d_model=22,
    n_layers=2,
    n_heads=2,
    dropout=0.1,
)
TEXT = torch.arange(300) % 16 + 1


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    def run(**options):
        torch.manual_seed(0)
        model = LanguageModel(CONFIG)
        return model, train(model, TEXT, steps=10, warmup=3, every=5, **options)

    model, losses = run()
    path = tmp_path / "model.pt"
    with contextlib.suppress(KeyboardInterrupt):
        run(checkpoint=path, report=stop)
    again, resumed = run(checkpoint=path)
    assert resumed == losses
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))
    assert bits_per_byte(model, TEXT) == bits_per_byte(again, TEXT)
