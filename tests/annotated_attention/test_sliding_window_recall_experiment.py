"""What the page of `sliding_window_recall` says of the experiment is what its results file holds."""

from pathlib import Path

from coursekit.experiments import Runs, load

LESSON = Path(__file__).parents[2] / "lessons" / "09_sliding_window"
RESULTS = load(LESSON / "results" / "experiment.default.json")
EVERYWHERE = RESULTS.runs.where(asked="everywhere")
AT_THE_END = RESULTS.runs.where(asked="at the end")


def steps(window: int, layers: int) -> list[int]:
    return AT_THE_END.where(window=window, layers=layers).values("learned")


def test_the_cliff() -> None:
    windows = Runs(run for run in EVERYWHERE if run.settings["window"])
    assert RESULTS.seeds == 3
    shapes = {(run.settings["window"], run.settings["layers"]) for run in windows}
    assert {(w, n) for w in (8, 16) for n in (1, 2, 3, 4)} <= shapes
    for run in windows:
        window, layers, right = run.settings["window"], run.settings["layers"], run.measured["right"]
        assert run.settings["length"] == 80 == len(right) + 1
        reach = layers * (window - 1)
        assert set(right[:reach]) == {1.0}
        assert set(right[reach:]) <= {0.125}
        assert run.measured["moved_before"] <= run.measured["moved"] == reach


def test_hops_cost_steps() -> None:
    for run in AT_THE_END:
        assert set(run.measured["right"][: run.measured["reach"]]) == {1.0}
    ranges = {(29, 1): (30, 40), (15, 2): (70, 80), (8, 4): (150, 290)}
    for (window, layers), (least, most) in ranges.items():
        found = steps(window, layers)
        assert (min(found), max(found)) == (least, most)
