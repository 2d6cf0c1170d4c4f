r"""# Fewer heads of keys: what they save, what they cost

**Claim.** With fewer heads of keys and values a decoder is much faster and hardly worse. T5-XXL, uptrained,
scores 47.2 with all of its heads, 47.1 with $g = 8$ and 46.6 with $g = 1$; a sample takes 1.51, 0.28 and 0.24
seconds (Ainslie et al. 2023, arXiv:2305.13245, table 1). And sharing is the best way to a small cache: at
equal parameters it loses less than having fewer heads, or narrower ones (Shazeer 2019, arXiv:1911.02150,
table 3).

**Prediction.** Written before the first run.

- *Loss.* Two layers and eight heads are far from needing eight sets of keys. With $g = 4, 2, 1$ the loss rises
  by less than 1%, perhaps by nothing that three seeds can tell from chance; if it rises, part of it is that
  the model has lost parameters, and an MLP that is wider by as many takes that part back.
- *At the same bytes.* Sharing beats one head of the same width, and eight heads of an eighth of it. If it did
  not, the loss above would say nothing: the model would not be using its heads.
- *Speed.* The operations stay, so attention speeds up by less than the bytes shrink: at $g = 1$ by more than
  2, by less than 8. A whole model reads its weights as well and gains less, about 2. But then $g = 2$ is
  nearly as fast as $g = 1$, as in the paper; in attention alone it is not.

**Setting.** A model of two layers, 64 wide, eight heads of 8, rotary positions, reads 64 bytes of Python's
library at a time: 800 steps of 8 crops, judged on 32,768 bytes of files it has not seen. Three seeds; with the
same seed, all models read the same crops. `hidden` is the width of the MLP: 256, or wider by as much as makes
the parameters those of the model with all heads. The cache is measured, not computed. (At first the model was
wider and had learned positions. It learned too slowly for the minutes that there are. And rotary positions
need pairs, so the narrow heads are four of 2, not eight of 1.)

Speed is that of a model 1024 wide, four layers, eight heads of 128, in float32: one new token in each of two
texts, behind 4,096 cached ones. Timed in turn for all $g$, so that none finds its own cache still warm; the
median of nine rounds. Once for attention alone, once for the whole model.

**Outcome.** As expected, few heads of keys cost these models nothing that three seeds can tell from chance: with
one head the loss lies between half a percent below and one above that with all. So the paper's small loss for
$g = 1$ cannot be seen here, nor what the missing parameters are worth. It is not that the heads are idle. With
as small a cache, one query head needs some 6% more bits and narrow heads some 20%, though their MLP has the
parameters. What a small model needs is many places to look at; one set of keys serves them all. Large models,
trained longer, ask more of the keys.

Attention gains less than the bytes, and the whole model less than attention, as expected: it reads its weights
too. How fast it is depends on the machine; the table says what was measured.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    fused_grouped_attention,
    grouped_query_attention,
)
from annotated_attention.kv_cache import KVCache, make_caches
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_corpus import library_files, manifest, split
from annotated_attention.language_model_training import bits_per_byte, train
from annotated_attention.rotary import rotary_attention
from coursekit.experiments import Claim, Runs, Spread

LAYERS, M, H, D = 2, 64, 8, 8
GROUPS = (8, 4, 2, 1)


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    """Seven models for each seed, and a timed run."""
    if size not in ("quick", "default"):
        raise ValueError(f"size is {size!r}: quick or default is wanted, nothing here needs a GPU")
    quick = size == "quick"
    common = {"kind": "loss", "steps": 10 if quick else 800, "bytes": 2048 if quick else 32_768}
    common["length"] = 32 if quick else 64

    # A token leaves `2 * kv_heads * width` numbers in a cache: the last three leave the same.
    shapes = [("shared", H, g, D) for g in GROUPS]
    shapes += [("widened", H, 1, D), ("few", 1, 1, D), ("narrow", 4, 4, D // 4)]
    speed = {"kind": "speed", "timed": True, "d_model": 128 if quick else 1024}
    speed |= {"cached": 128 if quick else 4096, "rounds": 2 if quick else 9}
    plans = []
    for seed in seeds:
        for name, heads, kv_heads, width in shapes:
            hidden = 4 * M if name == "shared" else equal_hidden(heads, kv_heads, width)
            shape = {"name": name, "heads": heads, "kv_heads": kv_heads, "width": width}
            plans.append({**common, **shape, "hidden": hidden, "seed": seed})
        plans.append({**speed, "seed": seed})
    return plans


def equal_hidden(heads: int, kv_heads: int, width: int) -> int:
    """The width of an MLP that has the parameters that attention has lost."""
    lost = 2 * M * (2 * M - (heads + kv_heads) * width)
    return 4 * M + round(lost / (2 * M + 1))


def run(settings: dict, report: Callable[[float], None]) -> dict:
    return loss(settings, report) if settings["kind"] == "loss" else speed(settings, report)


def make(settings: dict) -> LanguageModel:
    """The course's model, with heads and an MLP of any width."""

    heads, kv_heads, width = (settings[name] for name in ("heads", "kv_heads", "width"))
    attend = partial(rotary_attention, attend=fused_grouped_attention)

    def attention(config: LanguageModelConfig, layer: int) -> nn.Module:
        module = GroupedQueryAttention(M, heads, kv_heads, attend=attend)
        module.w_q = nn.Linear(M, heads * width, bias=False)
        module.w_k = nn.Linear(M, kv_heads * width, bias=False)
        module.w_v = nn.Linear(M, kv_heads * width, bias=False)
        module.w_o = nn.Linear(heads * width, M, bias=False)
        return module

    torch.manual_seed(settings["seed"])
    sizes = LanguageModelConfig(max_length=settings["length"], d_model=M, n_layers=LAYERS)
    model = LanguageModel(replace(sizes, position_embedding="none", make_attention=attention))
    for block in model.blocks:
        up, down = nn.Linear(M, settings["hidden"]), nn.Linear(settings["hidden"], M)
        for matrix, deviation in ((up, 0.02), (down, 0.02 / (2 * LAYERS) ** 0.5)):
            nn.init.normal_(matrix.weight, std=deviation)
            nn.init.zeros_(matrix.bias)
        block.mlp = nn.Sequential(up, nn.GELU(), down)
    return model


