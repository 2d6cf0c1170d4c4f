"""The time that one question may take. What others take of the processor meanwhile does not count, so that a
busy machine costs nobody a point; what a process sleeps does. It is read from outside, where the student's code
cannot touch it.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

# However long it stood in line, by the wall a question takes no more than so many times its seconds.
WALL_FACTOR = 4
# How often a question at work is looked at, in seconds.
TICK = 0.05
# A later question has this part of the time, but no less than `LEAST_SECONDS`.
LATER = 0.2
LEAST_SECONDS = 0.5


class Expired(Exception):
    """The time is over. `whole`: that of the whole submission, not just of this question."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole


@dataclass(frozen=True)
class Used:
    """What a process has had so far, in seconds: of the processor, and in line for one because others had it."""

    cpu: float
    waited: float


class Clock:
    """One question's time, and what the submission has left of its own. `used` tells what the process has had so
    far, or None where that cannot be told; then seconds are those by the wall."""

    def __init__(
        self, seconds: float, rest: float = math.inf, used: Callable[[], Used | None] = lambda: None
    ) -> None:
        self.seconds = seconds
        self.rest = rest
        self._used = used
        self._before = used()
        self._began = time.monotonic()
        self._factor = 1 if self._before is None else WALL_FACTOR

    @property
    def spent(self) -> float:
        """Seconds since the question was asked, but for those in which the process stood in line; of all threads
        together if that is more, and at least a quarter of those by the wall."""
        elapsed, before, now = self._elapsed(), self._before, self._used()
        if before is None or now is None:
            return elapsed / self._factor
        own = elapsed - (now.waited - before.waited)
        return max(now.cpu - before.cpu, own, elapsed / self._factor)

    def tick(self) -> float:
        """Seconds until the next look. Raises `Expired`."""
        spent = self.spent
        if spent >= self.rest:
            raise Expired(whole=True)
        if spent >= self.seconds:
            raise Expired
        return min(TICK, self.seconds - spent, self.rest - spent)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def later(seconds: float) -> float:
    """What is left for each question once one took too long."""
    return min(seconds, max(LATER * seconds, LEAST_SECONDS))


class Meter:
    """What another process has had, as often as one asks: None when it is gone, or where no kernel tells."""

    def __init__(self, pid: int) -> None:
        # The kernel's name for the clock of a process (include/linux/posix-timers.h: CPUCLOCK_SCHED).
        self._clock = (~pid << 3) | 2
        self._waits = None
        if sys.platform == "linux" and pid > 0:
            with contextlib.suppress(OSError):
                # How long its first thread stood in line (Documentation/scheduler/sched-stats.rst).
                self._waits = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def __call__(self) -> Used | None:
        if self._waits is None:
            return None
        try:
            waited = int(os.pread(self._waits, 100, 0).split()[1]) / 1e9
            return Used(time.clock_gettime(self._clock), waited)
        except (OSError, ValueError, IndexError):
            return None

    def close(self) -> None:
        if self._waits is not None:
            os.close(self._waits)
            self._waits = None
