"""Children of a zygote: what each finds, what is left of it, and what happens when the zygote is lost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import ClassVar

import pytest

from coursekit.grading.backends import SecondProcess
from coursekit.grading.sandbox import Host, SandboxError
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import Student, StudentError

CODE = """
import gc, os, sys, threading, time
import torch

LIVE = []

def surroundings():
    open_ones = []
    for number in range(256):
        try:
            os.fstat(number)
            open_ones.append(number)
        except OSError:
            pass
    return {
        "pid": os.getpid(),
        "open": len(open_ones),
        "environment": dict(os.environ),
        "arguments": sys.argv[1:],
        "input": sys.stdin.read(),
        "threads": torch.get_num_threads(),
        "names": sorted(name for name in vars() if name != "LIVE"),
    }

def folder():
    try:
        return [os.getcwd(), os.listdir(".")]
    except OSError as error:
        return [os.getcwd(), error.strerror]

def loaded():
    roots = {name.partition(".")[0] for name in sys.modules}
    return sorted(roots & {"annotated_attention", "lessons", "coursekit", "tests", "pytest", "_pytest"})

def same(x): return x
def remember(x):
    LIVE.append(x)
    return len(LIVE)
def hashed(): return [hash("a"), list({"one", "two", "three", "four", "five"})]
def linger():
    class Last:
        def __del__(self):
            while True: pass
    import atexit
    atexit.register(Last().__del__)
    threading.Thread(target=time.sleep, args=(600,)).start()
    LIVE.append(Last())
    return 1
def loop():
    while True: pass
def offspring(generations):
    for _ in range(generations):
        if os.fork():
            if _ == 0: return os.getpid()
            os._exit(0)
        os.setsid()
    time.sleep(600)
    os._exit(0)
def fill():
    for number in range(50):
        os.makedirs(f"a{number}/b")
        with open(f"a{number}/b/file", "w") as file:
            file.write("x" * 1000)
    os.chmod("a1", 0)
    return len(os.listdir("."))
