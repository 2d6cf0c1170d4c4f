"""A class of five, and what a run makes of it."""

from pathlib import Path

from tests.coursekit.grading.batch.fakes import grade_here
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.grading.batch.results import Results
from coursekit.grading.stub import make_stub

WRONG = EXERCISE.replace("x.mean(axis=-1, keepdims=True)", "x.mean()")
CLASS = {"ann": EXERCISE, "bob": WRONG, "cem": make_stub(EXERCISE), "dee": "1 / 0", "eve": ""}


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder of results but the secret."""
    found = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {name: path.read_bytes() for name, path in found.items() if name != "secret"}


def students_of(work):
    """A grader that notes whom it grades."""
    seen = []

    def grade_all(plan, each):
        def noted():
            for handed in each:
                seen.append(handed.student)
                yield handed

        return grade_here(plan, noted())

    work(grade_all)
    return seen


def scores(out: Path) -> dict[str, float]:
    return {result.student: result.score for result in Results(out).all()}
