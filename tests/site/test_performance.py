"""What `docs/performance.md` says is made of `benchmarks/results/`: nothing is typed, and no verdict is older than its
number."""

import importlib.util
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text("utf-8")
PROSE = re.sub(r"(?s)^---.*?^---", "", PAGE, count=1, flags=re.MULTILINE)


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measured() -> ModuleType:
    return loaded("measured")


def test_numbers_in_prose_are_settings_and_no_results():
    """Widths, lengths, bits, a year, what an exponent means: all else is inserted."""
    settings = ["1", "2", "32", "16", "64", "256", "512", "4,096", "32,768", "2009"]
    bare = re.sub(r"\[measured:\w+\]|figure:\w+|\{[^}]*\}|`[^`]*`", "", PROSE)
    assert set(re.findall(r"\d[\d,.]*\d|\d", bare)) <= set(settings)


def test_every_insert_and_every_figure_exists(measured):
    figures = loaded("figures")
    for name in re.findall(r"\[measured:(\w+)\]", PROSE):
        assert getattr(measured, name)().strip(), name
    for name in re.findall(r"\(figure:(\w+)\)", PROSE):
        ET.fromstring(getattr(figures, name)())


def rows(table: str) -> Iterator[list[str]]:
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_a_verdict_follows_from_its_number(measured, monkeypatch):
    """The window at 8,192 tokens: the ratio of the file, and the word that it deserves."""
    case = {"pass": "forward", "t": 8192, "mask_ratio": 0.125, "causal_ratio": 0.8}
    slow = {"pass": "forward", "exponent_of": {"ours_ms": 1.234}}
    monkeypatch.setattr(measured, "result", lambda name: {"cases": [case, slow] * (name == "sliding_window")})
    found = {row[0]: row[1:] for row in rows(measured.aims())}
    assert found["window, times as fast as SDPA with the window as its mask"] == [
        "≥\u00a05",
        "8.0",
        "holds",
    ]
    assert found["window, times as fast as causal SDPA"] == ["≥\u00a02", "1.2", "**fails**"]
    assert found["window, exponent of time, forward"] == ["≤\u00a01.1", "1.23", "**fails**"]
    assert found["flash, times as fast as naive, at 4,096"] == ["≥\u00a02", "–", "not measured yet"]
    assert measured.held() == "1 of 3"


def test_caches_are_flat_or_not(measured, monkeypatch):
    times = {"rolling": (0.1, 0.2, 0.11), "sinks": (0.1, 0.1, 0.3)}
    steps = [
        {"what": "a step", "cache": cache, "position": position, "ours_ms": ms}
        for cache, each in times.items()
        for position, ms in zip((1000, 10000, 100000), each, strict=True)
    ]
    monkeypatch.setattr(measured, "result", lambda name: {"cases": steps if name == "steps" else []})
    found = {row[0]: row[2:] for row in rows(measured.aims())}
    assert found["rolling cache, a token at 100,000, times as long as one at 1,000"] == ["1.1", "holds"]
    assert found["cache with sinks, a token at 100,000, times as long as one at 1,000"] == [
        "3.0",
        "**fails**",
    ]
    assert "| rolling, 512 | 0.100 | 0.200 | 0.110 |" in measured.steps()


def test_the_tables_hold_what_the_files_hold(measured):
    cases = measured.cases("roofline", what="forward")
    table = measured.roofline()
    for case in cases:
        if case["t"] == 4096:
            assert f"| {measured.shown(case['predicted_ms'])} | {measured.shown(case['ms'])} |" in table
    for case in measured.cases("peers"):
        if "ms" in case:
            assert f"| {case['peer']} | {measured.shown(case['ms'])} |" in measured.peers()
        elif "absent" in case:
            assert case["peer"] in measured.absent()


def test_no_figure_of_a_gpu_without_a_gpu(measured, monkeypatch):
    monkeypatch.setattr(measured, "result", lambda name: {"cases": []})
    assert measured.gpu().startswith("**No GPU has been measured yet.**")
    path = ROOT / "benchmarks" / "results" / "gpu.json"
    if path.exists():
        assert not json.loads(path.read_text("utf-8"))["rehearsal"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0.000262, "0.0003"),
        (0.0123, "0.012"),
        (0.123, "0.12"),
        (1.26, "1.3"),
        (15.4, "15"),
        (2080.0, "2,080"),
    ],
)
def test_two_digits_are_shown(measured, number, words):
    assert measured.shown(number) == words
