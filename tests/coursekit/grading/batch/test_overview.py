"""Counting a class."""

import pytest
from tests.coursekit.grading.batch.made_up import report, result

from coursekit.grading.batch.overview import overview
from coursekit.grading.batch.result import ERROR, NOT_RUN, UNREADABLE
from coursekit.grading.report import FAILED, Case, Check, Mistake, Report, Task


@pytest.mark.parametrize(
    ("score", "most", "band"),
    [(0, 10, "0 to 9 %"), (0.99, 10, "0 to 9 %"), (1, 10, "10 to 19 %"), (9.99, 10, "90 to 99 %"), (10, 10, "100 %"),
     (0.7, 1, "70 to 79 %"), (2.9, 10, "20 to 29 %"), (0.3, 3, "10 to 19 %"), (11, 10, "100 %"), (0, 0, "0 to 9 %")],
)  # fmt: skip
def test_a_score_has_its_band(score: float, most: float, band: str):
    found = overview([result("ada", score, max_score=most)]).bands
    assert [each.title for each in found if each.results] == [band]


def test_only_graded_submissions_make_the_distribution():
    others = [result(f"s{status}", 0.0, status=status) for status in (ERROR, NOT_RUN, UNREADABLE)]
    page = overview([result("ada", 2.0), result("ben", 4.0), result("eve", 6.0), result("fay", 6.0), *others])
    assert (page.average, page.middle, page.graded) == (4.5, 5.0, 4)
    assert sum(len(band.results) for band in page.bands) == 4
    assert [each.status for each in page.unfinished] == [ERROR, UNREADABLE, NOT_RUN]
    assert page.tasks[0].all == 4


def test_tasks_and_checks_are_counted():
    page = overview([result("ada"), result("ben")])
    assert [(task.title, task.solved, task.not_done, task.all) for task in page.tasks] == [
        ("Slopes", 2, 0, 2), ("Bias", 0, 0, 2), ("Cache", 0, 2, 2)
    ]  # fmt: skip
    assert [(check.title, check.solved) for check in page.tasks[0].checks] == [("slopes", 2)]


def test_a_tie_of_misconceptions_accuses_nobody_for_certain():
    tie = [Mistake("f__one", "1"), Mistake("f__two", "2")]
    cases = [Case("a", mistakes=tie), Case("b", mistakes=tie[:1])]
    torn = result("ben", report=Report("x", [Task("A", "A", [], [Check("test_a", 1, FAILED, cases[:1])])]))
    sure = result("ada", report=Report("x", [Task("A", "A", [], [Check("test_a", 1, FAILED, cases)])]))
    found = {each.name: (each.students, each.maybe) for each in overview([torn, sure]).misconceptions}
    assert found == {"f__one": (["ada"], ["ben"]), "f__two": ([], ["ada", "ben"])}


def test_what_struck_most_comes_first_and_each_student_once():
    other = Report(
        "x", [Task("A", "A", [], [Check("test_a", 1, FAILED, [Case(mistakes=[Mistake("a__b", "!")])])])]
    )
    page = overview([result("eve", report=other), result("ben"), result("ada"), result("joe")])
    assert [each.name for each in page.misconceptions] == ["alibi__positive", "a__b"]
    assert page.misconceptions[0].students == ["ada", "ben", "joe"]
    assert (page.misconceptions[0].title, page.misconceptions[0].target) == ("Positive", "alibi")
    twice = report()
    twice.tasks.append(twice.tasks[1])
    assert overview([result("ada", report=twice)]).misconceptions[0].students == ["ada"]


def test_the_weakest_sandbox_comes_first():
    found = overview([
        result("ada", sandbox=["clock", "uid", "seccomp"]),
        result("ben", sandbox=["clock"]),
        result("eve", sandbox=[], status=UNREADABLE),
    ]).walls  # fmt: skip
    assert [(wall.layers, wall.students) for wall in found] == [
        (["clock"], ["ben"]), (["clock", "uid", "seccomp"], ["ada"])
    ]  # fmt: skip
    assert found[1].missing == ["namespaces", "rlimits", "landlock"]


def test_the_latest_come_first():
    found = [
        result("ada", late_days=1),
        result("ben"),
        result("eve", late_days=3),
        result("abe", late_days=1),
    ]
    assert [each.student for each in overview(found).late] == ["eve", "abe", "ada"]
