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
heads, on the source of Python's library, trained on 64 bytes of context at a time and tested on up to 512.
Every text begins with the same token. The same bytes of the files held out are predicted twice: in blocks
that are read each for itself, and with stride 1, each as the last of a window of its own, so that each has
the whole length before it. Sinusoidal, rotary and ALiBi are trained at 512 too, with as many bytes a step.
Training is timed apart, in runs that do nothing else.

**Outcome.** Not run yet.
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
from coursekit.experiments import Claim, Runs
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

POSITIONS = ["alibi", "rotary", "sinusoidal", "learned", "none"]
LONG = ["alibi", "rotary", "sinusoidal"]
FACTORS = [1, 1.125, 1.5, 2, 4, 8]
TIMED_STEPS = 12

QUICK = {"layers": 2, "width": 32, "heads": 4, "steps": 120, "tokens": 512, "chunks": 8}
DEFAULT = {"layers": 2, "width": 64, "heads": 4, "steps": 900, "tokens": 1024, "chunks": 64}
FULL = {"layers": 6, "width": 256, "heads": 8, "steps": 2000, "tokens": 16384, "chunks": 64}
FULL |= {"device": "cuda"}


def plan(size: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every position trained short, three of them long too; and a few steps of both, timed."""
    common = {"quick": QUICK, "default": DEFAULT, "full": FULL}[size]
    short = {"quick": 32, "default": 64, "full": 512}[size]
    tested = [int(short * factor) for factor in FACTORS]
    positions, long = POSITIONS, LONG
    if size == "quick":
        positions, long = ["alibi", "sinusoidal"], []
    runs = []
    for seed in seeds:
        for position in positions:
            runs.append({"position": position, "length": short, "tested": tested, "seed": seed})
        for position in long:
            ends = [tested[0], tested[-1]]
            runs.append({"position": position, "length": 8 * short, "tested": ends, "seed": seed})
        for position in long or ["alibi"]:
            for length in (short, 8 * short):
                runs.append({"position": position, "length": length, "timed": True, "seed": seed})
    return [common | settings for settings in runs]


@lru_cache
def texts() -> tuple[Tensor, Tensor, str]:
    files = library_files()
    return *split(files), manifest(files)


@lru_cache(maxsize=1)
def causal_alibi(n_heads: int, t: int, device: torch.device) -> Tensor:
    """One bias for all layers. With an axis for the batch: SDPA's fused kernel for CPUs takes a mask of two
    or four axes, and leaves `h t s` to the plain formula, at many times the cost."""
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


def evaluate(model: LanguageModel, text: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Pieces from all over the text. The second half of each is predicted; the first is context for the
    windows that reach back into it. Of these bytes every 31st counts, in both evaluations the same ones: 31
    shares no factor with a block's length, so every place in a block is among them equally often."""
    tested = settings["tested"]
    longest, chunks = max(tested), settings["chunks"]
    starts = torch.linspace(0, len(text) - 2 * longest, chunks, device=text.device).long()
    pieces = text[starts[:, None] + torch.arange(2 * longest, device=text.device)]
    sample = torch.arange(0, chunks * longest, 31, device=text.device)
    ends = sample % longest + longest

    measured: dict[str, Any] = {}
    for length in tested:
        # A length that does not divide the piece leaves a last, shorter block.
        parts = pieces[:, longest:].split(length, dim=1)
        blocks = torch.cat([bits(model, part, part.shape[1]) for part in parts], dim=1)
        measured[f"blocks_{length}"] = blocks.flatten()[sample].mean().item()
        reach = torch.arange(1 - length, 1, device=text.device)
        windows = pieces[(sample // longest)[:, None], ends[:, None] + reach]
        measured[f"sliding_{length}"] = bits(model, windows, 1).mean().item()
    # The last blocks are as long as the piece: what a byte costs by its place in one, for places 1 to 8, and
    # then up to each further power of two.
    edges = [0] + [2**k for k in range(3, longest.bit_length())]
    places = pairwise(edges)
    measured["places"] = edges[1:]
    measured["by_place"] = [blocks[:, a:b].mean().item() for a, b in places]
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

    ticks = []
    train(
        model,
        text,
        steps=3 + TIMED_STEPS,
        batch_size=batch,
        length=length,
        report=lambda step, loss: ticks.append(time.perf_counter()),
    )
    steps = [after - before for before, after in pairwise(ticks[2:])]
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
    return []
