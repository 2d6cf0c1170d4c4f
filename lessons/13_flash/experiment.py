r"""# Bytes moved, and memory at the peak

**Claim.** FlashAttention (Dao et al. 2022, arXiv:2205.14135) says that attention is slow because of what it moves
between a large slow memory and a small fast one, and that tiles move less. Figure 2, left: GPT-2 medium's attention
($t = 1024$, $d = 64$, 16 heads, batch 64, fp16, forward and backward) moves 40.3 GB, with tiles 4.4. Figure 2,
middle: larger tiles move less, as long as they fit. Theorem 2: $\Theta(t^2 d^2 / M)$ numbers with a fast memory of
$M$ numbers, against $\Theta(t^2)$. And memory beyond the inputs grows as $t$, not as $t^2$.

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
4. *Peak.* New float32 numbers at one time, forward: plain $2ts$; tiled $t(e + 1) + \max(2ua + ue, ua + 3ue)$.
   With gradients: plain $3ts$; tiled $t(d + 2e + 3) + s(d + e) + 3ua + ud$. Within 10%. SDPA, as far as PyTorch
   sees it: outputs and gradients alone. The process shows what PyTorch does not; it agrees within 25% for the plain
   formula, and SDPA and tiles stay below 5% of it at 8,192 tokens.
5. *Causal.* Tiles that the diagonal leaves out are never made: of $n \times n$ square ones $n(n + 1)/2$ are.
6. *Time.* At 4,096 tokens tiles are faster than the plain formula, and no faster than PyTorch's kernel.

**Setting.** One head of width 64. *Moved* means this. Every operation of PyTorch reads its inputs once and writes its
result once, in lines of 256 bytes, through a fast memory of $M$ bytes that forgets what was used least recently. A
line that is not there is fetched; a changed line that has to go is written; what was freed is forgotten without a
trace. It is the course's own code that runs (`flash_attention`, and the formula in three operations), and every
operation of it is counted, whatever the formula says. What it is not: the caches of this machine. A fused kernel is
a single operation to PyTorch, so SDPA has no count. *Peak* counts the bytes of new tensors, and for the process the
high-water mark that Linux keeps (other systems have none). Counts have no spread; times have three rounds.

**Outcome.** To be written.
"""

