import sys
from collections.abc import Generator

import pytest
from tests.coursekit.grading.sandbox.walled import Walled


@pytest.fixture(scope="session")
def walled() -> Generator[Walled]:
    if sys.platform != "linux":
        pytest.skip("the walls are Linux's")
    walled = Walled()
    yield walled
    walled.close()
