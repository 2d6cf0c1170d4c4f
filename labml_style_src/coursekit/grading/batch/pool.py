"""Many submissions on one machine: a process a core, each with a grader of its own.

    for result in grade_all(plan, handed_in, jobs=4): ...

The processes are ours and trusted; the student's code runs in children of theirs. One that dies nevertheless (the
system may end the largest when memory runs out) is replaced, its submission is tried once more, and if that goes
wrong too its result says so. If this process is killed, the others end by themselves.
"""

import contextlib
import multiprocessing
import signal
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from coursekit.course import CourseError, EnvironmentFault
from coursekit.grading.batch.archive import HandedIn
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.sandbox.clock import WALL_FACTOR
from coursekit.machine import cores, die_with_parent

# Beyond what a submission may take itself: a worker that is still busy then hangs.
PATIENCE_SECONDS = 120.0
# To import PyTorch twice and collect the checks.
START_SECONDS = 600.0
TRIES = 2


class Grades(Protocol):
    """What a worker does (`grade.Grader`)."""

    points: dict[str, float]

    @property
    def layers(self) -> tuple[str, ...]: ...

    def grade(self, handed: HandedIn) -> Result: ...

    def close(self) -> None: ...


class Opens(Protocol):
    """What a worker is made from (`grade.Plan`)."""

    @property
    def assignment(self) -> Assignment: ...

    def open(self) -> Grades: ...

    def blank(self, handed: HandedIn, points: dict[str, float], layers: Iterable[str]) -> Result: ...


@dataclass(frozen=True)
class Ready:
    """A worker's first message: its grader is open."""

    points: dict[str, float]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """The other first message: no grader can be opened, and no other worker could."""

    reason: str
    environment: bool


def serve(connection: Connection, plan: Opens) -> None:
    """A worker's life: grade what comes until nothing comes any more."""
    # Ctrl-C is for the process that the workers serve.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    try:
        grader = plan.open()
    except CourseError as error:
        connection.send(Refused(str(error), isinstance(error, EnvironmentFault)))
        return
    with contextlib.suppress(EOFError, OSError):
        connection.send(Ready(grader.points, grader.layers))
        while True:
            connection.send(grader.grade(connection.recv()))
    grader.close()


class Worker:
    """A process that grades, what it is busy with, and until when something must come from it."""

    def __init__(self, plan: Opens) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, plan), daemon=True)
        self.process.start()
        # Now its end is its own alone, and its death closes the pipe.
        theirs.close()
        self.ready: Ready | None = None
        self.handed: HandedIn | None = None
        self.until = time.monotonic() + START_SECONDS

    def give(self, handed: HandedIn, seconds: float) -> None:
        self.handed, self.until = handed, time.monotonic() + seconds
        with contextlib.suppress(OSError):
            # If it has died just now the pipe will say so.
            self.connection.send(handed)

    def end(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def dismiss(self) -> None:
        """Let it end by itself, now that nothing comes any more: it closes its sandbox."""
        self.process.join(5)
        self.end()


class Pool:
    """The workers, and the submissions that wait for one of them: never more than there are workers."""

    def __init__(self, plan: Opens, work: Iterable[HandedIn], jobs: int) -> None:
        self.plan, self.work, self.jobs = plan, iter(work), jobs
        limits = plan.assignment.limits
        self.seconds = PATIENCE_SECONDS + 2 * WALL_FACTOR * limits.submission_seconds
        self.workers: list[Worker] = []
        self.waiting: deque[HandedIn] = deque()
        self.lost: Counter[str] = Counter()

    def results(self) -> Iterator[Result]:
        """Each result when it is there."""
        while True:
            self._give()
            awaited = {each.connection: each for each in self.workers if each.handed or not each.ready}
            if not awaited:
                return
            rest = min(worker.until for worker in awaited.values()) - time.monotonic()
            for connection in wait(list(awaited), max(rest, 0)):
                yield from self._answer(awaited[connection])  # type: ignore[index]
            for worker in awaited.values():
                if worker.until < time.monotonic():
                    worker.process.kill()

    def _give(self) -> None:
        """Give work to every worker that has none, and start as many as there is work for."""
        while len(self.waiting) < self.jobs and (handed := next(self.work, None)):
            self.waiting.append(handed)
        for worker in self.workers:
            if worker.ready and not worker.handed and self.waiting:
                worker.give(self.waiting.popleft(), self.seconds)
        starting = sum(not worker.ready for worker in self.workers)
        for _ in range(min(self.jobs - len(self.workers), len(self.waiting) - starting)):
            self.workers.append(Worker(self.plan))

    def _answer(self, worker: Worker) -> Iterator[Result]:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._died(worker)
            return
        if isinstance(message, Refused):
            raise (EnvironmentFault if message.environment else CourseError)(message.reason)
        worker.until = float("inf")
        if isinstance(message, Ready):
            worker.ready = message
        else:
            worker.handed = None
            yield message

    def _died(self, worker: Worker) -> Iterator[Result]:
        worker.end()
        self.workers.remove(worker)
        handed = worker.handed
        if worker.ready is None or handed is None:
            code = worker.process.exitcode
            raise EnvironmentFault(
                f"a process of the grader's ended before it could begin (exit code {code})"
            )
        self.lost[handed.student] += 1
        if self.lost[handed.student] < TRIES:
            self.waiting.append(handed)
            return
        result = self.plan.blank(handed, worker.ready.points, worker.ready.layers)
        result.status = ERROR
        result.message = f"the grader's own process died on it {TRIES} times: is there enough memory?"
        yield result


def grade_all(plan: Opens, work: Iterable[HandedIn], jobs: int = 0) -> Generator[Result]:
    """The result of each submission, in the order in which they are done; `jobs` at a time (0: one a core).

    Raises `CourseError` if no grader can be opened. When it is closed or fails the workers end.
    """
    pool = Pool(plan, work, jobs or cores())
    try:
        yield from pool.results()
        for worker in pool.workers:
            worker.connection.close()
        for worker in pool.workers:
            worker.dismiss()
    finally:
        for worker in pool.workers:
            worker.end()
