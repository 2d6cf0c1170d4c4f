"""`python check.pyz`: a student checks the file beside it, without the course.

The student's code runs in a second process, as under `attn check`, which finds the engine in the same archive.
"""

import argparse
import json
import math
import os
import sys
from importlib.resources import files
from pathlib import Path

from coursekit import words
from coursekit.course import CourseError, EnvironmentFault
from coursekit.grading import feedback, progress
from coursekit.grading.attempt import Bench, tried
from coursekit.grading.backends import SecondProcess
from coursekit.grading.feedback import Commands
from coursekit.grading.public.data import PublicChecks, decoded
from coursekit.grading.report import Report
from coursekit.grading.submission import ExerciseError, newest, other_half, read_submission

# The file of public checks, beside this module in the archive.
DATA = "checks.wire"
PUBLIC_SEED = 0


def check(archive: Path, file: Path | None = None, hint: bool = False) -> tuple[Report, PublicChecks]:
    """Check a submission: by default the one beside the archive that was saved last.

    Raises `ExerciseError` if there is none, or it cannot be read.
    """
    checks = decoded(files(__package__ or "").joinpath(DATA).read_bytes())
    folder = archive.parent
    path = file or newest(folder, checks.slug)
    if path is None:
        raise ExerciseError(
            f"nothing to check: {checks.slug}.py or {checks.slug}.ipynb belongs into {folder}"
        )
    submission = read_submission(path)
    backend = SecondProcess(submission)
    try:
        report = tried(
            checks.cases, Bench(checks.slug, submission, backend, checks), PUBLIC_SEED, checks.tasks
        )
    finally:
        backend.close()
    report.submission, report.seed, report.asked = str(path), PUBLIC_SEED, hint
    other = other_half(path)
    if file is None and other.exists():
        report.notes.insert(0, f"{feedback.shown_path(str(other))} is older and was not checked")
    progress.remember(report, folder, checks.slug)
    return report, checks


def main(archive: Path) -> int:
    """Run the command line; returns the exit code: 0 pass, 1 a check failed, 2 usage."""
    parser = argparse.ArgumentParser(
        prog=f"python {archive.name}",
        description="Check your exercise: points, the first wrong number in words, the mistake if it is a known one.",
        epilog="Exit codes: 0 pass, 1 a check failed, 2 usage, 3 a package is missing.",
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", type=Path, help="your .py or .ipynb; else the one in this folder")
    parser.add_argument("--hint", action="store_true", help="one hint more for the first unsolved task")
    parser.add_argument("--json", action="store_true", help="print JSON for a program to read")
    given = parser.parse_args()
    try:
        report, checks = check(archive, given.file, given.hint)
    except CourseError as error:
        print(f"{archive.name}: {error}", file=sys.stderr)
        return 3 if isinstance(error, EnvironmentFault) else 2
    if given.json:
        print(json.dumps(feedback.as_json(report), indent=2, ensure_ascii=False))
    else:
        show(report, Commands(f"python {archive.name}"), share(report, checks))
    return 0 if report.passed else 1


def share(report: Report, checks: PublicChecks) -> str:
    """How much of the exercise can be checked here."""
    total = sum(checks.points.values())
    if math.isclose(report.points, total):
        return "All checks of the exercise are here. The grade comes from the same ones on other inputs."
    of = words.of(report.points, total, "point")
    return f"{of} can be checked here. The grade comes from all checks, on other inputs."


def show(report: Report, commands: Commands, last: str) -> None:
    """Print for people at a terminal, or as plain text."""
    from rich.console import Console

    for stream in (sys.stdout, sys.stderr):
        # Windows writes another encoding into a file or a pipe.
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        print(feedback.plain(report, commands=commands), end="")
        print(last)
        return
    console = Console(highlight=False)
    console.print(feedback.render(report, commands))
    console.print(last, style="dim", markup=False)