"""
SUBMISSION = Submission(CODE, "child.py", "child.py")


@pytest.fixture
def start(zygote: Host) -> Generator[Callable[..., SecondProcess]]:
    """Starts submissions, and closes them in the end."""
    backends: list[SecondProcess] = []

    def started(host: Host = zygote, code: str = CODE) -> SecondProcess:
        backends.append(SecondProcess(Submission(code, "child.py", "child.py"), host=host))
        return backends[-1]

    yield started
    for backend in backends:
        backend.close()


def zygotes(host: Host) -> list[int]:
    """The numbers of a host's zygote: the process that was started and, with namespaces, the one that it waits
    for."""
    first = host._zygote._process.pid  # type: ignore[attr-defined]
    return [first, *children(first)] if "namespaces" in host.layers else [first]


def children(number: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def is_alive(number: int) -> bool:
    """Whether a process runs; one that has ended and waits to be buried does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def come_true(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within a minute."""
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_a_child_finds_its_inputs_and_nothing_else(zygote: Host, start):
    found = Student(start()).call("surroundings")
    assert found.pop("names") == ["number", "open_ones"]
    wanted = {
        "open": 5,
        "environment": {"TORCHINDUCTOR_CACHE_DIR": "/"},
        "arguments": [],
        "input": "",
        "threads": 1,
    }
    if "namespaces" in zygote.layers:
        wanted["pid"] = 1
    else:
        found.pop("pid")
    assert found == wanted


def test_a_child_knows_nothing_of_the_course(start):
    student = Student(start())
    assert student.call("loaded") == []
    told = start(code="import coursekit.grading.backends\ndef f(): return 1\n")
    with pytest.raises(StudentError, match="coursekit cannot be imported here"):
        Student(told).call("f")


def test_every_child_begins_anew_and_alike(start):
    first, second = Student(start()), Student(start())
    assert [first.call("remember", 1), first.call("remember", 2), second.call("remember", 1)] == [1, 2, 1]
    assert first.call("hashed") == second.call("hashed")


def test_nothing_of_the_students_runs_when_a_child_is_closed(zygote: Host, start):
    backend = start()
    assert Student(backend).call("linger") == 1
    process = backend._process
    backend.close()
    assert not is_alive(process.number)


def test_the_private_folder_goes_with_what_a_child_has_left_there(open_zygote: Host, start):
    """Without walls it can be filled: the mode of a folder does not bind root, nor its owner."""
    backend = start(open_zygote)
    folder, entries = Student(backend).call("folder")
    assert Path(folder) == backend._process.folder
    assert entries == []
    assert Student(backend).call("fill") == 50
    backend.close()
    assert not Path(folder).exists()


def test_behind_walls_the_folder_stays_empty(zygote: Host, start):
    if not {"namespaces", "landlock"} & {*zygote.layers}:
        pytest.skip("no layer here keeps a child from writing")
    backend = start()
    student = Student(backend)
    with pytest.raises(StudentError, match=r"PermissionError|Read-only file system"):
        student.call("fill")
    assert list(backend._process.folder.iterdir()) == []


def test_hundreds_of_children_leave_no_descriptor_no_zombie_and_no_memory(zygote: Host, start):
    def state() -> list[int]:
        counts = [len(os.listdir("/proc/self/fd"))]
        for number in zygotes(zygote):
            counts += [len(os.listdir(f"/proc/{number}/fd")), len(children(number))]
        return counts

    def pages() -> list[int]:
        texts = [Path(f"/proc/{number}/statm").read_text() for number in (*zygotes(zygote), os.getpid())]
        return [int(text.split()[1]) for text in texts]

    for _ in range(5):
        zygote.start().end()
    before, resident = state(), pages()
    for _ in range(200):
        zygote.start().end()
    assert come_true(lambda: state() == before)
    grown = [after - known for after, known in zip(pages(), resident, strict=True)]
    # 200 children that leave 40 KB each would be 2,000 pages of 4 KB.
    assert max(grown) < 1000


@pytest.mark.parametrize("generations", [1, 3])
def test_what_a_child_has_forked_ends_with_it(open_zygote: Host, start, generations: int):
    """Without walls, so that it can fork: sessions of their own and parents that are gone do not help."""
    backend = start(open_zygote)
    Student(backend).call("offspring", generations)
    [number] = zygotes(open_zygote)
    assert come_true(lambda: len(family(number)) >= 2)
    backend.close()
    assert come_true(lambda: not family(number))


def family(number: int) -> list[int]:
    """All that descends from a process and runs."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in children(number):
            found += [child] * is_alive(child) + family(child)
    return found


def test_a_zygote_that_is_lost_hurts_only_the_submission_at_work(zygote: Host, start):
    at_work, waiting = start(), start()
    assert Student(waiting).call("same", 1) == 1
    student = Student(at_work)
    assert student.call("same", 1) == 1
    lost, process = zygotes(zygote)[0], at_work._process
    os.kill(lost, signal.SIGKILL)
    told = r"ended by itself \(the grader lost the process that had started it\)"
    with pytest.raises(StudentError, match=told):
        student.call("loop")
    assert len(at_work.events) == 1
    assert "the grader lost" in at_work.events[0]
    assert come_true(lambda: not is_alive(process.number))
    assert student.call("same", 2) == 2
    assert zygotes(zygote)[0] != lost
    with pytest.raises(StudentError, match=told):
        Student(waiting).call("same", 2)
    assert Student(start()).call("same", 3) == 3


def test_a_zygote_that_cannot_be_started_again_is_an_error(zygote: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zygote, "_zygote", None)
    monkeypatch.setattr("coursekit.grading.sandbox.host.FLAGS", ("-c", "raise SystemExit('no more memory')"))
    with pytest.raises(SandboxError, match="does not start: no more memory"):
        zygote.start()


def test_a_layer_that_was_active_is_never_lost_in_silence(zygote: Host, monkeypatch: pytest.MonkeyPatch):
    class Weaker:
        missing: ClassVar = {"namespaces": "no space left"}
        closed = False

        def close(self) -> None:
            Weaker.closed = True

    monkeypatch.setattr(zygote, "_zygote", None)
    monkeypatch.setattr("coursekit.grading.sandbox.zygote_host.Zygote", lambda *_: Weaker())
    with pytest.raises(SandboxError, match="cannot be had again: namespaces: no space left"):
        zygote.start()
    assert Weaker.closed


def test_a_first_child_that_does_not_answer_is_an_error(zygote: Host, monkeypatch: pytest.MonkeyPatch):
    def ends(self: Host) -> object:
        process = start()
        process.kill()
        return process

    start = zygote.start
    monkeypatch.setattr(type(zygote), "start", ends)
    with pytest.raises(SandboxError, match="a first child does not answer: "):
        zygote._try()  # type: ignore[attr-defined]


def test_a_wall_that_cannot_be_put_up_runs_nothing_of_the_students(start, monkeypatch: pytest.MonkeyPatch):
    """The child says so on its line; the grader takes it as its own fault, not the student's."""
    backend = start()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(backend._process, "line", ours)
    theirs.send(b"!OSError: no more keys")
    os.kill(backend._process.number, signal.SIGKILL)
    with pytest.raises(SandboxError, match="cannot be closed off: OSError: no more keys"):
        Student(backend).call("same", 1)
    theirs.close()


GRADER = """
import json, os, signal, sys
from coursekit.grading import wire
from coursekit.grading.backends import SecondProcess
from coursekit.grading.sandbox import open_sandbox
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import Student
host = open_sandbox(off=json.loads(sys.argv[1]))
backend = SecondProcess(Submission("def loop():\\n    while True: pass\\n", "a.py", "a.py"), host=host)
Student(backend).begin(0)
print(json.dumps([host._zygote._process.pid, backend._process.number]), flush=True)
call = {"verb": "call", "name": "loop", "target": None, "args": (), "kwargs": {}, "number": 9}
backend._process.write(wire.encode(call))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_grader_that_is_killed_leaves_no_process(zygote: Host):
    """Without namespaces, where nothing but the zygote ends the child."""
    command = [sys.executable, "-c", GRADER, json.dumps(["namespaces"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert come_true(lambda: not any(map(is_alive, json.loads(done.stdout))))
