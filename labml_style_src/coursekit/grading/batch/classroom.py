"""Grading on GitHub: workflows for a student's repository and for a class, and an autograder for Classroom 50.

    for path in write(lesson, Path("classroom"), "owner/course@COMMIT"): ...

In a student's repository lies no check and no solution: the workflow checks the course out beside it, at one commit.
Whoever may read the course may read its solutions, and whoever may write to a repository may change its workflow:
there grading is for feedback, and the grades come from `attn grade` or the instructor's workflow.

Classroom 50 (https://github.com/foundation50/classroom50) runs an `autograder.py` in the student's checkout and
reads `./result.json` there: wiki/Advanced-Autograding.md, schemas/result-v1.schema.json. Points are whole numbers in
it: where the weights are not, all of them are multiplied by the same power of ten. It marks what is late itself, so
nothing is taken off here.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import coursekit
from coursekit.course import CourseError, Lesson, find_course
from coursekit.files import write_text
from coursekit.grading.batch.archive import Submissions
from coursekit.grading.batch.assignment import Assignment, exact
from coursekit.grading.batch.autograder import opened
from coursekit.grading.batch.export import check_text
from coursekit.grading.batch.names import printable
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.report import PASSED
from coursekit.grading.submission import ExerciseError

TEMPLATES = Path(coursekit.__file__).parent / "templates" / "classroom"
# Actions by their commits: a tag can be moved.
ACTIONS = {
    "CHECKOUT": "actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0",
    "UPLOAD": "actions/upload-artifact@b7c566a772e6b6bfb58ed0dc250532a479d7789f # v6.0.0",
    "DOWNLOAD": "actions/download-artifact@37930b1c2abaa49bbe596cd826c3c89aef350131 # v7.0.0",
}
COURSE = re.compile(r"(?P<repository>[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+)@(?P<commit>[0-9a-f]{40})")
RULES = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._/-]*")
NEEDED = ("CLASSROOM", "ASSIGNMENT", "SUBMISSION_TAG", "COMMIT_URL")
# The jobs of one matrix.
MOST_SHARDS = 256
# Its own Python is 3.12.
RUNTIME = {"runs-on": "ubuntu-24.04"}


def write(lesson: Lesson, folder: Path, course: str, *, shards: int = 4, rules: str = "") -> list[Path]:
    """Write all that is for GitHub and return the files. `course` is `OWNER/NAME@COMMIT`, `rules` the path of an
    assignment.toml in it.

    Raises `ExerciseError` for a course without a whole commit, rules that are no path, or too many shards.
    """
    files = {
        "student.yml": workflow(lesson, course, rules=rules),
        "instructor.yml": class_workflow(lesson, course, shards=shards, rules=rules),
        "classroom50/autograder.py": filled("autograder.py.txt", lesson, course, rules),
        "classroom50/runtime.json": f"{json.dumps(RUNTIME, indent=2)}\n",
    }
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def workflow(lesson: Lesson, course: str, *, rules: str = "") -> str:
    """The workflow of a student's repository: `.github/workflows/grade.yml`."""
    return filled("student.yml", lesson, course, rules)


def class_workflow(lesson: Lesson, course: str, *, shards: int = 4, rules: str = "") -> str:
    """The instructor's workflow: a class in so many parts at a time, merged at the end."""
    if not 1 <= shards <= MOST_SHARDS:
        raise ExerciseError(f"--shards {shards}: from 1 to {MOST_SHARDS}, the jobs that one matrix may have")
    parts = ", ".join(str(part) for part in range(1, shards + 1))
    return filled("instructor.yml", lesson, course, rules, SHARDS=str(shards), PARTS=parts)


