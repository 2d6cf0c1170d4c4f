from pathlib import Path

import pytest
from tests.coursekit.grading.tiny import write_lesson

from coursekit.course import Lesson


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    """A lesson of its own for each test."""
    return write_lesson(tmp_path)
