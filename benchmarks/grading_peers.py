"""What the same submissions cost without this grader: a fresh Python process for each, by three ways.

As many run at a time as `jobs` says. None of them would survive the hostile ones, and only one stops what
hangs: they are given harmless submissions only, which favours them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.grading_otter import write_autograder
from coursekit.course import Lesson

# A Python that has otter-grader and this course:
#     python -m venv DIR && DIR/bin/pip install -c constraints.txt -e ".[grading]" otter-grader==7.0.0
OTTER = "OTTER_PYTHON"
LIMIT_S = 120.0


def pytest_each(lesson: Lesson, paths: list[Path], jobs: int, *, boundary: bool) -> dict[str, Any]:
    """`pytest lessons/NN_slug --submission X`, with the student's code in that process or in a second one."""
    options = ["--boundary"] if boundary else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]

    def grade(path: Path) -> None:
        run([*command, str(lesson.checks), "--submission", str(path)], lesson.root, wanted=(0, 1))

    return timed(grade, paths, jobs)


def otter_each(lesson: Lesson, paths: list[Path], jobs: int) -> dict[str, Any]:
    """`otter run`, which grades one submission without a container, by the same checks; or why it was not run."""
    python = os.environ.get(OTTER)
    if not python:
        return {"skipped": f"{OTTER} names no Python that has otter-grader and this course"}
    with tempfile.TemporaryDirectory() as scratch:
        autograder = Path(scratch) / "autograder.zip"
        write_autograder(lesson, autograder)
        full = []

        def grade(path: Path) -> None:
            to = Path(scratch) / path.stem
            to.mkdir()
            command = [
                python,
                "-m",
                "otter",
                "run",
                "-a",
                str(autograder),
                "-o",
                str(to),
                "--no-logo",
                str(path),
            ]
            run(command, to, wanted=(0,))
            found = json.loads((to / "results.json").read_text("utf-8"))["tests"]
            full.extend(test["score"] == test["max_score"] for test in found if test.get("max_score"))

        result = timed(grade, paths, jobs)
    version = [python, "-c", "from importlib.metadata import version; print(version('otter-grader'))"]
    told = subprocess.run(version, capture_output=True, text=True, check=True)
    return {"version": told.stdout.strip(), **result, "full_marks": sum(full)}


def run(command: list[str], folder: Path, wanted: tuple[int, ...]) -> None:
    """Run a command to its end. Raises `RuntimeError` with what it printed if its exit code is another."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode not in wanted:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def timed(grade: Callable[[Path], None], paths: list[Path], jobs: int) -> dict[str, Any]:
    began = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(grade, paths))
    seconds = time.perf_counter() - began
    return {"submissions": len(paths), "seconds": seconds, "per_second": len(paths) / seconds}
