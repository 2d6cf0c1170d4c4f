"""What the page of `linear_recall` says of its experiment, held to the results."""

from tests.coursekit.conftest import REPOSITORY

from coursekit.experiments import Runs, load

RUNS = load(REPOSITORY / "lessons/14_linear/results/experiment_recall.default.json").runs
CACHE = 12_288
DECIDES = ("gated decay", "state space", "delta rule", "gated delta")


def runs(name: str, size: int) -> Runs:
    return RUNS.where(mechanism=name, size=size, trained=True)


def recall(name: str, size: int) -> list[float]:
    return runs(name, size).values("recall")


def test_the_cache_answers_everything_and_so_does_a_quarter() -> None:
    assert {run.measured["bytes"] for g in (4, 1) for run in runs("softmax", g)} == {CACHE, CACHE // 4}
    assert min(*recall("softmax", 4), *recall("softmax", 1)) > 0.995


def test_a_window_answers_for_what_it_holds() -> None:
    for name in ("window", "sinks"):
        for size in (8, 16, 32):
            for run in runs(name, size):
                assert abs(run.measured["recall"] - run.measured["reach"]) < 0.04


def test_a_twelfth_of_the_cache_suffices() -> None:
    for name in DECIDES:
        assert {run.measured["bytes"] for run in runs(name, 8)} == {CACHE // 12}
        assert min(recall(name, 8)) > 0.9
    random = RUNS.where(mechanism="delta rule", size=8, trained=False).values("recall")
    assert max(random) < 0.4 < 0.9 < min(recall("delta rule", 8))


def test_signs_first_then_gates() -> None:
    positive, faded = recall("elu + 1", 8), recall("constant decay", 8)
    assert 0.45 < min(positive) < max(positive) < 0.51
    assert 0.87 < min(faded) < max(faded) < 0.9
    assert max(faded) < min(min(recall(name, 8)) for name in DECIDES)


def test_the_delta_rule_has_no_lead_over_a_gate() -> None:
    for size in (4, 8, 16, 32):
        assert max(recall("delta rule", size)) < min(recall("gated decay", size)) + 0.1