import json
import math
import statistics
import subprocess
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from coursekit.experiments import Claim, Runs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.flash import flash_attention, flash_traffic

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
            weakref.finalize(storage, self.forget, which, storage.nbytes() // LINE + 1)
        first = x.storage_offset() * size
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


class Peak(TorchDispatchMode):
    """The most bytes that new tensors held at one time."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.held = {x.untyped_storage()._cdata: 0 for x in known}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tensors(result):
            storage = x.untyped_storage()
            if storage._cdata not in self.held:
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.free, storage._cdata)
        return result

    def free(self, which: int) -> None:
        self.now -= self.held.pop(which)


def tensors(result: Any) -> list[Tensor]:
    return [x for x in (result if isinstance(result, tuple | list) else [result]) if isinstance(x, Tensor)]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query * D**-0.5 @ key.mT).softmax(dim=-1) @ value


def trained(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """With a causal mask, which is there already, and dropout."""
    future = torch.ones(*query.shape[2:3], key.shape[2], dtype=torch.bool).triu(1)
    weights = (query * D**-0.5 @ key.mT).masked_fill(future, -torch.inf).softmax(dim=-1)
    return torch.native_dropout(weights, 0.1, True)[0] @ value


def attention(settings: dict) -> Callable[..., Tensor]:
    if settings["way"] == "tiled":
        options = {name: settings[name] for name in ("block_q", "block_k", "is_causal")}
        return lambda *inputs: flash_attention(*inputs, **options)[0]
    return {"plain": plain, "trained": trained, "sdpa": F.scaled_dot_product_attention}[settings["way"]]


def once(attend: Callable[..., Tensor], inputs: Sequence[Tensor], backward: bool) -> Any:
    if not backward:
        with torch.no_grad():
            return attend(*inputs)
    *inputs, grad = inputs
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = attend(*leaves)
    return output, torch.autograd.grad(output, leaves, grad)


def held(u: int, a: int) -> int:
    """Numbers that must stay in fast memory in the forward pass: queries, outputs, keys and values, two tiles."""
    return u * 4 * D + a * 2 * D + 2 * u * a


def largest_block(fast: int, a: int, itemsize: int = 4) -> int:
    """As many queries as fit."""
    return (fast // itemsize - a * 2 * D) // (4 * D + 2 * a)


def predicted_traffic(settings: dict) -> int:
    """Numbers that one head moves."""
    t, u = settings["t"], settings["block_q"]
    options = {"is_causal": settings["is_causal"], "block_q": u or t}
    naive, tiled = flash_traffic(t, t, D, D, **options)
    forward = tiled if settings["way"] == "tiled" else naive
    if not settings["backward"]:
        return forward
    if settings["way"] == "tiled":
        # Before the tiles the row sums $D_i$; then each tile of queries reads keys and values, reads and writes
        # `dk` and `dv`.
        return forward + t * (7 * D + 4) + (3 * math.ceil(t / u) + 1) * t * 2 * D
    passes = 7 if settings["way"] == "plain" else 7 + 10
    return forward + passes * t * t + 2 * 2 * t * 2 * D


def predicted_peak(settings: dict) -> int:
    """Numbers in new tensors at one time."""
    t, u, a = (settings[name] for name in ("t", "block_q", "block_k"))
    backward = settings["backward"]
    if settings["way"] == "plain":
        return (3 if backward else 2) * t * t
    if settings["way"] == "sdpa":
        return t * (4 * D + 1) if backward else t * (D + 1)
    if backward:
        return t * (5 * D + 3) + 3 * u * a + u * D
    return t * (D + 1) + max(2 * u * a + u * D, u * a + 3 * u * D)


def predicted_tiles(t: int, u: int, a: int, is_causal: bool) -> int:
    return sum(math.ceil((min(i + u, t) if is_causal else t) / a) for i in range(0, t, u))


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    if size not in ("quick", "default"):
        raise ValueError(f"size is {size!r}: quick or default is wanted (a count is the same on every machine)")
    quick, seed = size == "quick", seeds[0]
    basis = {"way": "tiled", "t": 2048, "block_q": 0, "block_k": 0, "is_causal": False, "backward": False}
    runs: list[dict] = []

    def add(kind: str, **settings: Any) -> None:
        runs.append({"kind": kind, **basis, **settings, "seed": settings.get("seed", seed)})

    # 1. Plain and tiled over the length; tiles of every size; a fast memory of every size.
    for t in (256, 512) if quick else (512, 1024, 2048, 4096):
        add("length", way="plain", t=t, fast=192)
        add("length", t=t, block_q=64, block_k=64, fast=64 if quick else 192)
    for fast in (48,) if quick else (64, 192, 512):
        for u in (8, 16, 32) if quick else (8, 16, 32, 64, 96, 128, 192, 256, 384, 512):
            add("tile", t=256 if quick else 2048, block_q=u, block_k=16 if quick else 64, fast=fast)
    for fast in () if quick else (32, 64, 128, 256, 512, 1024):
        add("fast", block_q=largest_block(fast * 1024, 16), block_k=16, fast=fast)

    # 2. GPT-2 medium. Tiles in float32 (our code widens half precision whole, a kernel in its registers), with room
    # for as many numbers.
    for way in () if quick else ("plain", "trained"):
        add("gpt2", way=way, t=1024, backward=True, dtype="float16", fast=192)
    for tiles in () if quick else ((64, 64), (256, 32)):
        sizes = dict(zip(("block_q", "block_k"), tiles, strict=True))
        add("gpt2", t=1024, **sizes, backward=True, dtype="float32", fast=384)

    # 3. Peaks, in PyTorch's eyes and of the process.
    for backward in (False, True):
        for t in (512, 1024) if quick else (1024, 2048, 4096, 8192):
            add("peak", way="plain", t=t, backward=backward)
            add("peak", way="sdpa", t=t, backward=backward)
            for u, a in ((64, 64),) if quick else ((64, 64), (256, 512)):
                add("peak", t=t, block_q=u, block_k=a, backward=backward)
        for way in () if quick else ("plain", "sdpa", "tiled"):
            tiles = {"block_q": 256, "block_k": 512} if way == "tiled" else {}
            add("process", way=way, t=8192, backward=backward, **tiles)

    # 4. Causal, and time.
    for u, a in ((32, 32), (16, 48)) if quick else ((64, 64), (128, 128), (32, 96), (96, 32), (256, 512)):
        add("causal", t=256 if quick else 2048, block_q=u, block_k=a, is_causal=True, fast=4096)
    for seed in () if quick else seeds:
        for backward in (False, True):
            add("time", t=4096, block_q=256, block_k=512, backward=backward, timed=True, seed=seed)
    return runs


def run(settings: dict, report: Callable[[float], None]) -> dict:
    torch.manual_seed(settings["seed"])
    if settings["kind"] == "process":
        return {"peak": process_peak(settings)}
    dtype = getattr(torch, settings.get("dtype", "float32"))
    heads = 4 if settings["kind"] == "time" else 1
    inputs = [torch.randn(1, heads, settings["t"], D).to(dtype) for _ in range(4)]
    if settings["kind"] == "time":
        return times(settings, inputs, report)
    inputs = inputs if settings["backward"] else inputs[:3]
    if settings["kind"] == "peak":
        with Peak(inputs) as peak:
            once(attention(settings), inputs, settings["backward"])
        return {"peak": peak.most, "predicted": 4 * predicted_peak(settings)}
    with Traffic(settings["fast"] * 1024) as traffic:
        result = once(attention(settings), inputs, settings["backward"])
        moved = traffic.moved()
    del result
    predicted = predicted_traffic(settings) * dtype.itemsize
    tiles = predicted_tiles(settings["t"], settings["block_q"] or 1, settings["block_k"] or 1, settings["is_causal"])
    return {"moved": moved, "predicted": predicted, "products": traffic.products, "tiles": tiles}


def times(settings: dict, inputs: Sequence[Tensor], report: Callable[[float], None]) -> dict:
    """How many times as long as the tiles the others take: the medians of five rounds."""
    took: dict[str, list[float]] = {"tiled": [], "plain": [], "sdpa": []}
    for n in range(6):
        for way, seconds in took.items():
            start = time.perf_counter()
            once(attention({**settings, "way": way}), inputs, settings["backward"])
            seconds.append(time.perf_counter() - start)
        report((n + 1) / 6)
    median = {way: statistics.median(seconds[1:]) for way, seconds in took.items()}
    return {way: median[way] / median["tiled"] for way in ("plain", "sdpa")}


def high_water() -> int | None:
    """The most bytes that this process ever held, where the system tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def process_peak(settings: dict) -> int | None:
    """What a process of its own needs beyond what it needed for a short text."""
    command = [sys.executable, __file__, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure_process(settings: dict) -> int | None:
    torch.set_num_threads(1)
    attend, marks = attention(settings), []
    for t in (256, settings["t"]):
        inputs = [torch.randn(1, 1, t, D) for _ in range(4)]
        marks += [high_water()]
        once(attend, inputs, settings["backward"])
    return None if marks[1] is None else high_water() - marks[1]
