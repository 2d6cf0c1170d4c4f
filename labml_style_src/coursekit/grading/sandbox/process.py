"""The grader's side of a student's process: what goes in, what comes out, when it ends.

The process may send anything, slowly or never, and need not read what it is sent: no call here waits longer
than the clock of the question allows.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from coursekit.grading.sandbox.clock import Clock, Expired, Meter
from coursekit.grading.sandbox.folder import remove_folder

CHUNK = 1 << 20
# How long a process that has closed its answers may take to end by itself.
ENDING_SECONDS = 2.0
# How a child begins the message that a wall could not be put up.
PROBLEM = "!"


class Process(ABC):
    """A process that answers requests over two pipes. It is its own stream: `read` and `write` bytes, each
    inside `timed`. `number` is that of the process, 0 if this one does not know it; `used` what it has had."""

    def __init__(self, requests: int, answers: int, folder: Path, number: int) -> None:
        self.requests, self.answers, self.folder = requests, answers, folder
        self.number = number
        self.used = Meter(number)
        self._clock = Clock(0)
        # Read, and not yet asked for.
        self._came = b""

    @contextmanager
    def timed(self, clock: Clock) -> Generator[None]:
        """Inside, `read` and `write` raise `Expired` when the clock says so."""
        self._clock = clock
        yield

    def write(self, message: bytes) -> None:
        """Send it all. Raises `Expired`, or OSError if nobody can read it any more."""
        rest = memoryview(message)
        while rest:
            try:
                rest = rest[os.write(self.requests, rest[:CHUNK]) :]
            except BlockingIOError:
                self._ready(self.requests, to_write=True)

    def read(self, length: int) -> bytes:
        """Some bytes, at most `length`; none if the process has closed its end. Raises `Expired`."""
        while not self._came:
            self._ready(self.answers)
            with contextlib.suppress(BlockingIOError):
                # All that is there: a message is read in three parts.
                self._came = os.read(self.answers, CHUNK)
                break
        part, self._came = self._came[:length], self._came[length:]
        return part

    def _ready(self, descriptor: int, to_write: bool = False) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT if to_write else select.POLLIN)
        while not poll.poll(1000 * self._clock.tick()):
            pass

    @abstractmethod
    def kill(self) -> None:
        """End it now, if it has not ended yet."""

    @abstractmethod
    def wait(self, seconds: float) -> int | None:
        """Its exit code, or minus the signal that ended it; None if it has not ended after so many seconds.
        Raises `Lost` if nobody can tell."""

    def end(self, patience: float = 0.0) -> int | None:
        """End it (after so many seconds in which it may end by itself) and leave nothing of it: its exit code,
        or None if it had to be killed. Raises `Lost`."""
        try:
            code = self.wait(patience)
            if code is None:
                self.kill()
                self.wait(ENDING_SECONDS)
            return code
        finally:
            self.used.close()
            for descriptor in (self.requests, self.answers):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            remove_folder(self.folder)


class Lost(Exception):
    """Nobody can tell how a process ended: the one that started it is gone."""


class Fresh(Process):
    """A process that was started for one submission."""

    def __init__(self, started: "subprocess.Popen[bytes]", folder: Path, pipes: tuple[int, int]) -> None:
        super().__init__(*pipes, folder, started.pid)
        self._started = started

    def kill(self) -> None:
        if sys.platform == "win32":
            self._started.kill()
        elif self._started.poll() is None:
            # Its session is its own: what it started and left there goes with it.
            with contextlib.suppress(OSError):
                os.killpg(self._started.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int | None:
        try:
            return self._started.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


class Blocking(Fresh):
    """The same where pipes cannot be waited for (Windows): at the end of the time the process is killed, which
    ends every wait for it."""

    @contextmanager
    def timed(self, clock: Clock) -> Generator[None]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.kill()

        timer = threading.Timer(min(clock.seconds, clock.rest, threading.TIMEOUT_MAX), expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, EOFError):
            if expired.is_set():
                raise Expired(whole=clock.rest < clock.seconds) from None
            raise
        finally:
            timer.cancel()

    def _ready(self, descriptor: int, to_write: bool = False) -> None:
        return


def in_words(code: int | None) -> str:
    """How a process ended that nobody killed; None if it lived on behind a closed pipe."""
    if code is None:
        return "it closed the way its answers take"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return ENDS.get(name, name)


ENDS = {
    "SIGSYS": "stopped for a call of the system that is not allowed",
    "SIGKILL": "killed, most likely for want of memory",
    "SIGSEGV": "it crashed: segmentation fault",
    "SIGBUS": "it crashed: bus error",
    "SIGABRT": "it crashed: aborted",
    "SIGFPE": "it crashed: arithmetic error",
    "SIGILL": "it crashed: illegal instruction",
    "SIGXCPU": "it used up the processor time of a process",
    "SIGXFSZ": "it wrote to a file more than is allowed",
}
