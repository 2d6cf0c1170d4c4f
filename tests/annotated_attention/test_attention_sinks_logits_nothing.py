"""The numbers that the pages quote from the heads with nothing to fetch, against the file of results."""

from pathlib import Path

from coursekit.experiments import Runs, load

LESSON = Path(__file__).parents[2] / "lessons" / "10_attention_sinks"
RUNS = load(LESSON / "results" / "experiment_nothing.default.json").runs


def heads(begins: str, sink: str, *, mlp: bool = False) -> Runs:
    return RUNS.where(task="fetch", begins=begins, sink=sink, mlp=mlp)


def evicted(runs: Runs) -> list[float]:
    """How many times the error is as large without the first token, seed by seed."""
    return [without / kept for without, kept in zip(runs.values("error_evicted"), runs.values("error_kept"), strict=True)]
