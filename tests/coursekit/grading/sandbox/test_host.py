"""What opens a sandbox, and which walls it says there are."""

import os
import subprocess
import sys

import pytest

from coursekit.grading.backends import SecondProcess
from coursekit.grading.sandbox import LAYERS, FreshHost, Limits, SandboxError, open_sandbox, zygote_host
from coursekit.grading.sandbox import host as hosts
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import Student

SUBMISSION = Submission("import sys\ndef flags(): return [sys.flags.safe_path, hash('a')]\n", "a.py", "a.py")


def test_unknown_layers_are_refused():
    with pytest.raises(
        ValueError, match="there is no layer firewall, moat; the layers are clock, namespaces"
    ):
        open_sandbox(off=("moat", "clock", "firewall"))


def test_elsewhere_a_fresh_process_a_submission_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hosts.sys, "platform", "darwin")
    with open_sandbox(off=["seccomp"]) as sandbox:
        assert sandbox.layers == ("clock",)
        assert list(sandbox.missing) == ["namespaces", "rlimits", "uid", "landlock"]
        assert set(sandbox.missing.values()) == {"needs Linux"}
    assert open_sandbox(off=["clock"]).layers == ()


@pytest.mark.skipif(sys.platform != "linux", reason="a zygote needs Linux")
def test_where_no_zygote_starts_there_is_a_fresh_process_and_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hosts, "FLAGS", ("-c", "raise SystemExit('no torch')", *hosts.FLAGS))
    sandbox = open_sandbox()
    assert isinstance(sandbox, FreshHost)
    assert sandbox.layers == ("clock",)
    assert sandbox.missing["seccomp"] == "the process that starts the submissions does not start: no torch"


def test_a_python_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hosts.sys, "executable", "/no/such/python")
    with pytest.raises(SandboxError, match="/no/such/python cannot be started"):
        FreshHost(Limits()).start()
    if sys.platform == "linux":
        with pytest.raises(SandboxError, match="/no/such/python cannot be started"):
            zygote_host.Zygote((), Limits())


def test_the_folders_of_packages_hold_ours_and_those_of_a_submission():
    folders = hosts.package_folders()
    assert any(os.path.isdir(os.path.join(folder, "torch")) for folder in folders)
    assert any(os.path.isfile(os.path.join(folder, "coursekit", "course.py")) for folder in folders)
    assert len(set(folders)) == len(folders) <= 4


def test_a_fresh_python_takes_nothing_from_the_environment(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Neither a module beside it nor one that a variable leads to; and texts have the same hash each time."""
    for name in ("json.py", "sitecustomize.py", "usercustomize.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('taken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    monkeypatch.chdir(tmp_path)
    backend = SecondProcess(SUBMISSION)
    told = Student(backend).call("flags")
    backend.close()
    plain = [sys.executable, "-c", "print(hash('a'))"]
    known = subprocess.run(plain, capture_output=True, env={"PYTHONHASHSEED": "0"}, check=True)
    assert told == [True, int(known.stdout)]


def test_layers_are_told_in_their_order(open_zygote, zygote):
    assert open_zygote.layers == ("clock",)
    assert open_zygote.missing == {}
    assert [name for name in LAYERS if name in zygote.layers] == list(zygote.layers)
    assert {*zygote.layers, *zygote.missing} == set(LAYERS)
    assert not {*zygote.layers} & {*zygote.missing}
