"""What the hand-written pages say of what was measured, as Markdown: each function without arguments is a
`[measured:name]` of a page. Numbers come from `benchmarks/results/`, and words from the numbers."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

# As the guide calls them, and where they are explained.
NAMES = {
    "dense": ("dense", "choose.md#dense"),
    "weights": ("naive", "mechanisms/scaled_dot_product/index.md"),
    "flash": ("flash", "mechanisms/flash/index.md"),
    "window": ("window of 512", "mechanisms/sliding_window/index.md"),
    "longformer": ("Longformer", "mechanisms/longformer/index.md"),
    "bigbird": ("BigBird", "mechanisms/bigbird/index.md"),
    "linear": ("linear", "mechanisms/linear/index.md"),
}
SPARSE = ("sliding_window", "longformer", "bigbird", "linear")
TITLES = {"sliding_window": "window", "longformer": "Longformer", "bigbird": "BigBird", "linear": "linear"}


def result(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {"cases": []}


def cases(name: str, **about: object) -> list[dict]:
    """The cases of a benchmark that are about this."""
    wanted = about.items()
    return [case for case in result(name)["cases"] if all(case.get(key) == value for key, value in wanted)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(number: float) -> str:
    """Two digits, or as many as it has before the point: 0.14, 1.3, 15, 2,080. Of a small number one digit."""
    if number >= 9.95:
        return f"{number:,.0f}"
    if number < 0.001:
        return f"{number:.1g}"
    return f"{number:.1f}" if number >= 0.995 else f"{number:.2f}" if number >= 0.0995 else f"{number:.3f}"


def scaled(number: float, unit: str) -> str:
    """With a prefix: 96.4 GFLOP/s."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{shown(number / 10**power)} {prefix}{unit}"
    return f"{shown(number)} {unit}"


def provenance(name: str) -> str:
    """`attn bench roofline`: on what, with what, when."""
    found = result(name)
    if not found["cases"]:
        return f"`attn bench {name}` has not run yet."
    machine = found["machine"]
    parts = [str(machine.get("cuda", "")), str(machine.get("cpu", machine["system"]))]
    if "cores" in machine:
        parts.append(f"{machine['cores']} cores")
    parts += [f"{machine['threads']} threads", f"PyTorch {found['versions']['torch']}", found["date"]]
    return f"`attn bench {name}`: {', '.join(filter(None, parts))}."


def machine() -> str:
    return provenance("roofline")


def steps_from() -> str:
    return provenance("steps")


def peers_from() -> str:
    return provenance("peers")


def roof() -> dict:
    return cases("roofline", what="roof")[0]


def _steps() -> dict[str, dict[int, float]]:
    """Milliseconds of one more token, by cache and by how many tokens were read before it."""
    found: dict[str, dict[int, float]] = {}
    for case in cases("steps", what="a step"):
        found.setdefault(case["cache"], {})[case["position"]] = case["ours_ms"]
    return found


def peak() -> str:
    return scaled(roof()["flops"], "FLOP/s")


def bandwidth() -> str:
    return scaled(roof()["bandwidth"], "B/s")


def ridge() -> str:
    """Operations for each byte from which on arithmetic is what takes the time."""
    return shown(roof()["flops"] / roof()["bandwidth"])


def slowest() -> str:
    """Who is furthest from its prediction on long texts, and how far."""
    rows = [case for case in cases("roofline", what="forward") if case["t"] >= 4096]
    worst = max(rows, key=lambda case: case["times_predicted"])
    name = NAMES[worst["mechanism"]][0]
    return f"{name}, {shown(worst['times_predicted'])} times as long as predicted at {worst['t']:,} tokens"


def dense_share() -> str:
    """The share of the peak that the fused kernel reaches at its longest."""
    rows = cases("roofline", what="forward", mechanism="dense")
    return f"{100 * max(rows, key=lambda case: case['t'])['flops_a_second'] / roof()['flops']:.0f}%"


def roofline() -> str:
    rows = []
    for name, (title, link) in NAMES.items():
        mine = {case["t"]: case for case in cases("roofline", what="forward", mechanism=name)}
        for t in sorted({1024, 4096, max(mine)} & set(mine)):
            case = mine[t]
            numbers = [case["flops"] / 1e9, case["bytes"] / 2**20, case["predicted_ms"], case["ms"]]
            numbers.append(case["times_predicted"])
            label = f"[{title}]({link})" if t == min(mine) else title
            rows.append([label, f"{t:,}", *map(shown, numbers)])
    for case in cases("roofline", what="a step"):
        title = {"dense": "SDPA", "flash": "flash, four parts", "linear": "linear"}[case["mechanism"]]
        numbers = [case["flops"] / 1e9, case["bytes"] / 2**20, case["predicted_ms"], case["ms"]]
        numbers.append(case["times_predicted"])
        rows.append([f"a step, {title}", f"{case['s']:,}", *map(shown, numbers)])
    return table(("", "tokens", "GFLOP", "MiB", "predicted, ms", "measured, ms", "ratio"), rows)


def exponents() -> str:
    rows = []
    for name, (title, _) in NAMES.items():
        (case,) = cases("roofline", what="exponent", mechanism=name)
        longest = max(cases("roofline", what="forward", mechanism=name), key=lambda case: case["t"])
        law = {"dense": "2", "weights": "2", "flash": "2"}.get(name, "1")
        held = {"weights": "2"}.get(name, "1")
        words = [f"{case['ms']:.2f}", law, f"{case['mib']:.2f}", held, f"{shown(longest['mib'])}"]
        rows.append([title, *words, f"{longest['t']:,}"])
    head = ("exponent of", "time", "by count", "memory", "by count", "MiB", "at")
    return table(head, rows)


