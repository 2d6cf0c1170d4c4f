"""Naming a mistake: only when the answers are equal, ties as a set."""

import pytest
from tests.coursekit.grading.tiny import with_change

from coursekit.course import Lesson
from coursekit.grading.bank import read_bank
from coursekit.grading.checking import Bank
from coursekit.grading.diagnosis import variant_submission
from coursekit.grading.exercise import run
from coursekit.grading.report import Report, explained
from coursekit.grading.submission import ExerciseError, Submission

pytestmark = pytest.mark.usefixtures("forked")


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


DROPPED = '''

def dropped(x):
    """Keep half of the numbers."""
    ### BEGIN SOLUTION
    return torch.nn.functional.dropout(x, 0.5)
    ### END SOLUTION
'''
DROPPED_CHECK = """

@pytest.mark.task("Dropout")
class TestDropped:
    def test_dropped(self, student, expect, draw):
        x = draw(50)
        noise = torch.rand(7)
        kept = torch.from_numpy(student.call("dropped", x))
        expect.close(kept.numpy(), torch.where(kept == 0, 0.0, 2 * x), what="kept")
"""
DROPPED_MISTAKE = '''

def dropped__unscaled(x):
    """You do not scale what you keep."""
    return dropped(x) / 2
'''


@pytest.mark.parametrize("boundary", [False, True])
def test_a_mistake_among_random_numbers_is_named_over_both_backends(lesson: Lesson, boundary: bool):
    for path, text in (
        (lesson.exercise, DROPPED),
        (lesson.checks, DROPPED_CHECK),
        (lesson.misconceptions, DROPPED_MISTAKE),
    ):
        path.write_text(path.read_text("utf-8") + text, "utf-8")
    unscaled = "torch.nn.functional.dropout(x, 0.5) * 0.5"
    text = lesson.exercise.read_text("utf-8").replace("torch.nn.functional.dropout(x, 0.5)", unscaled)
    report = run(lesson, Submission(text, "a", "a"), boundary=boundary, bank=Bank(lesson))
    assert named(report, "test_dropped") == ["dropped__unscaled"]


def test_a_variant_of_each_kind_is_named_from_a_process_of_its_own(lesson: Lesson):
    bank = Bank(lesson)
    # One of each target: an array of NumPy's, one of PyTorch's, an object with state.
    for known in {known.target: known for known in read_bank(lesson)}.values():
        report = run(lesson, variant_submission(lesson, known), boundary=True, bank=bank)
        assert known.name in [mistake.name for mistake in report.mistakes]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("None", "centre(tensor) returns None: is a return missing?"),
        ("{'b': 1}", "a is missing from the dict that centre(tensor) returns"),
        ("x[0]", "centre(tensor) returns an array of shape (5,), which the check cannot use (IndexError: "),
    ],
)
def test_an_answer_that_the_check_cannot_use_is_described(lesson: Lesson, answer: str, told: str):
    use = "student.call('centre', draw(3, 5))" + ("['a']" if "{" in answer else "[0, 0]")
    checks = lesson.checks.read_text("utf-8").replace("x = draw(1, 4)", use)
    lesson.checks.write_text(checks, "utf-8")
    report = run(lesson, with_change("return x - x.mean(axis=-1, keepdims=True)", f"return {answer}"))
    assert report.tasks[0].checks[1].message.startswith(told)


def test_an_entry_that_a_dict_lacks_is_named(lesson: Lesson):
    demand = "expect.close(student.call('centre', draw(3, 5)).get('w.bias'), 1.0, what='w.bias')"
    lesson.checks.write_text(lesson.checks.read_text("utf-8").replace("x = draw(1, 4)", demand), "utf-8")
    report = run(lesson, with_change("return x - x.mean(axis=-1, keepdims=True)", "return {'w': x}"))
    told = report.tasks[0].checks[1].message
    assert told == "w.bias is missing from the dict that centre(tensor) returns"
