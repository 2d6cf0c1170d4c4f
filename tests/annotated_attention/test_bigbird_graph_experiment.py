"""What the page of `bigbird_graph` says of the experiment is what its results file holds."""

from pathlib import Path
from statistics import fmean

from coursekit.experiments import Runs, load

LESSON = Path(__file__).parents[2] / "lessons" / "12_bigbird"
RUNS = load(LESSON / "results" / "experiment.default.json").runs
ONE, EIGHT = RUNS.where(facts=1), RUNS.where(facts=8)


def mean_right(pattern: str, layers: int = 2) -> str:
    return f"{fmean(ONE.where(pattern=pattern, layers=layers).values('right')):.0%}"


def over_two_arcs(runs: Runs, pattern: str) -> list[float]:
    return [right[2] for right in runs.where(pattern=pattern, layers=2).values("right_by_hops")]


def test_no_path_no_answer() -> None:
    layers = {run.settings["layers"] for run in RUNS}
    assert layers == {1, 2, 3}
    assert set(RUNS.values("moved_without_a_path")) == {0}
    assert {right[0] for right in ONE.values("right_by_hops")} == {0.125, None}

    # Most answer all that has a path; some, dense ones too, fail at every distance alike.
    known = [[share for share in right[1:] if share is not None] for right in ONE.values("right_by_hops")]
    confused = [shares for shares in known if max(shares) <= 0.875]
    assert len(confused) == 5
    assert all(min(shares) == max(shares) for shares in confused)
    assert sum(min(shares) > 0.99 for shares in known) == len(known) - 6
    assert {0.875} & set(ONE.where(pattern="dense").values("right"))


def test_random_blocks_know_most() -> None:
    patterns = ("window", "random", "window and random")
    assert [mean_right(pattern) for pattern in patterns] == ["57%", "82%", "77%"]


def test_a_crowd_on_the_bridge() -> None:
    patterns = ("longformer", "window and global", "bigbird")
    found = [f"{fmean(over_two_arcs(EIGHT, pattern)):.0%}" for pattern in patterns]
    assert found == ["32%", "52%", "67%"]
    assert min(EIGHT.where(pattern="dense").values("right")) > 0.99
