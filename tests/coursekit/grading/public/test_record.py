"""What can be written down of a check says the same as the check; what cannot is refused."""

import numpy as np
import pytest
import torch
from tests.coursekit.grading.public.cases import RIGHT, OneCase, recorded, same_words, student

from coursekit.grading.public.record import NotPublic, record


def without(old: str, new: str) -> str:
    assert old in RIGHT
    return RIGHT.replace(old, new)


def test_an_answer_is_judged_with_its_options_and_remarks():
    def check(student, expect, draw):
        x = draw(3, 5)

        def explain(index):
            return f"row {index['row']} is the last" if index["row"] == 2 else None

        expect.close(student.call("double", x), 2 * x, axes="row column", what="doubled", explain=explain)

    all_wrong, late = same_words(
        check,
        without("return 2 * x", "return x"),
        without("return 2 * x", "x = 2 * x; x[2] += 1; return x"),
    )
    assert all_wrong.startswith("doubled: row 0, column 0 is ")
    assert late.endswith("(5 of 15 entries are wrong): row 2 is the last")


def test_parts_slices_shapes_and_dtypes_of_answers_are_judged():
    def check(student, expect, draw):
        x = draw(4, 3)
        one, other = expect.unpack(student.call("pair", x), "one", "other")
        expect.close(one[1:, ..., 0], x[1:, 0], what="one")
        expect.equal(other.shape, (4, 3), what="the shape")
        expect.equal(str(other.dtype), "float64", what="the dtype")
        found = student.call("parts", x)
        expect.close(found["second"], x + 1, what="second")
        expect.equal(student.call("word", 3)[:4], "abab", what="the beginning")

    told = same_words(
        check,
        without("return x, -x", "return x"),
        without("return x, -x", "return 2 * x, -x"),
        without("return x, -x", "return x, -x[0]"),
        without("return x, -x", "return x, -x.float()"),
        without('"second"', '"other"'),
        without('"ab" * n', '"ba" * n'),
    )
    assert told[0] == "the result is an array of shape (4, 3), expected a tuple of 2: (one, other)"
    assert told[4] == "second is missing from the dict that parts(tensor) returns"
    assert told[5] == "the beginning is the text 'baba', expected 'abab'"


def test_a_missing_attribute_is_told_as_the_check_tells_it():
    def strict(student, expect, draw):
        expect.equal(student.call("double", draw(3)).shape, (3,), what="the shape")

    def lenient(student, expect, draw):
        expect.equal(getattr(student.call("double", draw(3)), "shape", None), (3,), what="the shape")

    wrong = without("return 2 * x", "return [2]")
    assert same_words(strict, wrong)[0].startswith(
        "double(tensor) returns a list (2), which the check cannot"
    )
    assert same_words(lenient, wrong, lenient=True) == ["the shape is None, expected (3,)"]


def test_truth_values_and_none_are_judged():
    def check(student, expect, draw):
        expect.equal(student.call("positive", 2.0), True, what="positive(2)")
        expect.equal(student.call("nothing", 2.0), None, what="nothing(2)")

    told = same_words(check, without("x > 0", "x < 0"), without("return None", "return 0"))
    assert told == ["positive(2) is False, expected True", "nothing(2) is 0, expected None"]


def test_objects_and_answers_that_go_back():
    def check(student, expect, draw):
        one, x = student.new("Sum"), draw(3).numpy()
        first = one.call("add", draw(3).numpy())
        other = student.new("Sum", first)
        expect.close(other.call("add", x), one.call("add", x), what="the sum")
        expect.close(other.get("total"), one.get("total"), what="the total")
        tensors = student.new("Sum", torch.from_numpy(first))
        expect.close(tensors.call("add", torch.tensor(x)), one.get("total"), what="the sum of tensors")

    lost = without("self.total = start", "self.total = 0.0")
    kept = without("self.total = start", "self.total = start if hasattr(start, 'numpy') else np.zeros(())")
    assert [text.partition(":")[0] for text in same_words(check, lost, kept)] == ["the sum", "the sum"]


