"""A small lesson for the tests: a NumPy task, a differentiable one, and a class with state."""

from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.submission import Submission

EXERCISE = '''"""# Tiny

An exercise for the tests of the grader.
"""

import torch


def centre(x):
    """Subtract each row's mean from the row."""
    ### BEGIN SOLUTION
    return x - x.mean(axis=-1, keepdims=True)
    ### END SOLUTION


def weights(scores, is_causal=False):
    """The softmax of `scores` (`t s`) over the keys."""
    if scores.ndim != 2:
        ### BEGIN SOLUTION
        raise ValueError(f"scores has {scores.ndim} axes, wanted 2")
        ### END SOLUTION
    ### BEGIN SOLUTION
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores).bool().triu(1), -torch.inf)
    return scores.softmax(-1)
    ### END SOLUTION


class RunningMean:
    """The mean of all that was added."""

    def __init__(self):
        self.count = 0
        self.total = 0.0

    def add(self, x):
        """Add a number and return the mean so far."""
        ### BEGIN SOLUTION
        self.count += 1
        self.total += x
        return self.total / self.count
        ### END SOLUTION
'''

MISCONCEPTIONS = '''"""Wrong variants."""


def centre__all(x):
    """You took the mean of the whole array."""
    return x - x.mean()


def centre__columns(x):
    """You took the mean of each column."""
    return x - x.mean(axis=0, keepdims=True)


def weights__queries(scores, is_causal=False):
    """Your softmax runs over the queries.
    Which sums should be one?"""
    return weights(scores.transpose(-1, -2)).transpose(-1, -2) if not is_causal else weights(scores, True)


def weights__past(scores, is_causal=False):
    """Your mask hides the past."""
    return weights(scores.flip(0, 1), is_causal).flip(0, 1)


def weights__any_rank(scores, is_causal=False):
    """You accept scores of any rank."""
    return weights(scores.reshape(-1, scores.shape[-1]), is_causal).reshape(scores.shape)


class RunningMean__last(RunningMean):
    """You return what was added last."""

    def add(self, x):
        super().add(x)
        return x
'''

CHECKS = """import numpy as np
import pytest
import torch


def reference(scores, is_causal=False):
    hidden = torch.ones_like(scores).bool().triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) if is_causal else scores.softmax(-1)


@pytest.mark.task("Centre each row", hints=["A row runs along the last axis.", "keepdims=True keeps it."])
class TestCentre:
    @pytest.mark.points(2)
    @pytest.mark.parametrize("kind", ["numpy", "torch"])
    def test_rows(self, student, expect, draw, kind):
        x = draw(3, 5)
        expected = x - x.mean(-1, keepdim=True)
        given = x.numpy() if kind == "numpy" else x
        expect.close(student.call("centre", given), expected, axes="row column", what="centred")

    def test_one_row(self, student, expect, draw):
        x = draw(1, 4)
        expect.close(student.call("centre", x), x - x.mean(), axes="row column", what="centred")


@pytest.mark.task("Weights", hints=["Look at the axis."])
class TestWeights:
    def test_softmax(self, student, expect, draw):
        scores = draw(3, 7)
        expect.close(student.call("weights", scores), reference(scores), axes="query key", what="weights")

    def test_causal(self, student, expect, draw):
        scores = draw(5, 5)

        def explain(index):
            return "it lies in the future" if index["key"] > index["query"] else None

        actual = student.call("weights", scores, is_causal=True)
        expect.close(actual, reference(scores, True), axes="query key", what="weights", explain=explain)

    def test_gradient(self, student, expect, draw):
        scores, grad = draw(3, 7).requires_grad_(), draw(3, 7)
        (expected,) = torch.autograd.grad(reference(scores), scores, grad)
        (actual,) = student.vjp("weights", (scores,), grad)
        expect.close(actual, expected, axes="query key", what="gradient", factor=3)

    def test_refuses(self, student, expect, draw):
        expect.raises("ValueError", student.call, "weights", draw(2, 3, 4), match="scores")


@pytest.mark.task("A mean with a memory")
class TestMean:
    def test_mean(self, student, expect):
        mean = student.new("RunningMean")
        for count, (x, expected) in enumerate([(1.0, 1.0), (2.0, 1.5), (6.0, 3.0)], start=1):
            expect.close(mean.call("add", x), expected, what="mean")
            expect.equal(mean.get("count"), count, what="count")
"""


def write_lesson(root: Path) -> Lesson:
    """The lesson's files under `root`."""
    lesson = Lesson(root, 1, "tiny")
    lesson.folder.mkdir(parents=True)
    for path, text in (
        (lesson.exercise, EXERCISE),
        (lesson.misconceptions, MISCONCEPTIONS),
        (lesson.checks, CHECKS),
    ):
        path.write_text(text, "utf-8")
    return lesson


def handed_in(text: str) -> Submission:
    return Submission(text, "tiny.py", "/somewhere/tiny.py")


def with_change(old: str, new: str) -> Submission:
    """The solution with one change."""
    assert old in EXERCISE
    return handed_in(EXERCISE.replace(old, new))
