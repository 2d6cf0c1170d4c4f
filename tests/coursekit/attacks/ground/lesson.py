"""The lesson that is attacked: an honest task before and after, and between them one that nobody can solve."""

import shutil
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.sandbox.limits import Limits
from coursekit.grading.submission import Submission

# What an attack leaves right; each submission begins with it.
HONEST = """import torch


def double(x):
    return 2 * x


"""

EXERCISE = '''"""# Ground

Two tasks.
"""

import torch


def double(x):
    """Twice `x`."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


def guess(x):
    """A number that was drawn with `x`."""
    ### BEGIN SOLUTION
    return 0.0
    ### END SOLUTION
'''

# `guess` stands for every expected value: it is drawn, never sent, and who knows it has stolen it.
CHECKS = """# {token}
import pytest


@pytest.mark.task("Twice")
class TestDouble:
    @pytest.mark.points(2)
    def test_double(self, student, expect, draw):
        x = draw(2, 3)
        expect.close(student.call("double", x), 2 * x, axes="row column", what="the double")


@pytest.mark.task("Guess")
class TestGuess:
    @pytest.mark.points(4)
    def test_guess(self, student, expect, draw):
        x, secret = draw(2, 3), draw(1)
        expect.close(student.call("guess", x), secret[0], what="the guess")


@pytest.mark.task("Twice again")
class TestAgain:
    @pytest.mark.points(1)
    def test_double(self, student, expect, draw):
        x = draw(4)
        expect.close(student.call("double", x), 2 * x, axes="entry", what="the double")
"""

MISCONCEPTIONS = '''"""{token}"""


def double__square(x):
    """You squared."""
    return x * x
'''

# Tight, so that an attack on them is over soon.
LIMITS = Limits(call_seconds=0.5, submission_seconds=6.0, memory_mb=256)
# What an attack on the clock takes: so much more than it may that a machine at work cannot blur the difference.
TOO_LONG = 4 * LIMITS.call_seconds
# What the honest part earns.
POINTS = 3


def write_lesson(root: Path, token: str) -> Lesson:
    """The lesson under `root`; `token` stands in its checks and misconceptions, where no child may read it."""
    lesson = Lesson(root, 1, "ground")
    shutil.rmtree(lesson.folder, ignore_errors=True)
    lesson.folder.mkdir(parents=True)
    lesson.exercise.write_text(EXERCISE, "utf-8")
    lesson.checks.write_text(CHECKS.replace("{token}", token), "utf-8")
    lesson.misconceptions.write_text(MISCONCEPTIONS.replace("{token}", token), "utf-8")
    return lesson


def handed_in(text: str, name: str = "ground.py") -> Submission:
    return Submission(text, name, "/nowhere/ground.py")
