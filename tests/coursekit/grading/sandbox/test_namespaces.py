"""What a child sees from within, told over a pipe by a small process that enters the namespaces."""

import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable

import pytest

from coursekit.grading.sandbox import namespaces

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
    # Python warns of a fork beside threads; the child below runs nothing that could wait for one.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    if reason := namespaces.probe():
        pytest.skip(f"this machine allows no namespaces: {reason}")


def inside(question: Callable[[], object]) -> object:
    """The answer of a function that runs in a child."""
    reading, writing = os.pipe()
    if not (outer := os.fork()):
        try:
            world = namespaces.Namespaces()
            # Twice: the second child's numbers begin anew like the first one's.
            for _ in range(2):
                if child := world.fork():
                    os.waitpid(child, 0)
                    continue
                world.enter()
                os.write(writing, json.dumps(question()).encode() + b"\n")
                os._exit(0)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        first, second = map(json.loads, told.read().splitlines())
    os.waitpid(outer, 0)
    assert first == second
    return first


def test_a_child_is_the_first_process_of_its_world():
    assert inside(os.getpid) == 1
    assert os.getpid() != 1


def test_there_is_no_network_but_a_sleeping_loopback():
    def question() -> object:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            try:
                sender.connect(("127.0.0.1", 9))
            except OSError as error:
                return [[name for _, name in socket.if_nameindex()], error.strerror]
            return "connected"

    assert inside(question) == [["lo"], "Network is unreachable"]


def test_nothing_can_be_written(tmp_path):
    def question() -> object:
        told = []
        for folder in (str(tmp_path), "/tmp", "/dev/shm", os.path.expanduser("~")):
            try:
                os.close(os.open(f"{folder}/written", os.O_CREAT | os.O_WRONLY))
                told.append("written")
            except OSError as error:
                told.append(error.strerror)
        return told

    found = inside(question)
    assert isinstance(found, list)
    if int(os.uname().release.split(".")[0]) < 6:
        pytest.skip("an old kernel cannot make every mount read-only at once")
    assert set(found) <= {"Read-only file system", "Permission denied"}
    assert found[0] == "Read-only file system"
    assert not list(tmp_path.iterdir())


def test_the_powers_that_came_with_a_namespace_of_users_are_gone():
    def question() -> object:
        namespaces.give_up_powers()
        with open("/proc/self/status") as file:
            caps = dict(line.split(":\t") for line in file.read().splitlines() if line.startswith("Cap"))
        return [int(caps[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")]

    assert inside(question) == [0, 0, 0]


def test_what_a_child_has_started_ends_with_it():
    """A pipe that only a grandchild in a session of its own holds open: that it ends is seen at the other end."""
    reading, writing = os.pipe()
    if not (outer := os.fork()):
        os.close(reading)
        world = namespaces.Namespaces()
        if child := world.fork():
            os.close(writing)
            os.waitpid(child, 0)
        elif not os.fork():
            os.setsid()
            time.sleep(600)
        os._exit(0)
    os.close(writing)
    ended, _, _ = select.select([reading], [], [], 60)
    os.close(reading)
    os.waitpid(outer, 0)
    assert ended


def test_a_machine_that_forbids_it_says_why(monkeypatch: pytest.MonkeyPatch):
    def forbidden(flags: int) -> None:
        raise PermissionError(1, "unshare: Operation not permitted")

    monkeypatch.setattr(namespaces.kernel, "unshare", forbidden)
    assert "Operation not permitted" in namespaces.probe()
