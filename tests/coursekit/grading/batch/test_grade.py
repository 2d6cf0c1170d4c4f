"""One grader for many submissions: what a result says, and when it is still that of a submission."""

import dataclasses

import pytest
from tests.coursekit.grading.batch.fakes import grade_here
from tests.coursekit.grading.tiny import EXERCISE, write_lesson

from coursekit.course import EnvironmentFault
from coursekit.grading.batch import grade
from coursekit.grading.batch.archive import HandedIn
from coursekit.grading.batch.assignment import Assignment, Late
from coursekit.grading.batch.grade import Plan
from coursekit.grading.batch.result import ERROR, GRADED, NOT_RUN, UNREADABLE, Result
from coursekit.grading.stub import make_stub

SECRET = bytes(range(32))
WRONG = EXERCISE.replace("x.mean(axis=-1, keepdims=True)", "x.mean()")
# The tasks of this lesson have no attention; its functions may call one all the same.
FUSED = EXERCISE.replace("import torch\n", "import torch\nfrom torch.nn import functional as F\n").replace(
    "    return scores.softmax(-1)",
    "    F.scaled_dot_product_attention(*torch.ones(3, 1, 2, 2))\n    return scores.softmax(-1)",
)
HIDDEN = FUSED.replace("F.scaled_dot_product_attention", "getattr(F, 'scaled_dot_' + 'product_attention')")
SCRATCH = FUSED.replace("    F.scaled", "    # ").replace(
    "import functional as F\n",
    "import functional as F\n\nF.scaled_dot_product_attention(*torch.ones(3, 1, 2, 2))\n",
)


def handed(text: str, student: str = "jane", **more) -> HandedIn:
    return HandedIn(student, (), "tiny.py", text.encode(), **more)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_lesson(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="module")
def grader(tiny):
    """One grader for the whole file, as for a class."""
    with Plan(tiny, Assignment("tiny", fused="fail"), SECRET).open() as opened:
        yield opened


def test_a_right_submission_has_all_points_and_says_how_it_was_graded(grader):
    result = grader.grade(handed(EXERCISE))
    assert (result.status, result.score, result.max_score, result.earned) == (GRADED, 8, 8, 8)
    assert (result.student, result.slug, result.submission) == ("jane", "tiny", "tiny.py")
    assert result.sandbox == list(grader.layers)
    assert result.seed == str(grader.plan.seed("jane"))
    assert (result.events, result.evidence, result.message) == ([], [], "")
    assert Result.from_dict(result.as_dict()) == result


def test_a_mistake_is_named_and_costs_its_points(grader):
    result = grader.grade(handed(WRONG))
    assert result.score == 6
    assert [mistake.name for mistake in result.report.mistakes] == ["centre__all"]


def test_the_stub_earns_nothing(grader):
    result = grader.grade(handed(make_stub(EXERCISE)))
    assert (result.status, result.score) == (GRADED, 0)
    assert not result.report.attempted


@pytest.mark.parametrize(
    ("text", "status", "message", "event"),
    [
        ("import os\nos._exit(0)", NOT_RUN, "ended by itself (exit code 0)", "while the file was loaded"),
        ("def f(:", NOT_RUN, "tiny.py is not valid Python", None),
        (" \n", UNREADABLE, "tiny.py is empty", None),
        (EXERCISE.replace("self.count += 1", "import os; os._exit(3)"), GRADED, "", "in add: the process"),
    ],
    ids=["ends", "syntax", "empty", "ends later"],
)
def test_what_goes_wrong_is_said(grader, text, status, message, event):
    result = grader.grade(handed(text))
    assert result.status == status
    assert message in result.message
    assert result.max_score == 8
    assert result.score == (7 if status == GRADED else 0)
    assert [each for each in result.events if event and event in each] == result.events
    assert bool(result.events) is bool(event)


def test_what_could_not_be_read_keeps_its_reason(grader):
    result = grader.grade(HandedIn("jane", problem="\x1b[31mthe zip is damaged"))
    assert (result.status, result.message) == (UNREADABLE, "\\x1b[31mthe zip is damaged")


def test_a_fault_of_the_graders_own_is_a_result_and_the_next_one_is_graded(grader, monkeypatch):
    host, done = grader.host, []

    def fail(*_, **__):
        raise ZeroDivisionError("of ours")

    def opened(*_):
        done.append("opened")
        return host

    with monkeypatch.context() as patch:
        patch.setattr(grader.checks, "run", fail)
        patch.setattr(host, "close", lambda: done.append("closed"))
        patch.setattr(grade, "open_sandbox", opened)
        result = grader.grade(handed(EXERCISE))
    assert (result.status, result.score, result.max_score) == (ERROR, 0, 8)
    assert result.message.startswith("ZeroDivisionError: of ours\ngrade.py:")
    assert "test_grade.py" in result.message
    # No path of this machine.
    assert "/" not in result.message
    assert done == ["closed", "opened"]
    assert grader.grade(handed(EXERCISE)).score == 8


