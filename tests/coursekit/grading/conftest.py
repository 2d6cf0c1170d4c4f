import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.coursekit.grading.tiny import write_lesson

from coursekit.course import Lesson
from coursekit.grading.sandbox import LAYERS, Host, Limits, open_sandbox

LIMITS = Limits(call_seconds=2, submission_seconds=60)


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    """A lesson of its own for each test."""
    return write_lesson(tmp_path)


@pytest.fixture(scope="session")
def host() -> Generator[Host]:
    """All the walls that this machine has. To open them takes seconds: PyTorch is imported."""
    if sys.platform != "linux":
        pytest.skip("a zygote needs Linux")
    with open_sandbox(limits=LIMITS) as host:
        yield host


@pytest.fixture(scope="session")
def open_host() -> Generator[Host]:
    """A zygote whose children have no wall around them but the clock."""
    if sys.platform != "linux":
        pytest.skip("a zygote needs Linux")
    with open_sandbox(LAYERS[1:], LIMITS) as host:
        yield host
