"""The numbers that the pages quote from the streams, against the file of results."""

from pathlib import Path
from statistics import fmean

from coursekit.experiments import load

LESSON = Path(__file__).parents[2] / "lessons" / "10_attention_sinks"
RUNS = load(LESSON / "results" / "experiment.default.json").runs


def above(name: str, less: str = "recompute", kind: str = "token", position: str = "rotary") -> list[float]:
    """By how many bits per byte one way to stream costs more than another, seed by seed."""
    of = RUNS.where(kind=kind, position=position)
    return [one - other for one, other in zip(of.values(name), of.values(less), strict=True)]


def test_one_sink_token_is_needed_and_enough():
    """Evicted, it is missed; one wins everything back, and more win nothing."""
    assert f"{fmean(above('sinks_0')):.2f}" == "0.08"
    assert min(above("sinks_0")) > 0.04
    for n in (1, 2, 4):
        assert max(map(abs, above(f"sinks_{n}"))) < 0.005


def test_who_never_parked_loses_nothing():
    """Vanilla, or with a zero sink: hardly any weight on the first token, and nothing lost without it."""
    for kind in ("vanilla", "zero"):
        heads = [head for run in RUNS.where(kind=kind) for layer in run.measured["parked"] for head in layer]
        assert max(heads) < 0.02
        assert max(map(abs, above("sinks_0", "sinks_4", kind))) < 0.005
    for run in RUNS.where(kind="token", position="rotary"):
        assert max(head for layer in run.measured["parked"] for head in layer) > 0.3


def test_the_four_cases():
    """Dropped, both ways of counting agree; kept, rotary places must be those of the cache."""
    for position in ("rotary", "alibi"):
        assert max(map(abs, above("in_text_0", "cache_0", position=position))) < 1e-5
        assert max(map(abs, above("sinks_4", "cache_4", position=position))) < 1e-5
        assert max(map(abs, above("cache_4", position=position))) < 0.005
    assert f"{fmean(above('cache_0')):.2f}" == "0.08"
    assert f"{fmean(above('in_text_4')):.2f}" == "1.05"
    assert min(above("in_text_4", "in_text_0")) > 0.5
    assert max(map(abs, above("in_text_4", "in_text_0", position="alibi"))) < 0.03


def test_ordinary_bytes_kept_far_away_do_the_harm():
    """With places of the text, a sink alone costs little more than to evict it; three more bytes cost a bit."""
    assert f"{fmean(above('in_text_1', 'in_text_0')):.2f}" == "0.05"
    assert f"{fmean(above('in_text_4', 'in_text_1')):.2f}" == "0.93"
    assert f"{fmean(above('in_text_1', 'in_text_0', 'vanilla')):.2f}" == "0.47"
    assert f"{fmean(above('in_text_1', 'in_text_0', 'zero')):.2f}" == "1.03"


def test_with_alibi_one_seed_in_three_parks():
    lost = sorted(above("sinks_0", "sinks_4", position="alibi"))
    assert lost[-1] > 0.2
    assert max(map(abs, lost[:2])) < 0.01


def test_newlines_are_no_sinks_here():
    """Four of them in place of the sink token cost more than none."""
    assert min(above("newlines_4", "sinks_0")) > 0
