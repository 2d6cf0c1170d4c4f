r"""# Bytes moved

**Claim.** FlashAttention (Dao et al. 2022, arXiv:2205.14135) says that attention is slow because of what it moves
between a large slow memory and a small fast one, and that tiles move less. Figure 2, left: GPT-2 medium's attention
($t = 1024$, $d = 64$, 16 heads, batch 64, fp16, forward and backward) moves 40.3 GB, with tiles 4.4. Figure 2,
middle: larger tiles move less, as long as they fit. Theorem 2: $\Theta(t^2 d^2 / M)$ numbers with a fast memory of
$M$ numbers, against $\Theta(t^2)$.

**Prediction.** Written before the first run.

1. *Forward.* The plain formula moves $4ts + (t + s)(d + e)$ numbers, tiles $t(d + e + 1) + \lceil t/u \rceil s(d + e)$
   (`flash_traffic`), both within 5%, where a tile fits. What must fit, at the same time: $u$ queries and three
   times $u$ outputs (old, shrunk, new), $a$ keys and values, and two tiles of scores (a name in Python holds the
   last until the next is made): $u(d + 3e) + a(d + e) + 2ua$ numbers. So of the tiles tried the best has the
   largest $u$ that fits; one that does not fit moves several tiles' worth more and loses most of the gain.
2. *Fast memory.* With few keys in a tile ($a = 16$) $u$ is nearly proportional to $M$: traffic falls as a power
   of $M$ close to $-1$. With 32 KiB, tiles of 21 queries move more than the plain formula: $d^2 > M/4$.
3. *GPT-2 medium.* Plain, forward and backward: $11 ts + 3(t + s)(d + e)$ numbers a head, 25 GB; with a causal mask
   and dropout, as it is trained, ten more passes over the scores: 47 GB. The paper's 40.3 lies between. Our tiles go
   over the queries outside, so each `dk` and `dv` is read and written once for each tile of queries; with 192 KiB,
   as a multiprocessor of the A100 has, and tiles of 256 by 32, I expect 5.8 GB where the paper has 4.4.
4. *Causal.* Tiles that the diagonal leaves out are never made: of $n \times n$ square ones $n(n + 1)/2$ are.

**Setting.** One head of width 64. *Moved* means this. Every operation of PyTorch reads its inputs once and writes its
result once, in lines of 256 bytes, through a fast memory of $M$ bytes that forgets what was used least recently. A
line that is not there is fetched; a changed line that has to go is written; what was freed is forgotten without a
trace. It is the course's own code that runs (`flash_attention`, and the formula in three operations), and every
operation of it is counted, whatever the formula says. What it is not: the caches of this machine. A fused kernel is
a single operation to PyTorch, so SDPA has no count. A count depends on no number that is multiplied: it is the
same on every machine and with every seed, which the runs at GPT-2 medium's size make sure of.

**Outcome.** Where tiles fit, the count is the formula to 0.03%, and for the plain formula to 3%, since that
writes and reads the scaled queries once more. The power of $M$ is $-0.93$: the last two memories
hold so many queries that the outputs themselves begin to count. GPT-2 medium comes to 25.4, 46.9 and 6.0 GB,
as expected. One prediction failed: the largest tile that pays is larger than we thought, with all three
memories by one step of those tried. With 192 KiB it has 128 queries, not 96, and moves 6% more than the
formula. We had added up what is never needed at one moment: three outputs exist while there is one tile of
scores, and two tiles of scores while there is one output. And the older tile, dead though a name still holds
it, goes out once and is never fetched. A tile that needs twice the memory does leap: with 64 and 192 KiB
above the plain formula.
"""

import math
import statistics
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.flash import flash_attention, flash_traffic
from coursekit.experiments import Claim, Run, Runs, Spread

D = 64
LINE = 256
HEADS = 16 * 64  # GPT-2 medium's, times the batch


