"""A class graded on a Dask cluster: `attn grade SLUG SUBMISSIONS --out OUT --dask tcp://HOST:8786`.

Every worker process has the course and keeps one grader in this module: its zygote, the collected checks, the bank.
To a worker go a student's bytes and seed, never the batch's secret; back comes one JSON text. The master saves the
results as they come, so that a run that stops goes on where it was.

A worker that dies loses nothing: Dask gives its work to another. Whoever was on several workers that died is a
suspect, and so are those beside them: they are tried again at the end, one at a time, and who then still brings
workers down has the status `error`.

Workers are trusted, and so is everybody who can reach them, for Dask pickles: start scheduler and workers with TLS,
or on a network of their own. A worker whose walls would let a submission reach that network refuses to grade.
"""

import atexit
import contextlib
import itertools
import json
import platform
import queue
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from coursekit.course import CourseError, EnvironmentFault, find_course
from coursekit.grading.batch.archive import HandedIn
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.batch.grade import Grader, Plan, task_points
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.checking import Checks

CONNECT_SECONDS = 10.0
# For so long a cluster may be without any worker: they are restarted, or wait in the queue of a supercomputer.
WORKER_SECONDS = 120.0
# Submissions sent for each thread of a worker, so that none waits for the master.
AHEAD = 2
# Any of these keeps a submission from the cluster's own ports.
NO_NETWORK = ("namespaces", "landlock", "seccomp")


@dataclass(frozen=True)
class Setup:
    """What a worker has to know once: where the master's course is and its lesson, the rules, the seed of the
    bank, and what must be the same there (`versions_of`)."""

    root: str
    slug: str
    assignment: Assignment
    bank_seed: int = field(repr=False)
    off: tuple[str, ...]
    required: bool
    versions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Known(Plan):
    """A worker's plan: of all that the secret gives, the seed of the bank and that of whom it grades now."""

    bank: int = 0
    seeds: dict[str, int] = field(default_factory=dict)

    def seed(self, student: str) -> int:
        return self.seeds[student]

    def seed_of_bank(self) -> int:
        return self.bank


def grade_on_cluster(
    address: str,
    plan: Plan,
    work: Iterable[HandedIn],
    *,
    connect_seconds: float = CONNECT_SECONDS,
    worker_seconds: float = WORKER_SECONDS,
) -> Generator[Result]:
    """The result of each student in `work`, in the order in which they end.

    Raises `EnvironmentFault` if Dask is not installed, nobody answers at `address`, the workers have another course
    than this one, or the cluster is lost on the way: what came until then is right.
    """
    with connected(address, connect_seconds) as client:
        batch = ClusterBatch(client, address, plan, worker_seconds)
        batch.check()
        suspects: list[HandedIn] = []
        yield from batch.grade(work, suspects)
        for suspect in suspects:
            culprits: list[HandedIn] = []
            yield from batch.grade([suspect], culprits)
            for culprit in culprits:
                yield batch.failed(culprit, "every worker that graded this submission died")


