"""Which walls this machine has, and that none is entered by half."""

import subprocess
import sys

import pytest

from coursekit.grading.sandbox import LAYERS, layers, uid


def test_every_layer_is_either_there_or_explained():
    found = layers.available()
    assert tuple(found) == LAYERS
    assert all(isinstance(reason, str) for reason in found.values())
    # A machine may lack a wall. One that it has and that lets things through is our fault.
    assert not {"it can be entered and stops nothing", "the limit does not bind"} & set(found.values())


def test_elsewhere_every_layer_is_missing_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers.sys, "platform", "darwin")
    layers.available.cache_clear()
    try:
        found = layers.available()
    finally:
        layers.available.cache_clear()
    # A clock on the wall is everywhere, and the grader must not be without one.
    assert found.pop("clock") == ""
    assert set(found.values()) == {"darwin has none: grade in a Linux container"}


def test_a_layer_that_can_be_entered_and_stops_nothing_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers.Walls, "enter", lambda self: None)
    for attempt in (layers._landlock, layers._rlimits):
        assert attempt() == "it can be entered and stops nothing" or attempt() == "the limit does not bind"


def test_what_goes_wrong_in_an_attempt_is_told():
    code = """
import os, signal
from coursekit.grading.sandbox.layers import tried
def fails(): raise OSError(1, "no")
print([tried(fails), tried(lambda: ""), tried(lambda: os.kill(os.getpid(), signal.SIGKILL))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['[Errno 1] no', '', 'trying it ended with -9']"


def test_a_machine_that_cannot_try_has_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers.sys, "executable", "/nowhere/python")
    monkeypatch.setattr(layers.sys, "platform", "linux")
    layers.available.cache_clear()
    try:
        found = layers.available()
    finally:
        layers.available.cache_clear()
    assert tuple(found) == LAYERS
    assert found.pop("clock") == ""
    assert all(reason.startswith("it cannot be tried: ") for reason in found.values())


def test_walls_do_not_go_up_around_one_thread_of_several(walled):
    code = """
import threading
from coursekit.grading.sandbox import layers
stop = threading.Event()
threading.Thread(target=stop.wait).start()
try:
    layers.prepare(["seccomp"], layers.Limits()).enter()
except OSError as error:
    answer = str(error)
stop.set()
"""
    told = "walls go up around one thread, and this process has several"
    assert walled.run(code) == ("done", told)


def test_a_wall_that_cannot_be_entered_is_an_error(walled):
    """Not a child with fewer walls than were said to stand."""
    code = """
from coursekit.grading.sandbox import layers
walls = layers.prepare(["landlock", "seccomp"], layers.Limits())
os.close(walls._landlock.descriptor)
try:
    walls.enter()
except OSError as error:
    answer = str(error)
"""
    assert walled.run(code) == ("done", "[Errno 9] Bad file descriptor")


def test_a_change_of_user_that_fails_is_an_error(walled):
    code = """
from coursekit.grading.sandbox import layers
def become():
    raise PermissionError("not root")
try:
    layers.prepare(["uid"], layers.Limits()).enter(become)
except OSError as error:
    answer = str(error)
"""
    assert walled.run(code) == ("done", "not root")


def test_the_child_is_another_user_without_privileges(walled):
    code = "answer = os.getresuid(), os.getresgid(), os.getgroups()"
    nobody = [uid.NOBODY] * 3
    assert walled.run(code, "uid", "landlock", "seccomp") == ("done", [nobody, nobody, []])
    code = "import ctypes\nanswer = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)"
    # No new privileges, and no core dump or debugger: not of root's either.
    for active in (("uid", "landlock"), ("landlock",)):
        assert walled.run(code, *active) == ("done", [1, 0])