class Traffic(TorchDispatchMode):
    """Bytes between memory and a fast memory of `fast` bytes, as every operation needs them; and the products."""

    def __init__(self, fast: int) -> None:
        super().__init__()
        self.room = fast // LINE
        self.lines: OrderedDict[tuple[int, int], bool] = OrderedDict()  # which line: was it changed?
        self.known: set[int] = set()
        self.read = self.written = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs, outputs = tensors(args), tensors(result)
        places = {x.untyped_storage()._cdata for x in inputs}
        is_view = not name.endswith("_") and any(x.untyped_storage()._cdata in places for x in outputs)
        if is_view or "empty" in name:
            return result
        self.products += "mm" in name
        for x in inputs[name == "copy_" :]:
            self.touch(x, changed=False)
        for x in outputs:
            self.touch(x, changed=True)
        return result

    def touch(self, x: Tensor, changed: bool) -> None:
        storage, size = x.untyped_storage(), x.element_size()
        which = storage._cdata
        if which not in self.known:
            self.known.add(which)
            weakref.finalize(storage, self.forget, which, int(storage.nbytes()) // LINE + 1)
        first = int(x.storage_offset()) * size
        extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
        for n in range(first // LINE, (first + extent * size - 1) // LINE + 1):
            was = self.lines.pop((which, n), None)
            self.read += LINE * (was is None and not changed)
            self.lines[which, n] = changed or bool(was)
            if len(self.lines) > self.room:
                self.written += LINE * self.lines.popitem(last=False)[1]

    def forget(self, which: int, size: int) -> None:
        """Freed: nothing of it has to be written any more."""
        self.known.discard(which)
        for n in range(size):
            self.lines.pop((which, n), None)

    def moved(self) -> int:
        """With what is still to be written at the end."""
        return self.read + self.written + LINE * sum(self.lines.values())


def tensors(result: Any) -> list[Tensor]:
    return [x for x in (result if isinstance(result, tuple | list) else [result]) if isinstance(x, Tensor)]


def attention(settings: dict) -> Callable[..., Tensor]:
    """The formula in three operations; as GPT-2 is trained, with a causal mask that is there already and dropout;
    and the course's tiles."""
    t = settings["t"]
    future = torch.ones(t, t, dtype=torch.bool).triu(1)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query * D**-0.5 @ key.mT).softmax(dim=-1) @ value

    def trained(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query * D**-0.5 @ key.mT).masked_fill(future, -torch.inf)
        return torch.native_dropout(scores.softmax(dim=-1), 0.1, True)[0] @ value

    def tiled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        options = {name: settings[name] for name in ("block_q", "block_k", "is_causal")}
        return flash_attention(query, key, value, **options)[0]

    return {"plain": plain, "trained": trained, "tiled": tiled}[settings["way"]]


def held(u: int, a: int) -> int:
    """Numbers that must stay in fast memory in the forward pass: queries, outputs, keys and values, two tiles."""
    return u * 4 * D + a * 2 * D + 2 * u * a


def largest_block(fast: int, a: int) -> int:
    """As many queries as fit, in float32."""
    return (fast * 1024 // 4 - a * 2 * D) // (4 * D + 2 * a)


def predicted_traffic(settings: dict) -> int:
    """Numbers that one head moves."""
    t, u, is_tiled = settings["t"], settings["block_q"], settings["way"] == "tiled"
    naive, tiled = flash_traffic(t, t, D, D, is_causal=settings["is_causal"], block_q=u or t)
    forward = tiled if is_tiled else naive
    if not settings["backward"]:
        return forward
    if is_tiled:
        # Before the tiles the row sums $D_i$; then each tile of queries reads keys and values, reads and writes
        # `dk` and `dv`.
        return forward + t * (7 * D + 4) + (3 * math.ceil(t / u) + 1) * t * 2 * D
    passes = 7 if settings["way"] == "plain" else 7 + 10
    return forward + passes * t * t + 2 * 2 * t * 2 * D


def predicted_tiles(settings: dict) -> int:
    t, u, a = (settings[name] for name in ("t", "block_q", "block_k"))
    if settings["way"] != "tiled":
        return 0
    return sum(math.ceil((min(i + u, t) if settings["is_causal"] else t) / a) for i in range(0, t, u))


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    if size not in ("quick", "default"):
        raise ValueError(
            f"size is {size!r}: a count is the same on every machine, quick or default is wanted"
        )
    quick = size == "quick"
    basis = {"way": "tiled", "is_causal": False, "backward": False, "dtype": "float32", "seed": seeds[0]}
    runs: list[dict] = []

    def add(kind: str, t: int, fast: int, u: int = 0, a: int = 0, **settings: Any) -> None:
        sizes = {"kind": kind, "t": t, "fast": fast, "block_q": u, "block_k": a}
        runs.append({**sizes, **basis, **settings})

    # Plain and tiled, over the length; tiles of every size; a fast memory of every size.
    for t in (1024,) if quick else (512, 1024, 2048, 4096):
        add("length", t, 96 if quick else 192, way="plain")
        add("length", t, 96 if quick else 192, 64, 32 if quick else 64)
    for fast in (48,) if quick else (64, 192, 512):
        for u in (16, 32, 128) if quick else (16, 32, 64, 96, 128, 192, 256, 384, 512):
            add("tile", 256 if quick else 2048, fast, u, 16 if quick else 64)
    for fast in () if quick else (32, 64, 128, 256, 512, 1024):
        add("fast", 2048, fast, largest_block(fast, 16), 16)

    # GPT-2 medium. Tiles in float32 (our code widens half precision whole, a kernel in its registers), with room
    # for as many numbers.
    for seed in () if quick else seeds:
        add("gpt2", 1024, 192, way="plain", backward=True, dtype="float16", seed=seed)
        add("gpt2", 1024, 192, way="trained", backward=True, dtype="float16", seed=seed)
        add("gpt2", 1024, 384, 64, 64, backward=True, seed=seed)
        add("gpt2", 1024, 384, 256, 32, backward=True, seed=seed)

    for u, a in ((32, 32), (16, 48)) if quick else ((64, 64), (128, 128), (32, 96), (96, 32), (256, 512)):
        add("causal", 256 if quick else 2048, 96 if quick else 192, u, a, is_causal=True)
    return runs


def run(settings: dict, report: Callable[[float], None]) -> dict:
    torch.manual_seed(settings["seed"])
    dtype = getattr(torch, settings["dtype"])
    *leaves, grad = [torch.randn(1, 1, settings["t"], D).to(dtype) for _ in range(4)]
    attend, results = attention(settings), []
    with Traffic(settings["fast"] * 1024) as traffic:
        for x in leaves:
            x.requires_grad_(settings["backward"])
        results += [attend(*leaves)]
        if settings["backward"]:
            results += torch.autograd.grad(results[0], leaves, grad)
        moved = traffic.moved()
    predicted = predicted_traffic(settings) * dtype.itemsize
    tiles = {"tiles": traffic.products / 2, "predicted_tiles": predicted_tiles(settings)}
    return {"moved": moved, "predicted": predicted, "ratio": moved / predicted, **tiles}


def claims(runs: Runs) -> list[Claim]:
    def needs(run: Run) -> float:
        """The share of the fast memory that a tile needs; the plain formula streams."""
        u, a, fast = (run.settings[name] for name in ("block_q", "block_k", "fast"))
        return 4 * held(u, a) / (1024 * fast) if u else 0.0

    free = Runs(run for run in runs if run.settings["kind"] in ("length", "tile", "fast"))
    fits = Runs(run for run in free if needs(run) <= 1)
    too_large = Runs(run for run in free if needs(run) > 2)
    causal = runs.where(kind="causal")
    pairs = [[run.measured[name] for name in ("tiles", "predicted_tiles")] for run in causal]
    shares = [run.measured["tiles"] / predicted_tiles({**run.settings, "is_causal": False}) for run in causal]
    found = [
        Claim(
            "Plain, and with tiles that fit, attention moves what the formula says",
            "theorem 2: $t^2$ and $t^2 d^2 / M$, to a factor",
            f"{fits.spread('ratio'):.3f} times the formula, in {len(fits)} runs",
            all(abs(ratio - 1) <= 0.05 for ratio in fits.values("ratio")),
            quick=True,
        ),
        Claim(
            "Tiles that need twice the fast memory move at least twice what the formula says",
            "figure 2, middle: larger blocks would not fit",
            f"{too_large.spread('ratio'):.1f} times the formula",
            min(too_large.values("ratio")) >= 2,
            quick=True,
        ),
        Claim(
            "Causal, only the tiles with something to see are made",
            "–",
            f"{sum(x == y for x, y in pairs)} of {len(pairs)} tilings; {min(shares):.2f} to {max(shares):.2f} of all",
            all(x == y for x, y in pairs),
            quick=True,
        ),
    ]
    if not any(run.settings["kind"] == "gpt2" for run in runs):
        return found

    best, expected = [], []
    for fast in (64, 192, 512):
        tried = runs.where(kind="tile", fast=fast)
        best += [min(tried, key=lambda run: run.measured["moved"]).settings["block_q"]]
        expected += [max(run.settings["block_q"] for run in tried if needs(run) <= 1)]
    memory = runs.where(kind="fast")
    points = [[math.log(run.settings["fast"]), math.log(run.measured["moved"])] for run in memory]
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    tiny = memory[0].measured["moved"] / runs.where(kind="length", way="plain", t=2048)[0].measured["moved"]
    whole = runs.where(kind="gpt2")
    least, most = (gigabytes(whole.where(way=way)) for way in ("plain", "trained"))
    tiled = gigabytes(whole.where(block_q=256))
    return [
        *found,
        Claim(
            "With 64, 192 and 512 KiB, of nine sizes of tiles the best is the largest that fits by our count",
            "figure 2, middle: the larger, the less",
            f"best {best}, expected {expected} queries",
            best == expected,
        ),
        Claim(
            "With the largest tiles that fit, traffic falls as the fast memory grows, by a power near $-1$",
            "theorem 2: $-1$",
            f"{Spread.of([slope]):.2f} from 32 to 1,024 KiB",
            -1.2 < slope < -0.8,
        ),
        Claim(
            "In a fast memory of 32 KiB tiles move more than the plain formula",
            "theorem 2: if $d^2 > M$, to a factor",
            f"{tiny:.2f} times as much",
            tiny > 1,
        ),
        Claim(
            "GPT-2 medium, standard: the paper's figure lies between ours without and with mask and dropout",
            "40.3 GB",
            f"{least:.1f} and {most:.1f} GB",
            least.high < 40.3 < most.low,
        ),
        Claim(
            "GPT-2 medium, tiled: within a factor of 1.5 of the paper's figure",
            "4.4 GB",
            f"{tiled:.1f} GB",
            tiled.low > 4.4 / 1.5 and tiled.high < 4.4 * 1.5,
        ),
    ]


def gigabytes(some: Runs) -> Spread:
    """Of all heads of GPT-2 medium, two bytes a number."""
    itemsizes = [getattr(torch, run.settings["dtype"]).itemsize for run in some]
    return Spread.of(
        [moved / size * 2 * HEADS / 1e9 for moved, size in zip(some.values("moved"), itemsizes, strict=True)]
    )
