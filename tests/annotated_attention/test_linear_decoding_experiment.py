"""What the page of `linear_decoding` says of the experiment, held to the results."""

import numpy as np
import torch
from tests.coursekit.conftest import REPOSITORY

from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.linear_decoding import linear_state_bytes
from coursekit.experiments import load

RESULTS = load(REPOSITORY / "lessons/14_linear/results/experiment.default.json")


def holds(words: str) -> bool:
    [claim] = [claim for claim in RESULTS.claims if words in claim.says]
    return claim.holds


def over_784_tokens(opponent: str, least: float, most: float) -> None:
    """How many times as long as states the opponent takes, in all repetitions."""
    for seed in range(3):
        runs = RESULTS.runs.where(part="model", texts=1, seed=seed)
        points = [
            (run.settings["t"], run.measured[f"{opponent}_ms"], run.measured["state_ms"])
            for run in runs
            if run.settings["t"] <= 784
        ]
        t, theirs, state = (list(column) for column in zip(*sorted(points), strict=True))
        assert least < np.trapezoid(theirs, t) / np.trapezoid(state, t) < most


def test_a_prefix_is_an_easy_opponent() -> None:
    over_784_tokens("prefix", 4.5, 5.5)


def test_a_cache_is_not() -> None:
    over_784_tokens("cache", 0.6, 0.95)


def test_many_texts_are_where_it_pays() -> None:
    assert holds("16 texts at once gain more than a single one")


def test_as_many_more_texts_fit() -> None:
    cache = kv_cache_bytes(8, 8, 32, 3072, dtype=torch.float32)
    assert cache // linear_state_bytes(8, 8, 32, 32) == 186