@contextlib.contextmanager
def connected(address: str, seconds: float) -> Generator[Any]:
    """A client of the cluster."""
    try:
        from distributed import Client
    except ImportError:
        raise EnvironmentFault("Dask is not installed: pip install 'annotated-attention[cluster]'") from None
    try:
        client = Client(address, timeout=seconds, set_as_default=False, name="attn-grade")
    except (OSError, ValueError, TypeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise EnvironmentFault(
            f"no Dask scheduler answers at {address} within {seconds:g} s ({why})"
        ) from None
    try:
        yield client
    finally:
        # Whatever happened, what is still waiting there is given up.
        with contextlib.suppress(Exception):
            client.close(timeout=seconds)


class ClusterBatch:
    """The master's side of one batch."""

    def __init__(self, client: Any, address: str, plan: Plan, worker_seconds: float) -> None:
        self.client = client
        self.address = address
        self.plan = plan
        self.worker_seconds = worker_seconds
        lesson, versions = plan.lesson, tuple(versions_of(plan).items())
        self.setup = Setup(
            *(str(lesson.root), lesson.slug, plan.assignment, plan.seed_of_bank()),
            *(plan.off, plan.required, versions),
        )

    def check(self) -> None:
        """Wait for a worker, and see that all that are there have this course. (One that comes later looks for
        itself before its first submission.)"""
        self._threads()
        try:
            found = self.client.run(differences, self.setup)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:300]
            raise EnvironmentFault(f"the workers of {self.address} cannot grade: {why}") from None
        for worker, problem in found.items():
            if problem:
                raise EnvironmentFault(f"the worker {worker} {problem}")

    def grade(self, work: Iterable[HandedIn], suspects: list[HandedIn]) -> Iterator[Result]:
        """The results as they come; to `suspects` come those whose workers died, one after another."""
        rest = iter(work)
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        running: dict[str, tuple[HandedIn, Any]] = {}
        try:
            while True:
                ahead = max(AHEAD * self._threads() - len(running), 0)
                for handed in itertools.islice(rest, ahead):
                    # A name of its own: what another batch computed is not this one's.
                    key = f"{self.setup.slug}-{uuid.uuid4().hex}"
                    seed = self.plan.seed(handed.student)
                    future = self.client.submit(grade_here, self.setup, handed, seed, key=key, pure=False)
                    running[key] = handed, future
                    future.add_done_callback(ended.put)
                if not running:
                    return
                with contextlib.suppress(queue.Empty):
                    handed, future = running.pop(ended.get(timeout=1.0).key)
                    result = self._result(future, handed)
                    if result is None:
                        suspects.append(handed)
                    else:
                        yield result
        finally:
            for _, future in running.values():
                future.release()

    def failed(self, handed: HandedIn, message: str) -> Result:
        """The result of one whom nobody could grade: the next run tries again."""
        result = self.plan.blank(handed, self._points, ())
        result.status, result.message = ERROR, message
        return result

    @cached_property
    def _points(self) -> dict[str, float]:
        return task_points(Checks(self.plan.lesson))

    def _result(self, future: Any, handed: HandedIn) -> Result | None:
        """What became of a submission; None if its workers died."""
        from distributed import KilledWorker

        try:
            answer = json.loads(future.result(timeout=CONNECT_SECONDS))
        except KilledWorker:
            return None
        except Exception as error:
            if future.status == "cancelled":
                self._lost(error)
            return self.failed(handed, f"{type(error).__name__}: {error}"[:300])
        if fault := answer.get("fault"):
            raise EnvironmentFault(fault)
        return Result.from_dict(answer["result"])

    def _threads(self) -> int:
        """How many submissions the workers can take at a time. Waits until there is one."""
        until = time.monotonic() + self.worker_seconds
        while True:
            try:
                threads = sum(self.client.nthreads().values())
            except Exception as error:
                self._lost(error)
            if threads:
                return threads
            if time.monotonic() > until:
                told = f"{self.address} has had no worker for {self.worker_seconds:g} s"
                raise EnvironmentFault(f"{told}; {AGAIN}")
            time.sleep(0.2)

    def _lost(self, error: BaseException) -> NoReturn:
        raise EnvironmentFault(
            f"the scheduler at {self.address} is gone ({type(error).__name__}); {AGAIN}"
        ) from None


AGAIN = "what was graded is kept: run the same command again"


def versions_of(plan: Plan) -> dict[str, str]:
    """What decides a result, by a name for people: it must be the same on every machine of a batch."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"course": plan.code, "torch": version("torch"), "numpy": version("numpy"), "Python": python}


# The rest runs on the workers.

# The grader of this process, and what it was made for.
_graders: list[tuple[Setup, Grader]] = []
_one_at_a_time = threading.Lock()


def differences(setup: Setup) -> str:
    """What is wrong with this worker's course; empty if nothing is."""
    try:
        here = versions_of(plan_here(setup))
    except CourseError as error:
        return f"has no such lesson: {error}"
    for name, wanted in setup.versions:
        if here[name] != wanted:
            shown = "" if name == "course" else f": {here[name]}, not {wanted}"
            return f"has another {name} than this machine{shown}"
    return ""


def grade_here(setup: Setup, handed: HandedIn, seed: int) -> str:
    """The result of one submission, graded by this worker's own grader, as JSON."""
    # Dask may give a worker several threads; a grader has one.
    with _one_at_a_time:
        try:
            grader = grader_here(setup)
        except CourseError as error:
            return json.dumps({"fault": f"the worker on {platform.node()} {error}"})
        seeds = grader.plan.seeds  # type: ignore[attr-defined]
        seeds.clear()
        seeds[handed.student] = seed
        return json.dumps({"result": grader.grade(handed).as_dict()})


def grader_here(setup: Setup) -> Grader:
    """This process's grader for a batch, made when its first submission comes.

    Raises `CourseError` if this machine cannot grade it, or must not."""
    for known, grader in _graders:
        if known == setup:
            return grader
    close_graders()
    if problem := differences(setup):
        raise EnvironmentFault(problem)
    grader = plan_here(setup).open()
    if not set(NO_NETWORK) & set(grader.layers):
        grader.close()
        wanted = " or ".join(NO_NETWORK)
        raise EnvironmentFault(f"would let submissions reach the cluster: no {wanted} there")
    _graders.append((setup, grader))
    return grader


def plan_here(setup: Setup) -> Known:
    """The plan with this machine's own copy of the lesson."""
    root = Path(setup.root)
    lesson = find_course(root if root.is_dir() else None).lesson(setup.slug)
    rules = {"off": setup.off, "required": setup.required}
    return Known(lesson, setup.assignment, b"", **rules, bank=setup.bank_seed)


@atexit.register
def close_graders() -> None:
    """End this process's graders; their zygotes end with them."""
    while _graders:
        _graders.pop()[1].close()