def test_gradients_and_errors():
    def check(student, expect, draw):
        x, grad = draw(3), draw(3)
        (ours,) = student.vjp("double", (x,), grad)
        expect.close(ours, 2 * grad, what="gradient", factor=3)
        expect.raises("ValueError", student.call, "checked", draw(2, 2), match="axes", what="two axes")
        # Answers are counted on.
        expect.equal(student.call("word", 2), "abab", what="the word")

    told = same_words(
        check,
        without("return 2 * x", "return 2 * x.detach()"),
        without("if x.ndim > 1:", "if False:"),
        without("too many axes", "a shape"),
        without("raise ValueError", "raise TypeError"),
        without("raise ValueError(", "raise NotImplementedError("),
        without('"ab" * n', '"ba" * n'),
    )
    assert "no gradient can be taken" in told[0]
    assert told[1] == "two axes: expected ValueError, but the code returns an array of shape (2, 2)"
    assert told[2] == "two axes: the message of ValueError should mention axes, but is 'x has a shape'"
    assert told[4] == "not done yet"
    assert told[5] == "the word is the text 'baba', expected 'abab'"


def test_inputs_that_the_check_changes_later_are_kept_as_they_were_asked():
    def check(student, expect, draw):
        x = draw(3)
        expect.close(student.call("double", x), 2 * x, what="doubled")
        x[0] = torch.nan
        expect.close(student.call("double", x[1:]), 2 * x[1:], what="the rest")

    case = recorded(check)
    given = [step["ask"]["args"][0] for step in case.steps if "ask" in step]
    assert not given[0].isnan().any()
    assert same_words(check, without("2 * x", "3 * x"))


def condition(student, expect, draw):
    answer = student.call("pair", draw(3))
    expect.true(isinstance(answer, tuple), "a tuple is wanted")


def derived(student, expect, draw):
    expect.close(student.call("double", draw(3)).sum(), 0.0)


def derived_text(student, expect, draw):
    expect.equal(len(student.call("word", 3)), 6)


def question_from_an_answer(student, expect, draw):
    answer = student.call("double", draw(3))
    expect.close(student.call("double", torch.tensor(answer) + 1), draw(3))


def expected_from_an_answer(student, expect, draw):
    x = draw(3)
    answer = student.call("double", x)
    expect.close(student.call("double", x), answer + 0.0)


def remark_from_an_answer(student, expect, draw):
    answer = student.call("double", draw(3))
    expect.close(answer, draw(3), axes="place", explain=lambda at: f"{answer[at['place']]}")


def what_from_an_answer(student, expect, draw):
    answer = student.call("double", draw(3))
    expect.close(answer, draw(3), what=f"the answer {answer}")


def course_from_an_answer(student, expect, draw):
    x = draw(3)
    answer = student.call("double", x)
    if np.allclose(answer, 2 * x):
        expect.close(answer, 2 * x)


def changed_in_place(student, expect, draw):
    x = draw(3)
    answer = student.call("double", x)
    answer += 1
    expect.close(answer, 2 * x + 1)


def two_questions_until_an_error(student, expect, draw):
    def twice(x):
        student.call("double", x)
        return student.call("checked", x)

    expect.raises("ValueError", twice, draw(2, 2))


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (condition, "a condition"),
        (derived, "no part of an answer"),
        (derived_text, "no part of an answer"),
        (question_from_an_answer, "asks or expects depends"),
        (expected_from_an_answer, "asks or expects depends"),
        (remark_from_an_answer, "asks or expects depends"),
        (what_from_an_answer, "asks or expects depends"),
        (course_from_an_answer, "depends on an answer"),
        (changed_in_place, "has changed an answer"),
        (two_questions_until_an_error, "more than one question"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_more_than_data_is_refused(check, why):
    with pytest.raises(NotPublic, match=why):
        record(OneCase(check), student(), 0)
