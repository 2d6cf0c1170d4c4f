"""`attn new`: pieces that are whole from the start."""

import subprocess
import sys

import pytest

from coursekit import scaffold
from coursekit.course import Course, CourseError, environment_of


def test_a_second_lesson_follows_the_first_and_begins_like_it(small_course):
    first = small_course.lesson("gated").notebook
    text = first.read_text("utf-8").replace("import torch\n", "import torch\n\nSTYLE = 1\n", 1)
    first.write_text(text.replace("# %%\nimport torch", "# %%\nINSTALL = 1\n\n# %%\nimport torch"), "utf-8")
    made = scaffold.new(small_course, "two_words")
    course = Course(small_course.root)
    lesson = course.lesson("two_words")
    assert course.problems() == []
    assert sorted(made) == sorted(lesson.pieces())
    assert (lesson.number, lesson.title) == (2, "Two words")
    assert "# %%\nINSTALL = 1\n\n# %%\nimport torch\n\nSTYLE = 1\n" in lesson.notebook.read_text("utf-8")
    assert not any(
        "@" in path.read_text("utf-8").replace("@pytest", "").replace(" @ ", "") for path in made[:1]
    )


@pytest.mark.parametrize(
    ("slug", "number", "reason"),
    [
        ("Gated", None, "is no slug"),
        ("1st", None, "is no slug"),
        ("gated", None, "there is a lesson 'gated' already"),
        ("other", 1, "number 01 is taken by 'gated'"),
        ("other", 100, "wanted 1 to 99"),
        ("other", 0, "wanted 1 to 99"),
    ],
)
def test_what_cannot_be_made_is_refused(small_course, slug, number, reason):
    with pytest.raises(CourseError, match=reason):
        scaffold.new(small_course, slug, number)


def test_a_file_that_is_there_is_not_overwritten(small_course):
    path = small_course.root / "tests" / "annotated_attention" / "test_other.py"
    path.write_text("mine\n", "utf-8")
    with pytest.raises(CourseError, match="exists already"):
        scaffold.new(small_course, "other")
    assert path.read_text("utf-8") == "mine\n"


def test_its_proof_and_its_checks_pass_and_its_style_is_clean(small_course):
    lesson = small_course.lesson("gated")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(lesson.test),
        str(lesson.folder),
    ]
    done = subprocess.run(
        command, cwd=small_course.root, env=environment_of(small_course), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    python = [str(path) for path in lesson.pieces() if path.suffix == ".py"]
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *python],
        cwd=small_course.root,
        capture_output=True,
        text=True,
    )
    assert ruff.returncode == 0, ruff.stdout
