"""What the pages on ALiBi say of its experiment, held to the committed results: every number that they quote."""

from pathlib import Path
from statistics import fmean

import pytest

from coursekit.experiments import Runs, load

ROOT = Path(__file__).parents[2]
RESULTS = load(ROOT / "lessons" / "06_alibi" / "results" / "experiment.default.json")
TRAINED = Runs(run for run in RESULTS.runs if "tested" in run.settings)
POSITIONS = ("alibi", "rotary", "sinusoidal", "learned")
PAGES = {
    "page": "labml_style_src/annotated_attention/alibi.py",
    "results": "docs/results.md",
    "outcome": "lessons/06_alibi/experiment.py",
}


def bits(position: str, length: int, how: str = "sliding") -> list[float]:
    return TRAINED.where(position=position, length=64).values(f"{how}_{length}")


def change(position: str, how: str = "sliding") -> list[float]:
    return [b - a for a, b in zip(bits(position, 64, how), bits(position, 512, how), strict=True)]


def says(page: str, words: str) -> bool:
    return words in " ".join((ROOT / PAGES[page]).read_text("utf-8").split())


def test_alibi_is_flat() -> None:
    lost = change("alibi")
    assert all(0 < bit < 0.1 for bit in lost)
    assert says("page", f"ALiBi loses {fmean(lost):.2f} bits a byte")
    assert says("outcome", f"a little worse: {fmean(lost):+.2f} bits at 512")


def test_all_others_lose() -> None:
    lost = {position: fmean(change(position)) for position in POSITIONS}
    assert min(min(change(position)) for position in POSITIONS[1:]) > 10 * max(change("alibi"))
    assert says("page", f"sinusoidal positions lose {lost['sinusoidal']:.2f}, rotary {lost['rotary']:.2f}")
    assert says("page", f"were never trained, {lost['learned']:.2f} ")
    for page in ("results", "outcome"):
        assert says(page, f"inusoidal positions lose {lost['sinusoidal']:.2f}")
    assert lost["learned"] == pytest.approx(2, abs=0.25)
    assert lost["rotary"] == pytest.approx(2, abs=0.25)


def test_where_they_break() -> None:
    # At once, the eighth byte behind the last place that was trained; rotary half as many bytes later.
    for position in ("sinusoidal", "learned"):
        assert min(bits(position, 72)) > max(bits(position, 64)) + 0.4
    assert max(bits("rotary", 96)) < min(bits("rotary", 64)) + 0.1
    assert min(bits("rotary", 128)) > max(bits("rotary", 64)) + 0.4


def test_sinusoidal_positions_are_the_worst_already_at_64() -> None:
    rest = [bit for position in POSITIONS if position != "sinusoidal" for bit in bits(position, 64)]
    assert min(bits("sinusoidal", 64)) > max(rest)
    before, last = (fmean(bits("sinusoidal", length)) for length in (32, 64))
    assert says("outcome", f"({before:.2f} with 32 bytes, {last:.2f} with 64)")


def test_the_gain_is_in_the_blocks() -> None:
    gained = [-bit for bit in change("alibi", "blocks")]
    assert min(gained) > 0
    assert min(change("alibi")) > 0
    assert says(
        "page", f"In blocks ALiBi seems to gain {fmean(gained):.2f}; with stride 1 nothing of that is left"
    )
    assert says("results", f"That gain is {fmean(gained):.2f} bits where we expected 0.1 to 0.3")
    assert says("outcome", f"In blocks it seems to gain {fmean(gained):.2f}, and nothing of it is left")


def test_rotary_is_better_in_range() -> None:
    ours, rotary = bits("alibi", 64), bits("rotary", 64)
    assert max(rotary) < min(ours)
    assert max(bits("rotary", 96)) < min(bits("alibi", 96))
    assert says("page", f"at 64, rotary needs {fmean(rotary):.2f} bits, ALiBi {fmean(ours):.2f}")
    ahead = f"{fmean(ours) - fmean(rotary):.2f}"
    assert says("results", f"rotary is ahead of ALiBi by {ahead} bits")
    assert says("outcome", f"rotary is better than ALiBi by {ahead} there")


def test_nobody_uses_more_than_32_bytes() -> None:
    for position in POSITIONS:
        best = min(fmean(bits(position, length)) for length in (64, 72, 96, 128, 256, 512))
        assert best > min(fmean(bits(position, length)) for length in (4, 8, 16, 32))


def test_trained_long() -> None:
    """ALiBi trained on 64 against models trained on 512, at 512; and what their training on fewer texts costs."""

    def at(position: str, trained_on: int, length: int, how: str = "sliding") -> list[float]:
        runs = RESULTS.runs.where(position=position, length=trained_on)
        return Runs(run for run in runs if "tested" in run.settings).values(f"{how}_{length}")

    for how in ("sliding", "blocks"):
        for position in ("sinusoidal", "rotary"):
            assert fmean(at("alibi", 64, 512, how)) < min(at(position, 512, 512, how))
    assert min(at("rotary", 512, 512)) > max(at("rotary", 64, 64))
