"""The student's command, without its archive: what it finds, says and remembers."""

import json
import os
import sys

import pytest
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.grading.backends import InProcess
from coursekit.grading.public import student
from coursekit.grading.public.publish import publish
from coursekit.grading.stub import make_stub, stub_notebook


@pytest.fixture
def run(lesson, tmp_path, monkeypatch, capsys):
    """Run `python check.pyz ...` in this process, in a folder `work`: the exit code and what is printed."""
    work = tmp_path / "work"
    work.mkdir()
    (work / student.DATA).write_bytes(publish(lesson).checks.encoded())
    monkeypatch.setattr(student, "files", lambda _package: work)
    monkeypatch.setattr(student, "SecondProcess", InProcess)
    monkeypatch.chdir(work)

    def ran(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["check.pyz", *arguments])
        code = student.main(work / "check.pyz")
        told = capsys.readouterr()
        return code, told.out + told.err

    return ran


def test_the_exit_code_is_the_verdict(run, tmp_path):
    code, told = run()
    assert (code, "tiny.py or tiny.ipynb belongs into" in told) == (2, True)
    (tmp_path / "work" / "tiny.py").write_text(EXERCISE, "utf-8")
    code, told = run()
    assert code == 0
    assert "tiny (tiny.py): 8 of 8 points, 7 of 7 checks" in told
    assert "All that is checked here is right." in told
    (tmp_path / "other.py").write_text(EXERCISE.replace("axis=-1", "axis=0"), "utf-8")
    code, told = run(str(tmp_path / "other.py"), "--json")
    assert code == 1
    assert json.loads(told)["tasks"][0]["checks"][0]["mistakes"][0]["name"] == "centre__columns"


def test_the_half_that_was_saved_last_is_checked(run, tmp_path):
    stub = make_stub(EXERCISE)
    (tmp_path / "work" / "tiny.py").write_text(stub, "utf-8")
    (tmp_path / "work" / "tiny.ipynb").write_text(stub_notebook(stub, "python check.pyz"), "utf-8")
    os.utime(tmp_path / "work" / "tiny.py", (1, 1))
    code, told = run()
    assert code == 1
    assert told.startswith(
        "tiny (tiny.ipynb): 0 of 8 points, 0 of 7 checks\ntiny.py is older and was not checked"
    )
    assert "!python check.pyz" in (tmp_path / "work" / "tiny.ipynb").read_text("utf-8")


def test_hints_come_one_by_one(run, tmp_path):
    (tmp_path / "work" / "tiny.py").write_text(make_stub(EXERCISE), "utf-8")
    assert "`python check.pyz --hint` gives a hint for 'Centre each row'" in run()[1]
    assert "hint 1 of 2: A row runs" in run("--hint")[1]
    told = run("--hint")[1]
    assert "hint 1 of 2: A row runs" in told
    assert "hint 2 of 2: keepdims" in told
    assert "All hints for 'Centre each row' are shown." in told
    assert "attn" not in told
