"""The three verbs over both backends, and what only the second process can survive."""

import sys
from collections.abc import Generator

import numpy as np
import pytest
import torch

from coursekit.grading.backends import Backend, InProcess, SecondProcess
from coursekit.grading.sandbox import FreshHost, Host, Limits, SandboxError
from coursekit.grading.submission import Submission
from coursekit.grading.values import Other
from coursekit.grading.verbs import Student, StudentError

CODE = """
import os, sys, time
from dataclasses import dataclass
import numpy as np
import torch

def same(x): return x
def kind(x): return type(x).__name__
def strides(x): return tuple(x.stride())
def add(x, y=0): return x + y
def spoil(x):
    x.zero_()
    return x
def fail(x):
    raise KeyError("no such key")
def deeper(x):
    return fail(x)
def todo(x):
    raise NotImplementedError("todo")
def quits(): sys.exit(3)
def endless(n): return endless(n + 1)
def several(): return 1, [2.5, None], {"a": np.float32(2)}, "text", torch.ones(2)
def odd(): return (i for i in range(3))
def loop():
    while True: pass
def die(): os._exit(7)
def noisy():
    print("\\x1b[31mred" + "x" * 100_000)
    return 1
def token(): return os.environ.get("SECRET_TOKEN")
def read(): return sys.stdin.read()
def stack(x): return x.softmax(-1), x.sum()
def cut(x): return x.detach() * 2
def rand(): return torch.randn(2)
@dataclass
class Counter:
    start: int = 0
    def step(self, by=1):
        self.start += by
        return self.start
class Layer(torch.nn.Linear):
    def use(self, counter): return counter.step(10)
"""
SUBMISSION = Submission(CODE, "tiny.py", "tiny.py")


@pytest.fixture(scope="module", params=["in process", "fresh process", "sandbox"])
def backend(request) -> Generator[Backend]:
    if request.param == "in process":
        backend = InProcess(SUBMISSION)
    else:
        host = request.getfixturevalue("host") if request.param == "sandbox" else None
        backend = SecondProcess(SUBMISSION, host=host)
    yield backend
    backend.close()


@pytest.fixture
def student(backend: Backend) -> Student:
    student = Student(backend)
    student.begin(3)
    return student


@pytest.fixture(scope="module")
def second(host: Host) -> Generator[SecondProcess]:
    backend = SecondProcess(SUBMISSION, seconds=0.5, host=host)
    yield backend
    backend.close()


def test_answers_are_plain_arrays_and_inputs_keep_their_kind(student: Student):
    x = torch.randn(2, 3, dtype=torch.float64)
    assert np.array_equal(student.call("add", x, y=1), (x + 1).numpy())
    assert type(student.call("same", x)) is np.ndarray
    assert student.call("kind", x) == "Tensor"
    assert student.call("kind", x.numpy()) == "ndarray"
    assert student.call("kind", (1, 2)) == "tuple"
    assert student.call("kind", torch.float32) == "dtype"
    assert student.call("strides", torch.randn(2, 3, 5).transpose(0, 2)) == (1, 5, 15)


def test_several_kinds_of_answers(student: Student):
    one, two, three, text, ones = student.call("several")
    assert (one, two, three, text) == (1, [2.5, None], {"a": 2.0}, "text")
    assert ones.tolist() == [1, 1]
    assert student.call("odd") == Other("generator")


def test_what_is_done_to_an_input_stays_there(student: Student):
    x = torch.ones(3)
    assert student.call("spoil", x).tolist() == [0, 0, 0]
    assert x.tolist() == [1, 1, 1]


def test_objects_keep_their_state_and_can_be_handed_on(student: Student):
    counter = student.new("Counter", start=5)
    assert counter.call("step") == 6
    assert counter.call("step", by=4) == counter.get("start") == 10
    layer = student.new("Layer", 3, 2)
    assert layer.get("weight").shape == (2, 3)
    assert layer(torch.ones(3)).shape == (2,)
    assert layer.call("use", counter) == 20
    layer.call("load_state_dict", {"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert layer(torch.ones(3)).tolist() == [3, 3]
    (grad,) = layer.vjp("forward", (torch.ones(3),), torch.ones(2))
    assert grad.tolist() == [2, 2, 2]
    assert student.vjp(layer, (torch.ones(3),), torch.ones(2))[0].tolist() == [2, 2, 2]


def test_vector_jacobian_products(student: Student):
    x, grad = (
        torch.randn(2, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, dtype=torch.float64),
    )
    (wanted,) = torch.autograd.grad(x.softmax(-1), x, grad)
    (found,) = student.vjp("stack", (x,), (grad, None))
    assert np.allclose(found, wanted, atol=1e-15)
    assert student.vjp("add", (x, 3), grad)[1] is None
    with pytest.raises(StudentError, match="no gradient can be taken: none reaches the inputs"):
        student.vjp("cut", (x,), grad)
    with pytest.raises(StudentError, match="the answer is a tuple of 2, not a tensor"):
        student.vjp("stack", (x,), grad)


def test_random_numbers_start_anew_with_each_check(student: Student):
    first = student.call("rand")
    again = student.call("rand")
    student.begin(3)
    assert np.array_equal(student.call("rand"), first)
    assert not np.array_equal(first, again)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (("fail", 1), "KeyError: 'no such key'"),
        (("missing",), "tiny.py has no missing: keep the names that the stub has"),
        (("quits",), "the code ends the program (sys.exit or quit): return a value instead"),
        (("endless", 1), "a function calls itself without end (RecursionError)"),
        (("todo", 1), "not done yet"),
        (("CODE",), "tiny.py has no CODE"),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence(student: Student, call: tuple, sentence: str):
    with pytest.raises(StudentError) as error:
        student.call(*call)
    assert error.value.sentence.startswith(sentence)


def test_the_students_own_lines_are_named(student: Student):
    with pytest.raises(StudentError) as error:
        student.call("deeper", 1)
    lines = CODE.splitlines()
    inner = lines.index('    raise KeyError("no such key")') + 1
    assert error.value.where[-1] == f'line {inner}, in fail: raise KeyError("no such key")'
    assert error.value.where[-2].endswith("in deeper: return fail(x)")
    assert "LookupError" in error.value.bases


INVALID = "tiny.py is not valid Python: invalid syntax\nline 2:\n  def f(:\n        ^"


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (InProcess, "x = 1\ndef f(:\n    pass\n", INVALID),
        (SecondProcess, "x = 1\ndef f(:\n    pass\n", INVALID),
        (InProcess, "import nothing_of_the_sort\n", "'nothing_of_the_sort'\nline 1:\n  import nothing_of"),
        (
            InProcess,
            "x = 1\ny = x / 0\n",
            "ZeroDivisionError: division by zero\nline 2:\n  y = x / 0\n      ^",
        ),
        (InProcess, "exit()\n", "the code ends the program"),
        (SecondProcess, "exit()\n", "the code ends the program"),
    ],
)
def test_a_file_that_does_not_load_is_told_at_the_first_question(kind, text: str, told: str, host: Host):
    options = {} if kind is InProcess else {"host": host}
    backend = kind(Submission(text, "tiny.py", "tiny.py"), **options)
    with pytest.raises(StudentError) as error:
        Student(backend).begin(0)
    assert told in error.value.text
    assert error.value.loading
    backend.close()


