"""The students' bundle: a folder with all that they need and nothing that they should not have.

    SLUG.py, SLUG.ipynb    the exercise to fill in, as a file and as a notebook; one of them is enough
    README.md              what to do, what it is worth and until when
    requirements.txt       for `python -m pip install -r`
    check.pyz              the public checks: `python check.pyz`

The checks hold questions and expected values. No line of a reference, of a solution or of a wrong variant is in
the bundle.
"""

import ast
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from coursekit.course import Lesson
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.checking import Checks
from coursekit.grading.public.archive import archive
from coursekit.grading.public.data import PublicChecks
from coursekit.grading.public.publish import Published, points_of, publish
from coursekit.grading.stub import make_stub, stub_notebook
from coursekit.grading.submission import ExerciseError
from coursekit.grading.validate import untouched
from coursekit.imports import imported_modules
from coursekit.words import count, number, of

CHECK = "python check.pyz"
# What `check.pyz` imports, and what a submission may import besides.
NEEDED = {"torch": "torch>=2.8", "numpy": "numpy>=2.0", "rich": "rich>=14"}
POSSIBLE = {"einops": "einops>=0.8"}


def release(
    lesson: Lesson, folder: Path, assignment: Assignment | None = None, rewrites: Iterable[Path] = ()
) -> Published:
    """Make the bundle of a lesson in a new (or empty) folder. The public checks are proven on `rewrites` too, other
    correct solutions.

    Raises `ExerciseError` if there is something in the folder already, or if the stub is not fit to be given out.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ExerciseError(f"{folder} exists already and is left as it is: a new folder is wanted")
    assignment = assignment or Assignment(lesson.slug)
    stub = students_stub(lesson)
    published = publish(lesson, rewrites, assignment.weights)
    content = {
        f"{lesson.slug}.py": stub.encode(),
        f"{lesson.slug}.ipynb": stub_notebook(stub, CHECK).encode(),
        "README.md": readme(stub, published.checks, assignment).encode(),
        "requirements.txt": requirements(stub).encode(),
        "check.pyz": archive(published.checks.encoded()),
    }
    write_folder(folder, content)
    return published


def students_stub(lesson: Lesson) -> str:
    """The stub, in whose text the checks are those of the bundle. Raises `ExerciseError` if it holds lines of the
    solution, or if the checks find more or less in it than work not done."""
    stub = make_stub(lesson.exercise.read_text("utf-8"), str(lesson.exercise))
    problems = untouched(Checks(lesson))
    if problems:
        more = f" (and {len(problems) - 1} more: attn validate {lesson.slug})" if problems[1:] else ""
        raise ExerciseError(f"'{lesson.slug}' is not fit for students: {problems[0]}{more}")
    return stub.replace(f"attn check {lesson.slug}", CHECK)


def requirements(stub: str) -> str:
    """What must be installed for the checks and for the imports of the stub."""
    imported = {name.partition(".")[0] for name in imported_modules(stub)}
    return "".join(
        f"{each}\n" for each in [*NEEDED.values(), *(POSSIBLE[n] for n in POSSIBLE if n in imported)]
    )


def readme(stub: str, checks: PublicChecks, assignment: Assignment) -> str:
    """The instructions, as Markdown."""
    public = points_of(checks.cases)
    rows = [
        f"| {place}. {task['title'].replace('|', '&#124;')} | {number(checks.points[task['key']])} "
        f"| {number(public.get(task['key'], 0))} |"
        for place, task in enumerate(checks.tasks, start=1)
    ]
    text = ast.get_docstring(ast.parse(stub)) or f"# Exercise: {checks.slug}"
    return (
        "\n\n".join(
            [
                text.strip(),
                "## How to begin",
                "You need Python 3.11 or later.",
                f"```\npython -m pip install -r requirements.txt\n{CHECK}\n```",
                f"Fill in `{checks.slug}.py` or `{checks.slug}.ipynb`, whichever you like: the one that was saved "
                f"last is checked. Hand that one in.",
                "## Points",
                "\n".join(["| Task | Points | Checked here |", "| --- | ---: | ---: |", *rows]),
                f"{share(checks)}. `check.pyz` holds questions and the answers that are "
                "expected, for these inputs only. Your grade comes from all checks of the exercise, on inputs that are "
                "drawn anew and that nobody knows before: code that knows the answers by heart earns nothing.",
                "## Rules",
                *rules(assignment),
            ]
        )
        + "\n"
    )


def share(checks: PublicChecks) -> str:
    """`26 of 28 points can be checked here`."""
    public = sum(points_of(checks.cases).values())
    return f"{of(public, sum(checks.points.values()), 'point')} can be checked here"


def rules(assignment: Assignment) -> list[str]:
    """What holds for this assignment, a paragraph each."""
    due = assignment.due
    zone = f" ({due.tzname()})" if due else ""
    found = [f"Due: **{due:%A, %d %B %Y, %H:%M}**{zone}." if due else "There is no due date."]
    if due:
        found.append(late_rule(assignment))
    limits = assignment.limits
    found.append(
        f"One call of your code may take {number(limits.call_seconds)} seconds, all of them "
        f"together {number(limits.submission_seconds)} seconds, and {limits.memory_mb} MB of memory."
    )
    consequence = {
        "note": "is noted for whoever grades you",
        "fail": "earns nothing for the task that calls it",
    }[assignment.fused]
    found.append(
        "Write the exercise out yourself: a call of a ready-made implementation of what you are to build "
        f"{consequence}."
    )
    return found


def late_rule(assignment: Assignment) -> str:
    late = assignment.late
    grace = f"Up to {number(late.grace_minutes)} minutes late is on time. " if late.grace_minutes else ""
    if not late.per_day and not late.days:
        return f"{grace}What comes later loses nothing."
    cost = (
        f"Each day begun costs {100 * late.per_day:.4g} % of the score"
        if late.per_day
        else "It costs nothing"
    )
    last = f"; after {count(late.days, 'day')} nothing is left" if late.days else ""
    return f"{grace}{cost}{last}."


def write_folder(folder: Path, content: dict[str, bytes]) -> None:
    """Write all files of a new folder, or none: it gets its name when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        now = time.time()
        for name, data in content.items():
            (made / name).write_bytes(data)
            # Neither half of the exercise is the one that was saved last.
            os.utime(made / name, (now, now))
        # mkdtemp makes folders that only their owner may enter.
        made.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
