r"""# Training a language model

A new model takes every byte for equally likely. What it is to become is in the text alone: hide each byte,
and ask for it. With $x_0$ a token that begins every text, the loss of $t$ bytes is

$$\mathcal L = -\frac1t \sum_{i=1}^{t} \ln P(x_i \mid x_0 \dots x_{i-1}),$$

and its gradient moves all parameters a little. That is all that is ever asked. The rest of this page makes
it quick, and makes two runs with the same seed the same run, even if one of them was interrupted.

![A text, and two crops of it: below each token stands the one that is asked for. Wherever a crop begins, the
same token goes ahead.](figure:crops)

## What came before

Gradient descent on whole texts, then on samples; Adam (2014), which divides each parameter's mean gradient
by its root mean square, so that one rate suits all; AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101),
whose decay does not pass through that division; a rate that first rises (Vaswani et al. 2017, section 5.3)
and then follows a cosine to the end. The constants here, $\beta = (0.9, 0.95)$, decay 0.1 and gradients of
at most norm 1, are those of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix B); its rate of 0.0006
suits 125 million parameters, and fewer bear a higher one.

## Bits

In base 2, a loss is a length. A coder that knows $P$ writes the text in $-\sum_i \log_2 P(x_i \mid \dots)$
bits and one or two more, so *bits per byte*, $\mathcal L / \ln 2$, says how far a model compresses: 8 is
nothing [check:test_an_even_guess_is_eight_bits]. Perplexity is $e^{\mathcal L}$, a number of equally likely
choices. It cannot be compared between models that cut a text into different tokens. Bits per byte can.

## A token that begins

Byte 0 occurs in no text, and stands in front of every crop. So each byte of a crop is predicted, the first
one too, and the bits are those of a complete code [check:test_bits_are_those_of_a_distribution]; a model can
write from nothing; and there always is a key that means nothing, which lesson 10 needs. To do without:
`draw=partial(crops, begin=None)` [check:test_crops_may_begin_without].

## What it costs, and when it fails

In float32 a parameter takes 16 bytes: itself, its gradient and two means of AdamW; a checkpoint has 12 of
them [check:test_a_checkpoint_has_three_numbers_for_each]. The activations of a step come on top, and are
more in small models.

- *The same run* is promised for one processor and one number of threads. Others add in another order, and
  some kernels of GPUs in a new one each time: such a run is as good, but not the same.
- *By heart.* A model that reads a small text often learns it by heart. The loss of training does not show it,
  bits per byte of another text do.
- *A loss that leaps up* mostly means a rate that is too high: clipping shortens a step, but the direction is
  the one that there is.

**In production** the loop is the same, and around it: bfloat16 for products, with float32 kept for
parameters and means; gradients summed over several batches and many GPUs (DDP, FSDP); short texts packed into
one crop, with a mask between them. nanoGPT's `train.py` is this page in a single file, and Transformers'
`Trainer` saves the state of all random generators where this page gives each step a seed.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathcal L$ | `loss` | scalar | mean negative logarithm of the probability, in nats |
| $x_0$ | `begin` | scalar | the token in front of every crop |
| $x_i$ | `tokens` | – | a crop, `b t+1`: $x_0$ and the bytes after it |
| $t$ | `length` | scalar | bytes that are predicted in a crop |
| $\eta$ | `learning_rate` | scalar | the highest rate of the run |
| $n$ | `step` | scalar | number of the step, from 0 |
| $S$ | `steps` | scalar | steps of the run |
| $w$ | `warmup` | scalar | steps in which the rate rises |
"""

import math
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, Integer
from torch import Tensor, nn

__all__ = ["BEGIN", "bits_per_byte", "crops", "rate_factor", "train"]

BEGIN = 0


