"""Grading a class: from a folder or zip of submissions to a folder of results.

What was graded already is skipped, as long as submission, checks and rules are the same; a grader's own fault is
tried again. A result is written as soon as it is there, its page before it, so that a run that was killed at any
moment goes on where it stopped and ends with the same files.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.batch import pages, pool, similar
from coursekit.grading.batch.archive import HandedIn, Submissions
from coursekit.grading.batch.assignment import Assignment, read_assignment
from coursekit.grading.batch.grade import Plan
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.batch.results import Batch, Results, seen_from
from coursekit.grading.batch.seeds import fingerprint, make_secret, read_secret, shard_of
from coursekit.grading.sandbox import LAYERS
from coursekit.grading.stub import make_stub
from coursekit.grading.submission import ExerciseError

GradeAll = Callable[[Plan, Iterable[HandedIn]], Generator[Result]]
# Students named in one line.
SHOWN = 10


@dataclass
class Run:
    """One run over a class. `tell(result, done, total)` is called for each result, `kept` says that it was there
    already. After it `graded` and `kept` count, `results` has all that are in the folder."""

    lesson: Lesson
    submissions: Path
    out: Path
    rules: Path | None = None
    shard: str = "1/1"
    secret: Path | None = None
    required: bool = False
    tell: Callable[[Result, bool, int], None] = lambda result, kept, total: None
    graded: int = 0
    kept: int = 0
    students: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def __call__(self, grade_all: GradeAll = pool.grade_all) -> None:
        """Grade what is not graded yet and write the gradebook, the latter also if it is interrupted.

        Raises `ExerciseError` for what the instructor has to put right, before anything is graded.
        """
        folder = Results(self.out)
        with Submissions(self.submissions, self.lesson) as found:
            plan = self._plan(folder, found)
            self.students = in_shard(found.students, self.shard)
            try:
                for result in grade_all(plan, self._open(folder, found, plan)):
                    self._keep(folder, plan, result)
                    self.graded += 1
                    self.tell(result, False, len(self.students))
            finally:
                self.results = folder.all()
                folder.write_gradebook(self.results)
            write_report(folder, self.lesson, plan.assignment, self.results, found)

    def _plan(self, folder: Results, found: Submissions) -> Plan:
        batch = folder.batch
        assignment = read_assignment(self.rules, self.lesson)
        if self.rules is None and batch is not None and batch.slug == self.lesson.slug:
            # Rules that were given once hold until others are given.
            assignment = batch.assignment
        if assignment.due and (undated := found.undated()):
            raise ExerciseError(
                f"the assignment is due at a time, and nobody knows when {few(undated)} handed in: a download has "
                f"the time of the download. Write it into times.csv (student,handed_in)"
            )
        path = self.secret or self.out / "secret"
        if self.shard != "1/1" and not path.exists():
            raise ExerciseError(
                f"all shards need one secret, and {path} does not exist: "
                f"make it once (`python -c 'import secrets; print(secrets.token_hex(32))'`) and name it with --secret"
            )
        if batch is None and folder.folder.exists() and any((folder.folder / "results").glob("*.json")):
            raise ExerciseError(f"{self.out} has results and no batch.json: choose another folder")
        secret = read_secret(path) if self.secret else make_secret(path)
        places = (seen_from(self.out, self.submissions), seen_from(self.out, path))
        folder.begin(Batch(assignment, fingerprint(secret), *places))
        return Plan(self.lesson, assignment, secret, required=self.required)

    def _open(self, folder: Results, found: Submissions, plan: Plan) -> Iterator[HandedIn]:
        """The submissions that have no result yet; the pages of the others are brought up to date."""
        for student in self.students:
            handed = found.read(student)
            result = folder.get(student)
            if result is None or not self._holds(result, plan.key(handed)):
                yield handed
                continue
            self._keep(folder, plan, result)
            self.kept += 1
            self.tell(result, True, len(self.students))

    def _holds(self, result: Result, key: str) -> bool:
        fenced = not self.required or set(LAYERS) <= set(result.sandbox)
        return result.key == key and result.status != ERROR and fenced

    def _keep(self, folder: Results, plan: Plan, result: Result) -> None:
        # The page first: where there is a result, there is its page.
        pages.write_feedback(folder.folder, self.lesson, plan.assignment, result)
        folder.save(result)


def write_report(
    folder: Results, lesson: Lesson, assignment: Assignment, results: list[Result], found: Submissions | None
) -> None:
    """Write the page about the class; who handed in what is nearly the same is said if the submissions are there."""
    alike = []
    if found is not None:
        stub = make_stub(lesson.exercise.read_text("utf-8"), str(lesson.exercise))
        alike = similar.groups(texts(found, (result.student for result in results)), stub)
    pages.write_report(folder.folder, lesson, assignment, results, alike)


def texts(found: Submissions, students: Iterable[str]) -> dict[str, str]:
    """The text of each submission that can be read, by student."""
    known = {}
    for student in students:
        with contextlib.suppress(KeyError, ExerciseError):
            known[student] = found.read(student).submission().text
    return known


def in_shard(students: Iterable[str], shard: str) -> list[str]:
    """The students of the i-th of n parts, `i/n`: who is in it depends on the name alone."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ExerciseError(f"--shard: wanted i/n with i from 1 to n, as in 3/10; came {shard}")
    return [student for student in students if shard_of(student, parts) == part]


def few(students: list[str]) -> str:
    more = f" and {len(students) - SHOWN} more" if len(students) > SHOWN else ""
    return ", ".join(students[:SHOWN]) + more
