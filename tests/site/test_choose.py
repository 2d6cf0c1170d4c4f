"""What `docs/choose.md` shows as measured is what `benchmarks/results/choose.json` holds, and its formulas for caches
give the bytes that were counted.

python -m tests.site.test_choose            what differs, and what should stand there
python -m tests.site.test_choose --write    puts it there
"""

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "choose.md"
RESULT = json.loads((ROOT / "benchmarks" / "results" / "choose.json").read_text("utf-8"))
CASES = RESULT["cases"]
MEASURED = {(case["pass"], case["t"], case["variant"]): case for case in CASES if "variant" in case}
SIZES = next(case for case in CASES if case["pass"] == "sizes")

# What stands first in a row, its link taken away.
VARIANTS = {
    "dense": "dense",
    "weights written out": "weights",
    "flash": "flash",
    "grouped, 2 of 8": "grouped",
    "rotary": "rotary",
    "ALiBi, a coordinate": "coordinate",
    "ALiBi, bias written out": "alibi",
    "sinks, 4 + 508": "sinks",
    "window of 512": "window",
    "Longformer": "longformer",
    "BigBird": "bigbird",
    "linear": "linear",
    "decayed": "decayed",
    "cross, 1,500": "cross",
}

# What stands first in the head of a table: the pass, the column of a case, and what it is divided by.
TABLES = {
    "reading, dense = 1": ("forward", "ratio", 1.0),
    "training, MiB": ("both", "mib", 1.0),
    "writing, KiB": ("next", "bytes", 1024.0),
}
LENGTH = re.compile(r"(ms)|(\d[\d,]*)")
NUMBER = r"(\d[\d,]*(?:\.\d+)?)(?!\d)"


class Place(NamedTuple):
    """Where a number stands in the page, what it is about, and what it should be."""

    start: int
    end: int
    about: str
    wanted: str


def shown(number: float) -> str:
    """Two digits, or as many as it has before the point: 0.14, 1.3, 15, 2,080."""
    if number >= 9.95:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 0.995 else f"{number:.2f}" if number >= 0.0995 else f"{number:.3f}"


def cells(page: str) -> Iterator[Place]:
    """The measured cells of the tables."""
    lengths: list[tuple[str | None, int] | None] = []
    table = None
    for row in re.finditer(r"^\|.*\|$|^$", page, re.MULTILINE):
        inside = [
            (m.start() + row.start(), m[0]) for m in re.finditer(r"(?<=\|)(?:\\\||[^|])+(?=\|)", row[0])
        ]
        texts = [text.strip() for _, text in inside]
        if not row[0]:
            table = None
        elif texts[0] in TABLES:
            table = texts[0]
            heads = [LENGTH.fullmatch(text) for text in texts]
            longest = max(t for _, t, _ in MEASURED)
            lengths = [(m[1], int(m[2].replace(",", "")) if m[2] else longest) if m else None for m in heads]
        elif table and not set(row[0]) <= set("|-: "):
            name = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", texts[0])
            for (start, text), length in zip(inside, lengths, strict=True):
                if length:
                    what, column, unit = TABLES[table]
                    if length[0]:
                        column, unit = length[0], 1.0
                    case = MEASURED.get((what, length[1], VARIANTS[name]))
                    wanted = shown(case[column] / unit) if case else "–"
                    first = start + len(text) - len(text.lstrip())
                    about = f"{table}, {name}, {length[0] or 'at'} {length[1]:,}"
                    yield Place(first, first + len(text.strip()), about, wanted)


def sentences() -> dict[str, Callable[[], tuple[str, ...]]]:
    """Sentences with a measured number wherever `{}` stands, and those numbers."""
    lengths = sorted({t for what, t, _ in MEASURED if what == "forward"})

    def ms(variant: str, t: int, what: str = "forward") -> float:
        return MEASURED[what, t, variant]["ms"]

    def first_faster(variant: str) -> str:
        return next((f"{t:,}" for t in lengths if ms(variant, t) < ms("dense", t)), "no number of")

    return {
        "`benchmarks/bench_choose.py`, threads: {}": lambda: (str(RESULT["machine"]["threads"]),),
        "dense takes {} ms for 1,024 tokens and {} for 16,384": lambda: (
            shown(ms("dense", 1024)),
            shown(ms("dense", 16384)),
        ),
        "At 1,024 tokens the window takes {} times as long as dense attention, Longformer {} and BigBird {}": lambda: (
            *(
                shown(MEASURED["forward", 1024, name]["ratio"])
                for name in ("window", "longformer", "bigbird")
            ),
        ),
        "the window is faster from {} tokens on": lambda: (first_faster("window"),),
    }


def in_prose(page: str) -> Iterator[Place]:
    for sentence, numbers in sentences().items():
        pattern = NUMBER.join(re.escape(part) for part in sentence.split("{}"))
        found = re.search(pattern.replace(r"\ ", r"\s+"), page)
        assert found, f"docs/choose.md does not say: {sentence}"
        for k, wanted in enumerate(numbers(), 1):
            yield Place(*found.span(k), sentence, wanted)


def differences(page: str) -> list[Place]:
    places = [*cells(page), *in_prose(page)]
    return [place for place in places if page[place.start : place.end] != place.wanted]


def test_the_guide_shows_what_was_measured() -> None:
    page = PAGE.read_text("utf-8")
    wrong = [f"{p.about}: '{page[p.start : p.end]}' should be '{p.wanted}'" for p in differences(page)]
    assert not wrong, "\n".join([*wrong, "python -m tests.site.test_choose --write puts it right"])


def test_every_variant_stands_in_the_guide() -> None:
    """All that was measured for reading is in its table, and so are the caches."""
    page = PAGE.read_text("utf-8")
    said = [place.about for place in cells(page)]
    for name, variant in VARIANTS.items():
        for table, (what, *_) in TABLES.items():
            if any((what, t, variant) in MEASURED for t in (1024, 2048)):
                assert any(about.startswith(f"{table}, {name}, ") for about in said), (table, name)


def test_the_formulas_of_the_caches_count_every_byte() -> None:
    h, g, d, w, n, s = (SIZES[key] for key in ("h", "g", "d", "window", "n_sinks", "context"))
    for (what, t, variant), case in MEASURED.items():
        if what == "next":
            numbers = {
                "dense": 2 * h * d * t,
                "grouped": 2 * g * d * t,
                "window": 2 * h * d * w,
                "sinks": 2 * h * d * (n + (w - n)),
                "linear": h * d * (d + 1),
                "decayed": h * d * d,
                "cross": 2 * h * d * s,
            }
            assert case["bytes"] == 4 * numbers[variant], (variant, t)


def test_the_figures_have_a_line_for_every_variant() -> None:
    spec = importlib.util.spec_from_file_location("docs_figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    read = {variant for what, _, variant in MEASURED if what == "forward"}
    written = {variant for what, _, variant in MEASURED if what == "next"}
    assert set(VARIANTS.values()) == read
    for variant in read:
        assert f">{figures.FAMILIES[variant][1]}<" in figures.reading(), variant
    for variant in written:
        assert re.search(rf"<text[^>]*>[^<]*\b{figures.FAMILIES[variant][1]}\b[^<]*<", figures.caches()), (
            variant
        )


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    for place in sorted(differences(text), reverse=True):
        print(f"{place.about}: '{text[place.start : place.end]}' should be '{place.wanted}'")
        text = text[: place.start] + place.wanted + text[place.end :]
    if "--write" in sys.argv:
        PAGE.write_text(text, encoding="utf-8", newline="\n")
