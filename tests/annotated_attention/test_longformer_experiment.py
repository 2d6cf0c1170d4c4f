"""What the page of `longformer` says of the experiment of lesson 12 is what its results file holds."""

from pathlib import Path
from statistics import fmean

from coursekit.experiments import Runs, load

LESSON = Path(__file__).parents[2] / "lessons" / "12_bigbird"
TWO_LAYERS = load(LESSON / "results" / "experiment.default.json").runs.where(layers=2, blocks=16)


def over_two_arcs(runs: Runs) -> list[float]:
    return [right[2] for right in runs.values("right_by_hops")]


def test_one_token_carries_one_fact() -> None:
    window = TWO_LAYERS.where(pattern="window", facts=1)
    assert all(right[0] == 0.125 and min(right[1:]) > 0.95 for right in window.values("right_by_hops"))
    one, eight = (TWO_LAYERS.where(pattern="longformer", facts=n) for n in (1, 8))
    assert min(map(min, one.values("right_by_distance"))) > 0.95
    assert f"{fmean(over_two_arcs(eight)):.0%}" == "32%"
    assert min(TWO_LAYERS.where(pattern="dense", facts=8).values("right")) > 0.95
