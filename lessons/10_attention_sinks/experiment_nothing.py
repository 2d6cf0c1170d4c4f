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

**Setting.** *Copy* is a Bigram-Backcopy in the manner of Guo et al. (2024, arXiv:2410.13835). Each of 32
tokens has four equally likely successors; three are triggers, and what follows a trigger is a copy of what
stood before it. So a trigger has something to fetch, and any other token has all it needs. The model has two
layers of four heads, rotary positions, and texts of 64. The language model has the same attention and reads
128 bytes at a time. Weights are read on fresh texts, or text held out, from the second quarter on.

*Fetch* was added when trials of the copy had shown no sink: attention without MLPs reads 32 vectors of 8
random numbers, has to give back those of two places before where a vector asks, and 0 elsewhere, with an
empty token in front or without, and then streams 128 through a cache of 24. Expected before its own sinks
were run: (8) heads park more than 90%, and to evict the token makes the error 100 times as large; (9) without
token and sink the error stays 100 times as large as with either; (10) MLPs can throw away what a silent head
brings, and there is no sink.

**Outcome.** The copy shows no sink, against (1): 0.02 bits from the best it can do, its silent heads average
over the text, and silence could hardly win more, so there was nothing to evict for (3). In *fetch*, where an
average is an error, (8) and (9) hold, and (4). (8) and (10) were what one trial of one seed had shown, and
(10) was luck: of three seeds with MLPs, heads park more than 99% in two, and eviction costs them 73 and 1,270
times the error. (5) was wrong too: with both, heads take the zero sink and leave the token alone, other than
the paper's model; which of two sinks a model takes the formula does not say. (2) is half right: the first
position gets little, but the loss suffers. The language model parks far less than (6) said, 0.5% to 1.8% on
byte 0 and at most 7% in one head; for sink logits, (7), there is nothing to take.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotated_attention.attention_sinks import SinkKVCache, SinkLogits
from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    train,
)
from annotated_attention.language_model_corpus import library_files, manifest, split
from annotated_attention.language_model_training import crops, rate_factor
from annotated_attention.rotary import rotary_attention
from coursekit.experiments import Claim, Runs

