r"""# Training a language model

Crops of a text, AdamW, and checkpoints from which a run goes on to the last bit.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $B$ | `batch_size` | scalar | crops of one step |
"""

import math
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, Integer
from torch import Tensor, nn

from annotated_attention.language_model import LanguageModel, LanguageModelConfig

__all__ = ["BEGIN", "bits_per_byte", "crops", "learning_rate_factor", "train"]

# The token in front of every text. Byte 0 occurs in no text, and in no Python file.
BEGIN = 0


def crops(
    text: Integer[Tensor, "n"], batch_size: int, length: int, *, begin: int | None = BEGIN
) -> Int[Tensor, "b _"]:
    """`length + 1` tokens a row: `begin`, and what follows somewhere in the text."""
    size = length + (begin is None)
    if len(text) < size:
        raise ValueError(f"text has {len(text)} tokens: at least {size} are wanted for a crop")
    start = torch.randint(len(text) - size + 1, (batch_size, 1))
    tokens = text[(start + torch.arange(size)).to(text.device)].long()
    return tokens if begin is None else F.pad(tokens, (1, 0), value=begin)


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Up in a line, down in half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def train(
    model: LanguageModel,
    text: Integer[Tensor, "n"],
    *,
    steps: int,
    batch_size: int = 16,
    length: int | None = None,
    learning_rate: float = 3e-3,
    warmup: int = 50,
    weight_decay: float = 0.1,
    seed: int = 0,
    draw: Callable[[Tensor, int, int], Tensor] = crops,
    checkpoint: Path | None = None,
    every: int = 100,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """The loss of every step, in nats a token. `report(step, loss)` is called after each."""
    length = model.config.max_length if length is None else length
    settings = {
        **{field.name: plain(getattr(model.config, field.name)) for field in fields(model.config)},
        **{"steps": steps, "batch_size": batch_size, "length": length, "learning_rate": learning_rate},
        **{"warmup": warmup, "weight_decay": weight_decay, "seed": seed, "draw": plain(draw)},
    }
    parameters = [x for x in model.parameters() if x.requires_grad]
    groups = [
        {"params": [x for x in parameters if x.ndim >= 2], "weight_decay": weight_decay},
        {"params": [x for x in parameters if x.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = load(checkpoint, model, optimizer, settings)

    was_training = model.training
    model.train()
    with torch.random.fork_rng():
        for step in range(len(losses), steps):
            torch.manual_seed(seed * 1_000_003 + step)
            tokens = draw(text, batch_size, length).to(parameters[0].device)
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * learning_rate_factor(step, steps, warmup)
            optimizer.step()
            losses.append(loss.item())
            if checkpoint is not None and (len(losses) % every == 0 or len(losses) == steps):
                save(checkpoint, model, optimizer, settings, losses)
            if report is not None:
                report(step, losses[-1])
    model.train(was_training)
    return losses


def plain(setting: Any) -> Any:
    """A function by its name; numbers and words as they are."""
    return getattr(setting, "__qualname__", repr(setting)) if callable(setting) else setting


def save(checkpoint: Path, model: nn.Module, optimizer: Any, settings: dict, losses: list[float]) -> None:
    state = {"settings": settings, "losses": losses}
    state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    unfinished = checkpoint.with_name(checkpoint.name + ".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, checkpoint)


def load(checkpoint: Path, model: nn.Module, optimizer: Any, settings: dict) -> list[float]:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for name, wanted in settings.items():
        came = state["settings"].get(name)
        if came != wanted:
            raise ValueError(f"{checkpoint} was made with {name} = {came}: {wanted} is wanted")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["losses"]


@torch.no_grad()
def bits_per_byte(
    model: LanguageModel,
    text: Integer[Tensor, "n"],
    *,
    length: int | None = None,
    batch_size: int = 16,
    begin: int = BEGIN,
) -> float:
    """Mean -log2 of the probability of each byte, read in blocks of `length`, each after `begin`."""
    length = model.config.max_length if length is None else length
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    whole = len(text) - len(text) % length
    nats = 0.0
    for blocks in (*text[:whole].view(-1, length).split(batch_size), text[None, whole:]):
        targets = blocks.to(device).long()
        logits = model(F.pad(targets[:, :-1], (1, 0), value=begin)) if targets.numel() else None
        if logits is not None:
            nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    model.train(was_training)
    return nats / len(text) / math.log(2)


def example(axes: dict[str, int]) -> None:
    b, h, t, d = (axes[letter] for letter in "bhtd")
    config = LanguageModelConfig(vocab_size=7, max_length=t, d_model=h * d, n_layers=1, n_heads=h)
    model, text = LanguageModel(config), torch.arange(5 * t) % 7
    train(model, text, steps=1, batch_size=b)
    bits_per_byte(model, text)
