"""Whom a child becomes, and that it stays so."""

import os
import sys

import pytest

from coursekit.grading.sandbox import uid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

EVERYBODY = "         0          0 4294967295\n"
CONTAINER = "         0     100000      65536\n"


def test_a_user_exists_where_the_table_has_it():
    assert uid.is_known(uid.FIRST, EVERYBODY)
    assert uid.is_known(65535, CONTAINER)
    assert not uid.is_known(65536, CONTAINER)
    assert not uid.is_known(999, "      1000       1000          1\n")
    assert uid.is_known(70_000, CONTAINER + "     70000          0          1\n")


def test_every_zygote_has_a_user_of_its_own_if_there_are_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uid, "is_known", lambda number: True)
    assert uid.stranger() == uid.FIRST + os.getpid()
    monkeypatch.setattr(uid, "is_known", lambda number: False)
    assert uid.stranger() == uid.NOBODY


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_nobody_comes_back():
    child = os.fork()
    if not child:
        os.setgroups([4, 24])
        uid.become(uid.NOBODY)
        same = os.getresuid() == os.getresgid() == (uid.NOBODY,) * 3
        try:
            os.setuid(0)
        except PermissionError:
            os._exit(0 if same and not os.getgroups() else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
