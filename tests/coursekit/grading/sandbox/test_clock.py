"""A question's time, on clocks of the test's own."""

import math
import os

import pytest

from coursekit.grading.sandbox import clock
from coursekit.grading.sandbox.clock import TICK, WALL_FACTOR, Clock, Expired, Meter, Used, later


class Times:
    """What the wall's clock says, and the kernel of a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.cpu, self.waited = 100.0, 7.0, 3.0
        monkeypatch.setattr(clock.time, "monotonic", lambda: self.wall)

    def used(self) -> Used:
        return Used(self.cpu, self.waited)

    def pass_by(self, *, working: float = 0.0, sleeping: float = 0.0, in_line: float = 0.0) -> None:
        self.wall += working + sleeping + in_line
        self.cpu += working
        self.waited += in_line


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


@pytest.mark.parametrize("how", ["working", "sleeping"])
def test_work_and_sleep_count_from_the_question_on(times: Times, how: str):
    question = Clock(2, used=times.used)
    assert question.tick() == TICK
    times.pass_by(**{how: 1.99})
    question.tick()
    times.pass_by(**{how: 0.02})
    with pytest.raises(Expired) as expired:
        question.tick()
    assert not expired.value.whole


def test_what_others_take_does_not_count(times: Times):
    question = Clock(2, 3, times.used)
    times.pass_by(working=1.0, in_line=2.5)
    assert question.spent == pytest.approx(1.0)
    question.tick()


def test_but_standing_in_line_ends_too(times: Times):
    question = Clock(2, used=times.used)
    times.pass_by(in_line=2 * WALL_FACTOR - 0.01)
    assert 0 < question.tick() <= 0.0101
    times.pass_by(in_line=0.02)
    with pytest.raises(Expired):
        question.tick()


def test_threads_count_together(times: Times):
    question = Clock(2, used=times.used)
    times.cpu += 1.5
    times.pass_by(working=0.6)
    with pytest.raises(Expired):
        question.tick()


def test_without_a_kernel_that_tells_the_wall_has_the_seconds(times: Times):
    question = Clock(2)
    times.wall += 1.99
    question.tick()
    times.wall += 0.01
    with pytest.raises(Expired):
        question.tick()


def test_a_clock_that_stops_telling_leaves_the_wall(times: Times):
    """The process has ended: its answers end too, and that says so."""
    told = iter([Used(7.0, 0.0), None])
    assert Clock(2, used=lambda: next(told)).tick() == TICK


def test_the_rest_of_the_submission_ends_a_question_too(times: Times):
    question = Clock(math.inf, 3, times.used)
    times.pass_by(working=2.99)
    assert question.tick() < TICK
    times.pass_by(working=0.02)
    with pytest.raises(Expired) as expired:
        question.tick()
    assert expired.value.whole


@pytest.mark.parametrize(("seconds", "less"), [(10, 2), (5, 1), (2, 0.5), (0.3, 0.3)])
def test_after_a_slow_question_the_others_have_less_but_never_more(seconds: float, less: float):
    assert later(seconds) == less


@pytest.mark.skipif(Meter(os.getpid())() is None, reason="needs the clock of another process")
def test_a_meter_runs_with_the_work_of_its_process():
    meter = Meter(os.getpid())
    before = meter()
    sum(range(200_000))
    after = meter()
    assert before is not None
    assert after is not None
    assert 0 < before.cpu < after.cpu
    assert 0 <= before.waited <= after.waited
    meter.close()
    assert meter() is None
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    assert Meter(gone)() is None
    assert Meter(0)() is None
