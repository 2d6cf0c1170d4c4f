from pathlib import Path

import pytest
from tests.coursekit.grading.tiny import write_lesson

from coursekit.course import Lesson


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    """A lesson of its own for each test; `tmp_path / "in"` and `tmp_path / "out"` are free."""
    return write_lesson(tmp_path / "course")