TOKENS, TRIGGERS, BEGIN, CONTENT = 32, 3, 32, 8
TASKS = {
    "fetch": {"length": 32, "d_model": 32, "steps": {"quick": 220, "default": 400}},
    "copy": {"length": 64, "d_model": 64, "steps": {"default": 200}},
    "text": {"length": 128, "d_model": 64, "steps": {"quick": 3, "default": 600}},
}
BOTH, SINKS = ("token", "anywhere"), ("none", "zero", "logit")
KINDS = [("fetch", begins, sink, False) for begins in BOTH for sink in SINKS]
KINDS += [("fetch", "token", "none", True), ("copy", "token", "none", True)]
KINDS += [("text", *kind, True) for kind in (("anywhere", "none"), ("token", "none"), ("token", "logit"))]
QUICK = [KINDS[0], KINDS[3], KINDS[4], KINDS[9]]


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    if size not in ("quick", "default"):
        raise ValueError(f"size is {size!r}: 'quick' or 'default' is wanted")
    return [
        TASKS[task]
        | {"task": task, "begins": begins, "sink": sink, "mlp": mlp, "seed": seed}
        | {"n_layers": 2, "n_heads": 4, "steps": TASKS[task]["steps"][size]}
        for task, begins, sink, mlp in (QUICK if size == "quick" else KINDS)
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


class Fetcher(nn.Module):
    """Layers of attention, with an MLP after each or without."""

    def __init__(self, config: LanguageModelConfig, mlp: bool) -> None:
        super().__init__()
        m, layers = config.d_model, range(config.n_layers)
        self.w_in = nn.Linear(CONTENT + 3, m, bias=False)
        self.attentions = nn.ModuleList(config.make_attention(config, layer) for layer in layers)
        wide = [nn.Sequential(nn.Linear(m, 4 * m), nn.GELU(), nn.Linear(4 * m, m)) for _ in layers]
        self.mlps = nn.ModuleList(wide if mlp else [])
        self.w_out = nn.Linear(m, CONTENT, bias=False)

    def forward(self, x: Tensor, caches: Sequence[SinkKVCache | None] = (None, None)) -> Tensor:
        x = self.w_in(x)
        for n, attention in enumerate(self.attentions):
            x = x + attention(x, cache=caches[n])
            if self.mlps:
                x = x + self.mlps[n](x)
        return self.w_out(x)


def model_of(settings: dict) -> nn.Module:
    m, h, sink = settings["d_model"], settings["n_heads"], settings["sink"]
    torch.manual_seed(settings["seed"])
    vocab = TOKENS + 1 if settings["task"] == "copy" else 256
    sizes = (vocab, settings["length"], m, settings["n_layers"], h)

    def make(config: LanguageModelConfig, layer: int) -> SelfAttention:
        return SelfAttention(m, h, attend=Watched(sink, h))

    config = LanguageModelConfig(*sizes, position_embedding="none", make_attention=make)
    return Fetcher(config, settings["mlp"]) if settings["task"] == "fetch" else LanguageModel(config)


@torch.no_grad()
def look(model: nn.Module, x: Tensor, asked: Tensor, back: int) -> tuple[Tensor, dict]:
    """What a model says, and for each layer and head how much of the weight of the silent and of the asking
    queries is on the first token, their own, the one to be fetched, and nothing, from the second quarter on."""
    attentions = [x for x in model.modules() if isinstance(x, Watched)]
    for attention in attentions:
        attention.watch = True
    said = model.eval()(x)
    late = torch.arange(x.shape[1]) >= x.shape[1] // 4
    found: dict = {}
    for when, queries in (("silent", ~asked & late), ("asked", asked & late)):
        if not queries.any():
            continue
        weights = [x.weights.transpose(0, 1) for x in attentions]
        on = {"first": [x[..., 0] for x in weights], "nothing": [1 - x.sum(dim=-1) for x in weights]}
        for name, n in (("own", 0), ("source", back)):
            on[name] = [F.pad(x.diagonal(-n, dim1=-2, dim2=-1), (n, 0)) for x in weights]
        for name, layers in on.items():
            means = torch.stack([x[:, queries].mean(dim=-1) for x in layers])
            found[f"{name}_{when}"] = [[round(x, 4) for x in layer] for layer in means.tolist()]
    for attention in attentions:
        attention.watch = False
    for name in ("first", "nothing"):
        masses = torch.tensor(found[f"{name}_silent"])
        found |= {name: masses.mean().item(), f"{name}_most": masses.max().item()}
    return said, found


def vectors(count: int, length: int, begins: str) -> tuple[Tensor, Tensor, Tensor]:
    """Texts of *fetch*, what is to be said, and who is asked."""
    content, asked = torch.randn(count, length, CONTENT), torch.rand(count, length) < 0.25
    first = (torch.arange(length) == 0).expand(count, -1) & (begins == "token")
    asked[:, :3] = False
    content = content.masked_fill(first[..., None], 0.0)
    wanted = content.roll(2, dims=1) * asked[..., None]

    # The last is 1 for all, so that queries that have nothing else in common can have the same wish.
    flags = torch.stack([asked, first, torch.ones_like(asked)], dim=-1)
    return torch.cat([content, flags], dim=-1), wanted, asked


def run_fetch(model: nn.Module, settings: dict, report: Callable[[float], None]) -> dict:
    steps, length, begins = settings["steps"], settings["length"], settings["begins"]
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        x, wanted, _ = vectors(32, length, begins)
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.01 * rate_factor(step, steps, 50)
        optimizer.step()
        report(0.8 * step / steps)

    x, wanted, asked = vectors(128, length, begins)
    said, found = look(model, x, asked, back=2)
    found["error"] = (said - wanted)[:, length // 4 :].square().mean().item()

    # A stream four times as long, the first token kept or evicted. The cache is smaller than a text was, so
    # that all distances in it are well known from training.
    held = 3 * length // 4
    x, wanted, _ = vectors(64, 4 * length, begins)
    for n, name in enumerate(("evicted", "kept")):
        caches = [SinkKVCache(n, held - n) for _ in range(settings["n_layers"])]
        with torch.no_grad():
            said = torch.cat([model(token, caches) for token in x.split(1, dim=1)], dim=1)
        found[f"error_{name}"] = (said - wanted)[:, 2 * length :].square().mean().item()
    return found


@cache
def successors() -> Tensor:
    """Four for each token, and each token is one of four: all are about equally frequent."""
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(10))
    return torch.stack([order.roll(8 * n) for n in range(4)], dim=-1)


def copies(_: Tensor, count: int, length: int) -> Tensor:
    """Texts of the Bigram-Backcopy task, one token longer, as `train` draws them."""
    tokens = [torch.full((count,), BEGIN), torch.randint(TRIGGERS, TOKENS, (count,))]
    while len(tokens) <= length:
        before, last = tokens[-2:]
        drawn = successors()[last, torch.randint(4, (count,))]
        tokens.append(torch.where(last < TRIGGERS, before, drawn))
    return torch.stack(tokens, dim=1)


def bits(logits: Tensor, tokens: Tensor) -> Tensor:
    """What each token but the first costs."""
    logs = logits[:, :-1].log_softmax(dim=-1)
    return -logs.gather(-1, tokens[:, 1:, None].long())[..., 0] / math.log(2)


def how(settings: dict, report: Callable[[float], None]) -> dict[str, Any]:
    """What `train` is told of a run."""
    steps = settings["steps"]
    return {"steps": steps, "seed": settings["seed"], "report": lambda step, _: report(0.9 * step / steps)}


def run_copy(model: nn.Module, settings: dict, report: Callable[[float], None]) -> dict:
    length = settings["length"]
    train(model, torch.zeros(1), draw=copies, batch_size=32, **how(settings, report))
    torch.manual_seed(1000 + settings["seed"])
    tokens = copies(torch.zeros(1), 64, length - 1)
    asked = tokens < TRIGGERS
    logits, found = look(model, tokens, asked, back=1)
    over = bits(logits, tokens) - torch.where(asked, 0.0, 2.0)[:, :-1]
    return found | {"bits": over[:, length // 4 :].mean().item()}


def run_text(model: nn.Module, settings: dict, report: Callable[[float], None]) -> dict:
    length = settings["length"]
    files = library_files()
    text, held_out = split(files)
    begin = 0 if settings["begins"] == "token" else None
    train(model, text, draw=partial(crops, begin=begin), **how(settings, report))
    torch.manual_seed(1000)
    tokens = crops(held_out, 64, length, begin=begin)[:, :length]
    logits, found = look(model, tokens, torch.zeros_like(tokens, dtype=torch.bool), back=1)
    late = bits(logits, tokens)[:, length // 4 :].mean().item()
    return found | {"bits": late, "manifest": manifest(files)}


def run(settings: dict, report: Callable[[float], None]) -> dict:
    model = model_of(settings)
    run_task = {"fetch": run_fetch, "copy": run_copy, "text": run_text}[settings["task"]]
    found = run_task(model, settings, report)
    logits = [x.sink_logits.tolist() for x in model.modules() if isinstance(x, SinkLogits)]
    return found | {"sink_logits": logits}


def claims(runs: Runs) -> list[Claim]:
    def of(task: str, begins: str, sink: str, mlp: bool = True) -> Runs:
        return runs.where(task=task, begins=begins, sink=sink, mlp=mlp)

    def percent(chosen: Runs, name: str) -> str:
        return f"{chosen.spread(name):.1%}"

    token = of("fetch", "token", "none", mlp=False)
    silent, sink = (of("fetch", "anywhere", kind, mlp=False) for kind in ("none", "zero"))
    dear = factors(token)
    found = [
        Claim(
            "Attention alone: where nothing is asked, some head parks on the token that begins all texts",
            "–",
            percent(token, "first_most"),
            min(token.values("first_most")) > 0.9,
            quick=True,
        ),
        Claim(
            "To evict that token multiplies the error by 100 or more",
            "perplexity 27.87, kept 18.05 (vanilla)",
            f"{min(dear):,.0f} to {max(dear):,.0f} times",
            min(dear) > 100,
            quick=True,
        ),
        Claim(
            "Without it, a head cannot be silent; with a 1 in the denominator it can (error below a hundredth)",
            "–",
            f"{sink.spread('error'):.1e}, without {silent.spread('error'):.1e}",
            max(sink.values("error")) < 0.01 * min(silent.values("error")),
            quick=True,
        ),
    ]
    if all(run.settings["sink"] != "logit" for run in runs):
        return found
    both, mlp = of("fetch", "token", "zero", mlp=False), of("fetch", "token", "none")
    copy, fixed, logit = (
        of("copy", "token", "none"),
        of("text", "token", "none"),
        of("text", "token", "logit"),
    )
    crop = of("text", "anywhere", "none")
    used, spared = factors(both), factors(mlp)
    return [
        *found,
        Claim(
            "With both, heads use the token as well: to evict it multiplies the error by more than 2",
            "perplexity 29214, kept 18.01 (zero sink)",
            f"{min(used):,.1f} to {max(used):,.1f} times; {percent(both, 'first')} parked",
            min(used) > 2,
        ),
        Claim(
            "With MLPs behind, heads of the same task hardly need it: the error grows by less than a tenth of that",
            "–",
            f"{min(spared):,.1f} to {max(spared):,.1f} times; {percent(mlp, 'first_most')} parked",
            max(spared) < 0.1 * min(dear),
        ),
        Claim(
            "A model with MLPs that copies after a trigger parks more than 80% in some head",
            "–",
            percent(copy, "first_most"),
            min(copy.values("first_most")) > 0.8,
        ),
        Claim(
            "A language model puts more weight on a fixed first token than on a first byte",
            "–",
            f"{percent(fixed, 'first')}, first byte {percent(crop, 'first')}",
            max(crop.values("first")) < min(fixed.values("first")),
        ),
        Claim(
            "Sink logits take over part of that",
            "–",
            f"{percent(logit, 'first')}; on nothing {percent(logit, 'nothing')}",
            max(logit.values("first")) < min(fixed.values("first")),
        ),
    ]


def factors(runs: Runs) -> list[float]:
    """By how much the first token's eviction multiplies the error."""
    return [run.measured["error_evicted"] / run.measured["error_kept"] for run in runs]
