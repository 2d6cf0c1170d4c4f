"""The cases of a lesson's checks, collected by pytest once and run as often as there are submissions."""

import io
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import pytest

from coursekit.course import Lesson
from coursekit.grading.attempt import Skipped
from coursekit.grading.plugin import FIXTURES, task_of
from coursekit.grading.submission import ExerciseError


@dataclass(frozen=True)
class CheckCase:
    """One case of a check. `key` is its name within the file, from which its inputs are drawn; `task` has the
    key, title and hints of its task; `function` makes what is to be called with fixtures and `arguments`."""

    key: str
    task: dict[str, Any]
    name: str
    case: str
    points: float
    function: Callable[[], Callable[..., None]]
    fixtures: tuple[str, ...]
    arguments: dict[str, Any]

    def run(self, **fixtures: Any) -> None:
        """Call the check. Whatever it demands and does not get comes as an exception."""
        wanted = {name: fixtures[name] for name in self.fixtures}
        try:
            self.function()(**wanted, **self.arguments)
        except pytest.skip.Exception as error:
            raise Skipped(str(error)) from None
        except pytest.fail.Exception as error:
            raise AssertionError(str(error)) from None


def case_of(item: pytest.Function) -> CheckCase:
    """A test that pytest collected, without pytest."""
    task, points = task_of(item), item.get_closest_marker("points")
    arguments = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    owner: Any = item.cls
    name = item.originalname
    return CheckCase(
        key=item.nodeid.rpartition(f"{item.path.name}::")[2],
        task=task,
        name=name,
        case=item.name.removeprefix(name)[1:-1],
        points=points.args[0] if points else 1,
        function=lambda: getattr(owner(), name),
        fixtures=tuple(each for each in FIXTURES if each in item.fixturenames),
        arguments=arguments,
    )


# Only this plugin, whatever else is installed; nothing written beside the lesson; and of pytest's own plugins
# none that prints.
BLOCKED = ("terminal", "cacheprovider", "logging", "unraisableexception", "threadexception", "faulthandler")
ARGUMENTS = [
    "--disable-plugin-autoload",
    *("-p", "coursekit"),
    *(part for name in BLOCKED for part in ("-p", f"no:{name}")),
    *("-o", "addopts="),
    "--import-mode=importlib",
]


class Collector:
    """Takes part in a pytest run that collects and runs nothing; keeps the cases and what went wrong."""

    def __init__(self) -> None:
        self.cases: list[CheckCase] = []
        self.problem = ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not self.problem:
            self.cases = [case_of(item) for item in session.items if isinstance(item, pytest.Function)]
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problem = self.problem or report.longreprtext

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.problem = self.problem or str(excinfo.value)


def collect(lesson: Lesson) -> list[CheckCase]:
    """The cases of a lesson's checks, in file order. Raises `ExerciseError` if they cannot be run."""
    if not lesson.checks.exists():
        raise ExerciseError(f"lesson '{lesson.slug}' has no {lesson.checks.name}")
    collector, complaint = Collector(), io.StringIO()
    with fresh_lesson_modules(), redirect_stderr(complaint):
        code = pytest.main([*ARGUMENTS, f"--rootdir={lesson.root}", str(lesson.checks)], [collector])
    if not collector.cases:
        reason = collector.problem or complaint.getvalue().strip() or code
        raise ExerciseError(f"the checks of '{lesson.slug}' cannot be run: {reason}")
    return collector.cases


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
