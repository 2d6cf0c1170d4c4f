r"""# Nothing to attend to

**Claim.** A softmax has to spend its weight, so where there is nothing to fetch a head parks it on the first
token (Xiao et al. 2023, arXiv:2309.17453, sections 3.1 and 3.3). A model that has a sink of its own need not:
a 1 in the denominator ("zero sink", softmax-off-by-one) or a learnable token in front. Table 3, perplexity at
160M parameters without and with the first four tokens: vanilla 27.87 and 18.05, zero sink 29214 and 18.01,
learnable token 1235 and 18.02. So the zero sink did not keep that model from using the first token.

**Prediction.** In a task with nothing to fetch at most places: (1) if all texts begin with one token, at least
one head parks more than 80% of its weight there when it is silent, and less than 20% when it fetches. (2) If
texts begin anywhere, the first position gets little, for what stands there means something; a head then reads
its own token, which is harmless as well, so the loss hardly suffers. (3) To evict the token costs the softmax
more than 0.1 bits a token, to keep it costs nothing. (4) With a sink of its own and no token there is nothing to
evict, and nothing is lost. (5) With both a head uses both: the zero sink takes less than half of what was
parked on the token, a learned logit more. In a language model of two layers on Python's library: (6) with
crops, less than 2% of the weight is on the first position; with a fixed first token, 5% to 20% on average and
more than half in some head. (7) Sink logits take part of that over.

**Setting.** The task is a Bigram-Backcopy in the manner of Guo et al. (2024, arXiv:2410.13835). Each of 32
tokens has four equally likely successors; three of them are triggers, and what follows a trigger is a copy of
what stood before it. So a trigger has something to fetch, for 0 bits, and any other token has all it needs, for
2 bits. Two layers of four heads with rotary positions are trained on texts of 64, then stream 256 tokens
through a cache of 64, with the first token kept (1 + 63) or evicted (0 + 64). Weights are read in texts of 64
from query 16 on. The language model has the same attention, reads the course's bytes, 128 at a time, and its
weights are those of queries 64 to 127 on text held out.

**Outcome.** Not run yet.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from coursekit.experiments import Claim, Runs
from torch import Tensor, nn

from annotated_attention.attention_sinks import SinkKVCache, SinkLogits, read_stream
from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    train,
)
from annotated_attention.language_model_corpus import library_files, manifest, split
from annotated_attention.language_model_training import crops
from annotated_attention.rotary import rotary_attention

TOKENS, TRIGGERS, BEGIN = 32, 3, 32
LENGTH, STREAM, BITS = 64, 256, 2.0
STEPS = {"quick": 120, "default": 600}
TEXT_STEPS = {"quick": 20, "default": 800}


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    if size not in STEPS:
        raise ValueError(f"size is {size!r}: 'quick' or 'default' is wanted")
    quick = size == "quick"
    model = {"d_model": 64, "n_layers": 2, "n_heads": 4}
    kinds = [(begins, sink) for begins in ("token", "anywhere") for sink in ("none", "zero", "logit")]
    kinds = [("token", "none"), ("anywhere", "zero")] if quick else kinds
    tasks = [{"task": "copy", "steps": STEPS[size], "length": LENGTH}] * len(kinds)
    kinds += [("token", "none")] if quick else [("anywhere", "none"), ("token", "none"), ("token", "logit")]
    tasks += [{"task": "text", "steps": TEXT_STEPS[size], "length": 2 * LENGTH}] * (len(kinds) - len(tasks))
    return [
        task | model | {"begins": begins, "sink": sink, "seed": seed}
        for task, (begins, sink) in zip(tasks, kinds, strict=True)
        for seed in seeds
    ]


class Watched(nn.Module):
    """An attention that also keeps its weights, when asked to: with one-hot values, they are the output."""

    def __init__(self, sink: str, n_heads: int) -> None:
        super().__init__()
        self.attend = rotary_attention
        if sink != "none":
            self.attend = SinkLogits(n_heads, around=rotary_attention)
            self.attend.requires_grad_(sink == "logit")
        self.watch, self.weights = False, torch.empty(0)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.watch:
            one_hot = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
            self.weights = self.attend(query, key, one_hot, i, j)
        return self.attend(query, key, value, i, j)


def model_of(settings: dict) -> LanguageModel:
    m, h, sink = settings["d_model"], settings["n_heads"], settings["sink"]
    torch.manual_seed(settings["seed"])
    return LanguageModel(
        LanguageModelConfig(
            vocab_size=TOKENS + 1 if settings["task"] == "copy" else 256,
            max_length=settings["length"],
            d_model=m,
            n_layers=settings["n_layers"],
            n_heads=h,
            position_embedding="none",
            make_attention=lambda config, layer: SelfAttention(m, h, attend=Watched(sink, h)),
        )
    )


@cache
def successors() -> Tensor:
    """Four for each token, so that all tokens are about equally frequent: four shuffles of all."""
    generator = torch.Generator().manual_seed(10)
    return torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(4)], dim=-1)


def texts(count: int, length: int, begins: str) -> Tensor:
    """Texts of the task: BEGIN in front, or from the middle of one."""
    first = 0 if begins == "token" else 8
    tokens = [torch.randint(TRIGGERS, TOKENS, (count,)) for _ in range(2)]
    for _ in range(first + length):
        before, last = tokens[-2:]
        drawn = successors()[last, torch.randint(4, (count,))]
        tokens.append(torch.where(last < TRIGGERS, before, drawn))
    found = torch.stack(tokens[first : first + length], dim=1)
    return F.pad(found[:, :-1], (1, 0), value=BEGIN) if begins == "token" else found


def per_head(weights: list[Tensor], where: Tensor) -> list[list[float]]:
    """Layer by layer, the mean over those queries of `b h t`."""
    means = [x.transpose(0, 1)[:, where].mean(dim=-1) for x in weights]
    return [[round(number, 4) for number in mean.tolist()] for mean in means]


@torch.no_grad()
def watched(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The logits, and for each layer what lies on the first token, the query's own, the one before, nothing."""
    attentions = [x for x in model.modules() if isinstance(x, Watched)]
    for attention in attentions:
        attention.watch = True
    logits = model.eval()(tokens)
    weights = [attention.weights for attention in attentions]
    for attention in attentions:
        attention.watch = False
    return logits, {
        "first": [x[..., 0] for x in weights],
        "own": [x.diagonal(dim1=-2, dim2=-1) for x in weights],
        "before": [F.pad(x.diagonal(-1, dim1=-2, dim2=-1), (1, 0)) for x in weights],
        "nothing": [1 - x.sum(dim=-1) for x in weights],
    }