def test_a_debugger_would_open_in_the_students_frame():
    student = Student(InProcess(SUBMISSION))
    with pytest.raises(StudentError) as error:
        student.call("deeper", 1)
    assert error.traceback[-1].name == "fail"


def test_an_endless_loop_is_ended_and_the_next_check_goes_on(second: SecondProcess):
    student = Student(second)
    with pytest.raises(StudentError, match=r"loop took longer than 0\.5 s: does a loop never end"):
        student.call("loop")
    assert student.call("same", 1) == 1


def test_a_process_that_ends_is_replaced(second: SecondProcess):
    student = Student(second)
    with pytest.raises(StudentError, match=r"ended by itself \(exit code 7\)"):
        student.call("die")
    assert student.call("same", 1) == 1


def test_a_function_that_was_too_slow_is_not_called_again_and_others_are(host: Host):
    backend = SecondProcess(SUBMISSION, seconds=0.3, host=host)
    student = Student(backend)
    for _ in range(5):
        with pytest.raises(StudentError, match=r"loop took longer than 0\.3 s"):
            student.call("loop")
    assert list(backend.slow) == ["loop"]
    assert student.call("same", 1) == 1
    backend.close()


def test_random_numbers_are_the_same_in_both_and_apart_from_the_checks():
    """From loading on, whatever the checks draw in between."""
    code = "import random\nimport numpy as np\nimport torch\n\n"
    code += (
        "def draw(): return [random.random(), np.random.rand(), torch.rand(()).item()]\n\nFIRST = draw()\n"
    )
    code += "def first(): return FIRST\n"
    answers = []
    for kind in (InProcess, SecondProcess):
        backend = kind(Submission(code, "tiny.py", "tiny.py"))
        student = Student(backend)
        told = [student.call("first"), student.call("draw")]
        student.begin(5)
        before = torch.get_rng_state()
        told.append(student.call("draw"))
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        told.append(student.call("draw"))
        answers.append(told)
        backend.close()
    assert answers[0] == answers[1]
    assert answers[0][2] != answers[0][3]


def test_code_that_never_says_random_has_pytorchs_generator_to_itself():
    backend = InProcess(
        Submission("import torch\n\ndef draw(): return torch.rand(()).item()\n", "a.py", "a.py")
    )
    student = Student(backend)
    student.begin(5)
    before = torch.get_rng_state()
    first = student.call("draw")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = student.call("draw")
    student.begin(5)
    torch.rand(3)
    assert [student.call("draw"), student.call("draw")] == [first, second]
    backend.close()


def test_what_is_printed_is_kept_up_to_a_limit(second: SecondProcess):
    student = Student(second)
    second.printed()
    assert student.call("noisy") == 1
    assert second.printed()[0].startswith("\x1b[31mredxxx")
    student.call("noisy")
    printed, more = second.printed()
    assert (len(printed), more) == (10_000, 1)
    assert second.printed() == ("", 0)


def test_the_second_process_finds_no_secrets_and_no_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    backend = SecondProcess(SUBMISSION)
    student = Student(backend)
    assert student.call("token") is None
    assert student.call("read") == ""
    backend.close()


def test_messages_of_the_students_are_bounded_and_escaped():
    code = 'def f():\n    raise ValueError("\\x1b[2J" + "a" * 99_999)\n'
    with pytest.raises(StudentError) as error:
        Student(InProcess(Submission(code, "tiny.py", "tiny.py"))).call("f")
    assert "\x1b" not in error.value.text
    assert r"\x1b[2J" in error.value.text
    assert len(error.value.text) < 3000


def test_nothing_is_left_behind():
    backend = InProcess(SUBMISSION)
    name = backend.session.module.__name__
    assert name in sys.modules
    backend.close()
    assert name not in sys.modules
    second = SecondProcess(SUBMISSION)
    assert second._process is not None
    folder = second._process.folder
    assert folder.is_dir()
    second.close()
    assert not folder.exists()


def test_a_machine_without_room_is_not_an_answer_of_the_submission():
    class Full(FreshHost):
        def start(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(SandboxError, match="No space left"):
        SecondProcess(SUBMISSION, host=Full(Limits()))
