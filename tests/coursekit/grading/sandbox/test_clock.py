"""A question's time, on clocks of the test's own."""

import math
import os

import pytest

from coursekit.grading.sandbox import clock
from coursekit.grading.sandbox.clock import TICK, WALL_FACTOR, Clock, Expired, cpu_seconds, later


class Times:
    """What the wall's clock and the process's say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.cpu = 100.0, 7.0
        monkeypatch.setattr(clock.time, "monotonic", lambda: self.wall)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


def test_time_of_the_processor_counts_from_the_question_on(times: Times):
    question = Clock(2, cpu=lambda: times.cpu)
    assert question.tick() == TICK
    times.cpu += 1.9
    question.tick()
    times.cpu += 0.1
    with pytest.raises(Expired) as expired:
        question.tick()
    assert not expired.value.whole


def test_what_sleeps_is_ended_by_the_wall(times: Times):
    question = Clock(2, cpu=lambda: times.cpu)
    times.wall += 2 * WALL_FACTOR - 0.01
    assert 0 < question.tick() <= 0.0101
    times.wall += 0.01
    with pytest.raises(Expired):
        question.tick()


def test_without_a_clock_of_the_processor_the_wall_has_the_seconds(times: Times):
    question = Clock(2)
    times.wall += 1.99
    question.tick()
    times.wall += 0.01
    with pytest.raises(Expired):
        question.tick()


def test_a_clock_that_stops_telling_leaves_the_wall(times: Times):
    """The process has ended: its answers end too, and that says so."""
    told = iter([7.0, None])
    assert Clock(2, cpu=lambda: next(told)).tick() == TICK


def test_the_rest_of_the_submission_ends_a_question_too(times: Times):
    question = Clock(math.inf, 3, lambda: times.cpu)
    times.wall += 3 * WALL_FACTOR - 0.02
    assert question.tick() < TICK
    times.cpu += 2.99
    assert question.spent == pytest.approx(2.995)
    times.cpu += 0.01
    with pytest.raises(Expired) as expired:
        question.tick()
    assert expired.value.whole


def test_a_busy_machine_costs_a_submission_nothing(times: Times):
    """Three quarters of the time others have the processor."""
    question = Clock(2, 3, lambda: times.cpu)
    times.cpu += 1.0
    times.wall += 3.9
    assert question.spent == 1.0


@pytest.mark.parametrize(("seconds", "less"), [(10, 2), (5, 1), (2, 0.5), (0.3, 0.3)])
def test_after_a_slow_question_the_others_have_less_but_never_more(seconds: float, less: float):
    assert later(seconds) == less


@pytest.mark.skipif(cpu_seconds(os.getpid()) is None, reason="needs the clock of another process")
def test_the_clock_of_a_process_runs_with_its_work():
    before = cpu_seconds(os.getpid())
    sum(range(200_000))
    after = cpu_seconds(os.getpid())
    assert before is not None
    assert after is not None
    assert 0 < before < after
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    assert cpu_seconds(gone) is None
