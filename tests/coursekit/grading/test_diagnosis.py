"""Naming a mistake: only when the answers are equal, ties as a set."""

import pytest
from tests.coursekit.grading.tiny import with_change

from coursekit.course import Lesson
from coursekit.grading.checking import Bank
from coursekit.grading.diagnosis import read_bank
from coursekit.grading.exercise import run
from coursekit.grading.report import Report, explained
from coursekit.grading.submission import ExerciseError, Submission


def checked(lesson: Lesson, submission: Submission) -> Report:
    return run(lesson, submission, bank=Bank(lesson))


def named(report: Report, name: str) -> list[str]:
    return [mistake.name for check in report.checks if check.name == name for mistake in check.mistakes]


def test_the_bank_is_read_in_order_with_its_sentences(lesson: Lesson):
    bank = read_bank(lesson)
    assert [known.target for known in bank] == [
        "centre",
        "centre",
        "weights",
        "weights",
        "weights",
        "RunningMean",
    ]
    assert bank[2].sentence == "Your softmax runs over the queries. Which sums should be one?"
    lesson.misconceptions.unlink()
    assert read_bank(lesson) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            'def nothing__wrong():\n    """A."""\n',
            "misconceptions.py:1: nothing__wrong: exercise.py has no nothing",
        ),
        ("def centre__wrong(x):\n    return x\n", "centre__wrong has no docstring"),
    ],
)
def test_a_bank_that_does_not_fit_is_refused(lesson: Lesson, text: str, problem: str):
    lesson.misconceptions.write_text(text, "utf-8")
    with pytest.raises(ExerciseError, match=problem):
        read_bank(lesson)


def test_a_mistake_written_differently_is_named(lesson: Lesson):
    report = checked(
        lesson, with_change("x.mean(axis=-1, keepdims=True)", "x.sum(0, keepdims=True) / len(x)")
    )
    # PyTorch's sum knows `keepdims` too: both cases show the same mistake.
    assert named(report, "test_rows") == ["centre__columns"]
    assert named(report, "test_one_row") == ["centre__columns"]


def test_another_mistake_in_the_same_function_is_not_named(lesson: Lesson):
    report = checked(lesson, with_change("return scores.softmax(-1)", "return scores.softmax(-1) + 1e-3"))
    assert not report.passed
    assert report.mistakes == []


def test_a_mistake_in_an_object_with_state_is_named(lesson: Lesson):
    report = checked(lesson, with_change("return self.total / self.count", "return 1.0 * x"))
    assert named(report, "test_mean") == ["RunningMean__last"]


def test_what_is_not_raised_is_compared_by_the_answer(lesson: Lesson):
    accepting = with_change("if scores.ndim != 2:", "if scores.ndim == 99:")
    assert named(checked(lesson, accepting), "test_refuses") == ["weights__any_rank"]
    # Accepting them with another answer is another mistake.
    other = Submission(accepting.text.replace("return scores.softmax(-1)", "return 2 * scores"), "a", "a")
    assert named(checked(lesson, other), "test_refuses") == []


def test_an_exception_is_compared_by_type_and_message(lesson: Lesson):
    lesson.misconceptions.write_text(
        'def centre__divides(x):\n    """You divide by 0."""\n    return 1 / 0\n', "utf-8"
    )
    report = checked(lesson, with_change("x - x.mean(axis=-1, keepdims=True)", "2 / 0"))
    assert named(report, "test_rows") == ["centre__divides"]
    report = checked(lesson, with_change("x - x.mean(axis=-1, keepdims=True)", "{}[0]"))
    assert named(report, "test_rows") == []


def test_the_stub_names_nothing(lesson: Lesson):
    report = checked(lesson, with_change("x - x.mean(axis=-1, keepdims=True)", "x.nothing"))
    assert report.mistakes == []


def test_checks_of_the_same_mistake_share_it_over_tasks(lesson: Lesson):
    # A plain assertion is diagnosed by all answers of the check.
    lesson.checks.write_text(
        lesson.checks.read_text("utf-8").replace(
            'expect.close(student.call("centre", x), x - x.mean(), axes="row column", what="centred")',
            'assert student.call("centre", x)[0, 0] != 0',
        ),
        "utf-8",
    )
    report = checked(lesson, with_change("axis=-1", "axis=0"))
    assert named(report, "test_one_row") == ["centre__columns"]


def test_ties_are_told_apart_by_other_cases_or_kept():
    assert explained([["a", "b"], ["a"], []]) == [["a"], ["a"], []]
    assert explained([["a", "b"], ["b", "a"]]) == [["a", "b"], ["b", "a"]]
    assert explained([["a"], ["b"]]) == [["a"], ["b"]]
    assert explained([]) == []
