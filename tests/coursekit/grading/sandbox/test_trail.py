"""What a submission tried is told, in words that it did not choose, and honest code leaves no trail."""

import pytest

from coursekit.course import find_course
from coursekit.grading.backends import SecondProcess
from coursekit.grading.checking import Checks
from coursekit.grading.sandbox import open_sandbox, trail
from coursekit.grading.submission import Submission, read_submission
from coursekit.grading.verbs import Student, StudentError

TEXT = """
import os, socket, subprocess

def reads(): return open("/etc/passwd").read()
def reads_of_a_process(): return open("/proc/123/environ").read()
def writes(): open("/tmp/mine4711.txt", "w")
def writes_here(): open("results.npy", "wb")
def writes_low(): os.open("/tmp/mine", os.O_WRONLY | os.O_CREAT)
def lists(): return os.listdir("/home")
def runs(): subprocess.run(["ls"])
def forks(): os.fork()
def kills(): os.kill(1, 0)
def calls(): socket.create_connection(("127.0.0.1", 80))
def imports(): import annotated_attention
def endless():
    for number in range(100):
        try: open(f"/tmp/{'x' * number}/{number}")
        except OSError: pass
def honest():
    import colorsys, torch
    return float(torch.ones(3).sum()) + len(colorsys.__name__)
"""


@pytest.fixture(scope="module")
def host():
    with open_sandbox() as host:
        if "seccomp" not in host.layers:
            pytest.skip(f"needs a wall that this machine lacks: {host.missing.get('seccomp')}")
        yield host


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("reads", "tried to read a file in /etc"),
        ("reads_of_a_process", "tried to read a file in /proc"),
        ("writes", "tried to write a file in /tmp"),
        ("writes_here", "tried to write a file in its own folder"),
        ("writes_low", "tried to write a file in /tmp"),
        ("lists", "tried to list a folder in /"),
        ("runs", "tried to run a program"),
        ("forks", "tried to start a process"),
        ("kills", "tried to signal a process"),
        ("calls", "tried to use the network"),
        ("imports", "tried to import the course"),
    ],
)
def test_what_a_wall_stopped_is_an_event(host, name: str, told: str):
    backend = SecondProcess(Submission(TEXT, "mine.py", "mine.py"), host=host)
    with pytest.raises(StudentError):
        Student(backend).call(name)
    assert f"in {name}: {told}" in backend.events
    backend.close()


def test_a_trail_is_short_and_honest_code_leaves_none(host):
    backend = SecondProcess(Submission(TEXT, "mine.py", "mine.py"), host=host)
    assert Student(backend).call("honest") == 11
    assert backend.events == []
    Student(backend).call("endless")
    assert 0 < len(backend.events) <= trail.TRIED_LIMIT
    backend.close()


def test_the_course_is_solved_without_a_trail(host):
    lesson = find_course().lesson("flash")
    solution = read_submission(lesson.exercise)
    backend = SecondProcess(solution, host=host)
    assert Checks(lesson).run(solution, backend=backend).passed
    assert backend.events == []
    backend.close()


@pytest.mark.parametrize(
    "told",
    [
        None,
        3,
        [1],
        [("a", "b", "c")],
        [("gave 100 points", "/")],
        [[trail.READ]],
        {"a": 1},
        [(trail.READ, 4)],
    ],
)
def test_what_means_nothing_is_not_told(told):
    assert trail.known(told) == []


def test_what_is_told_is_bounded_and_printable():
    assert (
        trail.known([(trail.READ, "/\x1b[2J" + "x" * 1000)] * 50)
        == [f"tried to read a file in /?[2J{'x' * (trail.FOLDER_LIMIT - 5)}"] * trail.TRIED_LIMIT
    )