def crops(
    text: Integer[Tensor, "n"],
    batch_size: int,
    length: int,
    *,
    begin: int | None = BEGIN,
) -> Int[Tensor, "b _"]:
    r"""## What is drawn

    `begin`, and `length` tokens from anywhere in the text; without `begin`, one token more
    [check:test_crops_are_of_the_text]. Inputs are all but the last, targets all but the first.
    """
    size = length + 1 if begin is None else length
    if len(text) < size:
        raise ValueError(f"text has {len(text)} tokens, a crop takes {size}")
    start = torch.randint(len(text) - size + 1, (batch_size, 1))
    tokens = text[(start + torch.arange(size)).to(text.device)].long()
    return tokens if begin is None else F.pad(tokens, (1, 0), value=begin)


def rate_factor(step: int, steps: int, warmup: int) -> float:
    r"""## The rate

    $$\frac{\eta_n}{\eta} = \begin{cases} (n+1)/w & n < w \\
    \tfrac12\big(1 + \cos \pi\, \tfrac{n-w}{S-w}\big) & \text{else} \end{cases}$$

    At first Adam's means rest on a handful of gradients, and a full step would follow noise; in the end, a
    small one settles what was learned [check:test_rate_rises_and_falls].

    ![The rate over a run of 200 steps, of which 20 are warm-up.](figure:rate)
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def train(
    model: nn.Module,
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
    r"""## The loop

    Returns the loss of every step, in nats. `report(step, loss)` is called after each: a progress bar, a
    plot, a line. With a `checkpoint`, the run is saved there every so many steps, and a call that finds one
    goes on from it.

    **Raises.** `ValueError` if the checkpoint's folder is not there, or the file is none of this run
    [check:test_another_run_is_refused].
    """
    config: Any = model.config
    length = int(config.max_length) if length is None else length
    parameters = [x for x in model.parameters() if x.requires_grad]

    # Decay draws a parameter towards 0. Matrices bear that; a scale of $\operatorname{LN}$ belongs near 1,
    # and a bias where it is needed [check:test_only_matrices_decay].
    matrices = [x for x in parameters if x.ndim >= 2]
    vectors = [x for x in parameters if x.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))

    # Whatever decides what the run will be: a checkpoint keeps it, and is not taken for another run's.
    settings = {
        **asdict(config),
        "dtype": str(parameters[0].dtype),
        "steps": steps,
        "batch_size": batch_size,
        "length": length,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "seed": seed,
        "draw": draw,
        "text": zlib.crc32(text.cpu().numpy().tobytes()),
    }
    settings = {name: plain(setting) for name, setting in settings.items()}
    losses: list[float] = []
    if checkpoint is not None and not checkpoint.parent.is_dir():
        raise ValueError(f"checkpoint {checkpoint}: a folder that exists is wanted")
    if checkpoint is not None and checkpoint.exists():
        losses = load(checkpoint, model, optimizer, settings)

    # Each step has a seed of its own, so nothing that was drawn before matters to it: neither the crops nor
    # the dropout of a resumed run differ from those of an uninterrupted one
    # [check:test_a_resumed_run_is_the_same_run]. PyTorch's generator for the CPU keeps the lowest 32 bits of
    # a seed: with `seed << 32`, all seeds would be one [check:test_seeds_differ].
    model.train()
    with torch.random.fork_rng():
        for step in range(len(losses), steps):
            torch.manual_seed(seed * 1_000_003 + step)
            tokens = draw(text, batch_size, length)
            tokens = tokens.to(parameters[0].device)
            logits = model(tokens[:, :-1]).flatten(0, 1)
            loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()

            # One strange crop must not undo a hundred others: a gradient longer than 1 is shortened to 1
            # [check:test_long_gradients_are_shortened].
            nn.utils.clip_grad_norm_(parameters, 1.0)
            factor = rate_factor(step, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor
            optimizer.step()
            losses.append(loss.item())
            is_due = (step + 1) % every == 0 or step + 1 == steps
            if checkpoint is not None and is_due:
                save(checkpoint, model, optimizer, settings, losses)
            if report is not None:
                report(step, losses[-1])
    return losses


def plain(setting: Any) -> Any:
    """A function by its name, which is the same tomorrow; numbers and words as they are. Two functions of one
    name, two lambdas for instance, look alike to it."""
    if isinstance(setting, partial):
        given = [plain(argument) for argument in setting.args]
        named = {name: plain(argument) for name, argument in setting.keywords.items()}
        return f"{plain(setting.func)} {given} {named}"
    if callable(setting):
        return getattr(setting, "__qualname__", type(setting).__qualname__)
    return setting


def save(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
    losses: list[float],
) -> None:
    r"""## A checkpoint

    Parameters alone would not do: AdamW has two means for each, and they are two thirds of the file.

    It is written beside its place and then moved there, which happens at once or not at all. A run that is
    stopped in the middle of it leaves the last whole one [check:test_a_broken_save_leaves_the_old_one].
    """
    state = {
        "settings": settings,
        "losses": losses,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    unfinished = checkpoint.with_name(checkpoint.name + ".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, checkpoint)


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> list[float]:
    r"""A run of other settings, or on another text, is refused: it could go on, but would be neither of the
    two [check:test_another_run_is_refused]. `weights_only` keeps a file that came from elsewhere from
    running code.
    """
    broken = (OSError, EOFError, LookupError, RuntimeError, TypeError)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        found = state["settings"]
    except (*broken, pickle.UnpicklingError) as error:
        came = f"checkpoint {checkpoint} cannot be read as one"
        raise ValueError(f"{came}: a file that `train` wrote is wanted") from error
    for name, ours in settings.items():
        theirs = found.get(name)
        if theirs != ours:
            came = f"checkpoint {checkpoint} has {name} = {theirs}"
            wanted = "the same settings, or another file, are wanted"
            raise ValueError(f"{came}, this run {ours}: {wanted}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["losses"]


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    text: Integer[Tensor, "n"],
    *,
    length: int | None = None,
    batch_size: int = 16,
    begin: int = BEGIN,
) -> float:
    r"""## The judgement

    $\mathcal L / \ln 2$ over a text, cut into blocks of `length` that are read each for itself; the last may
    be shorter [check:test_bits_are_those_of_a_distribution]. A byte early in a block has little context, so
    longer blocks look better even to a model that makes nothing of them: compare at one length, or count
    only the last bytes of each block (lesson 6).
    """
    if len(text) == 0:
        raise ValueError("text is empty: at least one token is wanted")
    config: Any = model.config
    length = int(config.max_length) if length is None else length
    device, was_training = next(model.parameters()).device, model.training
    whole, nats = len(text) // length * length, 0.0
    blocks = text[:whole].view(-1, length).split(batch_size)
    try:
        model.eval()
        for block in filter(torch.numel, (*blocks, text[None, whole:])):
            targets = block.to(device).long()
            logits = model(F.pad(targets, (1, 0), value=begin)[:, :-1])

            # In bfloat16 a sum of some thousand logarithms has three digits.
            wide = torch.promote_types(logits.dtype, torch.float32)
            logs = logits.log_softmax(dim=-1, dtype=wide)
            nats -= logs.gather(-1, targets[..., None]).sum().item()
    finally:
        model.train(was_training)
    return nats / len(text) / math.log(2)


def example(axes: dict[str, int]) -> None:
    """A step, and a judgement: the shapes beside the code are read off this run."""
    from annotated_attention.language_model import LanguageModel, LanguageModelConfig

    b, h, t, d, v = (axes[letter] for letter in "bhtdv")
    config = LanguageModelConfig(v, t, h * d, n_layers=1, n_heads=h)
    model, text = LanguageModel(config), torch.arange(5 * t) % v
    train(model, text, steps=1, batch_size=b)
    crops(text, b, t)
    bits_per_byte(model, text[: b * t], batch_size=b)
