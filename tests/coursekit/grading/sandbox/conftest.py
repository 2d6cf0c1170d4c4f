import sys
from collections.abc import Generator

import pytest
from tests.coursekit.grading.sandbox.walled import Walled

from coursekit.grading.sandbox import LAYERS, Host, Limits, open_sandbox

LIMITS = Limits(call_seconds=0.5, submission_seconds=60)


@pytest.fixture(scope="session")
def walled() -> Generator[Walled]:
    if sys.platform != "linux":
        pytest.skip("the walls are Linux's")
    walled = Walled()
    yield walled
    walled.close()


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
