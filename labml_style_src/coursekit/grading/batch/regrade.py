"""A class graded again on the same inputs, after the checks or the engine have changed: whose score differs.

The new results are made beside the old ones, in `OUT/.regrade`, and take their place only when all are there, so
that a run which is stopped changes nothing and goes on where it was.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.batch import pages, pool
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.batch.results import Results, agree, seen_from
from coursekit.grading.batch.run import GradeAll, Run, Tell, nobody
from coursekit.grading.submission import ExerciseError


@dataclass(frozen=True)
class Change:
    """A student whose result differs; of the checks those that went another way, in words."""

    student: str
    before: Result
    after: Result
    checks: tuple[str, ...]


def regrade(
    lesson: Lesson,
    submissions: Path,
    out: Path,
    *,
    secret: Path | None = None,
    required: bool = False,
    tell: Tell = nobody,
    grade_all: GradeAll = pool.grade_all,
) -> list[Change]:
    """Grade all again by the rules and with the secret of the batch in `out`, and return what differs, by student.

    Raises `ExerciseError` if `out` has no such batch, or its secret is not there.
    """
    folder, beside = Results(out), Results(out / ".regrade")
    batch = folder.graded()
    agree(out, batch, replace(batch, assignment=replace(batch.assignment, slug=lesson.slug)))
    before = {result.student: result for result in folder.all()}
    secret = secret or out / batch.secret
    if not secret.is_file():
        raise ExerciseError(f"the secret of the batch, {secret}, is not there: name it with --secret")
    places = {
        "submissions": seen_from(beside.folder, submissions),
        "secret": seen_from(beside.folder, secret),
    }
    beside.begin(replace(batch, **places))
    run = Run(lesson, submissions, beside.folder, secret=secret, required=required, tell=tell)
    run(grade_all)
    changes = []
    for after in beside.all():
        known = before.get(after.student)
        if after.status == ERROR and known and known.status != ERROR:
            # The grader's own fault says nothing about the student.
            continue
        pages.write_feedback(out, lesson, batch.assignment, after)
        folder.save(after)
        if known is not None and outcome(known) != outcome(after):
            changes.append(Change(after.student, known, after, tuple(different(known, after))))
    folder.write_gradebook()
    run.write_report(folder)
    shutil.rmtree(beside.folder)
    return changes


def outcome(result: Result) -> tuple[object, ...]:
    return result.score, result.max_score, result.status, checks_of(result)


def checks_of(result: Result) -> dict[str, str]:
    """The outcome of each check."""
    tasks = result.report.tasks if result.report else []
    return {f"{task.title}: {check.title}": check.outcome for task in tasks for check in task.checks}


def different(before: Result, after: Result) -> Iterator[str]:
    old, new = checks_of(before), checks_of(after)
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name, "not there"), new.get(name, "not there")
        if was != now:
            yield f"{name}: {was}, now {now}"
