"""What the page of `flash` says of the experiments is what their results say."""

import pytest
from tests.coursekit.conftest import REPOSITORY

from annotated_attention.flash import flash_traffic
from coursekit.experiments import Runs, load

MIB, GB = 2**20, 1e9
HALF = ("bfloat16", "float16")


def results(suffix: str = "") -> Runs:
    return load(REPOSITORY / "lessons" / "13_flash" / "results" / f"experiment{suffix}.default.json").runs


def test_counted_traffic_is_predicted() -> None:
    fit = [
        run
        for run in results().where(way="tiled", backward=False)
        if run.settings["kind"] in ("fast", "length")
    ]
    assert len(fit) == 10
    for run in fit:
        t, u = run.settings["t"], run.settings["block_q"]
        predicted = 4 * flash_traffic(t, t, 64, 64, block_q=u)[1]
        assert run.measured["moved"] == pytest.approx(predicted, rel=0.001)


def test_counted_traffic_of_a_tile() -> None:
    tile = results().where(kind="tile", fast=192)
    some = [
        *(tile.where(block_q=u)[0] for u in (128, 256)),
        results().where(kind="length", way="plain", t=2048)[0],
    ]
    assert [round(run.measured["moved"] / MIB) for run in some] == [18, 94, 67]


def test_counted_traffic_of_gpt2() -> None:
    whole = results().where(kind="gpt2")
    heads = 16 * 64
    # Two bytes a number: what was counted in float32 is half.
    assert {round(heads * x / GB, 1) for x in whole.where(way="trained").values("moved")} == {46.9}
    assert {round(heads * x / 2 / GB, 1) for x in whole.where(block_q=256).values("moved")} == {6.0}


def test_traffic_of_the_papers_loops() -> None:
    one = 16 * 64 * 1024 * 64 * 2 / GB
    for keys, expected in ((256, 5.1), (384, 4.0)):
        blocks = -(-1024 // keys)
        # Keys and values once; in each block queries and outputs are read and outputs written. Going back, keys,
        # values and their gradients once; queries, outputs and two gradients read and one written.
        assert round((2 + 3 * blocks + 4 + 5 * blocks) * one, 1) == expected


def test_peaks_are_foretold() -> None:
    long = results("_memory").where(kind="peak", t=8192, backward=True)
    tiles, plain = long.where(block_q=256)[0], long.where(way="plain")[0]
    assert [round(run.measured["peak"] / MIB, 1) for run in (tiles, plain)] == [11.7, 774.0]
    assert max(abs(run.measured["ratio"] - 1) for run in (tiles, plain)) < 0.01


def test_below_float32_nothing_is_nearer() -> None:
    for dtype in HALF:
        for run in results("_errors").where(dtype=dtype):
            plain, tiles, rounded = (
                run.measured[f"{way} output"] for way in ("plain", "tiles 64 by 64", "rounded")
            )
            assert tiles == pytest.approx(rounded, rel=0.01)
            assert plain > 2.45 * tiles


def test_sloppy_tiles() -> None:
    long = results("_errors").where(dtype="bfloat16", t=4096)
    ratios = [run.measured["sloppy output"] / run.measured["plain output"] for run in long]
    assert [round(min(ratios)), round(max(ratios))] == [3, 4]
