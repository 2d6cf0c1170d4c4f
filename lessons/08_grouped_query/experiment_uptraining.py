r"""# Converting a trained model, with 5% of its training

**Claim.** A model with many heads can be converted to few by taking the mean of each group's keys and values,
and training for another 5% of the steps: then 47.1 ($g = 8$) and 46.6 ($g = 1$) are left of 47.2 (Ainslie et
al. 2023, arXiv:2305.13245, table 1). The mean is a better place to begin than the first head of each group,
and that better than new random heads (figure 4; T5-Large, $g = 1$). With eight heads the model is of use even
before it is trained on, with one it is not; beyond 10% of the steps little is gained (figure 5).

**Prediction.** Written before the first run.

- The conversion does harm, more with each halving of $g$. At $g = 1$ most of what attention did is gone.
- 5% of the steps repair most of it, at least four fifths. But 5% of 800 steps are 40, and 40 steps are few for
  matrices that have to be found anew, however well the rest is trained: a model with $g = 1$ from the start
  stays ahead of the converted one, and four times as many steps still bring something.
- Mean, first head, random: the order of figure 4, at once and after the 5%. The distance between mean and
  first may be too small for every seed to agree.
- Turned towards one another first (Jin et al. 2024, arXiv:2412.20677), heads survive the mean better, at once
  and after.

**Setting.** The model of `experiment.py`: two layers, 64 wide, eight heads of 8, rotary positions, 64 bytes of
Python's library at a time, 800 steps of 8 crops at a rate of up to 0.005, judged on 32,768 unseen bytes.
Converted at $g = 4, 2, 1$, then 40 steps (5%) or 160 (20%) at a rate of up to 0.001, warmed up anew and
brought down to 0. Against it: the same model with all its heads, trained for 40 steps more; and a model that
had one head from the start, trained for 840 steps. Three seeds.

Changed after a first look, which stopped half-way: the model was wider and had learned positions, and with
them it learned too slowly for the minutes that there are. And one start was added, "longer": the mean, made as
long as the heads were.

**Outcome.** Of figure 4 one half is seen: new heads are the worst start. Whether the mean (3.39 bits at $g = 1$,
after 5%) or the first head (3.35) is better, three seeds do not agree, as we feared. Turned heads are by far the
best (3.11), as expected: a mean of eight bases is none of them. That it is short is the smaller fault: made as
long as the heads were, it leads to 3.32, a little better in every seed. T5's heads may be more alike than ours,
or its 5%, some thousand times as many steps, enough to forget the beginning. Of the harm the 40 steps repair 64 to
78%, less than the four fifths that we expected, and four times as many go on repairing. A model with one head from
the start has 2.70 bits, the model with all heads 2.70: what costs is not to have few heads, but to lose them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    fused_grouped_attention,
    mean_pool_kv_heads,
)
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_corpus import library_files, manifest, split
from annotated_attention.language_model_training import bits_per_byte, train
from annotated_attention.rotary import rotary_attention
from coursekit.experiments import Claim, Runs, Spread

Report = Callable[[float], None]

M, H = 64, 8
TURNED = partial(rotary_attention, attend=fused_grouped_attention)
FEWER = (4, 2, 1)
STARTS = ("mean", "first", "random", "turned", "longer")


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    """For each seed a model to be converted, and one that has one head from the start."""
    if size not in ("quick", "default"):
        raise ValueError(f"size is {size!r}: quick or default is wanted, nothing here needs a GPU")
    quick = size == "quick"
    common = {"length": 32 if quick else 64, "bytes": 2048 if quick else 32_768}
    common |= {"steps": 160 if quick else 800, "more": 4 if quick else 40}
    plans = []
    for seed in seeds:
        plans.append({"kind": "converted", "starts": list(STARTS), **common, "seed": seed})
        plans.append({"kind": "scratch", "kv_heads": 1, **common, "seed": seed})
    return plans


def run(settings: dict, report: Report) -> dict:
    files = library_files()
    text, held_out = split(files)
    judged = unseen(held_out, settings["bytes"], settings["length"])
    measure = converted if settings["kind"] == "converted" else scratch
    return {**measure(settings, text, judged, report), "text": manifest(files)}


def unseen(held_out: Tensor, n_bytes: int, length: int) -> Tensor:
    """Blocks from all of the files held out, evenly spaced."""
    blocks = held_out[: len(held_out) // length * length].view(-1, length)
    return blocks[:: len(blocks) * length // n_bytes][: n_bytes // length].flatten()


def new_model(length: int, n_kv_heads: int, seed: int) -> LanguageModel:
    def attention(config: LanguageModelConfig, layer: int) -> GroupedQueryAttention:
        return GroupedQueryAttention(M, H, n_kv_heads, attend=TURNED)

    torch.manual_seed(seed)
    sizes = LanguageModelConfig(max_length=length, d_model=M, n_layers=2, n_heads=H)
    return LanguageModel(replace(sizes, position_embedding="none", make_attention=attention))


def trained(settings: dict, g: int, steps: int, text: Tensor, report: Report) -> LanguageModel:
    seed = settings["seed"]
    model = new_model(settings["length"], g, seed)
    rates = {"learning_rate": 5e-3, "warmup": steps // 10, "batch_size": 8, "seed": seed}
    train(model, text, steps=steps, **rates, report=lambda n, _: report((n + 1) / steps))
    return model


def scratch(settings: dict, text: Tensor, judged: Tensor, report: Report) -> dict:
    steps = settings["steps"] + settings["more"]
    model = trained(settings, settings["kv_heads"], steps, text, report)
    return {"bits": bits_per_byte(model, judged)}


def converted(settings: dict, text: Tensor, judged: Tensor, report: Report) -> dict:
    """Bits with all heads, and for each start and number of heads: at once, after 5%, after 20%."""
    seed, more = settings["seed"], settings["more"]
    source = trained(settings, H, settings["steps"], text, lambda done: report(done / 2))

    def train_on(model: LanguageModel, steps: int) -> float:
        """Other crops than the first training had, the same for all."""
        model = copy.deepcopy(model)
        rates = {"learning_rate": 1e-3, "warmup": max(steps // 10, 1)}
        train(model, text, steps=steps, batch_size=8, seed=1000 + seed, **rates)
        return bits_per_byte(model, judged)

    bits = {"all": [bits_per_byte(source, judged), train_on(source, more)]}
    tasks = [(start, g) for start in settings["starts"] for g in FEWER]
    for n, (start, g) in enumerate(tasks):
        model = convert(source, g, start, seed)
        bits[f"{start} {g}"] = [bits_per_byte(model, judged), train_on(model, more)]
        if start == "mean":
            bits[f"{start} {g}"].append(train_on(model, 4 * more))
        report(0.5 + (n + 1) / len(tasks) / 2)
    return bits


@torch.no_grad()
def convert(source: LanguageModel, g: int, start: str, seed: int = 0) -> LanguageModel:
    """The same model with $g$ heads of keys and values. Queries and outputs stay what they were."""
    model = new_model(source.config.max_length, g, 1000 + seed)
    weights = copy.deepcopy(source.state_dict())
    for layer in range(len(source.blocks)):
        names = [f"blocks.{layer}.attention.w_{letter}.weight" for letter in "qkvo"]
        if start == "turned":
            turned = turn([weights[name] for name in names], g)
            weights.update(zip(names, turned, strict=True))
        for name in names[1:3]:
            heads = rearrange(weights[name], "(g r d) m -> g r d m", g=g, r=H // g)
            pooled = mean_pool_kv_heads(weights[name], H, g)
            if start == "first":
                pooled = rearrange(heads[:, 0], "g d m -> (g d) m")
            elif start == "random":
                pooled = model.state_dict()[name]
            elif start == "longer":
                pooled = pooled * heads.square().mean().sqrt() / pooled.square().mean().sqrt()
            weights[name] = pooled
    model.load_state_dict(weights)
    return model


def turn(matrices: Sequence[Tensor], g: int) -> list[Tensor]:
    """The same attention, each head's keys and values turned towards those of its group's first.
    What turns the values is undone by $W_O$. What turns the keys turns the queries too, and only
    within the pairs of rotary positions: by an angle for each pair, a complex number."""
    q, k, v, o = matrices
    q, k, v, o = (w.clone().unflatten(0, (H, -1)) for w in (q, k, v, o.T))
    for n in range(H):
        first = n - n % (H // g)
        u, _, vt = torch.linalg.svd(v[first] @ v[n].T)
        v[n], o[n] = u @ vt @ v[n], u @ vt @ o[n]
        ours, theirs = pairs(k[n]), pairs(k[first])
        angle = (theirs * ours.conj()).sum(dim=-1, keepdim=True).angle()
        for part in (k, q):
            turned = pairs(part[n]) * torch.polar(torch.ones_like(angle), angle)
            part[n] = torch.cat([turned.real, turned.imag])
    q, k, v, o = (w.flatten(0, 1) for w in (q, k, v, o))
    return [q, k, v, o.T]


def pairs(head: Tensor) -> Tensor:
    """Rotary positions turn row $i$ with row $i + d/2$."""
    return torch.complex(*head.chunk(2))


def lower(one: Sequence[float], other: Sequence[float]) -> bool:
    """In every seed."""
    return all(a < b for a, b in zip(one, other, strict=True))


def share(of: Sequence[float], part: Sequence[float]) -> list[float]:
    """In percent, seed by seed."""
    return [100 * b / a for a, b in zip(of, part, strict=True)]


def minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def claims(runs: Runs) -> list[Claim]:
    of = runs.where(kind="converted")

    def bits(name: str, when: int) -> list[float]:
        return [each[when] for each in of.values(name)]

    whole, longer = bits("all", 0), bits("all", 1)
    at_once = {g: bits(f"mean {g}", 0) for g in FEWER}
    after = {g: bits(f"mean {g}", 1) for g in FEWER}
    ladder = [whole, *at_once.values()]
    gained = {g: minus(at_once[g], after[g]) for g in FEWER}
    mended = {g: share(minus(at_once[g], whole), gained[g]) for g in FEWER}
    late = share(gained[1], minus(after[1], bits("mean 1", 2)))
    mean, first, random, turned, _ = (bits(f"{start} 1", 1) for start in STARTS)
    scratch = runs.where(kind="scratch", kv_heads=1).values("bits")
    return [
        Claim(
            "The conversion alone does harm, with one head more than with half of them",
            "figure 5",
            " to ".join(f"{Spread.of(each):.2f}" for each in ladder) + " bits",
            lower(whole, at_once[4]) and lower(at_once[4], at_once[1]),
            quick=True,
        ),
        Claim(
            "5% of the steps repair at least four fifths of the harm",
            "–",
            ", ".join(f"{Spread.of(mended[g]):.0f}% at $g = {g}$" for g in FEWER),
            min(map(min, mended.values())) >= 80,
        ),
        Claim(
            "With half of its heads a model is then within 1% of one with all, trained as long",
            "47.1 of 47.2 ($g = 8$ of 64)",
            f"{Spread.of(after[4]):.2f} and {Spread.of(longer):.2f} bits",
            max(share(longer, after[4])) < 101,
        ),
        Claim(
            "The mean is a better start than the first head ($g = 1$, after 5%)",
            "figure 4",
            f"{Spread.of(mean):.2f} and {Spread.of(first):.2f} bits",
            lower(mean, first),
        ),
        Claim(
            "The first head is a better start than new random heads ($g = 1$, after 5%)",
            "figure 4",
            f"{Spread.of(first):.2f} and {Spread.of(random):.2f} bits",
            lower(first, random),
        ),
        Claim(
            "The mean of heads that were turned towards each other is better still ($g = 1$)",
            "the same (2412.20677)",
            f"{Spread.of(turned):.2f} and {Spread.of(mean):.2f} bits",
            lower(turned, mean),
        ),
        Claim(
            "Four times the steps bring little more: under a quarter of what 5% brought ($g = 1$)",
            "figure 5",
            f"{Spread.of(late):.0f}% of it",
            max(late) < 25,
        ),
        Claim(
            "One head from the start is better than one after conversion, at as many steps",
            "–",
            f"{Spread.of(scratch):.2f} and {Spread.of(mean):.2f} bits",
            lower(scratch, mean),
        ),
    ]
