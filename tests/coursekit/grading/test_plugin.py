"""`pytest lessons/01_tiny --submission ...` as a user runs it, and runs elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.course import Lesson


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith(("PYTEST", "COV_"))]:
        del environment[name]
    # The plugins of a student's environment: this one.
    command = [sys.executable, "-m", "pytest", "--disable-plugin-autoload", "-p", "coursekit"]
    command += ["-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


@pytest.fixture
def wrong(tmp_path: Path, lesson: Lesson) -> Path:
    (tmp_path / "mine.py").write_text(EXERCISE.replace("axis=-1", "axis=0"), "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "options", [(), ("--boundary",), ("-p", "xdist", "-n", "2")], ids=["in process", "boundary", "xdist"]
)
def test_a_submission_is_told_in_words_and_points(wrong: Path, options: tuple[str, ...]):
    done = run(wrong, "lessons/01_tiny", "--submission", "mine.py", *options)
    assert done.returncode == 1
    assert "centred: row 0, column 0 is " in done.stdout
    assert "You took the mean of each column." in done.stdout
    assert "✗ Centre each row: 0 of 3 points, 0 of 2 checks" in done.stdout
    assert "✓ A mean with a memory: 1 of 1 point, 1 of 1 check" in done.stdout
    assert "tiny: 5 of 8 points, 5 of 7 checks" in done.stdout
    # None of our own code in a student's terminal.
    assert not re.search(r"\.py:\d", done.stdout)
    assert "coursekit" not in done.stdout.replace("coursekit-", "")


def test_without_a_submission_the_solution_is_checked_and_authors_get_all(lesson: Lesson, tmp_path: Path):
    done = run(tmp_path, "lessons")
    assert done.returncode == 0
    assert "points" not in done.stdout
    lesson.exercise.write_text(EXERCISE.replace("axis=-1", "axis=0"), "utf-8")
    done = run(tmp_path, "lessons")
    assert "test_exercise.py:" in done.stdout
    assert "What a student would read" in done.stdout


def test_pytest_finds_the_plugin_by_itself(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--submission" in done.stdout


def test_a_submission_needs_one_lesson_and_a_file(wrong: Path):
    (wrong / "test_other.py").write_text("def test_other(): pass\n", "utf-8")
    done = run(wrong, "test_other.py", "--submission", "mine.py")
    assert done.returncode == 4
    assert "--submission belongs to one lesson; the tests chosen are of none" in done.stdout + done.stderr
    done = run(wrong, "lessons", "--submission", "nothing.py")
    assert done.returncode == 4
    assert "there is no file" in done.stdout + done.stderr


def test_elsewhere_nothing_is_imported_and_nothing_changes(tmp_path: Path):
    (tmp_path / "test_other.py").write_text(
        "import sys\n\n"
        "def test_light():\n"
        "    heavy = {'torch', 'numpy', 'rich', 'coursekit.grading.checking'}\n"
        "    assert not heavy & set(sys.modules)\n\n"
        "def test_fixture(student):\n    pass\n",
        "utf-8",
    )
    done = run(tmp_path, "test_other.py")
    assert "1 passed, 1 error" in done.stdout
    assert "the fixtures student, expect and draw belong to a lesson's test_exercise.py" in done.stdout
