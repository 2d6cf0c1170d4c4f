from pathlib import Path

import pytest
from tests.coursekit.grading.batch.classes import CLASS
from tests.coursekit.grading.tiny import write_lesson

from coursekit.course import Lesson


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    """A lesson of its own for each test; `tmp_path / "in"` and `tmp_path / "out"` are free."""
    return write_lesson(tmp_path / "course")


@pytest.fixture
def submissions(tmp_path: Path) -> Path:
    """What the class of five handed in."""
    folder = tmp_path / "in"
    folder.mkdir()
    for student, text in CLASS.items():
        (folder / f"{student}.py").write_text(text, "utf-8")
    return folder
