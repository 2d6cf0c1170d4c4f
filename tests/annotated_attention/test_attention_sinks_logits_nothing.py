"""The numbers that the pages quote from the heads with nothing to fetch, against the file of results."""

from pathlib import Path

from coursekit.experiments import Runs, load

LESSON = Path(__file__).parents[2] / "lessons" / "10_attention_sinks"
RUNS = load(LESSON / "results" / "experiment_nothing.default.json").runs


def fetch(begins: str, sink: str, *, mlp: bool = False) -> Runs:
    return RUNS.where(task="fetch", begins=begins, sink=sink, mlp=mlp)


def evicted(runs: Runs) -> list[float]:
    """By how much the first token's eviction multiplies the error, seed by seed."""
    return [run.measured["error_evicted"] / run.measured["error_kept"] for run in runs]


def test_eviction_costs_eight_heads_dear() -> None:
    token = fetch("token", "none")
    assert min(token.values("first_most")) > 0.99
    assert min(evicted(token)) > 1500


def test_without_any_sink_eight_heads_cannot_be_silent() -> None:
    sinks = [fetch("anywhere", sink).values("error") for sink in ("zero", "logit")]
    assert min(fetch("anywhere", "none").values("error")) > 800 * max(sinks[0] + sinks[1])


def test_eight_heads_with_both_leave_the_token_alone() -> None:
    for sink in ("zero", "logit"):
        both = fetch("token", sink)
        assert max(both.values("first")) < 0.035
        assert max(evicted(both)) < 1.7
        assert min(both.values("nothing_most")) > 0.99


def test_mlps_do_not_keep_heads_from_parking() -> None:
    parked = sorted(fetch("token", "none", mlp=True).values("first_most"))
    assert 0.45 < parked[0] < 0.55
    assert parked[1] > 0.99
    factors = sorted(evicted(fetch("token", "none", mlp=True)))
    assert [round(factor) for factor in factors[:2]] == [3, 73]
    assert round(factors[2], -1) == 1270


def test_who_predicts_parks_little() -> None:
    copy = RUNS.where(task="copy")
    assert max(copy.values("first_most")) < 0.04
    assert max(copy.values("bits")) < 0.02
    text = RUNS.where(task="text", begins="token", sink="none")
    assert max(text.values("first")) < 0.02
    assert 0.07 < max(text.values("first_most")) < 0.075
    crops = RUNS.where(task="text", begins="anywhere")
    assert max(crops.values("first")) < 0.005
