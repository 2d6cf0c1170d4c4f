"""An autograder for Gradescope: the zip that is uploaded there, and what runs in its container.

    make(lesson, Path("alibi.zip"), rules=Path("assignment.toml"))

In the zip (https://gradescope-autograders.readthedocs.io/en/latest/specs/: it is unpacked into
`/autograder/source`):

    setup.sh, run_autograder, grade.py, failure.json     the templates of `templates/gradescope/`
    course/                                              the engine, the mechanisms, this lesson's checks
    requirements.txt, constraints.txt                    what `setup.sh` installs, pinned
    wheels/                                              if asked for: then the image is built offline too
    assignment.toml, secret                              the rules; a secret of the zip's own

The container runs as root, so the walls of the sandbox stand as far as it allows, and each result records which.
Without another user or Landlock the student's code could read all this and write its own result: then nothing
is graded.
"""

import importlib.metadata
import io
import json
import re
import secrets
import sys
import traceback
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coursekit
from coursekit.course import SOURCE_ROOT, Course, Lesson
from coursekit.files import write_bytes, write_text
from coursekit.grading.batch.archive import Submissions
from coursekit.grading.batch.assignment import read_assignment
from coursekit.grading.batch.gradescope import dumped, failure, results_json
from coursekit.grading.batch.names import printable
from coursekit.grading.batch.seeds import SECRET_BYTES, read_secret
from coursekit.grading.submission import ExerciseError, read_submission

if TYPE_CHECKING:
    # PyTorch is not needed to make a zip.
    from coursekit.grading.batch.grade import Grader, Plan

TEMPLATES = Path(coursekit.__file__).parent / "templates" / "gradescope"
# One of them has to stand: they keep the student's code from the files of the grader.
KEEPERS = {"uid", "landlock"}
# The first moment that a zip can name: the same content gives the same bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)
EXTRA = "grading"


def make(
    lesson: Lesson, to: Path, *, rules: Path | None = None, wheels: Path | None = None, secret: bytes = b""
) -> list[str]:
    """Write the zip, and return what there is to know about it, a sentence a line. `wheels` is a folder with all
    that `requirements.txt` asks for; `secret` is drawn if none is given.

    Raises `ExerciseError` if the rules cannot be read, or the folder has no wheels or some for another system.
    """
    read_assignment(rules, lesson)
    files = dict(course_files(lesson))
    requirements = required()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements).encode()
    files["constraints.txt"] = constraints(lesson, requirements)
    files["failure.json"] = dumped(failure()).encode()
    files["secret"] = f"{(secret or secrets.token_bytes(SECRET_BYTES)).hex()}\n".encode()
    if rules is not None:
        files["assignment.toml"] = rules.read_bytes()
    for name in ("setup.sh", "run_autograder"):
        files[name] = (TEMPLATES / name).read_bytes()
    script = (TEMPLATES / "grade.py.txt").read_text("utf-8").replace("@SOURCE_ROOT@", SOURCE_ROOT)
    files["grade.py"] = script.encode()
    if wheels is not None:
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise ExerciseError(f"--wheels {wheels}: there is no .whl in it; `pip download` puts them there")
        elsewhere = [
            path.name for path in found if not path.name.endswith("any.whl") and "linux" not in path.name
        ]
        if elsewhere:
            raise ExerciseError(
                f"--wheels {wheels}: {elsewhere[0]} is not for Linux, on which Gradescope runs"
            )
        files |= {f"wheels/{path.name}": path.read_bytes() for path in found}
    content = zipped(files)
    write_bytes(to, content)
    # It holds the solution and the secret.
    to.chmod(0o600)
    return [
        f"{len(content) / 1e6:.1f} MB; it holds the solution: upload it, and give it to nobody",
        "in Gradescope: base image Ubuntu 24.04, container with 2 GB of memory or more, 1 CPU or more",
    ]


def course_files(lesson: Lesson) -> Iterator[tuple[str, bytes]]:
    """The engine as it runs here, the course's mechanisms, the lesson, and what says that they are installed."""
    packages = [Path(coursekit.__file__).parent]
    sources = lesson.root / SOURCE_ROOT
    if sources.is_dir():
        packages += [path for path in sorted(sources.iterdir()) if path.is_dir() and path.name != "coursekit"]
    for package in packages:
        for path in sorted(package.rglob("*")):
            inside = path.relative_to(package.parent)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
            # Nothing of the site's is needed: it is the larger part.
            if path.is_file() and not hidden and inside.parts[:2] != ("coursekit", "pages"):
                yield f"course/{SOURCE_ROOT}/{inside.as_posix()}", path.read_bytes()
    for path in (lesson.exercise, lesson.checks, lesson.misconceptions):
        if path.exists():
            yield f"course/{path.relative_to(lesson.root).as_posix()}", path.read_bytes()
    # pytest finds the fixtures through the entry point of an installed package.
    known = distribution()
    folder = f"course/{SOURCE_ROOT}/{known.name.replace('-', '_')}-{known.version}.dist-info"
    points = "".join(
        f"{point.name} = {point.value}\n" for point in known.entry_points.select(group="pytest11")
    )
    yield (
        f"{folder}/METADATA",
        f"Metadata-Version: 2.1\nName: {known.name}\nVersion: {known.version}\n".encode(),
    )
    yield f"{folder}/entry_points.txt", f"[pytest11]\n{points}".encode()


