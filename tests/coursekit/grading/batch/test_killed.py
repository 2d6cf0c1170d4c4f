"""A whole grader, with its workers and their children, is killed midway: the next run ends with the same files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.processes import tree, wait_gone
from tests.coursekit.grading.tiny import EXERCISE, write_lesson

from coursekit.course import Course, environment_of

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: processes are looked for in /proc"
)

TEXTS = [
    EXERCISE,
    EXERCISE.replace("x.mean(axis=-1, keepdims=True)", "x.mean()"),
    EXERCISE.replace("softmax(-1)", "softmax(0)"),
    EXERCISE.replace("import torch", "import"),
    EXERCISE.replace("        self.count += 1\n", "        while True: pass\n"),
    EXERCISE.replace("    return x - x", "    __import__('os')._exit(0)\n    return x - x"),
]


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """A course with 12 submissions, the secret and the rules beside it."""
    (tmp_path / "labml_style_src").mkdir()
    write_lesson(tmp_path)
    (tmp_path / "class").mkdir()
    for number in range(12):
        path = tmp_path / "class" / f"student{number:02d}.py"
        path.write_text(TEXTS[number % len(TEXTS)], "utf-8")
    (tmp_path / "secret").write_text("5e" * 32, "ascii")
    rules = 'slug = "tiny"\n[limits]\ncall_seconds = 0.5\n'
    (tmp_path / "assignment.toml").write_text(rules, "utf-8")
    return Course(tmp_path)


def start(course: Course, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "coursekit", "grade", "tiny", "class", "--out", str(out), "--jobs", "1"]
    command += ["--secret", "secret", "--assignment", "assignment.toml"]
    # This package, not the one that may be in the course.
    paths = os.pathsep.join(sys.path)
    environment = environment_of(course) | {"PYTHONPATH": paths}
    options = {"cwd": course.root, "env": environment, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **options)


def results(out: Path) -> list[Path]:
    return list(out.glob("results/student*.json"))


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_killed_midway_it_leaves_no_process_and_ends_with_the_same_files(course):
    whole, stopped = course.root / "whole", course.root / "stopped"
    assert start(course, whole).wait(120) == 0
    assert len(results(whole)) == 12

    process = start(course, stopped)
    while len(results(stopped)) < 4:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    pids = tree(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 4 <= len(results(stopped)) < 12
    # The grader, a helper of Python's, the worker and its zygote at least.
    assert len(pids) >= 4
    assert wait_gone(pids, 10) == []

    assert start(course, stopped).wait(120) == 0
    assert files(stopped) == files(whole)
