r"""# Train short, test long

**Claim.** Press, Smith, Lewis (2022), arXiv:2108.12409. A model with ALiBi, trained on 512 tokens, has a
perplexity of 19.73 there and of 18.40 at 3,072, below the 18.67 of a sinusoidal model that was trained on
3,072, and its training is 1.84 times as fast (tables 2 and 5, section 4.1). Sinusoidal positions, trained on
512, rise from 19.91 at 532 to 406 at 15,512. Those texts were cut into blocks. With a full window in front of
every token (tables 13 to 15) ALiBi is flat, 17.98 to 18.3, and sinusoidal positions go from 18.35 to 360.

**Prediction.** Written before the first run. At 8 times the trained length, each byte with its full context:

- ALiBi stays within 0.1 bits per byte of what it was. Its two gentle heads, with slopes 1/64 and 1/256, then
  mix more keys than in training, so a little worse is as likely as a little better.
- Sinusoidal and learned positions lose more than a bit, learned ones because the entries behind the trained
  length are still noise. Rotary loses about as much, but later: one position too far does little to it.
  Without positions the loss is smaller, for only the dilution is new.
- In blocks, ALiBi seems to gain 0.1 to 0.3 bits from the longer text, and most of that is fewer bytes with
  little context, not better use of much.
- At the trained length rotary is better than ALiBi, by about 0.1: a single run of a larger model gave 1.88
  and 2.02. So at 512, ALiBi trained on 64 beats a sinusoidal model trained on 512, which at this size hardly
  learns to use its positions, and loses to a rotary one.
- A step on texts 8 times as long, with as many bytes, takes 1.5 to 3 times the time.

**Setting.** The smallest in which it shows: the course's `LanguageModel` with 2 layers of width 64 and 4
heads, 1,000 steps on the source of Python's library, trained on 64 bytes at a time and tested on up to 512.
(A trial of ALiBi with 400 steps saw nothing: such a model hardly uses any context, so none is missed.) Every
text begins with the same token. Bytes of files held out are predicted twice: in blocks that are read each for
itself, and with stride 1, each as the last of a window of its own, so that each has the whole length before
it. Stride 1 takes every 31st of these bytes; by how much they are easier or harder than the rest is known
from the blocks, and taken out. Sinusoidal and rotary positions are trained on 512 too, with as many bytes a
step. A few steps are timed apart, in runs that do nothing else. `--full` adds a model without positions.

**Outcome.** ALiBi is flat, as predicted, and a little worse: +0.02 bits at 512. In blocks it seems to gain
0.04, and nothing of it is left with stride 1. Learned positions break at once, rotary ones after half as many
bytes again, both by about two bits. Three predictions were wrong. The gain in blocks is less than the 0.1 to
0.3 that we expected. Sinusoidal positions lose 0.78, not more than a bit: they are the worst of the four
within the trained length, where the last places are already bad (3.15 with 32 bytes, 3.32 with 64). And
rotary is better than ALiBi by 0.28 there, not 0.1. What this size cannot show is a use for long context: with
stride 1 no model gets better beyond 32 bytes, so a flat curve says that ALiBi is not hurt, and no more. At
512, ALiBi trained on 64 beats the sinusoidal model trained on 512 by far, as expected, for those positions
are hardly learned at this size; and it does not lose to rotary positions trained on 512, as was expected.
With as many bytes a step, those have an eighth of the texts in each, and come out worse than they do on 64.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.alibi import alibi_bias
from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    causal_attention,
)
from annotated_attention.language_model_corpus import library_files, manifest, split
from annotated_attention.language_model_training import BEGIN, crops, train
from annotated_attention.rotary import rotary_attention
from coursekit.experiments import Claim, Runs, Spread

POSITIONS = ["alibi", "rotary", "sinusoidal", "learned"]
LONG = ["sinusoidal", "rotary"]
TIMED = ["alibi", "sinusoidal", "rotary"]
FACTORS = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 9 / 8, 3 / 2, 2, 4, 8]
WARM = 3

QUICK = {"layers": 2, "width": 32, "heads": 4, "steps": 300, "tokens": 512, "chunks": 8}
DEFAULT = {"layers": 2, "width": 64, "heads": 4, "steps": 1000, "tokens": 1024, "chunks": 32}
FULL = {"layers": 6, "width": 256, "heads": 8, "steps": 1500, "tokens": 16384, "chunks": 16}
FULL |= {"device": "cuda"}


def plan(size: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every position trained short, two of them long too; and a few steps of both, timed."""
    common = {"quick": QUICK, "default": DEFAULT, "full": FULL}[size]
    short = {"quick": 32, "default": 64, "full": 512}[size]
    tested = [int(short * factor) for factor in FACTORS]
    positions, long, timed = POSITIONS, LONG, TIMED
    if size == "quick":
        positions, long, timed = ["alibi", "sinusoidal"], [], []
    if size == "full":
        positions = [*POSITIONS, "none"]
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        for position in positions:
            runs.append({"position": position, "length": short, "tested": tested, "seed": seed})
    for seed in seeds:
        for position in long:
            far = {"length": 8 * short, "tested": [8 * short]}
            runs.append({"position": position, "seed": seed} | far)
        for position in timed:
            for length in (short, 8 * short):
                few = {"timed": True, "steps": 12}
                runs.append({"position": position, "length": length, "seed": seed} | few)
    return [common | settings for settings in runs]


