"""`longformer_attention` with [CLS] global, beside PyTorch's attention: over the whole text, and with the pattern as
a mask. Time, and how much more memory the process needs at its highest, at doubling lengths; last, the exponents of
the length that fit both best from 2,048 tokens on."""

import subprocess
import sys
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.longformer import longformer_attention, longformer_mask_mod
from benchmarks.measure import Function, compare, device, forward_backward

WINDOW, HEADS, WIDTH, ROUNDS = 257, 4, 64, 3
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LONGEST = {"full": 16384, "mask": 8192}


def cls(t: int) -> Tensor:
    return torch.arange(t, device=device())[None] == 0


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return longformer_attention(query, key, value, WINDOW, cls(query.shape[2]))


def mask(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    i = torch.arange(query.shape[2], device=device())
    zero = i.new_zeros(())
    pairs = longformer_mask_mod(WINDOW, cls(len(i)))(zero, zero, i[:, None], i)
    return F.scaled_dot_product_attention(query, key, value, pairs)


CONTENDERS: dict[str, Function] = {"ours": ours, "full": F.scaled_dot_product_attention, "mask": mask}


def run() -> list[dict]:
    cases = []
    for peer, longest in LONGEST.items():
        for t in (t for t in LENGTHS if t <= longest):
            inputs = [torch.randn(1, HEADS, t, WIDTH, device=device()) for _ in range(3)]
            about = {"peer": peer, "t": t, "window": WINDOW}
            with torch.no_grad():
                calls = [partial(CONTENDERS[name], *inputs) for name in ("ours", peer)]
                cases.append({**about, "pass": "forward", **compare(*calls, ROUNDS)})
            if t <= longest // 2:
                calls = [partial(forward_backward, CONTENDERS[name], inputs) for name in ("ours", peer)]
                cases.append({**about, "pass": "both", **compare(*calls, ROUNDS)})
    if device() == "cpu":
        for t in (t for t in LENGTHS if 1024 <= t <= 8192):
            mib = {f"{name}_mib": megabytes(name, t) for name in CONTENDERS}
            cases.append({"case": "memory", "pass": "both", "t": t, **mib})
    return cases + exponents(cases)


def megabytes(name: str, t: int) -> float:
    """In a process of its own, because what was once needed is never given back."""
    command = [sys.executable, "-m", "benchmarks.bench_longformer", name, str(t)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def highest(name: str, t: int) -> float:
    import resource

    def memory(length: int) -> int:
        inputs = [torch.randn(1, HEADS, length, WIDTH) for _ in range(3)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        forward_backward(CONTENDERS[name], inputs)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    memory(128)
    return memory(t) / (2**20 if sys.platform == "darwin" else 2**10)


def exponents(cases: list[dict]) -> list[dict]:
    found = []
    series = [("full", "ours_ms", "forward"), ("full", "peer_ms", "forward"), ("mask", "peer_ms", "forward")]
    series += [("full", "ours_ms", "both"), ("full", "peer_ms", "both")]
    series += [(None, f"{name}_mib", "both") for name in CONTENDERS]
    for peer, column, which in series:
        rows = [c for c in cases if c.get("peer") == peer and c["pass"] == which and c["t"] >= 2048]
        if rows and column in rows[0]:
            logs = np.log([[row["t"], row[column]] for row in rows])
            name = column.replace("peer", peer or "")
            found.append(
                {"case": "exponent", "of": f"{name} {which}", "is": float(np.polyfit(*logs.T, 1)[0])}
            )
    return found


if __name__ == "__main__":
    print(highest(sys.argv[1], int(sys.argv[2])))
