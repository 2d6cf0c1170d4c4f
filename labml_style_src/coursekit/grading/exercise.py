"""A student's way through a lesson's exercise: start, check, solution.

path = start(lesson, Path("work"))             the stub, never over existing work
report = check(lesson)                         points, the first wrong index, mistakes, hints
text = solution(lesson)                        after a first attempt
"""

from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading import feedback, progress, stub
from coursekit.grading.backends import SecondProcess
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.report import Report
from coursekit.grading.stub import make_stub
from coursekit.grading.submission import ExerciseError, Submission, newest, other_half, read_submission

__all__ = ["ExerciseError", "check", "make_stub", "other_half", "run", "solution", "start", "submission_path"]


def start(lesson: Lesson, work_dir: Path | None = None, notebook: bool = False) -> Path:
    """Put the stub into the work folder (`work/` of the course) and return its path.

    Raises `ExerciseError` if the file exists already: a student's work is never written over.
    """
    text = make_stub(lesson.exercise.read_text("utf-8"), str(lesson.exercise))
    path = (work_dir or lesson.root / "work") / f"{lesson.slug}{'.ipynb' if notebook else '.py'}"
    stub.write_new(path, stub.stub_notebook(text, f"attn check {lesson.slug}") if notebook else text)
    return path


def submission_path(lesson: Lesson, work_dir: Path) -> Path:
    """The student's file in the work folder; of a `.py` and an `.ipynb` the one that was saved last.

    Raises `ExerciseError` if there is none.
    """
    path = newest(work_dir, lesson.slug)
    if path is None:
        raise ExerciseError(
            f"nothing to check in {work_dir}: `attn start {lesson.slug}` puts the exercise there"
        )
    return path


def check(
    lesson: Lesson,
    submission: Path | None = None,
    *,
    work_dir: Path | None = None,
    hint: bool = False,
    seed: int = 0,
    boundary: bool = True,
) -> Report:
    """Check a submission (by default the one in the work folder), remember the attempt, and with `hint`
    reveal the next hint of the first task that is not solved.

    By default the student's code runs in a second process, so that nothing it does (an endless loop,
    `exit()`, a crash) ends this one. Raises `ExerciseError` if there is no submission or it cannot be read.
    """
    work_dir = work_dir or lesson.root / "work"
    path = submission or submission_path(lesson, work_dir)
    bank = Bank(lesson)
    report = run(lesson, read_submission(path), seed=seed, boundary=boundary, bank=bank)
    bank.close()
    report.submission, report.asked = str(path), hint
    other = other_half(path)
    if submission is None and other.exists():
        report.notes.insert(0, f"{feedback.shown_path(str(other))} is older and was not checked")
    progress.remember(report, work_dir, lesson.slug)
    return report


def solution(lesson: Lesson, work_dir: Path | None = None) -> str:
    """The course's own solution. Raises `ExerciseError` before a first attempt was checked."""
    if not progress.load(work_dir or lesson.root / "work", lesson.slug).attempts:
        raise ExerciseError(
            f"the solution is shown after a first attempt: fill in a task and run `attn check {lesson.slug}`"
        )
    return stub.without_markers(lesson.exercise.read_text("utf-8"))


def run(
    lesson: Lesson,
    submission: Submission,
    *,
    seed: int = 0,
    boundary: bool = False,
    bank: Bank | None = None,
) -> Report:
    """Run a lesson's checks on a submission once, without remembering anything (`Checks` runs them on many).

    Raises `ExerciseError` if the lesson's checks themselves cannot be run.
    """
    # Started first: the second process imports PyTorch while the checks are collected.
    backend = SecondProcess(submission) if boundary else None
    try:
        return Checks(lesson).run(submission, backend=backend, seed=seed, bank=bank)
    finally:
        if backend is not None:
            backend.close()
