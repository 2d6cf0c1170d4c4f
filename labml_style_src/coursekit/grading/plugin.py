"""The pytest plugin of the lessons: `pytest lessons/06_alibi --submission work/alibi.py`.

It is loaded by every pytest run of an environment that has this package, so it imports next to nothing and
leaves every test alone that is not a lesson's `test_exercise.py`.
"""

import inspect
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from coursekit.course import LESSON_FOLDER, Lesson

if TYPE_CHECKING:
    from coursekit.grading.attempt import Attempt, Bench
    from coursekit.grading.draw import Draw
    from coursekit.grading.expect import Expect
    from coursekit.grading.verbs import Student

RECORD = "coursekit"
BENCHES = pytest.StashKey[dict[Path, "Bench"]]()
LESSON = pytest.StashKey["Lesson | None"]()
ATTEMPT = pytest.StashKey["Attempt"]()
LEDGER = pytest.StashKey["Ledger"]()
# All that a check may ask for beside its own parameters, so that it can be run without pytest too.
FIXTURES = ("student", "expect", "draw")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("coursekit", "exercises of the course")
    group.addoption(
        "--submission", metavar="PATH", help="the .py or .ipynb to check, instead of the solution"
    )
    group.addoption("--boundary", action="store_true", help="run the submission in a second process")
    group.addoption("--seed", type=int, default=0, help="seed of the inputs that the checks draw (0)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "task(title, hints=[...]): a class of checks, one task of an exercise")
    config.addinivalue_line("markers", "points(n): what a check is worth (1)")
    config.stash[BENCHES] = {}
    config.stash[LEDGER] = Ledger()
    config.pluginmanager.register(config.stash[LEDGER], "coursekit-ledger")


def lesson_of(path: Path) -> Lesson | None:
    """The lesson whose checks this file holds, if it does."""
    match = LESSON_FOLDER.fullmatch(path.parent.name)
    lesson = Lesson(path.parents[2], int(match["number"]), match["slug"]) if match else None
    return lesson if lesson and lesson.checks == path and lesson.exercise.exists() else None


def lesson_of_item(item: pytest.Item) -> Lesson | None:
    """The same for a test; looked up once, since every hook asks."""
    if LESSON not in item.stash:
        item.stash[LESSON] = lesson_of(item.path)
    return item.stash[LESSON]


def task_of(item: pytest.Item) -> dict[str, Any]:
    """The task that a check belongs to. Raises `pytest.UsageError` if its class is not marked as one."""
    mark = item.get_closest_marker("task")
    owner = getattr(item, "cls", None)
    if owner is None or mark is None or not mark.args:
        wanted = '@pytest.mark.task("title", hints=[...])'
        raise pytest.UsageError(f"{item.nodeid}: a check stands in a class marked {wanted}")
    return {"key": owner.__name__, "title": mark.args[0], "hints": list(mark.kwargs.get("hints", []))}


def check_fixtures(item: pytest.Item) -> None:
    """Raises `pytest.UsageError` if a check needs more of pytest than runs of many submissions give it."""
    if not isinstance(item, pytest.Function):
        return
    known = {*FIXTURES, *getattr(getattr(item, "callspec", None), "params", {})}
    # pytest lists `request` for every test, also for those that do not ask for it.
    known |= {"request"} - set(inspect.signature(item.function).parameters)
    if others := sorted(set(item.fixturenames) - known):
        wanted = f"{', '.join(FIXTURES)} and its own parameters"
        raise pytest.UsageError(f"{item.nodeid}: a check asks for {wanted}, not for {', '.join(others)}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse what cannot be checked before anything runs."""
    lessons = set()
    for item in items:
        if lesson := lesson_of_item(item):
            lessons.add(lesson)
            task_of(item)
            check_fixtures(item)
    if not config.getoption("--submission"):
        return
    if len(lessons) != 1:
        found = "none" if not lessons else ", ".join(sorted(lesson.slug for lesson in lessons))
        raise pytest.UsageError(f"--submission belongs to one lesson; the tests chosen are of {found}")
    _bench(config, lessons.pop())


def _bench(config: pytest.Config, lesson: Lesson) -> "Bench":
    from coursekit.course import CourseError
    from coursekit.grading.attempt import Bench
    from coursekit.grading.backends import InProcess, SecondProcess
    from coursekit.grading.checking import Bank
    from coursekit.grading.submission import read_submission

    benches = config.stash[BENCHES]
    if lesson.checks not in benches:
        given = config.getoption("--submission")
        path = config.invocation_params.dir / given if given else lesson.exercise
        try:
            submission = read_submission(path)
        except CourseError as error:
            raise pytest.UsageError(str(error)) from None
        backend = (SecondProcess if config.getoption("--boundary") else InProcess)(submission)
        benches[lesson.checks] = Bench(lesson.slug, submission, backend, Bank(lesson))
    return benches[lesson.checks]


def pytest_unconfigure(config: pytest.Config) -> None:
    for bench in config.stash.get(BENCHES, {}).values():
        bench.backend.close()


def _attempt(item: pytest.Item) -> "Attempt":
    if ATTEMPT not in item.stash:
        lesson = lesson_of_item(item)
        if lesson is None or not isinstance(item, pytest.Function):
            pytest.fail("the fixtures student, expect and draw belong to a lesson's test_exercise.py", False)
        from coursekit.grading.attempt import Attempt
        from coursekit.grading.cases import case_of

        seed = item.config.getoption("--seed") or 0
        item.stash[ATTEMPT] = Attempt(case_of(item), _bench(item.config, lesson).backend, seed)
    return item.stash[ATTEMPT]


@pytest.fixture
def student(request: pytest.FixtureRequest) -> "Student":
    """The submission's code, reached by `call`, `new` and `vjp`."""
    return _attempt(request.node).student


@pytest.fixture
def expect(request: pytest.FixtureRequest) -> "Expect":
    """What the check demands: `close`, `equal`, `unpack`, `names`, `true`, `raises`."""
    return _attempt(request.node).expect


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> "Draw":
    """Random inputs: `draw(2, 3)`, `draw.integers(0, 9, 2, 3)`."""
    return _attempt(request.node).draw


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """One thread: the checks' tensors are tiny, and threads would only wait for each other."""
    torch = sys.modules.get("torch")
    if torch is None or lesson_of_item(item) is None:
        return (yield)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return (yield)
    finally:
        torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    if lesson_of_item(pyfuncitem) is None:
        return (yield)
    attempt = _attempt(pyfuncitem)
    try:
        attempt.begin()
        return (yield)
    except (Exception, pytest.fail.Exception) as error:
        attempt.failed(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the verdict to the report, and say to a student in words what pytest would show as our code."""
    report = yield
    lesson = lesson_of_item(item)
    if lesson is None or not (report.when == "call" or report.failed):
        return report
    from coursekit.grading import feedback

    record = _bench(item.config, lesson).record(_attempt(item), report.outcome)
    # In this process pytest has caught what was printed.
    record["printed"] = record["printed"] or feedback.printed(report.capstdout + report.capstderr)
    report.user_properties.append((RECORD, record))
    if report.failed and (text := feedback.failure_text(record)):
        if item.config.getoption("--submission"):
            report.longrepr, report.sections = text, []
        else:
            # Without a submission the reference itself fails: its author needs pytest's own account as well.
            report.sections.append(("What a student would read", text))
    return report


class Ledger:
    """The verdicts of one run, in order, wherever the checks ran (pytest-xdist sends their reports here)."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        records: Any = [value for name, value in report.user_properties if name == RECORD]
        if report.when != "teardown":
            self.records += records

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        """A submission's points, task by task."""
        if not (self.records and config.getoption("--submission")):
            return
        from coursekit.grading import feedback, report

        terminalreporter.section("points")
        terminalreporter.write_line(feedback.points_text(report.build(self.records)))
