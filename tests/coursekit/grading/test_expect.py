"""The demands of a check."""

import numpy as np
import pytest
import torch
from tests.coursekit.grading.tiny import handed_in

from coursekit.grading.backends import InProcess
from coursekit.grading.expect import Expect, Unmet
from coursekit.grading.verbs import Student, StudentError

CODE = """
class Odd(ValueError): pass
def odd(x): raise Odd(f"x is {x}, wanted an even number")
def silent(): raise ValueError
def fine(): return 3
def todo(): raise NotImplementedError
"""


@pytest.fixture
def student() -> Student:
    return Student(InProcess(handed_in(CODE)))


def said(demand, *args, **kwargs) -> str:
    with pytest.raises(Unmet) as error:
        demand(*args, **kwargs)
    return str(error.value)


def test_equal_is_exact():
    expect = Expect()
    expect.equal((2, 3), (2, 3))
    expect.equal([2, 3], (2, 3))
    expect.equal("a", "a")
    expect.equal(np.array([1, 2]), [1, 2] and np.array([1, 2]))
    assert said(expect.equal, 3, 4, what="count") == "count is 3, expected 4"
    assert said(expect.equal, True, 1) == "the result is True, expected 1"
    assert said(expect.equal, None, (2, 3), what="shape") == "shape is None, expected (2, 3)"
    assert said(expect.equal, (2, 4), (2, 3), what="shape") == "shape is (2, 4), expected (2, 3)"
    assert "entry [1] is 2, expected 3" in said(expect.equal, np.array([1, 2]), np.array([1, 3]))
    assert "an array of shape (2,)" in said(expect.equal, np.zeros(2), None)
    assert "entry [0] is 1, expected 1.0000001" in said(expect.equal, np.ones(1), np.ones(1) + 1e-7)


def test_unpack_names_the_parts():
    expect = Expect()
    assert expect.unpack((1, 2), "output", "weights") == (1, 2)
    assert said(expect.unpack, np.zeros((2, 3)), "output", "weights") == (
        "the result is an array of shape (2, 3), expected a tuple of 2: (output, weights)"
    )


def test_true_says_what_does_not_hold():
    Expect().true(1 < 2, "")
    assert said(Expect().true, np.bool_(False), "the rows do not sum to one") == "the rows do not sum to one"


def test_raises_wants_the_type_and_what_the_message_says(student: Student):
    expect = Expect()
    expect.raises("ValueError", student.call, "odd", 3, match="x is 3")
    expect.raises("Odd", lambda: student.call("odd", 3))
    assert (
        said(expect.raises, "ValueError", student.call, "fine")
        == "expected ValueError, but the code returns 3"
    )
    assert said(expect.raises, "KeyError", student.call, "odd", 3).startswith(
        "expected KeyError, but the code raises\nOdd: x is 3, wanted an even number\nline 3, in odd:"
    )
    assert said(expect.raises, "ValueError", student.call, "odd", 3, match="scores") == (
        "the message of ValueError should mention scores, but is 'x is 3, wanted an even number'"
    )
    assert said(expect.raises, "ValueError", student.call, "silent", match="x").endswith("but is empty")
    said_so = said(expect.raises, "ValueError", student.call, "fine", what="6 query heads on 5 key heads")
    assert said_so == "6 query heads on 5 key heads: expected ValueError, but the code returns 3"
    for name in ("todo", "missing"):
        with pytest.raises(StudentError):
            expect.raises("NotImplementedError", student.call, name)


def test_an_answer_is_not_less_exact_than_what_was_asked_with():
    text = "def cast(x, dtype): return x.to(dtype)"
    student = Student(InProcess(handed_in("import torch\n" + text)))
    expect, x = Expect(student), torch.ones(3, dtype=torch.float64)
    expect.close(student.call("cast", x, torch.float32), x)
    answer = InProcess(handed_in(f"import torch\n{text}\ndef half(x): return x.half()")).ask(
        {"verb": "call", "target": None, "name": "half", "args": (x,), "kwargs": {}}
    )
    told = "the result is in float16, which is less exact than the inputs: expected float32 or better"
    assert said(expect.close, answer, x) == told
    student.call("cast", x.bfloat16(), torch.float32)
    expect.close(answer, x)


def test_names_of_a_dict_in_any_order():
    expect = Expect()
    expect.names({"b": 1, "a": 2}, ["a", "b"])
    told = said(expect.names, {"a": 1, "c\n": 2}, ["a", "b"], what="Your layer", remark="see task 1")
    assert told == "Your layer has no `b`, but has `c\n`: see task 1"
    assert said(expect.names, {"a": 1, "b": 2, "c": 3}, {"a", "b"}) == "the result also has `c`"
    assert said(expect.names, [("a", 1)], ["a"]) == "the result is a list, expected a dict of 1 name"
