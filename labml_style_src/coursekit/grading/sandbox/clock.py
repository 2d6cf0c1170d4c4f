"""The time that one question may take: of the processor, and by the wall.

Time of the processor is fair on a busy machine; the wall's ends what sleeps. It is read from outside, where
the student's code cannot touch it.
"""

import math
import sys
import time
from collections.abc import Callable

# By the wall a question may take so many times its seconds of the processor.
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


class Clock:
    """One question's time, and what the submission has left of its own. `cpu` tells the process's seconds of the
    processor so far, or None where that cannot be told; then seconds are those by the wall."""

    def __init__(
        self, seconds: float, rest: float = math.inf, cpu: Callable[[], float | None] = lambda: None
    ) -> None:
        self.seconds = seconds
        self.rest = rest
        self._cpu = cpu
        self._cpu_began = cpu()
        self._began = time.monotonic()
        self._factor = 1 if self._cpu_began is None else WALL_FACTOR

    @property
    def spent(self) -> float:
        """Seconds of the processor since the question was asked, or a quarter of those by the wall if that is
        more."""
        return max(self._used(), self._elapsed() / self._factor)

    def tick(self) -> float:
        """Seconds until the next look. Raises `Expired`."""
        spent = self.spent
        if spent >= self.rest:
            raise Expired(whole=True)
        if spent >= self.seconds:
            raise Expired
        return min(TICK, self._factor * min(self.seconds, self.rest) - self._elapsed())

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _used(self) -> float:
        now = self._cpu()
        return 0.0 if now is None or self._cpu_began is None else now - self._cpu_began


def later(seconds: float) -> float:
    """What is left for each question once one took too long."""
    return min(seconds, max(LATER * seconds, LEAST_SECONDS))


def cpu_seconds(pid: int) -> float | None:
    """What all threads of another process have used of the processor. None if the process is gone or this
    system has no such clock."""
    if sys.platform != "linux":
        return None
    try:
        # The kernel's name for the clock of a process (include/linux/posix-timers.h: CPUCLOCK_SCHED).
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None
