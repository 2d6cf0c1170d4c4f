"""What the page of `grouped_query` says of the experiments, held to their results."""

from statistics import fmean

from tests.coursekit.conftest import REPOSITORY

from coursekit.experiments import load

RESULTS = REPOSITORY / "lessons" / "08_grouped_query" / "results"
LOSS = load(RESULTS / "experiment.default.json").runs.where(kind="loss")
CONVERTED = load(RESULTS / "experiment_uptraining.default.json").runs


def bits(name: str, when: int) -> list[float]:
    return [each[when] for each in CONVERTED.where(kind="converted").values(name)]


def more(name: str, kv_heads: int) -> float:
    """Percent of bits more than with all heads, in the mean over the seeds."""
    shared = LOSS.where(name="shared", kv_heads=8).spread("bits").mean
    return 100 * (LOSS.where(name=name, kv_heads=kv_heads).spread("bits").mean / shared - 1)


def test_sharing_costs_least():
    all_heads, one = (LOSS.where(name="shared", kv_heads=g).spread("bits") for g in (8, 1))
    assert all_heads.low < one.high
    assert one.low < all_heads.high
    assert abs(more("shared", 1)) < 1
    assert (round(more("few", 1)), round(more("narrow", 4))) == (6, 20)
    parameters = LOSS.spread("parameters")
    assert 0.95e5 < parameters.low < parameters.high < 1.2e5
    assert LOSS.where(name="few").values("cache_bytes") == LOSS.where(kv_heads=1).values("cache_bytes")[:3]


def test_where_one_head_begins():
    first, mean, longer, random = (bits(f"{start} 1", 1) for start in ("first", "mean", "longer", "random"))
    assert sum(a < b for a, b in zip(mean, first, strict=True)) == 2
    assert all(max(a, b, c) < d for a, b, c, d in zip(first, mean, longer, random, strict=True))
    assert all(a < b for a, b in zip(longer, mean, strict=True))
    seen = [f"{fmean(each):.2f}" for each in (bits("all", 0), mean, first, random, longer)]
    assert seen == ["2.70", "3.39", "3.35", "3.50", "3.32"]


def test_turned_heads_are_the_best_start():
    for g in (4, 2, 1):
        for other in ("mean", "first", "random", "longer"):
            assert all(a < b for a, b in zip(bits(f"turned {g}", 1), bits(f"{other} {g}", 1), strict=True))
    assert f"{fmean(bits('turned 1', 1)):.2f}" == "3.11"
