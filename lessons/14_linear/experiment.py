r"""# What linear attention saves, and against whom

**Claim.** Katharopoulos et al. (2020), arXiv:2006.16236: time and memory grow like the text, not like its square, and
a token is written at the same cost wherever it stands. On MNIST, 784 pixels, 142.8 images a second in place of 0.45,
317 times as many (table 1); but that softmax reads the whole prefix again for each pixel. Against one with a cache of
keys and values, on CIFAR-10, 3,072 numbers: 55.8 times the throughput, and 1.15 times the speed of a single image.

**Prediction.** Heads of width 64, float32.

1. *Reading.* By operations, chunks of 64 take 32,896 a token and a causal softmax $128\,(t+1)$: they are even at 257
   tokens. Measured, they will be even later, between 257 and 1,024 tokens: the chunks are einsums in Python, the
   softmax is one fused kernel. From 4,096 tokens on, twice the text takes linear attention about twice the time and
   softmax about four times.
2. *Memory* of a step of training is linear for both, since the kernel keeps no weights. Linear attention will take
   *more*, at every length, by a constant factor: features and states stand beside the inputs.
3. *Writing one token.* By numbers moved, a cache of $128\,s$ passes a state of 4,160, read and written, at 65 tokens.
   Measured for one text, some thousand tokens later, for a step is a dozen small calls whatever it computes; for 16
   texts earlier, since the calls are shared.
4. *A whole model, whom to compare with.* For 784 tokens one by one: against reading the prefix again, states are more
   than 20 times as fast (not 317: the processor has no idle lanes for small steps to waste). Against a cache, less than
   twice, for most of a token's time goes to projections. With 16 texts and 3,072 tokens the advantage over a cache is
   larger than with one text.

**Setting.** Timed, in turn, medians; three repetitions as seeds, on random inputs. Reading: `linear_attention` and
PyTorch's fused kernel, 8 heads, forward, and the most memory that new tensors held in a step forward and back. Writing:
`linear_attention_step`, and the fused kernel over a cache that is written in place. Whole model: lesson 3's, 8 layers,
256 wide, 8 heads, with random weights: one token behind a `LinearCache`, one behind a `KVCache`, and the prefix again;
times over a text are sums over its tokens, by trapezoids between measured lengths.

**Outcome.** Reading is even later than by operations, as expected. Memory of training was three times that of the
kernel at all lengths, until pieces of 1,024 tokens were computed again on the way back. Since then it is twice as much
for one piece, and a fifth more for four: of all pieces but one, nothing lasts beside inputs and outputs. Writing one
text, states are ahead from some thousand tokens on; with 16 texts sooner. Against the prefix the gain over 784 tokens
is five times or so, a quarter of what was expected: a processor is better used by hundreds of tokens than by one.
Against a cache one text loses a little; 16 texts, over 3,072 tokens, gain.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import exp, inf, log
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotated_attention.kv_cache import KVCache
from annotated_attention.language_model import LanguageModel, LanguageModelConfig, SelfAttention
from annotated_attention.linear import linear_attention, linear_attention_step, linear_cost
from annotated_attention.linear_decoding import LinearCache, LinearSelfAttention
from coursekit.experiments import Claim, Runs
from coursekit.experiments.memory import Peak

WIDTH, HEADS = 64, 8
PIXELS, NUMBERS = 784, 3072  # an image of MNIST, one of CIFAR-10
MODEL = {"d_model": 256, "n_layers": 8, "n_heads": 8}
SIZES: dict[str, dict[str, Any]] = {
    "quick": {
        "reading": [128, 1024],
        "memory": [256, 512, 1024],
        "writing": {1: [64, 8192]},
        "model": {1: [1, 64]},
        "rounds": 1,
    },
    "default": {
        "reading": [64, 128, 256, 512, 1024, 2048, 4096, 8192],
        "memory": [256, 512, 1024, 2048, 4096],
        "writing": {1: [64, 256, 1024, 4096, 16384], 16: [16, 64, 256, 1024, 2048]},
        "model": {1: [1, 196, PIXELS, 1536, NUMBERS], 16: [1, PIXELS, NUMBERS]},
        "rounds": 3,
    },
    "full": {
        "reading": [2**n for n in range(7, 17)],
        "memory": [2**n for n in range(8, 15)],
        "writing": {1: [2**n for n in range(6, 18)], 64: [2**n for n in range(4, 15)]},
        "model": {1: [1, 196, PIXELS, 1536, NUMBERS], 64: [1, PIXELS, NUMBERS]},
        "rounds": 9,
    },
}


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    if size not in SIZES:
        raise ValueError(f"size is {size!r}: one of {', '.join(SIZES)} is wanted")
    chosen, gpu = SIZES[size], {"device": "cuda", "dtype": "bfloat16"} if size == "full" else {}
    cases = [("memory", 1, t) for t in chosen["memory"]] + [("reading", 1, t) for t in chosen["reading"]]
    cases += [(part, b, t) for part in ("writing", "model") for b, ts in chosen[part].items() for t in ts]
    return [
        {"part": part, "texts": b, "t": t, "rounds": chosen["rounds"], "seed": seed, **gpu}
        | ({} if part == "memory" else {"timed": True})
        for seed in seeds
        for part, b, t in cases
    ]


def run(settings: dict, report: Callable[[float], None]) -> dict:
    torch.manual_seed(settings["seed"])
    device, dtype = settings.get("device", "cpu"), getattr(torch, settings.get("dtype", "float32"))
    b, t = settings["texts"], settings["t"]
    if settings["part"] == "memory":
        return memory(torch.randn(3, b, HEADS, t, WIDTH, device=device, dtype=dtype))
    calls = {"reading": reading, "writing": writing, "model": model}[settings["part"]]
    with torch.no_grad():
        return {
            f"{name}_ms": ms for name, ms in medians(calls(b, t, device, dtype), settings, report).items()
        }


Calls = dict[str, Callable[[], Any]]


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def reading(b: int, t: int, device: str, dtype: torch.dtype) -> Calls:
    inputs = torch.randn(3, b, HEADS, t, WIDTH, device=device, dtype=dtype).unbind()
    return {"softmax": partial(softmax, *inputs), "linear": partial(linear_attention, *inputs)}


def writing(b: int, t: int, device: str, dtype: torch.dtype) -> Calls:
    """One token behind `t - 1` others, eight heads."""
    keys, values = torch.randn(2, b, HEADS, t, WIDTH, device=device, dtype=dtype)
    query, key, value = torch.randn(3, b, HEADS, 1, WIDTH, device=device, dtype=dtype)
    _, state = linear_attention_step(query, key, value, None)

    def cached() -> Tensor:
        keys[:, :, -1:], values[:, :, -1:] = key, value
        return F.scaled_dot_product_attention(query, keys, values)

    return {"cache": cached, "state": partial(linear_attention_step, query, key, value, state)}


def model(b: int, t: int, device: str, dtype: torch.dtype) -> Calls:
    """One token behind `t - 1` others, in a whole model. A state's cost does not depend on what it has read."""

    def built(layer: Callable[[], nn.Module]) -> LanguageModel:
        config = LanguageModelConfig(**MODEL, position_embedding="none", make_attention=lambda *_: layer())
        return LanguageModel(config).to(device, dtype).eval()

    m, h = MODEL["d_model"], MODEL["n_heads"]
    linear = built(lambda: LinearSelfAttention(m, h))
    dense = built(lambda: SelfAttention(m, h, attend=fused))
    token, text = torch.zeros(b, 1, dtype=torch.long, device=device), torch.zeros(1, t, dtype=torch.long)
    states = [LinearCache() for _ in linear.blocks]
    caches = [KVCache(t + 128) for _ in dense.blocks]
    if t > 1:
        for cache in caches:
            cache.update(*torch.randn(2, b, h, t - 1, m // h, device=device, dtype=dtype))
    calls: Calls = {
        "state": partial(linear, token, caches=states),
        "cache": partial(dense, token, caches=caches),
    }
    if b == 1:
        calls["prefix"] = partial(dense, text.to(device))
    return calls


def fused(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """A text, or one new token behind a cache: neither needs a mask to be built."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)


def medians(calls: Calls, settings: dict, report: Callable[[float], None]) -> dict[str, float]:
    """Milliseconds, the calls in turn. A call that takes no time is made many times in a row."""
    wait = torch.cuda.synchronize if "device" in settings else lambda: None
    often, times = dict.fromkeys(calls, 1), {name: [] for name in calls}
    for n in range(settings["rounds"] + 1):
        for name, call in calls.items():
            wait()
            began = time.perf_counter()
            for _ in range(often[name]):
                call()
            wait()
            ms = 1e3 * (time.perf_counter() - began) / often[name]
            if n:
                times[name].append(ms)
            else:
                often[name] = 1 if ms > 20 else 8
        report((n + 1) / (settings["rounds"] + 1))
    return {name: median(found) for name, found in times.items()}


def memory(inputs: Tensor) -> dict:
    """MiB that new tensors held at most in a step forward and back, their gradients among them."""
    found = {}
    for name, attend in (("softmax", softmax), ("linear", linear_attention)):
        given = [x.clone().requires_grad_() for x in inputs]
        with Peak(given) as seen:
            attend(*given).sum().backward()
        found[f"{name}_mib"] = seen.most / 2**20
    return found


def crossing(runs: Runs, slow: str, fast: str) -> list[float]:
    """For each seed, the length from which on `fast` takes less time, between two lengths by the logarithms."""
    found = []
    for seed in sorted({each.settings["seed"] for each in runs}):
        points = sorted(
            (each.settings["t"], log(each.measured[slow] / each.measured[fast]))
            for each in runs.where(seed=seed)
        )
        past = inf
        for (t, before), (u, after) in pairwise(points):
            if before < 0 <= after:
                share = -before / (after - before)
                past = exp(log(t) + share * log(u / t))
        found.append(float(points[0][0]) if points[0][1] >= 0 and past == inf else past)
    return found


def whole_text(runs: Runs, name: str, n: int) -> list[float]:
    """For each seed, milliseconds to write `n` tokens one by one."""
    found = []
    for seed in sorted({each.settings["seed"] for each in runs}):
        points = sorted(
            (each.settings["t"], each.measured[name])
            for each in runs.where(seed=seed)
            if each.settings["t"] <= n
        )
        pieces = pairwise(points)
        found.append(sum((u - t) * (x + y) / 2 for (t, x), (u, y) in pieces))
    return found


def times(runs: Runs, slow: str, fast: str, n: int) -> list[float]:
    pairs = zip(whole_text(runs, slow, n), whole_text(runs, fast, n), strict=True)
    return [one / other for one, other in pairs]


def even_by_operations() -> int:
    """The first length at which a causal softmax, 2 (d + e) operations a pair, takes more."""
    return linear_cost(WIDTH, WIDTH, WIDTH, WIDTH)[0] // WIDTH // (2 * WIDTH)


def shown(values: Sequence[float], digits: int = 0) -> str:
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def claims(runs: Runs) -> list[Claim]:
    part = {name: runs.where(part=name) for name in ("reading", "memory", "writing", "model")}
    found = [claim_of_memory(part["memory"])]
    lengths = sorted({each.settings["t"] for each in part["reading"]})
    batches = sorted({each.settings["texts"] for each in part["writing"]})
    if len(batches) < 2:
        return found
    one, many = (part["model"].where(texts=b) for b in batches)
    return [
        *claims_of_reading(part["reading"], lengths),
        *found,
        *claims_of_writing(part["writing"], batches),
        Claim(
            says=f"Over {PIXELS} tokens, states are more than 20 times as fast as reading the prefix again",
            paper="317 times (table 1, MNIST)",
            ours=shown(ratios := times(one, "prefix_ms", "state_ms", PIXELS)) + " times",
            holds=min(ratios) > 20,
        ),
        Claim(
            says=f"Against a cache, over the same {PIXELS} tokens, less than twice as fast",
            paper="1.15 times (a single image of CIFAR-10)",
            ours=shown(ratios := times(one, "cache_ms", "state_ms", PIXELS), 2) + " times",
            holds=max(ratios) < 2,
        ),
        Claim(
            says=f"Over {NUMBERS:,} tokens, {batches[1]} texts at once gain more than a single one",
            paper="55.8 times in throughput, 1.15 for a single image",
            ours=f"{shown(several := times(many, 'cache_ms', 'state_ms', NUMBERS), 2)} against "
            f"{shown(single := times(one, 'cache_ms', 'state_ms', NUMBERS), 2)}",
            holds=min(several) > max(single),
        ),
    ]


def claim_of_memory(runs: Runs) -> Claim:
    ratios = [each.measured["linear_mib"] / each.measured["softmax_mib"] for each in runs]
    points = sorted((each.settings["t"], each.measured["linear_mib"] / each.settings["t"]) for each in runs)
    grows = any(later > 1.02 * earlier for (_, earlier), (_, later) in pairwise(points))
    return Claim(
        says="Memory of a training step grows no faster than the text, and linear attention takes more",
        paper="linear (figure 1)",
        ours=shown(ratios, 2) + " times that of the fused kernel",
        holds=min(ratios) > 1 and not grows,
        quick=True,
    )


def claims_of_reading(runs: Runs, lengths: list[int]) -> list[Claim]:
    even, predicted = crossing(runs, "softmax_ms", "linear_ms"), even_by_operations()
    growth = {
        name: [
            y / x for x, y in zip(*(runs.where(t=t).values(f"{name}_ms") for t in lengths[-2:]), strict=True)
        ]
        for name in ("linear", "softmax")
    }
    return [
        Claim(
            says=f"Reading: chunks win from between {predicted} tokens, the crossing by operations, and 1,024 on",
            paper="–",
            ours=shown(even) + " tokens",
            holds=predicted <= min(even) and max(even) <= 1024,
        ),
        Claim(
            says=f"From {lengths[-2]:,} to {lengths[-1]:,} tokens time doubles, and that of softmax grows fourfold",
            paper="linear and quadratic (figure 1)",
            ours=f"{shown(growth['linear'], 1)} and {shown(growth['softmax'], 1)} times",
            holds=max(growth["linear"]) < 2.6 and min(growth["softmax"]) > 3.3,
        ),
    ]


def claims_of_writing(runs: Runs, batches: list[int]) -> list[Claim]:
    one, many = (crossing(runs.where(texts=b), "cache_ms", "state_ms") for b in batches)
    return [
        Claim(
            says="Writing one text: a state is faster than a cache only from more than 1,000 tokens on",
            paper="–",
            ours=shown(one) + " tokens",
            holds=min(one) > 1000,
        ),
        Claim(
            says=f"Writing {batches[1]} texts: it is faster earlier",
            paper="–",
            ours=shown(many) + " tokens",
            holds=max(many) < min(one),
        ),
    ]
