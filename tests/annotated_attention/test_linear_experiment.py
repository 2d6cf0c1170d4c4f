"""What the page of `linear` says of its experiment, held to the results."""

from statistics import median

import pytest
from tests.coursekit.conftest import REPOSITORY

from coursekit.experiments import load

RUNS = load(REPOSITORY / "lessons/14_linear/results/experiment.default.json").runs


def test_measured_they_are_even_later() -> None:
    ratios = {}
    for run in RUNS.where(part="reading"):
        ratio = run.measured["softmax_ms"] / run.measured["linear_ms"]
        ratios.setdefault(run.settings["t"], []).append(ratio)
    assert median(ratios[256]) < 1 < median(ratios[4096])


def test_training_takes_more_memory() -> None:
    for run in RUNS.where(part="memory"):
        ratio = run.measured["softmax_mib"] / run.measured["linear_mib"]
        assert ratio == pytest.approx(5 / 6, rel=0.02) if run.settings["t"] == 4096 else ratio < 0.7
