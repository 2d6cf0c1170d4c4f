"""A class of 1,000 graded on two cores, hanging and hostile submissions among them, beside a fresh process each.

Measured in one run: submissions a second (the start of the grader included), the memory of all its processes over
time, whether a grader that is killed midway and started again leaves the same bytes, and what a sample of the
harmless submissions costs the peers (`grading_peers.py`), half of it before our run and half after. Much of the time
is the checks' own: the same is graded for the lesson whose checks take the median time of the fifteen.
"""

import contextlib
import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.grading_class import HARMLESS, SHARES, hand_in
from benchmarks.grading_peers import otter_each, pytest_each
from benchmarks.processes import Watch, tree, wait_gone
from coursekit.course import Lesson, environment_of, find_course

# Half an hour: it runs only when it is named.
LONG = True

SLUG = "alibi"
MEDIAN = "longformer"
STUDENTS = 1000
CORES = 2
SAMPLE = 12
# Those who start the grader by hand do not see its processes end at once.
GONE_SECONDS = 10.0


def run() -> list[dict[str, Any]]:
    course = find_course()
    lesson, median = course.lesson(SLUG), course.lesson(MEDIAN)
    with tempfile.TemporaryDirectory() as scratch, two_cores() as cores:
        folder = Path(scratch) / SLUG
        kinds = hand_in(lesson, course.rewrites(lesson), folder / "class", STUDENTS)
        sample = [folder / "class" / f"{student}.py" for student, kind in kinds.items() if kind in HARMLESS]
        sample = [path for path in sample if path.exists()][:SAMPLE]
        grader = Grader(lesson, folder)
        before = peers(lesson, sample[::2])
        whole = grader.grade(folder / "whole")
        after = peers(lesson, sample[1::2])
        marks = {"right_and_full": full_marks(folder / "whole", kinds)}
        stopped = grader.stop_and_resume(folder / "stopped", len(kinds) // 2)
        other = differing(folder / "whole", folder / "stopped")
        folder = Path(scratch) / MEDIAN
        kinds = hand_in(median, course.rewrites(median), folder / "class", STUDENTS)
        heavier = Grader(median, folder).grade(folder / "whole")
        heavier["right_and_full"] = full_marks(folder / "whole", kinds)
        return [
            {"what": "the class", "lesson": SLUG, "submissions": len(kinds), "in a hundred": SHARES},
            {"what": "graded", "cores": cores, **whole, **marks},
            {"what": "graded, the median lesson", "lesson": MEDIAN, "cores": cores, **heavier},
            {"what": "killed midway and started again", **stopped, "same_bytes": not other, "other": other},
            *(beside(whole, before[name], after[name], name) for name in before),
        ]


@contextlib.contextmanager
def two_cores():
    """Everything started inside has two cores, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count()
        return
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:CORES])
    try:
        yield len(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, all_cores)


class Grader:
    """`attn grade` on the class, always with the same secret."""

    def __init__(self, lesson: Lesson, folder: Path) -> None:
        self.lesson = lesson
        self.folder = folder
        self.secret = folder / "secret"
        self.secret.write_text("5e" * 32 + "\n", "ascii")

    def start(self, out: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "coursekit", "grade", self.lesson.slug, str(self.folder / "class")]
        command += ["--out", str(out), "--secret", str(self.secret), "--jobs", str(CORES)]
        environment = environment_of(find_course(self.lesson.root)) | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=self.lesson.root, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def grade(self, out: Path) -> dict[str, Any]:
        """Speed and memory of one run from beginning to end."""
        began = time.time()
        process = self.start(out)
        with Watch(process.pid) as watch:
            code = process.wait()
        seconds = time.time() - began
        rows = gradebook(out)
        if code or len(rows) != STUDENTS:
            raise RuntimeError(f"the grader ended with {code} and {len(rows)} lines in grades.csv")
        first = min(path.stat().st_mtime for path in out.glob("results/*.json")) - began
        # Before the first result the processes start.
        memory = [megabytes for when, megabytes, _ in watch.samples if when >= first]
        quarter = max(1, len(memory) // 4)
        return {
            "jobs": CORES,
            "seconds": seconds,
            "until_the_first": first,
            "per_second": len(rows) / seconds,
            "sandbox": rows[0]["sandbox"],
            "status": dict(sorted(Counter(row["status"] for row in rows).items())),
            "peak_mb": max(memory),
            "first_quarter_mb": statistics.median(memory[:quarter]),
            "last_quarter_mb": statistics.median(memory[-quarter:]),
            "most_processes": max(processes for _, _, processes in watch.samples),
        }

    def stop_and_resume(self, out: Path, results: int) -> dict[str, Any]:
        """Kill the grader with all its group once there are so many results, then start it again."""
        process = self.start(out)
        while process.poll() is None and len(list(out.glob("results/*.json"))) < results:
            time.sleep(0.2)
        pids = tree(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = len(list(out.glob("results/*.json")))
        left = wait_gone(pids, GONE_SECONDS)
        began = time.perf_counter()
        code = self.start(out).wait()
        if code:
            raise RuntimeError(f"the grader that was started again ended with {code}")
        return {
            "killed_at": found,
            "left_running": len(left),
            "seconds_for_the_rest": time.perf_counter() - began,
        }


def peers(lesson: Lesson, paths: list[Path]) -> dict[str, dict[str, Any]]:
    return {
        "pytest, a second process": pytest_each(lesson, paths, CORES, boundary=True),
        "pytest, no boundary": pytest_each(lesson, paths, CORES, boundary=False),
        "otter-grader": otter_each(lesson, paths, CORES),
    }


def beside(ours: dict[str, Any], before: dict[str, Any], after: dict[str, Any], name: str) -> dict[str, Any]:
    """A peer's two halves as one, and how many times as many submissions a second we grade."""
    case = {"what": f"a fresh process each: {name}"}
    if "skipped" in before:
        return {**case, **before}
    done, seconds = before["submissions"] + after["submissions"], before["seconds"] + after["seconds"]
    rate = done / seconds
    about = {key: before[key] for key in ("version",) if key in before}
    return {**case, **about, "submissions": done, "per_second": rate, "ratio": ours["per_second"] / rate}


def gradebook(out: Path) -> list[dict[str, str]]:
    with (out / "grades.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def full_marks(out: Path, kinds: dict[str, str]) -> int:
    """How many of those who are right have all points: it must be all of them, and nobody who is not."""
    full = {row["student"] for row in gradebook(out) if float(row["score"]) == float(row["max_score"]) > 0}
    right = {student for student, kind in kinds.items() if kind == "right"}
    if missing := sorted(right - full):
        raise RuntimeError(f"{missing[0]} is right and has not all points")
    if wrong := sorted(student for student in full - right if kinds[student] in HARMLESS):
        raise RuntimeError(f"{wrong[0]} is {kinds[wrong[0]]} and has all points")
    return len(right)


def differing(one: Path, other: Path) -> list[str]:
    """The files that are not the same in two folders."""
    ours, theirs = files(one), files(other)
    return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