@lru_cache
def texts() -> tuple[Tensor, Tensor, str]:
    files = library_files()
    return *split(files), manifest(files)


@lru_cache(maxsize=1)
def causal_alibi(n_heads: int, t: int, device: torch.device) -> Tensor:
    """One bias for all layers. It has an axis for the batch: SDPA's fused kernel for CPUs takes masks of
    two or four axes, and leaves `h t s` to the plain formula, at many times the cost."""
    future = torch.ones(t, t, dtype=torch.bool, device=device).triu(1)
    bias = alibi_bias(n_heads, t, t, device=device)
    return bias.masked_fill(future, -torch.inf)[None]


def alibi(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
    _, h, t, _ = query.shape
    bias = causal_alibi(h, t, query.device)
    return F.scaled_dot_product_attention(query, key, value, bias)


def build(settings: dict[str, Any]) -> LanguageModel:
    """Learned positions get entries for the longest test. Those behind the trained length stay as drawn."""
    position, width, heads = settings["position"], settings["width"], settings["heads"]
    attend = {"alibi": alibi, "rotary": rotary_attention}.get(position, causal_attention)
    config = LanguageModelConfig(
        max_length=max(settings.get("tested", [settings["length"]])),
        d_model=width,
        n_layers=settings["layers"],
        n_heads=heads,
        position_embedding=position if position in ("sinusoidal", "learned") else "none",
        make_attention=lambda config, layer: SelfAttention(width, heads, attend=attend),
    )
    torch.manual_seed(settings["seed"])
    return LanguageModel(config).to(settings.get("device", "cpu"))


@torch.no_grad()
def bits(model: LanguageModel, windows: Tensor, last: int) -> Tensor:
    """What the `last` bytes of each window cost, each window being read for itself."""
    found = []
    for window in windows.split(max(1, 16384 // windows.shape[1])):
        targets = window.long()
        logits = model(F.pad(targets, (1, 0), value=BEGIN)[:, :-1])[:, -last:]
        cost = F.cross_entropy(logits.flatten(0, 1), targets[:, -last:].flatten(), reduction="none")
        found.append(cost.view(-1, last) / math.log(2))
    return torch.cat(found)


def evaluate(model: LanguageModel, text: Tensor, settings: dict[str, Any]) -> dict[str, float]:
    """Both evaluations, on pieces from all over the text. The second half of a piece is predicted, its first
    half is context for the windows that reach back into it. Stride 1 is dear, `length` bytes read for one
    predicted, so it takes every 31st byte: 31 shares no factor with a block's length, and every place in a
    block is among them equally often."""
    longest, chunks = max(settings["tested"]), settings["chunks"]
    starts = torch.linspace(0, len(text) - 2 * longest, chunks, device=text.device).long()
    pieces = text[starts[:, None] + torch.arange(2 * longest, device=text.device)]
    sample = torch.arange(0, chunks * longest, 31, device=text.device)
    piece, end = sample // longest, sample % longest + longest

    measured, level = {}, 0.0
    for length in settings["tested"]:
        # A length that does not divide the piece leaves a last, shorter block.
        parts = pieces[:, longest:].split(length, dim=1)
        blocks = torch.cat([bits(model, part, part.shape[1]) for part in parts], dim=1)
        measured[f"blocks_{length}"] = blocks.mean().item()
        reach = torch.arange(1 - length, 1, device=text.device)
        windows = pieces[piece[:, None], end[:, None] + reach]
        measured[f"sliding_{length}"] = bits(model, windows, 1).mean().item()
        if length == settings["length"]:
            level = (blocks.mean() - blocks.flatten()[sample].mean()).item()
    for length in settings["tested"]:
        measured[f"sliding_{length}"] += level
    return measured


def timed(model: LanguageModel, text: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step, and the bytes that a forward pass keeps for the backward pass, parameters left out:
    what grows with the text when memory is short."""
    length, batch = settings["length"], settings["tokens"] // settings["length"]
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = crops(text, batch, length)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()

    ticks: list[float] = []
    train(
        model,
        text,
        steps=WARM + settings["steps"],
        batch_size=batch,
        length=length,
        report=lambda step, loss: ticks.append(time.perf_counter()),
    )
    steps = [after - before for before, after in pairwise(ticks[WARM - 1 :])]
    return {"seconds": statistics.median(steps), "kept": sum(kept.values())}


def run(settings: dict[str, Any], report: Callable[[float], None]) -> dict[str, Any]:
    device = settings.get("device", "cpu")
    text, held_out, name = texts()
    text, held_out = text.to(device), held_out.to(device)
    model = build(settings)
    if settings.get("timed", False):
        return timed(model, text, settings) | {"text": name}
    losses = train(
        model,
        text,
        steps=settings["steps"],
        batch_size=settings["tokens"] // settings["length"],
        length=settings["length"],
        seed=settings["seed"],
        report=lambda step, loss: report(0.7 * (step + 1) / settings["steps"]),
    )
    trained = statistics.fmean(losses[-50:]) / math.log(2)
    return evaluate(model.eval(), held_out, settings) | {"trained": trained, "text": name}


def claims(runs: Runs) -> list[Claim]:
    trained = Runs(run for run in runs if "tested" in run.settings)
    short = min(run.settings["length"] for run in trained)
    far = 8 * short

    def bits(how: str, position: str, length: int = far, *, trained_on: int = short) -> list[float]:
        return trained.where(position=position, length=trained_on).values(f"{how}_{length}")

    def change(how: str, position: str) -> list[float]:
        """For each seed: what a byte costs at the longest, less what it costs at the trained length."""
        ends = zip(bits(how, position, short), bits(how, position), strict=True)
        return [after - before for before, after in ends]

    flat, gain = change("sliding", "alibi"), change("blocks", "alibi")
    waves = change("sliding", "sinusoidal")
    found = [
        Claim(
            f"Trained on {short}, read at {far} with stride 1: sinusoidal loses more than ALiBi",
            "perplexity 18.35 to 360, ALiBi 17.98 to 18.3",
            f"{Spread.of(waves):+.2f} bits per byte, ALiBi {Spread.of(flat):+.3f}",
            min(waves) > max(flat),
            quick=True,
        ),
        Claim(
            "With stride 1, ALiBi changes by less than 0.1 bits per byte",
            "17.98 to 18.3",
            f"{Spread.of(flat):+.3f}",
            max(map(abs, flat)) < 0.1,
            quick=True,
        ),
        Claim(
            "Less than half of what ALiBi gains in longer blocks is left with stride 1",
            "19.73 to 18.40 in blocks, none with stride 1",
            f"{Spread.of(gain):+.3f} in blocks, {Spread.of(flat):+.3f} with stride 1",
            all(b < 0 and f > b / 2 for b, f in zip(gain, flat, strict=True)),
            quick=True,
        ),
    ]
    if all(run.settings["position"] != "rotary" for run in trained):
        return found

    turns, table = change("sliding", "rotary"), change("sliding", "learned")
    here, there = bits("sliding", "alibi", short), bits("sliding", "rotary", short)

    def ratio(name: str) -> list[float]:
        """For each seed: a step of the sinusoidal model on `far`, by one of ALiBi on `short`."""
        ends = (("sinusoidal", far), ("alibi", short))
        both = (runs.where(timed=True, position=p, length=t).values(name) for p, t in ends)
        return [a / b for a, b in zip(*both, strict=True)]

    seconds, kept = ratio("seconds"), ratio("kept")
    found += [
        Claim(
            "All others lose more than a bit",
            "–",
            f"sinusoidal {Spread.of(waves):+.2f}, learned {Spread.of(table):+.2f}, "
            f"rotary {Spread.of(turns):+.2f}",
            min(*waves, *table, *turns) > 1,
        ),
        Claim(
            "At the trained length, ALiBi is as good as rotary positions",
            "–",
            f"{Spread.of(here):.2f} against {Spread.of(there):.2f}",
            statistics.fmean(here) <= max(there),
        ),
        Claim(
            f"With as many bytes in a step, sinusoidal on {far} takes longer than ALiBi on {short}, and "
            "keeps more for the backward pass",
            "ALiBi trains 1.84 times as fast, on texts a sixth as long",
            f"{Spread.of(seconds):.2f} times the time, {Spread.of(kept):.2f} times the memory",
            min(seconds) > 1 and min(kept) > 1,
        ),
    ]
    if all(run.settings["length"] == short for run in trained):
        return found

    ours, longer = bits("blocks", "alibi"), bits("blocks", "sinusoidal", trained_on=far)
    full, rotary = bits("sliding", "alibi"), bits("sliding", "rotary", trained_on=far)
    return [
        *found,
        Claim(
            f"In blocks of {far}, ALiBi trained on {short} beats sinusoidal trained on {far}",
            "18.40 against 18.67, with 512 and 3,072",
            f"{Spread.of(ours):.2f} against {Spread.of(longer):.2f}",
            max(ours) < min(longer),
        ),
        Claim(
            f"With stride 1 at {far}, ALiBi trained on {short} is no worse than rotary trained on {far}",
            "–",
            f"{Spread.of(full):.2f} against {Spread.of(rotary):.2f}",
            statistics.fmean(full) <= max(rotary),
        ),
    ]
