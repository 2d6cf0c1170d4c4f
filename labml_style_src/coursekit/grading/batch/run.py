"""Grading a class: from a folder or zip of submissions to a folder of results.

What was graded already is skipped, as long as submission, checks and rules are the same; a grader's own fault is
tried again. A result is written as soon as it is there, its page before it, so that a run that was killed at any
moment goes on where it stopped and ends with the same files.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coursekit.course import Course, Lesson
from coursekit.grading.batch import pages, pool, similar
from coursekit.grading.batch.archive import HandedIn, Submissions
from coursekit.grading.batch.assignment import read_assignment
from coursekit.grading.batch.grade import Plan
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.batch.results import Batch, Results, merge, seen_from
from coursekit.grading.batch.seeds import fingerprint, make_secret, read_secret, shard_of
from coursekit.grading.sandbox import LAYERS
from coursekit.grading.stub import make_stub, without_markers
from coursekit.grading.submission import ExerciseError
from coursekit.words import listed

GradeAll = Callable[[Plan, Iterable[HandedIn]], Iterator[Result]]
# Called with each result, whether it was there already, and of how many students it is one.
Tell = Callable[[Result, bool, int], None]
# Students named in one line.
SHOWN = 10


def nobody(result: Result, kept: bool, total: int) -> None:
    """Tell nobody."""


@dataclass
class Run:
    """One run over a class, or the part of it that is `shard`. `tell` hears of each result. After it `graded` and
    `kept` count, and `results` has all that are in the folder."""

    lesson: Lesson
    submissions: Path
    out: Path
    rules: Path | None = None
    shard: str = "1/1"
    secret: Path | None = None
    required: bool = False
    tell: Tell = nobody
    graded: int = 0
    kept: int = 0
    students: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def __call__(self, grade_all: GradeAll = pool.grade_all) -> None:
        """Grade what is not graded yet and write the gradebook, the latter also if it is interrupted.

        Raises `ExerciseError` for what the instructor has to put right, before anything is graded.
        """
        folder = Results(self.out)
        if self.out.resolve().is_relative_to(self.submissions.resolve()):
            raise ExerciseError(f"--out {self.out} lies among the submissions: name a folder elsewhere")
        with Submissions(self.submissions, self.lesson) as found:
            self.students = in_shard(found.students, self.shard)
            plan = self._plan(folder, found)
            try:
                for result in grade_all(plan, self._open(folder, found, plan)):
                    self._keep(folder, plan, result)
                    self.graded += 1
                    self.tell(result, False, len(self.students))
            finally:
                self.results = folder.all()
                folder.write_gradebook(self.results)
        self.write_report(folder)

    def write_report(self, folder: Results) -> None:
        """Write the page about the class in a folder; who handed in nearly the same is told if it is at hand."""
        results, batch = folder.all(), folder.graded()
        with Submissions(self.submissions, self.lesson) as found:
            alike = groups_alike(self.lesson, found, results)
        pages.write_report(folder.folder, self.lesson, batch.assignment, results, alike)

    def _plan(self, folder: Results, found: Submissions) -> Plan:
        batch = folder.batch
        assignment = read_assignment(self.rules, self.lesson)
        if self.rules is None and batch is not None and batch.slug == self.lesson.slug:
            # Rules that were given once hold until others are given.
            assignment = batch.assignment
        if assignment.due and assignment.late.costs and (undated := found.undated()):
            raise ExerciseError(
                f"being late costs points, and nobody knows when {listed(undated, SHOWN)} handed in: a download "
                f"has the time of the download. Write it into times.csv (student,handed_in)"
            )
        path = self.secret or self.out / (batch.secret if batch else "secret")
        if batch is not None and not path.exists():
            raise ExerciseError(f"the secret of the batch, {path}, is not there: name it with --secret")
        if self.shard != "1/1" and not path.exists():
            raise ExerciseError(
                f"all shards need one secret, and {path} does not exist: "
                f"make it once (`python -c 'import secrets; print(secrets.token_hex(32))'`) and name it with --secret"
            )
        if batch is None and any((folder.folder / "results").glob("*.json")):
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


def groups_alike(lesson: Lesson, found: Submissions, results: list[Result]) -> list[similar.Group]:
    stub = make_stub(lesson.exercise.read_text("utf-8"), str(lesson.exercise))
    solution = without_markers(lesson.exercise.read_text("utf-8"))
    return similar.groups(texts(found, (result.student for result in results)), stub, solution)


def texts(found: Submissions, students: Iterable[str]) -> dict[str, str]:
    """The text of each submission that can be read, by student."""
    known = {}
    for student in students:
        with contextlib.suppress(KeyError, ExerciseError):
            known[student] = found.read(student).submission().text
    return known


def graders(jobs: int = 0, address: str = "") -> GradeAll:
    """Who grades: so many processes of this machine, or the Dask cluster at an address."""
    if not address:
        return functools.partial(pool.grade_all, jobs=jobs)
    from coursekit.grading.batch.cluster import grade_on_cluster

    return functools.partial(grade_on_cluster, address)


def merged(course: Course, to: Path, parts: list[Path]) -> list[Result]:
    """Bring the results of several shards together in one folder, with its gradebook and pages; who handed in
    nearly the same is told if all had one folder of submissions and it is there. Raises `ExerciseError`."""
    results, folder = merge(to, parts), Results(to)
    batch = folder.graded()
    lesson = course.lesson(batch.slug)
    folder.write_gradebook(results)
    for result in results:
        pages.write_feedback(to, lesson, batch.assignment, result)
    alike = []
    if batch.submissions and (to / batch.submissions).exists():
        with Submissions(to / batch.submissions, lesson) as found:
            alike = groups_alike(lesson, found, results)
    pages.write_report(to, lesson, batch.assignment, results, alike)
    return results


def in_shard(students: Iterable[str], shard: str) -> list[str]:
    """The students of the i-th of n parts, `i/n`: who is in it depends on the name alone."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ExerciseError(f"--shard: wanted i/n with i from 1 to n, as in 3/10; came {shard}")
    return [student for student in students if shard_of(student, parts) == part]
