from collections.abc import Generator
from pathlib import Path

import pytest
from tests.coursekit.grading.tiny import write_lesson

from coursekit.course import Lesson
from coursekit.grading import backends
from coursekit.grading.backends import CHECK_LIMITS
from coursekit.grading.sandbox import LAYERS, FreshHost, Host, Limits, open_sandbox

LIMITS = Limits(call_seconds=2, submission_seconds=60)


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    """A lesson of its own for each test."""
    return write_lesson(tmp_path)


@pytest.fixture(scope="session")
def host() -> Generator[Host]:
    """All the walls that this machine has. To open them takes seconds: PyTorch is imported."""
    with open_sandbox(limits=LIMITS) as host:
        yield host


@pytest.fixture(scope="session")
def zygote(host: Host) -> Host:
    """The same, where a zygote forks the processes."""
    if isinstance(host, FreshHost):
        pytest.skip(f"no zygote here: {host.missing['seccomp']}")
    return host


@pytest.fixture(scope="session")
def open_zygote(zygote: Host) -> Generator[Host]:
    """Another zygote, whose children have no wall around them but the clock."""
    with open_sandbox(LAYERS[1:], LIMITS) as host:
        yield host


@pytest.fixture(scope="session")
def own_machine() -> Generator[Host]:
    """A host with a student's own limits and no walls, which forks where it can: another process that imports
    PyTorch takes seconds."""
    with open_sandbox(LAYERS[1:], CHECK_LIMITS) as host:
        yield host


@pytest.fixture
def forked(own_machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second processes come from there unless a test says otherwise."""
    monkeypatch.setattr(backends, "FreshHost", lambda limits: own_machine)
