"""Each wall that a machine lacks comes with what to do about it."""

from pathlib import Path

import pytest

from coursekit import doctor
from coursekit.grading.sandbox import LAYERS, layers, remedies


def test_every_layer_has_a_row_that_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "available", lambda: dict.fromkeys(LAYERS, ""))
    rows = list(doctor.sandbox())
    assert [(row.name, row.state, row.remedy) for row in rows] == [(layer, "ok", "") for layer in LAYERS]
    assert all(row.detail == f"grading: {remedies.MEANING[row.name]}" for row in rows)


def test_a_missing_layer_has_its_reason_and_a_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "available", lambda: dict.fromkeys(LAYERS, "no such thing"))
    for row in doctor.sandbox():
        assert (row.state, row.detail) == ("missing", "grading: no such thing")
        assert row.remedy
        assert f"  {row.remedy}" in str(row)


@pytest.mark.parametrize(
    ("switch", "value", "told"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "apparmor_restrict_unprivileged_userns=0"),
        ("kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0\n", "user.max_user_namespaces=15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "0\n", ""),
        ("user/max_user_namespaces", "96000\n", ""),
    ],
)
def test_the_switch_that_forbids_namespaces_is_named(tmp_path: Path, switch: str, value: str, told: str):
    file = tmp_path / switch
    file.parent.mkdir()
    file.write_text(value)
    said = remedies.switched_off(tmp_path)
    assert told in said
    assert bool(said) is bool(told)


def test_in_a_container_the_options_of_docker_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not remedies.in_container(tmp_path)
    (tmp_path / ".dockerenv").touch()
    assert remedies.in_container(tmp_path)
    monkeypatch.setattr(remedies.sys, "platform", "linux")
    monkeypatch.setattr(remedies, "in_container", lambda: True)
    monkeypatch.setattr(remedies, "switched_off", lambda: "")
    assert "--cap-add SYS_ADMIN" in remedies.remedy("namespaces", "Operation not permitted")
    assert "seccomp=unconfined" in remedies.remedy("landlock", "Function not implemented")


def test_off_linux_the_way_is_a_container(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remedies.sys, "platform", "darwin")
    assert {remedies.remedy(layer, "darwin has none") for layer in LAYERS} == {remedies.CONTAINER}


def test_a_python_in_a_closed_home_is_told_apart_from_not_being_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remedies.sys, "platform", "linux")
    closed = "/root is closed to other users, and Python's modules lie in it"
    assert "where every user can read them" in remedies.remedy("uid", closed)
    assert "root" in remedies.remedy("uid", "only root can make a child another user's")