def filled(template: str, lesson: Lesson, course: str, rules: str, **known: str) -> str:
    """A template with everything between `@` filled in."""
    if (source := COURSE.fullmatch(course)) is None:
        raise ExerciseError(f"--course {course}: wanted OWNER/NAME@COMMIT with the commit's 40 digits")
    if rules and not RULES.fullmatch(rules):
        raise ExerciseError(f"--assignment {rules}: wanted a plain path in the repository of the course")
    known |= ACTIONS | {"SLUG": lesson.slug, "COURSE": source["repository"], "COMMIT": source["commit"]}
    known["RULES"] = f" --assignment {rules}" if rules else ""
    text = (TEMPLATES / template).read_text("utf-8")
    for name, value in known.items():
        text = text.replace(f"@{name}@", value)
    return text


def result_json(result: Result, assignment: Assignment, environment: Mapping[str, str]) -> dict[str, Any]:
    """A result as `result.json` (`classroom50/result/v1`). Raises `ExerciseError` if the grader failed, or if the
    environment is not that of Classroom 50's runner."""
    if result.status == ERROR:
        raise ExerciseError(f"the grader failed: {result.message}")
    missing = [name for name in NEEDED if not environment.get(name)]
    if missing:
        raise ExerciseError(f"{missing[0]} is not set: is this run by Classroom 50?")
    tests = []
    for task in result.report.tasks if result.report else []:
        weight = exact(assignment.weights.get(task.key, task.points))
        share = weight / exact(task.points) if task.points else Fraction(0)
        for check in task.checks:
            passed = check.outcome == PASSED
            points = {"score": share * exact(check.earned), "max-score": share * exact(check.points)}
            told = {} if passed else {"message": check_text(check)}
            tests.append({"test-name": f"{task.title}: {check.title}", "passed": passed, **points, **told})
    score = {"score": exact(result.earned), "max-score": exact(result.max_score)}
    factor = whole(
        [value for each in (score, *tests) for value in each.values() if isinstance(value, Fraction)]
    )
    commit = environment["COMMIT_URL"]
    return {
        "schema": "classroom50/result/v1",
        "classroom": environment["CLASSROOM"],
        "assignment": environment["ASSIGNMENT"],
        # The runner puts its own in place of these two and of the time.
        "assignment_type": environment.get("ASSIGNMENT_TYPE") or "individual",
        "owner": environment.get("OWNER") or environment.get("USERNAME") or result.student,
        "submission": environment["SUBMISSION_TAG"],
        "commit": commit,
        "release": environment.get("RELEASE_URL") or commit,
        "review": environment.get("REVIEW_URL") or commit,
        "datetime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        **in_whole(score, factor),
        "tests": [in_whole(each, factor) for each in tests],
    }


def whole(numbers: list[Fraction]) -> int:
    """The least power of ten, up to 10,000, that makes all of them whole."""
    factors = (10**digits for digits in range(4))
    return next(
        (each for each in factors if all((number * each).denominator == 1 for number in numbers)), 10**4
    )


def in_whole(entry: Mapping[str, Any], factor: int) -> dict[str, Any]:
    return {
        key: round(value * factor) if isinstance(value, Fraction) else value for key, value in entry.items()
    }


def grade(lesson: Lesson, checkout: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Grade what is in a student's checkout, as Classroom 50's runner asks for it. The inputs are drawn anew each
    time: nothing that a student's repository can read is a secret."""
    from coursekit.grading.batch.grade import Plan

    student = printable(environment.get("OWNER") or environment.get("USERNAME") or "student")
    with Submissions(checkout, lesson, student) as found:
        handed = found.read(student)
    plan = Plan(lesson, Assignment(lesson.slug), os.urandom(32))
    with opened(plan) as grader:
        return result_json(grader.grade(handed), plan.assignment, environment)


def main(slug: str, checkout: str, to: str) -> None:
    """What `autograder.py` runs. Ends with an error, which the runner reports, if nothing can be graded."""
    try:
        data = grade(find_course().lesson(slug), Path(checkout), os.environ)
    except CourseError as error:
        sys.exit(f"attn: {error}")
    write_text(Path(to), f"{json.dumps(data, indent=2)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
