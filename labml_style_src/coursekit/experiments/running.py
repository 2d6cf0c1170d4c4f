"""An experiment's runs: those that are missing are made, each is kept when it is done, and the last one completes
the results."""

import dataclasses
import datetime
import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from types import ModuleType
from typing import Any

from coursekit.course import CourseError, EnvironmentFault, Experiment
from coursekit.experiments import SIZES, Claim, Results, Run, Runs, Settings, as_json, load
from coursekit.files import write_text
from coursekit.machine import cores, machine, versions
from coursekit.processes import workers

SEEDS = 3
# How often the progress is looked at.
GLANCE_SECONDS = 0.2


def module(experiment: Experiment) -> ModuleType:
    """The experiment, imported. Raises `CourseError` if it lacks one of its functions."""
    return _imported(experiment.path, experiment.name)


def _imported(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiment_of_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    for wanted in ("plan", "run", "claims"):
        if not callable(getattr(found, wanted, None)):
            raise CourseError(f"{path} has no function {wanted}")
    return found


def perform(
    experiment: Experiment,
    size: str,
    *,
    seeds: int | None = None,
    jobs: int = 0,
    again: bool = False,
    progress: Callable[[float, int], None] = lambda done, of: None,
) -> Results:
    """Make the runs that the plan wants and that are not there yet, and write the results.

    `jobs` runs go on at once (0: one a core), each with one thread; a timed one has the machine to itself, and what
    runs on a GPU runs alone. `again` forgets what is there. `progress(done, of)` counts runs, and parts of them.
    Raises `CourseError` for a plan that cannot be run, `EnvironmentFault` if the machine is not made for the size.
    """
    if size == "full":
        needs_a_gpu()
    code = module(experiment)
    planned = plan(code, experiment, size, seeds or (1 if size == "quick" else SEEDS))
    kept = {} if again or size == "quick" else {key(run.settings): run for run in known(experiment, size)}
    runs = {n: kept[key(one)] for n, one in enumerate(planned) if key(one) in kept}
    todo = {n: one for n, one in enumerate(planned) if n not in runs}
    date = datetime.date.today().isoformat()

    def results(claims: Sequence[Claim] = ()) -> Results:
        done = Runs(runs[n] for n in sorted(runs))
        return Results(experiment.name, size, date, machine(), versions(), list(claims), done)

    there = len(runs)
    for n, run in _all(experiment, todo, jobs, lambda done: progress(there + done, len(planned))):
        runs[n] = run
        write_text(experiment.unfinished(size), _checked(results(), run))
    made = results()
    if not todo and experiment.results(size).exists():
        # Nothing new was measured: the date and the machine are those of then.
        made = dataclasses.replace(load(experiment.results(size)), runs=made.runs)
    made = dataclasses.replace(made, claims=claims(code, experiment, made.runs))
    write_text(experiment.results(size), as_json(made))
    if size != "quick":
        experiment.unfinished(size).unlink(missing_ok=True)
    return made


def plan(code: ModuleType, experiment: Experiment, size: str, seeds: int) -> list[Settings]:
    """What is to be run. Raises `CourseError` if there is no such size, or if a run has no seed or is there twice."""
    if size not in SIZES:
        raise CourseError(f"size is {size!r}: one of {', '.join(SIZES)} is wanted")
    try:
        planned = code.plan(size, range(seeds))
    except ValueError as error:
        raise CourseError(f"{experiment.name}: {error}") from None
    if any("seed" not in settings for settings in planned):
        raise CourseError(f"{experiment.path}: plan('{size}') has a run without a seed")
    if len({key(settings) for settings in planned}) < len(planned):
        raise CourseError(f"{experiment.path}: plan('{size}') has the same run twice")
    return planned


def key(settings: Settings) -> str:
    return repr(sorted(settings.items()))


def claims(code: ModuleType, experiment: Experiment, runs: Runs) -> list[Claim]:
    """What the runs say. Raises `CourseError` if the experiment says nothing."""
    found = code.claims(runs)
    if not found:
        raise CourseError(f"{experiment.path}: claims(runs) is empty")
    return found


def known(experiment: Experiment, size: str) -> Runs:
    """Every run that was kept, the newer ones last."""
    files = (experiment.results(size), experiment.unfinished(size))
    return Runs(run for path in files if path.exists() for run in load(path).runs)


def _checked(results: Results, run: Run) -> str:
    try:
        return as_json(results)
    except (TypeError, ValueError) as error:
        raise CourseError(f"the run {run.settings} measured what is no plain number: {error}") from None


def _all(
    experiment: Experiment, todo: dict[int, Settings], jobs: int, progress: Callable[[float], None]
) -> Iterator[tuple[int, Run]]:
    """The number of each run and what it gave, as they are done."""
    alone = {n for n, one in todo.items() if one.get("timed") or one.get("device") == "cuda"}
    beside = todo.keys() - alone
    context = multiprocessing.get_context("spawn")
    told: Any = context.SimpleQueue()
    shares: dict[int, float] = dict.fromkeys(todo, 0.0)
    for some, most in ((beside, min(jobs or cores(), len(beside))), (alone, 1)):
        if not some:
            continue
        arguments = experiment.path, experiment.name, told
        with workers(most, _begin, *arguments, one_thread=some is beside) as pool:
            waiting = {pool.submit(_run, n, todo[n]): n for n in sorted(some)}
            while waiting:
                ready, _ = wait(waiting, GLANCE_SECONDS, FIRST_COMPLETED)
                while not told.empty():
                    shares.update([told.get()])
                for future in ready:
                    n = waiting.pop(future)
                    yield n, future.result()
                    shares[n] = 1.0
                progress(sum(shares.values()))


def _begin(path: Path, name: str, told: Any) -> None:
    """In each process, once."""
    global _code, _told
    _code, _told = _imported(path, name), told


def _run(n: int, settings: Settings) -> Run:
    began = last = time.monotonic()

    def report(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > GLANCE_SECONDS:
            last = time.monotonic()
            _told.put((n, share))

    measured = _code.run(settings, report)
    return Run(settings, measured, round(time.monotonic() - began, 1))


_code: ModuleType
_told: Any


def needs_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentFault("--full is made for a CUDA device, and PyTorch sees none here")
