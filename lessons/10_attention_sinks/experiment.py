r"""# A stream many times the cache

**Claim.** Llama-2-13B reads a book of 65,000 tokens with a cache of 1,024. Perplexity is 5.43 if the last
1,024 are read anew for every token, 5,158 with a window, 5.40 with the first four tokens kept beside it, 5.60
if those four are newlines (Xiao et al. 2023, arXiv:2309.17453, table 1). One sink is nearly enough and four
are: 0, 1, 2, 4, 8 give 3359.95, 11.88, 10.51, 9.59, 9.54 on Llama-2-7B (table 2). Of models of 160M
parameters that were trained from scratch, without their first token a vanilla one is at 27.87, one with a
zero sink (softmax-off-by-one) at 29,214, one with a learnable sink token at 1,235; with four first tokens all
are at 18 (table 3). The last needs one.

And a question that readers ask: if places are counted anew in the cache, are sinks still needed?

**Prediction.** *Written before the first run.* Nothing here will collapse: a model this small parks little.

1. Full attention with rotary positions fails past the trained length, by more than a bit; a window does not.
2. With a token in front (a text that begins with byte 0, which is the same as a learnable sink), evicting it
   costs 0.02 to 0.2 bits per byte. One sink wins that back, and more than one adds less than 0.01.
3. Vanilla, trained on texts that begin anywhere, loses less than 0.02 without its first tokens, and keeping
   them helps as little: nothing taught it that a first token is a place to park.
4. A zero sink is no worse off than vanilla: the paper's 29,214 will *not* be seen.
5. With a token in front, sinks are within 0.03 bits of reading the cache anew.
6. Four newlines do not stand in for byte 0: here the sink is a token that was learned, not a place.
7. Two by two, with a token in front. Evicted: the two ways of counting agree to rounding. Kept: counted in
   the text, rotary is *worse* than evicted, for the sink stands at angles never trained, and ALiBi is where
   evicted is, for its bias has buried the sink. Kept and counted in the cache is the best of the four.

**Setting.** A model of lesson 3, two layers, 0.11M parameters, trained on Python's library at 64 bytes, reads
32 streams of held-out text, 512 bytes each, with a cache of 32. Counted are the last 256 bytes of every stream,
the same for all: 8,192 of them. Sinks and window share the cache: 4 means 4 + 28. *Vanilla* and *zero* see the
text alone; for *token* each text and each stream has byte 0 in the place of its first byte. A stream is read in
one pass (`streaming_rotary`, `streaming_alibi`), and two of them through a `SinkKVCache` as well. Lengths, steps
and learning rate were set after the prediction, on trial runs of *token* with rotary positions and seed 0.

**Outcome.** As predicted with rotary positions: eviction costs 0.05 to 0.1 bits, one sink wins all of it back.
With ALiBi only one seed of three learned to park; it loses 0.2 bits, the others nothing, so the last claim fails
for them. Vanilla and zero lose nothing, and could not: no head of theirs puts more than 2% of its weight on a
first token, where one head of each model with a token in front puts a third. So two of three rows of table 3 are
not seen at this size. Four newlines are worse than no sink. With rotary positions and places of the text, four
sinks cost a bit, but the sink token is the least of it. Kept alone, it costs 0.05 more than its absence; the
three ordinary bytes kept with it cost the rest. Where nothing was parked, to keep one ordinary byte costs
0.5 bits (vanilla) or a whole one (zero). We had not expected that. It seems that at angles never trained such a
key can win the weight, and unlike a sink it has a value to give.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.attention_sinks import SinkKVCache, alibi_by_position, read_stream
from annotated_attention.attention_sinks_full import (
    attend_by_distance,
    streaming_alibi,
    streaming_mask,
    streaming_rotary,
)
from annotated_attention.language_model import (
    Attend,
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
)
from annotated_attention.language_model_corpus import library_files, manifest, split
from annotated_attention.language_model_training import BEGIN, crops, train
from annotated_attention.rotary import rotary_attention
from coursekit.experiments import Claim, Runs, Spread

NEWLINE, PIECE, SINKS = ord("\n"), 64, (0, 1, 2, 4, 8)
KINDS = [("vanilla", "rotary"), ("zero", "rotary"), ("token", "rotary"), ("token", "alibi")]

SIZES: dict[str, dict[str, Any]] = {
    "quick": {"d_model": 32, "n_layers": 2, "n_heads": 2, "trained": 32}
    | {"steps": 20, "batch": 8, "rate": 8e-3}
    | {"cache": 16, "streams": 8, "stream": 64, "scored": 32, "device": "cpu"},
    "default": {"d_model": 64, "n_layers": 2, "n_heads": 4, "trained": 64}
    | {"steps": 3000, "batch": 8, "rate": 8e-3}
    | {"cache": 32, "streams": 32, "stream": 512, "scored": 256, "device": "cpu"},
    "full": {"d_model": 256, "n_layers": 6, "n_heads": 8, "trained": 512}
    | {"steps": 4000, "batch": 32, "rate": 2e-3}
    | {"cache": 256, "streams": 32, "stream": 2048, "scored": 256, "device": "cuda"},
}


def plan(size: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    if size not in SIZES:
        raise ValueError(f"size is {size!r}: one of {sorted(SIZES)} is wanted")
    named = [{"kind": kind, "position": position} for kind, position in KINDS]
    return [SIZES[size] | each | {"seed": seed} for seed in seeds for each in named]


def with_zero(attend: Attend, *slot: Tensor) -> Tensor:
    """One key of zeros more, with a value of zeros. It scores 0 wherever it stands, which is softmax-off-by-one;
    it is put where the first of the queries stands, since all of them see that place."""
    query, key, value, i, j = slot
    key, value = F.pad(key, (0, 0, 1, 0)), F.pad(value, (0, 0, 1, 0))
    return attend(query, key, value, i, torch.cat([i[:1], j]))


def in_text(position: str, n_sinks: int, window: int, *slot: Tensor) -> Tensor:
    """Sinks and a window, with places counted in the text."""
    query, key, value, i, j = slot
    mask = streaming_mask(i, j, n_sinks, window)
    if position == "alibi":
        return attend_by_distance(query, key, value, i[:, None] - j, mask)
    attend = partial(F.scaled_dot_product_attention, attn_mask=mask)
    return rotary_attention(query, key, value, i, j, attend=lambda q, k, v, i, j: attend(q, k, v))


def in_pieces(attend: Attend, n_sinks: int, window: int, *slot: Tensor) -> Tensor:
    """Some queries at a time, with those keys that one of them sees: the work grows as the stream does."""
    query, key, value, i, j = slot
    outputs = []
    step = min(window, PIECE)
    for first in range(0, len(i), step):
        last = min(first + step, len(i))
        oldest = max(first - window + 1, 0)
        seen = torch.cat([torch.arange(min(n_sinks, oldest)), torch.arange(oldest, last)])
        seen = seen.to(j.device)
        some = query[:, :, first:last], key[:, :, seen], value[:, :, seen], i[first:last], j[seen]
        outputs.append(attend(*some))
    return torch.cat(outputs, dim=2)


def slots(model: LanguageModel) -> list[SelfAttention]:
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


def fill(model: LanguageModel, kind: str, attend: Attend, pieces: tuple[int, int] | None) -> None:
    """Puts an attention into the slot of every layer; `pieces` are the sinks and the window of a stream."""
    attend = partial(with_zero, attend) if kind == "zero" else attend
    attend = attend if pieces is None else partial(in_pieces, attend, *pieces)
    for slot in slots(model):
        slot.attend = attend


PLAIN: dict[str, Attend] = {"rotary": rotary_attention, "alibi": alibi_by_position}
ANEW = {"rotary": streaming_rotary, "alibi": streaming_alibi}


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """What every target costs, `b t`."""
    logs = logits.float().log_softmax(dim=-1)
    return -logs.gather(-1, targets[..., None])[..., 0] / math.log(2)


@torch.no_grad()
def recomputed(model: LanguageModel, tokens: Tensor, settings: dict[str, Any]) -> Tensor:
    """The scored targets, each from the newest tokens alone, read anew from place 0."""
    cache, scored = settings["cache"], settings["scored"]
    inputs, targets = tokens[:, :-1], tokens[:, -scored:]
    windows = inputs[:, -(scored + cache - 1) :].unfold(1, cache, 1)
    costs = []
    for window, target in zip(windows.unbind(1), targets.unbind(1), strict=True):
        window = window.clone()
        if settings["kind"] == "token":
            window[:, 0] = BEGIN
        costs.append(bits(model(window)[:, -1:], target[:, None]))
    return torch.cat(costs, dim=1)


@torch.no_grad()
def parked(model: LanguageModel, tokens: Tensor, settings: dict[str, Any]) -> list[list[float]]:
    """The weight on the first of the trained length's tokens, by layer and head: the mean over the second half
    of the queries."""
    found, attend = [], slots(model)[0].attend

    def watch(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        is_first = torch.zeros_like(value)
        is_first[:, :, 0] = 1.0
        weight = attend(query, key, is_first, i, j)[:, :, len(i) // 2 :, 0]
        found.append(weight.mean(dim=(0, 2)).tolist())
        return attend(query, key, value, i, j)

    fill(model, "watched", watch, None)
    model(tokens[:, : settings["trained"]])
    fill(model, "watched", attend, None)
    return found


@cache
def corpus() -> tuple[Tensor, Tensor, str]:
    """The text to be trained on, the text held out, and which text it is."""
    files = library_files()
    return *split(files), manifest(files)


def run(settings: dict[str, Any], report: Callable[[float], None]) -> dict[str, Any]:
    kind, position, held = settings["kind"], settings["position"], settings["cache"]
    text, held_out, name = corpus()
    scored = settings["scored"]
    config = LanguageModelConfig(
        max_length=settings["trained"],
        d_model=settings["d_model"],
        n_layers=settings["n_layers"],
        n_heads=settings["n_heads"],
        position_embedding="none",
    )
    torch.manual_seed(settings["seed"])
    model = LanguageModel(config).to(settings["device"])
    fill(model, kind, PLAIN[position], None)
    losses = train(
        model,
        text,
        steps=settings["steps"],
        batch_size=settings["batch"],
        learning_rate=settings["rate"],
        seed=settings["seed"],
        draw=partial(crops, begin=BEGIN if kind == "token" else None),
        report=lambda step, loss: report(0.75 * (step + 1) / settings["steps"]),
    )
    model.eval()

    # Streams from places that are evenly spread; every kind is asked for the same bytes.
    starts = torch.linspace(0, len(held_out) - settings["stream"] - 1, settings["streams"]).long()
    tokens = held_out[starts[:, None] + torch.arange(settings["stream"] + 1)].long()
    tokens = tokens.to(settings["device"])
    if kind == "token":
        tokens[:, 0] = BEGIN
    measured: dict[str, Any] = {"text": name}
    measured["trained_bits"] = sum(losses[-50:]) / 50 / math.log(2)
    measured["parked"] = parked(model, tokens, settings)
    measured["recompute"] = recomputed(model, tokens, settings)[:, -scored:].mean().item()
    report(0.8)

    def judge(name: str, attend: Attend, n_sinks: int, window: int, newlines: int = 0) -> None:
        fill(model, kind, attend, (n_sinks, window))
        stream = tokens.clone()
        stream[:, :newlines] = NEWLINE
        with torch.no_grad():
            costs = bits(model(stream[:, :-1]), tokens[:, 1:])
        measured[name] = costs[:, -scored:].mean().item()
        along[name] = costs.unflatten(1, (-1, held)).mean(dim=(0, 2)).tolist()

    along: dict[str, list[float]] = {}
    judge("full", PLAIN[position], 0, settings["stream"])
    for n in SINKS:
        window = held - n
        anew = partial(ANEW[position], n_sinks=n, window=window)
        judge(f"sinks_{n}", anew, n, window)
        if n in (0, 1, 4):
            judge(f"in_text_{n}", partial(in_text, position, n, window), n, window)
        if n in (1, 4):
            judge(f"newlines_{n}", anew, n, window, newlines=n)
    measured["along"] = {name: along[name] for name in ("full", "sinks_0", "sinks_1", "sinks_4")}
    report(0.9)

    # The same through the cache itself, token by token.
    fill(model, kind, PLAIN[position], None)
    for n in (0, 4):
        caches = [SinkKVCache(n, held - n) for _ in model.blocks]
        costs = bits(read_stream(model, tokens[:, :-1], caches), tokens[:, 1:])
        measured[f"cache_{n}"] = costs[:, -scored:].mean().item()
    report(1.0)
    return measured


def above(runs: Runs, kind: str, name: str, less: str, position: str = "rotary") -> list[float]:
    """By how many bits per byte one way to stream costs more than another, seed by seed."""
    of = runs.where(kind=kind, position=position)
    return [one - other for one, other in zip(of.values(name), of.values(less), strict=True)]


def told(values: Sequence[float]) -> str:
    return f"{Spread.of(values):+.3f} bits"


def claims(runs: Runs) -> list[Claim]:
    of = partial(above, runs)
    full, anew = of("token", "full", "sinks_0"), of("token", "sinks_4", "recompute")
    token, vanilla, zero = (of(kind, "sinks_0", "sinks_4") for kind in ("token", "vanilla", "zero"))
    more, newlines = of("token", "sinks_1", "sinks_4"), of("token", "newlines_4", "sinks_4")
    far, far_alibi = (of("token", "in_text_4", "sinks_4", at) for at in ("rotary", "alibi"))
    alibi = of("token", "sinks_0", "sinks_4", "alibi")
    moved = of("token", "in_text_0", "cache_0") + of("token", "in_text_0", "cache_0", "alibi")
    agree = max(abs(x) for x in moved)
    return [
        Claim(
            says="Far into a stream, full attention with rotary positions costs over a bit more than a window",
            paper="–",
            ours=told(full),
            holds=min(full) > 1,
        ),
        Claim(
            says="Rotary, a model with a sink token needs it: evicted, it costs more than 0.02",
            paper="1235 against 18.02",
            ours=f"{told(token)}; with ALiBi {told(alibi)}",
            holds=min(token) > 0.02,
        ),
        Claim(
            says="One sink token is enough: four are better by less than 0.01",
            paper="18.01 against 18.02",
            ours=told(more),
            holds=max(more) < 0.01,
        ),
        Claim(
            says="Evicted, a zero sink loses most, then a sink token, then a vanilla model",
            paper="29214, 1235, 27.87, from 18",
            ours=f"{told(zero)}, {told(token)}, {told(vanilla)}",
            holds=min(zero) > max(token) and min(token) > max(vanilla),
        ),
        Claim(
            says="Four sinks are within 0.03 of reading the cache anew for every byte",
            paper="5.40 against 5.43",
            ours=told(anew),
            holds=max(anew) < 0.03,
        ),
        Claim(
            says="Four newlines for the first four win back half of what eviction costs",
            paper="5.60 against 5.40, and 5158",
            ours=f"{told(newlines)} above the first four",
            holds=all(lost < cost / 2 for lost, cost in zip(newlines, token, strict=True)),
        ),
        Claim(
            says="Evicted, counting anew changes nothing, rotary or ALiBi",
            paper="–",
            ours=f"at most {agree:.1g} bits",
            holds=agree < 1e-4,
            quick=True,
        ),
        Claim(
            says="Kept, places must be counted in the cache: counted in the text they cost more",
            paper="–",
            ours=f"rotary {told(far)}, ALiBi {told(far_alibi)}",
            holds=min(far + far_alibi) > 0,
        ),
    ]
