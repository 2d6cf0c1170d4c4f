"""The gate of an exercise finds what would make its checks unfair or blind."""

import re
from pathlib import Path

from tests.coursekit.grading.tiny import EXERCISE, with_change

from coursekit.course import Lesson
from coursekit.grading.checking import Checks
from coursekit.grading.validate import steady, validate


def test_a_sound_lesson_has_no_problems(lesson: Lesson, tmp_path: Path):
    rewrite = tmp_path / "rewrite.py"
    rewrite.write_text(
        EXERCISE.replace("scores.softmax(-1)", "scores.exp() / scores.exp().sum(-1)[:, None]"), "utf-8"
    )
    assert validate(lesson, [rewrite, rewrite], seeds=range(3)) == []


def test_each_kind_of_problem_is_named(lesson: Lesson, tmp_path: Path):
    rewrite = tmp_path / "rewrite.py"
    rewrite.write_text(EXERCISE.replace("self.count += 1", "self.count += 2"), "utf-8")
    lesson.exercise.write_text(EXERCISE + "\n\ndef extra():\n    return 3\n", "utf-8")
    checks = lesson.checks.read_text("utf-8")
    checks += "\n    def test_extra(self, student, expect):\n        expect.equal(student.call('extra'), 3)\n"
    lesson.checks.write_text(checks, "utf-8")
    with lesson.misconceptions.open("a", encoding="utf-8") as file:
        file.write('\n\ndef centre__right(x):\n    """A."""\n    return x - x.mean(-1)[:, None]\n')
    problems = validate(lesson, [rewrite])
    assert "the stub passes test_extra" in problems
    assert any(each.startswith("rewrite.py (seed 0) fails test_mean: mean is") for each in problems)
    assert "centre__right passes every check" in problems
    assert "1 other solutions, 2 wanted: checks may be too narrow" in problems
    assert len(problems) == 5


def test_a_solution_that_fails_now_and_then_is_found(lesson: Lesson):
    rounds = "scores = scores.float().double() if scores[0, 0] > 0 else scores\n    return scores.softmax(-1)"
    unlucky = with_change("return scores.softmax(-1)", rounds)
    first, *_, last = steady(Checks(lesson), unlucky, range(12))
    assert re.match(r"tiny.py \(seed \d+\) fails test_softmax: weights: ", first)
    assert re.match(r"tiny.py fails on \d+ seeds in all", last)