def distribution() -> importlib.metadata.Distribution:
    """The installed package that this engine belongs to."""
    for point in importlib.metadata.entry_points(group="pytest11", name="coursekit"):
        if point.dist is not None:
            return point.dist
    raise ExerciseError('the course is not installed here: `pip install -e ".[grading]"` in its folder')


def required() -> list[str]:
    """What the engine and the mechanisms need: the package's dependencies and those of its extra `grading`."""
    lines = [line.partition(";") for line in distribution().requires or ()]
    wanted = [
        (line, marker) for line, _, marker in lines if "extra" not in marker or f"'{EXTRA}'" in quoted(marker)
    ]
    return sorted({line.strip() for line, _ in wanted})


def quoted(marker: str) -> str:
    return marker.replace('"', "'")


def constraints(lesson: Lesson, requirements: list[str]) -> bytes:
    """The pins of the course; where it has none, the versions that are installed here."""
    path = lesson.root / "constraints.txt"
    if path.exists():
        return path.read_bytes()
    names = [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requirements]
    # A local version (2.13.0+cu126) is another index's.
    pins = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in names]
    return "".join(pins).encode()


def zipped(files: dict[str, bytes]) -> bytes:
    """The files as a zip, the same bytes for the same content; the scripts at the top can be run."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3
            runs = name in ("setup.sh", "run_autograder")
            entry.external_attr = (0o755 if runs else 0o600) << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".whl") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return out.getvalue()


@dataclass(frozen=True)
class Metadata:
    """What is used of `submission_metadata.json`
    (https://gradescope-autograders.readthedocs.io/en/latest/submission_metadata/): who, when, and the due date."""

    student: str = "unknown"
    when: datetime | None = None
    due: datetime | None = None

    @classmethod
    def read(cls, path: Path) -> "Metadata":
        """Without a file (a test run on the command line) nobody is late. Raises `ExerciseError` if the file is
        there and not as described."""
        if not path.exists():
            return cls()
        try:
            data = json.loads(path.read_text("utf-8"))
            users = sorted(user["email"] for user in data["users"])
            due = data["assignment"]["due_date"]
            return cls(printable(",".join(users)) or "unknown", moment(data["created_at"]), moment(due))
        except (OSError, ValueError, KeyError, TypeError) as error:
            told = f"{path.name} is not as described: {type(error).__name__} {error}"
            raise ExerciseError(told[:300]) from None


def moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def planned(source: Path, due: datetime | None = None) -> "Plan":
    """The plan that a zip holds. The due date of the assignment at Gradescope counts before that of the rules."""
    from coursekit.grading.batch.grade import Plan

    (lesson,) = Course(source / "course").lessons
    rules = source / "assignment.toml"
    assignment = read_assignment(rules if rules.exists() else None, lesson)
    return Plan(lesson, replace(assignment, due=due or assignment.due), read_secret(source / "secret"))


def opened(plan: "Plan") -> "Grader":
    """A grader behind walls that keep its files. Raises `ExerciseError` where there are none."""
    grader = plan.open()
    if KEEPERS.isdisjoint(grader.layers):
        grader.close()
        raise ExerciseError(
            f"nothing here keeps the files of the grader: {' or '.join(sorted(KEEPERS))} is needed"
        )
    return grader


def graded(root: Path) -> dict[str, Any]:
    """The content of `results.json` for what is in `root/submission`."""
    known = Metadata.read(root / "submission_metadata.json")
    plan = planned(root / "source", known.due)
    with Submissions(root / "submission", plan.lesson, known.student) as found:
        handed = replace(found.read(known.student), when=known.when)
    with opened(plan) as grader:
        return results_json(grader.grade(handed), plan.assignment.weights)


def grade(root: Path) -> None:
    """Write `results/results.json`, whatever happens. Why it failed is for the instructor alone, who sees what is
    printed here."""
    try:
        data = graded(root)
    except Exception:
        traceback.print_exc()
        data = failure()
    write_text(root / "results" / "results.json", dumped(data))


def check(root: Path) -> None:
    """While the image is built: grade the solution, and end with an error unless it earns all."""
    plan = planned(root / "source")
    with opened(plan) as grader:
        print(f"layers: {', '.join(grader.layers)}")
        report = grader.checks.run(read_submission(plan.lesson.exercise), bank=grader.bank)
    print(f"the solution earns {report.earned:g} of {report.points:g}")
    if not report.passed:
        sys.exit("setup.sh: the checks do not hold here")