def _grown(name: str, t: int, column: str, what: str = "forward") -> float | None:
    found = [case[column] for case in cases(name, **{"pass": what, "t": t}) if column in case]
    return found[0] if found else None


def aims() -> str:
    """Each aim: what is wanted, what was measured, and whether that is enough."""
    rows: list[list[str]] = []

    def aim(says: str, wanted: float, measured: float | None, at_least: bool = True, digits: int = 0) -> None:
        sign, number, verdict = "≥" if at_least else "≤", "–", "not measured yet"
        if measured is not None:
            number = f"{measured:.{digits}f}" if digits else shown(measured)
            enough = measured >= wanted if at_least else measured <= wanted
            verdict = "holds" if enough else "**fails**"
        rows.append([says, f"{sign}\u00a0{wanted:g}", number, verdict])

    def faster(name: str, t: int, peer: str) -> float | None:
        ratio = _grown(name, t, f"{peer}_ratio")
        return None if ratio is None else 1 / ratio

    aim(
        "window, times as fast as SDPA with the window as its mask", 5, faster("sliding_window", 8192, "mask")
    )
    aim("window, times as fast as causal SDPA", 2, faster("sliding_window", 8192, "causal"))
    for name in ("longformer", "bigbird"):
        aim(
            f"{TITLES[name]}, times as fast as SDPA with its pattern as the mask",
            5,
            faster(name, 8192, "mask"),
        )
        aim(f"{TITLES[name]}, times as fast as SDPA over all keys", 2, faster(name, 8192, "full"))
    aim("linear, times as fast as causal SDPA", 2, faster("linear", 8192, "causal"))
    streams = cases("attention_sinks", **{"case": "one pass", "pass": "forward", "t": 8192})
    says = "a stream with sinks in one pass, times as fast as causal SDPA, both rotary"
    aim(says, 1, 1 / streams[0]["ratio"] if streams else None)
    aim("flash, times as long as SDPA, at 4,096", 3, _grown("flash", 4096, "sdpa_ratio"), at_least=False)
    aim("flash, times as fast as naive, at 4,096", 2, faster("flash", 4096, "naive"))
    for cache, title in (("rolling", "rolling cache"), ("sinks", "cache with sinks")):
        times = _steps().get(cache)
        flat = times[max(times)] / times[min(times)] if times else None
        aim(f"{title}, a token at 100,000, times as long as one at 1,000", 1.2, flat, at_least=False)
    for what, title in (("forward", "forward"), ("both", "with gradients")):
        for name in SPARSE:
            found = [
                case["exponent_of"]["ours_ms"]
                for case in cases(name, **{"pass": what})
                if "exponent_of" in case
            ]
            says = f"{TITLES[name]}, exponent of time, {title}"
            aim(says, 1.1, found[0] if found else None, at_least=False, digits=2)
    return table(("at 8,192 tokens, where nothing else is said", "wanted", "measured", ""), rows)


def held() -> str:
    """How many of them hold."""
    rows = aims().splitlines()[2:]
    many, measured = sum("| holds |" in row for row in rows), sum("not measured" not in row for row in rows)
    return f"{many} of {measured}"


def steps() -> str:
    found = _steps()
    places = sorted({place for times in found.values() for place in times})
    if not places:
        return "Not measured yet."
    titles = {"rolling": "rolling, 512", "sinks": "sinks, 4 + 508"}
    rows = [
        [titles.get(name, name), *(f"{times[place]:.3f}" if place in times else "–" for place in places)]
        for name, times in found.items()
    ]
    return table(("ms a token, behind", *(f"{place:,}" for place in places)), rows)


def peers() -> str:
    """Everybody beside ours: what takes the same inputs to the same result."""
    rows = []
    for case in cases("peers"):
        if "ms" in case:
            first = case["peer"] == "ours"
            label = (
                f"{case['what']}, {'forward' if case['pass'] == 'forward' else 'with gradients'}"
                if first
                else ""
            )
            memory = shown(case["mib"]) if "mib" in case else "–"
            rows.append([label, case["peer"], shown(case["ms"]), shown(1 / case["ratio"]), memory])
    return table(("", "", "ms", "ours = 1", "MiB"), rows)


def absent() -> str:
    """Who could not run here, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in cases("peers"):
        if "absent" in case:
            said = case["absent"].split(". ")[0].rstrip(".")
            where = f"{case['what']}, {'forward' if case['pass'] == 'forward' else 'with gradients'}"
            reasons.setdefault((case["peer"], said), []).append(where)
    rows = [[peer, "; ".join(dict.fromkeys(where)), said] for (peer, said), where in reasons.items()]
    return table(("", "absent from", "because"), rows)


def gpu() -> str:
    """The aims on a GPU, once they were measured on one."""
    found = result("gpu")
    if not found["cases"]:
        return (
            "**No GPU has been measured yet.** The kernels run in Triton's interpreter and compile for two kinds of "
            "GPU in the tests, which says nothing of their speed; what is aimed at is not claimed."
        )
    rows = []
    for aim in found["aims"]:
        verdict = {True: "holds", False: "**fails**", None: "not measured yet"}[aim["holds"]]
        measured = "–" if aim["measured"] is None else f"{aim['measured']:.2f}"
        rows.append([aim["aim"], f"{aim['wanted']:g}", measured, verdict])
    from_where = f"{found['machine']['cuda']}, PyTorch {found['versions']['torch']}, {found['date']}"
    return table(("the worst of all lengths", "wanted", "measured", ""), rows) + f"\n\n{from_where}."
