"""What is aimed at on a GPU, and what the cases of `benchmarks/gpu.py` say of it."""

from collections.abc import Mapping, Sequence
from typing import Any

# Where the aims hold: the shortest text, the width of a head, the cache of a step.
SHORTEST, WIDTH, CACHE = 8192, 128, 32768
FLEX = "FlexAttention, compiled"


def aims(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is aimed at, the worst that was measured for it, and whether it holds (`None`: it was not measured)."""
    found = []

    def aim(says: str, wanted: float, measured: Sequence[float], at_least: bool = True) -> None:
        worst = (min if at_least else max)(measured, default=None)
        holds = None if worst is None else worst >= wanted if at_least else worst <= wanted
        found.append({"aim": says, "wanted": wanted, "measured": worst, "holds": holds})

    dense = [case for case in cases if case.get("what") == "dense" and case.get("is_causal")]
    for which, wanted in (("forward", 0.7), ("backward", 0.6)):
        rows = [case for case in dense if case.get("pass") == which and case["d"] == WIDTH]
        aim(f"{which}, of the best SDPA backend's speed", wanted, speeds(rows, "SDPA"))
    for what in ("window", "ALiBi", "sinks", "soft cap"):
        for which in ("forward", "backward"):
            rows = [case for case in cases if case.get("what") == what and case.get("pass") == which]
            aim(f"{what}, {which}, of FlexAttention's speed", 1.0, speeds(rows, FLEX))
    for how in ("called", "replayed"):
        rows = [case for case in cases if case.get("what") == "a step" and case.get("how") == how]
        aim(f"a step behind {CACHE:,} tokens, {how}, of SDPA's speed", 1.0, speeds(rows, "SDPA"))
    for name in ("window", "longformer", "bigbird", "linear"):
        rows = [case for case in cases if case.get("what") == "exponent" and case["mechanism"] == name]
        aim(f"exponent of growth, {name}", 1.1, [case["ms"] for case in rows], at_least=False)
    return found


def speeds(rows: Sequence[Mapping[str, Any]], peer: str) -> list[float]:
    """In each setting: our speed over that of the fastest of these peers."""
    settings: dict[tuple[Any, ...], dict[str, float]] = {}
    for case in rows:
        if "ms" in case and (case["peer"] == "ours" or case["peer"].startswith(peer)):
            settings.setdefault((case.get("t"), case.get("b")), {})[case["peer"]] = case["ms"]
    return [
        min(ms for name, ms in times.items() if name != "ours") / times["ours"]
        for (t, _), times in settings.items()
        if "ours" in times and len(times) > 1 and (t is None or t >= SHORTEST)
    ]