def bits(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of each token but the first, by what stands before it: above what the best model needs."""
    logs = logits[:, :-1].log_softmax(dim=-1)
    needed = -logs.gather(-1, tokens[:, 1:, None])[..., 0] / math.log(2)
    return needed - BITS * (tokens[:, :-1] >= TRIGGERS)


def run_copy(model: LanguageModel, settings: dict, report: Callable[[float], None]) -> dict:
    steps, length, begins = settings["steps"], settings["length"], settings["begins"]
    train(
        model,
        torch.zeros(1),
        steps=steps,
        batch_size=32,
        length=length,
        seed=settings["seed"],
        draw=lambda _, count, t: texts(count, t + 1, begins),
        report=lambda step, loss: report(0.8 * step / steps),
    )
    torch.manual_seed(1000 + settings["seed"])
    tokens = texts(64, length, begins)
    logits, on = watched(model, tokens)
    asked = tokens < TRIGGERS
    late = (torch.arange(length) >= 16).expand_as(tokens)
    found: dict = {"bits": bits(logits, tokens)[:, 32:].mean().item()}
    for name, weights in on.items():
        found[f"{name}_silent"] = per_head(weights, late & ~asked)
        found[f"{name}_asked"] = per_head(weights, late & asked)

    # The head that fetches is the one that looks at the token before when it is asked.
    fetches = torch.tensor(found["before_asked"]).flatten().argmax()
    for name in ("first", "nothing"):
        masses = [torch.tensor(found[f"{name}_{when}"]).flatten() for when in ("silent", "asked")]
        found[name] = masses[0].mean().item()
        found[f"{name}_most"] = masses[0].max().item()
        found[f"fetcher_{name}_silent"], found[f"fetcher_{name}_asked"] = (x[fetches].item() for x in masses)

    # Streams, with the first token kept or evicted as soon as the cache is full.
    tokens = texts(32, STREAM, begins)
    for n, name in enumerate(("evicted", "kept")):
        caches = [SinkKVCache(n, length - n) for _ in model.blocks]
        needed = bits(read_stream(model, tokens, caches), tokens)
        found[f"bits_{name}"] = needed[:, 2 * length :].mean().item()
        found[f"curve_{name}"] = [x.mean().item() for x in needed.split(16, dim=1)]
    return found


def run_text(model: LanguageModel, settings: dict, report: Callable[[float], None]) -> dict:
    steps, length = settings["steps"], settings["length"]
    files = library_files()
    text, held_out = split(files)
    begin = 0 if settings["begins"] == "token" else None
    train(
        model,
        text,
        steps=steps,
        length=length,
        seed=settings["seed"],
        draw=lambda text, count, t: crops(text, count, t, begin=begin),
        report=lambda step, loss: report(0.9 * step / steps),
    )
    torch.manual_seed(1000)
    tokens = crops(held_out, 64, length, begin=begin)[:, :length]
    logits, on = watched(model, tokens)
    late = (torch.arange(length) >= length // 2).expand_as(tokens)
    logs = logits[:, length // 2 : -1].log_softmax(dim=-1)
    nats = -logs.gather(-1, tokens[:, length // 2 + 1 :, None]).mean().item()
    found: dict = {"manifest": manifest(files), "bits": nats / math.log(2)}
    for name, weights in on.items():
        found[f"{name}_silent"] = per_head(weights, late)
        found[name] = torch.tensor(found[f"{name}_silent"]).mean().item()
        found[f"{name}_most"] = torch.tensor(found[f"{name}_silent"]).max().item()
    return found


def run(settings: dict, report: Callable[[float], None]) -> dict:
    model = model_of(settings)
    found = (run_copy if settings["task"] == "copy" else run_text)(model, settings, report)
    logits = [x.sink_logits.tolist() for x in model.modules() if isinstance(x, SinkLogits)]
    report(1.0)
    return found | {"sink_logits": logits}


def claims(runs: Runs) -> list[Claim]:
    def copy(begins: str, sink: str) -> Runs:
        return runs.where(task="copy", begins=begins, sink=sink)

    def cost(chosen: Runs, more: str, less: str) -> list[float]:
        pairs = zip(chosen.values(more), chosen.values(less), strict=True)
        return [dear - cheap for dear, cheap in pairs]

    token, own = copy("token", "none"), copy("anywhere", "zero")
    lost = cost(token, "bits_evicted", "bits_kept")
    free = cost(own, "bits_evicted", "bits")
    found = [
        Claim(
            "With one token in front of all texts, a head that has nothing to fetch parks on it.",
            "–",
            f"{token.spread('first_most'):.0%} of the weight",
            min(token.values("first_most")) > 0.8,
            quick=True,
        ),
        Claim(
            "To evict that token costs more than 0.1 bits a token.",
            "vanilla 27.87 and 18.05",
            between(lost),
            min(lost) > 0.1,
            quick=True,
        ),
        Claim(
            "With a 1 in the denominator and no such token, a window costs nothing (below 0.02 bits).",
            "–",
            between(free),
            max(free) < 0.02,
            quick=True,
        ),
    ]
    if not copy("token", "zero"):
        return found
    both, anywhere = copy("token", "zero"), copy("anywhere", "none")
    kept = cost(both, "bits_evicted", "bits_kept")
    asked, silent = (token.values(f"fetcher_first_{when}") for when in ("asked", "silent"))
    crop, fixed, logit = (
        runs.where(task="text", begins=begins, sink=sink)
        for begins, sink in (("anywhere", "none"), ("token", "none"), ("token", "logit"))
    )
    return found + [
        Claim(
            "The head that fetches leaves that token when it is asked.",
            "–",
            f"{token.spread('fetcher_first_silent'):.0%}, asked {token.spread('fetcher_first_asked'):.0%}",
            min(silent) > 0.5 and max(asked) < 0.2,
        ),
        Claim(
            "In texts that begin anywhere, the first position gets less.",
            "–",
            f"{anywhere.spread('first'):.1%}, with the token {token.spread('first'):.1%}",
            max(anywhere.values("first")) < min(token.values("first")),
        ),
        Claim(
            "A 1 in the denominator does not keep a model from using the token as well.",
            "29214 and 18.01",
            between(kept),
            min(kept) > 0.02,
        ),
        Claim(
            "A language model gives a fixed first token more weight than a first byte.",
            "–",
            f"{fixed.spread('first'):.1%}, first byte {crop.spread('first'):.1%}",
            max(crop.values("first")) < min(fixed.values("first")),
        ),
        Claim(
            "Sink logits take over part of it.",
            "–",
            f"{logit.spread('first'):.1%}",
            max(logit.values("first")) < min(fixed.values("first")),
        ),
    ]


def between(bits: list[float]) -> str:
    return f"{sum(bits) / len(bits):.3f} ({min(bits):.3f} to {max(bits):.3f}) bits"
