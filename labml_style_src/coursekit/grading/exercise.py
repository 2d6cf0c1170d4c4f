"""A student's way through a lesson's exercise: start, check, solution.

path = start(lesson, Path("work"))             the stub, never over existing work
report = check(lesson)                         points, the first wrong index, mistakes, hints
text = solution(lesson)                        after a first attempt
"""

import io
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from coursekit.course import Lesson
from coursekit.grading import feedback, progress, stub
from coursekit.grading.checking import Bank, Bench
from coursekit.grading.plugin import BENCH, LEDGER
from coursekit.grading.report import Report, build
from coursekit.grading.stub import make_stub
from coursekit.grading.submission import ExerciseError, Submission, read_submission

__all__ = ["ExerciseError", "check", "make_stub", "other_half", "run", "solution", "start", "submission_path"]


def start(lesson: Lesson, work_dir: Path | None = None, notebook: bool = False) -> Path:
    """Put the stub into the work folder (`work/` of the course) and return its path.

    Raises `ExerciseError` if the file exists already: a student's work is never written over.
    """
    text = make_stub(lesson.exercise.read_text("utf-8"), str(lesson.exercise))
    path = (work_dir or lesson.root / "work") / f"{lesson.slug}{'.ipynb' if notebook else '.py'}"
    stub.write_new(path, stub.stub_notebook(text, lesson.slug) if notebook else text)
    return path


def submission_path(lesson: Lesson, work_dir: Path) -> Path:
    """The student's file in the work folder; of a `.py` and an `.ipynb` the one that was saved last.

    Raises `ExerciseError` if there is none.
    """
    found = [path for suffix in (".py", ".ipynb") if (path := work_dir / f"{lesson.slug}{suffix}").exists()]
    if not found:
        raise ExerciseError(
            f"nothing to check in {work_dir}: `attn start {lesson.slug}` puts the exercise there"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def check(
    lesson: Lesson,
    submission: Path | None = None,
    *,
    work_dir: Path | None = None,
    hint: bool = False,
    seed: int = 0,
    boundary: bool = True,
) -> Report:
    """Check a submission (by default the one in the work folder), remember the attempt, and with `hint`
    reveal the next hint of the first task that is not solved.

    By default the student's code runs in a second process, so that nothing it does (an endless loop,
    `exit()`, a crash) ends this one. Raises `ExerciseError` if there is no submission or it cannot be read.
    """
    work_dir = work_dir or lesson.root / "work"
    path = submission or submission_path(lesson, work_dir)
    bank = Bank(lesson)
    report = run(lesson, read_submission(path), seed=seed, boundary=boundary, bank=bank)
    bank.close()
    report.submission, report.asked = str(path), hint
    other = other_half(path)
    if submission is None and other.exists():
        report.notes.insert(0, f"{feedback.shown_path(str(other))} is older and was not checked")
    known = progress.load(work_dir, lesson.slug)
    # An untouched stub is no attempt.
    known.attempts += report.attempted
    known.best, known.points = max(known.best, report.earned), report.points
    task = report.next_task
    if hint and task is not None and not report.problem:
        known.hints[task.key] = min(known.hints.get(task.key, 0) + 1, len(task.hints))
    for task in report.tasks:
        task.shown = min(known.hints.get(task.key, 0), len(task.hints))
    report.attempts = known.attempts
    progress.save(work_dir, lesson.slug, known)
    return report


def other_half(path: Path) -> Path:
    """The `.ipynb` beside a `.py`, and the other way round."""
    return path.with_suffix({".py": ".ipynb"}.get(path.suffix, ".py"))


def solution(lesson: Lesson, work_dir: Path | None = None) -> str:
    """The course's own solution. Raises `ExerciseError` before a first attempt was checked."""
    if not progress.load(work_dir or lesson.root / "work", lesson.slug).attempts:
        raise ExerciseError(
            f"the solution is shown after a first attempt: fill in a task and run `attn check {lesson.slug}`"
        )
    return stub.without_markers(lesson.exercise.read_text("utf-8"))


def run(
    lesson: Lesson,
    submission: Submission,
    *,
    seed: int = 0,
    boundary: bool = False,
    bank: Bank | None = None,
) -> Report:
    """Run a lesson's checks on a submission, without remembering anything. Mistakes are named from `bank`.

    Raises `ExerciseError` if the lesson's checks themselves cannot be run.
    """
    if not lesson.checks.exists():
        raise ExerciseError(f"lesson '{lesson.slug}' has no {lesson.checks.name}")
    runner, complaint = Runner(Bench(lesson, submission, boundary, bank)), io.StringIO()
    try:
        with fresh_lesson_modules(), redirect_stderr(complaint):
            code = pytest.main(
                [*ARGUMENTS, f"--seed={seed}", f"--rootdir={lesson.root}", str(lesson.checks)], [runner]
            )
    finally:
        runner.bench.close()
    if runner.interrupted:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not runner.records:
        reason = runner.problem or complaint.getvalue().strip() or code
        raise ExerciseError(f"the checks of '{lesson.slug}' cannot be run: {reason}")
    report = build(runner.records)
    report.submission, report.seed = submission.name, seed
    return report


# Only this plugin, whatever else is installed; nothing written beside the lesson; and of pytest's own plugins
# none that prints or that searches the whole heap after each run.
BLOCKED = ("terminal", "cacheprovider", "logging", "unraisableexception", "threadexception", "faulthandler")
ARGUMENTS = [
    "--disable-plugin-autoload",
    *("-p", "coursekit"),
    *(part for name in BLOCKED for part in ("-p", f"no:{name}")),
    *("-o", "addopts="),
    "--import-mode=importlib",
]


class Runner:
    """Takes part in a pytest run: brings the submission, keeps the records and what went wrong."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.records: list[dict[str, Any]] = []
        self.problem = ""
        self.interrupted = False

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[BENCH] = self.bench
        self.records = config.stash[LEDGER].records
        # Nobody sees pytest's own account of a failure: have it made as cheaply as can be.
        config.option.tbstyle = "native"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problem = self.problem or report.longreprtext

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # A failed collection comes here too, as a class of pytest's own.
        self.interrupted = excinfo.type is KeyboardInterrupt

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.problem = self.problem or str(excinfo.value)


@contextmanager
def fresh_lesson_modules() -> Generator[None]:
    """Let pytest import the checks anew: it knows a module by its path below the root of a course."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "lessons"]

    saved = {name: sys.modules.pop(name) for name in ours()}
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(saved)
