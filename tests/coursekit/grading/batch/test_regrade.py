"""A class graded again: whose result differs and why, and nobody's is lost."""

import shutil

import pytest
from tests.coursekit.grading.batch.classes import files, scores
from tests.coursekit.grading.batch.fakes import grade_here

from coursekit.grading.batch.grade import Plan
from coursekit.grading.batch.regrade import regrade
from coursekit.grading.batch.result import ERROR
from coursekit.grading.batch.results import Results
from coursekit.grading.batch.run import Run
from coursekit.grading.batch.seeds import make_secret
from coursekit.grading.submission import ExerciseError


def test_graded_again_says_who_differs_and_why(lesson, submissions, tmp_path):
    out = tmp_path / "out"
    Run(lesson, submissions, out)(grade_here)
    seeds = {result.student: result.seed for result in Results(out).all()}
    assert regrade(lesson, submissions, out, grade_all=grade_here) == []
    # The checks become stricter: nobody passes this one any more.
    checks = lesson.checks.read_text("utf-8")
    lesson.checks.write_text(checks.replace("x - x.mean(), axes", "x + x.mean(), axes"), "utf-8")
    before = files(out)

    def stopped(plan, work):
        yield next(grade_here(plan, work))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        regrade(lesson, submissions, out, grade_all=stopped)
    assert {name: data for name, data in files(out).items() if not name.startswith(".regrade")} == before
    changes = regrade(lesson, submissions, out, grade_all=grade_here)
    assert [(change.student, change.before.score, change.after.score) for change in changes] == [
        ("ann", 8, 7),
        ("bob", 6, 5),
    ]
    assert changes[0].checks == ("Centre each row: one row: passed, now failed",)
    assert scores(out)["ann"] == 7
    assert "ann,tiny,7,8" in (out / "grades.csv").read_text()
    assert {result.student: result.seed for result in Results(out).all()} == seeds
    assert not (out / ".regrade").exists()
    # What it left is what a first run would have made.
    anew = tmp_path / "anew"
    anew.mkdir()
    shutil.copy2(out / "secret", anew)
    Run(lesson, submissions, anew)(grade_here)
    assert files(anew) == files(out)


def test_a_grader_that_fails_takes_nobody_s_result_away(lesson, submissions, tmp_path):
    out = tmp_path / "out"
    Run(lesson, submissions, out)(grade_here)
    before = files(out)

    def failing(plan, work):
        for result in grade_here(plan, work):
            result.status, result.score = ERROR, 0.0
            yield result

    assert regrade(lesson, submissions, out, grade_all=failing) == []
    assert files(out) == before


def test_graded_again_only_with_the_same_secret(lesson, submissions, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ExerciseError, match="nothing was graded in"):
        regrade(lesson, submissions, out, grade_all=grade_here)
    Run(lesson, submissions, out)(grade_here)
    (out / "secret").rename(tmp_path / "moved")
    with pytest.raises(ExerciseError, match="is not there: name it with --secret"):
        regrade(lesson, submissions, out, grade_all=grade_here)
    make_secret(tmp_path / "other")
    with pytest.raises(ExerciseError, match="another secret"):
        regrade(lesson, submissions, out, secret=tmp_path / "other", grade_all=grade_here)
    assert regrade(lesson, submissions, out, secret=tmp_path / "moved", grade_all=grade_here) == []


def test_the_plan_is_the_whole_batch_s(lesson, submissions, tmp_path):
    plans = []

    def noted(plan, work):
        plans.append(plan)
        return grade_here(plan, work)

    Run(lesson, submissions, tmp_path / "out")(noted)
    [plan] = plans
    assert isinstance(plan, Plan)
    assert plan.secret.hex() == (tmp_path / "out" / "secret").read_text().strip()