@pytest.mark.parametrize("text", [FUSED, HIDDEN], ids=["in the source", "only seen while it ran"])
def test_the_task_that_calls_a_ready_made_attention_earns_nothing(grader, text):
    if text is HIDDEN and not grader.layers[1:]:
        pytest.skip("nothing listens without a zygote")
    result = grader.grade(handed(text))
    assert result.report.earned == 8
    assert (result.status, result.earned, result.score) == (GRADED, 4, 4)
    assert result.evidence[-1] == "'Weights' earns no points for it"
    assert any("scaled_dot_product_attention" in each for each in result.evidence[:-1])


def test_scratch_work_at_the_top_costs_nothing(grader):
    result = grader.grade(handed(SCRATCH))
    assert result.score == 8
    assert result.evidence == []


def test_as_a_note_it_costs_nothing(tiny):
    plan = Plan(tiny, Assignment("tiny", fused="note"), SECRET)
    [result] = grade_here(plan, [handed(FUSED)])
    assert result.score == 8
    assert "calls F.scaled_dot_product_attention" in result.evidence[0]


def test_weights_and_lateness_make_the_score(tiny):
    from datetime import UTC, datetime, timedelta

    due = datetime(2026, 12, 1, tzinfo=UTC)
    rules = Assignment("tiny", due, late=Late(per_day=0.1), weights={"TestCentre": 10, "TestMean": 0.5})
    late = handed(WRONG, when=due + timedelta(hours=30))
    [result] = grade_here(Plan(tiny, rules, SECRET), [late])
    assert (result.max_score, result.earned, result.late_days, result.score) == (14.5, 7.8333, 2, 6.2667)


def test_where_a_layer_is_required_and_missing_nothing_opens(tiny, monkeypatch):
    closed = []

    class Bare:
        layers = ("clock",)
        missing = dict.fromkeys(("namespaces", "rlimits", "uid", "landlock"), "not here")

        def close(self):
            closed.append(self)

    monkeypatch.setattr(grade, "open_sandbox", lambda *_: Bare())
    plan = Plan(tiny, Assignment("tiny"), SECRET, required=True)
    with pytest.raises(
        EnvironmentFault, match=r"lacks namespaces \(not here\); .* seccomp \(unknown\)\. Nothing was"
    ):
        plan.open()
    assert len(closed) == 1


def test_a_key_changes_with_all_that_a_result_depends_on(tmp_path):
    from datetime import UTC, datetime, timedelta

    lesson = write_lesson(tmp_path)
    rules = Assignment("tiny", datetime(2026, 12, 1, tzinfo=UTC))
    plan = Plan(lesson, rules, SECRET)
    mine = handed(EXERCISE)
    late = rules.due + timedelta(days=1)
    keys = [
        plan.key(mine),
        plan.key(handed(EXERCISE + "#")),
        plan.key(handed(EXERCISE, "john")),
        plan.key(dataclasses.replace(mine, problem="damaged")),
        plan.key(dataclasses.replace(mine, when=late)),
        Plan(lesson, rules, SECRET[::-1]).key(mine),
        Plan(lesson, dataclasses.replace(rules, fused="fail"), SECRET).key(mine),
        Plan(lesson, dataclasses.replace(rules, weights={"TestMean": 2}), SECRET).key(mine),
        Plan(lesson, dataclasses.replace(rules, late=Late(per_day=0.5)), SECRET).key(mine),
    ]
    checks = lesson.checks.read_text("utf-8")
    lesson.checks.write_text(checks.replace("draw(1, 4)", "draw(1, 5)"), "utf-8")
    keys.append(Plan(lesson, rules, SECRET).key(mine))
    assert len(set(keys)) == len(keys)
    # What does not count changes nothing: a comment in the checks, another minute of the same day.
    lesson.checks.write_text(checks + "# a comment\n", "utf-8")
    again = Plan(lesson, rules, SECRET)
    assert again.key(mine) == keys[0]
    assert again.key(dataclasses.replace(mine, when=late - timedelta(minutes=1))) == keys[4]


def test_the_order_of_a_class_changes_no_result(tiny):
    plan = Plan(tiny, Assignment("tiny"), SECRET)
    work = [
        handed(WRONG, "ann"),
        handed(EXERCISE, "bob"),
        handed(make_stub(EXERCISE), "cem"),
        handed(WRONG, "dee"),
    ]
    forth = {result.student: result for result in grade_here(plan, work)}
    back = {result.student: result for result in grade_here(plan, reversed(work))}
    assert forth == back


def test_a_submission_beside_which_the_sandbox_dies_is_asked_again(grader, monkeypatch):
    lost = []

    class Lost(grade.SecondProcess):
        def close(self):
            super().close()
            self.lost = len(lost) < 1
            lost.append(self.lost)

    monkeypatch.setattr(grade, "SecondProcess", Lost)
    result = grader.grade(handed(EXERCISE))
    assert (result.status, result.score, lost) == (GRADED, 8, [True, False])
    lost[:] = []
    monkeypatch.setattr(Lost, "close", lambda self: lost.append(setattr(self, "lost", True)))
    grader.grade(handed(EXERCISE))
    assert len(lost) == 2