def unseen(held_out: Tensor, n_bytes: int, length: int) -> Tensor:
    """Blocks from all of the files held out, evenly spaced."""
    blocks = held_out[: len(held_out) // length * length].view(-1, length)
    return blocks[:: len(blocks) * length // n_bytes][: n_bytes // length].flatten()


def loss(settings: dict, report: Callable[[float], None]) -> dict:
    files, steps, length = library_files(), settings["steps"], settings["length"]
    text, held_out = split(files)
    model = make(settings)
    rates = {"learning_rate": 5e-3, "warmup": steps // 10, "batch_size": 8, "steps": steps}
    done = lambda step, _: report((step + 1) / steps)  # noqa: E731
    train(model, text, **rates, seed=settings["seed"], report=done)
    caches = make_caches(model, length)
    with torch.no_grad():
        model(text[None, :length].long(), caches=caches)
    return {
        "bits": bits_per_byte(model, unseen(held_out, settings["bytes"], length)),
        "parameters": sum(x.numel() for x in model.parameters()),
        "cache_bytes": sum(cache.nbytes for cache in caches) // length,
        "text": manifest(files),
    }


@torch.no_grad()
def speed(settings: dict, report: Callable[[float], None]) -> dict:
    """Seconds of a token, for each number of heads."""
    torch.manual_seed(settings["seed"])
    m, cached, n_layers, b = settings["d_model"], settings["cached"], 4, 2
    sizes = {"max_length": 2 * cached, "d_model": m, "n_layers": n_layers, "n_heads": H}
    models, caches = {}, {}
    for g in GROUPS:
        shared = partial(GroupedQueryAttention, m, H, g)
        config = LanguageModelConfig(**sizes, make_attention=lambda *_, shared=shared: shared())
        models[g] = LanguageModel(config)
        caches[g] = [KVCache(cached + 1) for _ in range(n_layers)]
        for cache in caches[g]:
            cache.update(*torch.randn(2, b, g, cached, m // H))
    token, query = torch.zeros(b, 1, dtype=torch.long), torch.randn(b, H, 1, m // H)

    def attention(g: int) -> None:
        for cache in caches[g]:
            held = cache.keys[:, :, :cached], cache.values[:, :, :cached]
            grouped_query_attention(query, *held)

    def whole(g: int) -> None:
        models[g](token, caches=caches[g])

    # After each token the caches forget it, so that all rounds read as much.
    seconds: dict[str, dict[int, list[float]]] = {"attention": {}, "whole": {}}
    for n in range(1 + settings["rounds"]):
        for name, step in (("attention", attention), ("whole", whole)):
            for g in GROUPS:
                begin = time.perf_counter()
                step(g)
                took = time.perf_counter() - begin
                if n:
                    seconds[name].setdefault(g, []).append(took)
                for cache in caches[g]:
                    cache.truncate([cached] * b)
        report((n + 1) / (1 + settings["rounds"]))
    medians = {name: [statistics.median(of[g]) for g in GROUPS] for name, of in seconds.items()}
    faster = {f"{name}_faster": [of[0] / x for x in of] for name, of in medians.items()}
    return {"heads": list(GROUPS), **medians, **faster}


def more_bits(runs: Runs, name: str, g: int) -> list[float]:
    """By how much the loss is higher than with all heads, in percent; for each seed."""
    percent = []
    for other in runs.where(name=name, kv_heads=g):
        all_heads = runs.where(name="shared", kv_heads=H, seed=other.settings["seed"])
        percent.append(100 * (other.measured["bits"] / all_heads.values("bits")[0] - 1))
    return percent


def claims(runs: Runs) -> list[Claim]:
    kept = [runs.where(name="shared", kv_heads=g).values("cache_bytes")[0] for g in GROUPS]
    more = {g: more_bits(runs, "shared", g) for g in GROUPS}
    widened = more_bits(runs, "widened", 1)
    few, narrow = more_bits(runs, "few", 1), more_bits(runs, "narrow", 4)
    timed = runs.where(kind="speed")
    alone, whole = timed.values("attention_faster"), timed.values("whole_faster")
    near, near_alone = ([x[3] / x[2] for x in each] for each in (whole, alone))
    return [
        Claim(
            "The cache shrinks to $g/h$ of its bytes",
            "by definition",
            ", ".join(f"{size:,}" for size in kept) + " bytes a token",
            all(size * H == kept[0] * g for size, g in zip(kept, GROUPS, strict=True)),
            quick=True,
        ),
        Claim(
            "With a quarter of the heads the loss is within 1% of that with all",
            "47.1 of 47.2",
            f"{Spread.of(more[2]):z.1f}% more bits",
            max(more[2]) < 1,
        ),
        Claim(
            "With one head the loss is higher than with all",
            "46.6 of 47.2",
            f"{Spread.of(more[1]):z.1f}% more bits",
            min(more[1]) > 0,
        ),
        Claim(
            "With one head it is higher than with a quarter",
            "46.6, 47.1",
            f"{Spread.of(more[1]):z.1f}% and {Spread.of(more[2]):z.1f}% more bits",
            all(one > two for one, two in zip(more[1], more[2], strict=True)),
        ),
        Claim(
            "At equal bytes and parameters, sharing beats fewer and narrower heads",
            "the same (1911.02150, table 3)",
            f"shared {Spread.of(widened):z.1f}%, one head {Spread.of(few):z.1f}%, "
            f"narrow {Spread.of(narrow):z.1f}% more bits than with all",
            max(widened) < min(few) and max(widened) < min(narrow),
        ),
        Claim(
            "Attention over 4,096 tokens is more than twice as fast with one head",
            "–",
            f"{Spread.of([x[3] for x in alone]):.2f} times",
            min(x[3] for x in alone) > 2,
        ),
        Claim(
            "So is a token of the whole model",
            "6.3 times (1.51 s, 0.24 s)",
            f"{Spread.of([x[3] for x in whole]):.2f} times",
            min(x[3] for x in whole) > 2,
        ),
        Claim(
            "With a quarter of the heads the model is within 1.25 times of the time with one",
            "1.17 times (0.28 s, 0.24 s)",
            f"{Spread.of(near):.2f} times; attention alone {Spread.of(near_alone):.2f}",
            max(near) < 1.25,
        ),
    ]
