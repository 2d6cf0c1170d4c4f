"""`docs/for-students.md` and `docs/for-instructors.md`: every command in them works as it stands, in order, and
what they quote is what is printed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coursekit.course import find_course
from coursekit.grading import exercise, feedback
from coursekit.grading.checking import Bank
from coursekit.grading.submission import Submission

COURSE = find_course(Path(__file__))
INSTRUCTORS, STUDENTS = (COURSE.root / "docs" / f"for-{who}.md" for who in ("instructors", "students"))
# What only a fresh machine can show; `.ci/run` is one.
INSTALLING = re.compile(r"git clone |cd course$|make \.venv|python -m venv |\. \.venv/|pip install ")
# Where a command says by its exit code that not all is well, and is meant to.
NOT_DONE_YET = ("python check.pyz", "attn check ", "attn replay ")


def commands(page: Path) -> list[str]:
    """The commands of a page, each with its heredoc."""
    found: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        lines = iter(block.splitlines())
        for line in lines:
            text = line
            if "<<'END'" in line:
                for more in lines:
                    text += f"\n{more}"
                    if more == "END":
                        break
            found.append(text)
    return [command for command in found if command.strip() and not INSTALLING.match(command)]


def checkout(folder: Path) -> Path:
    """The course as it stands, in a folder in which commands may write."""
    folder.mkdir()
    for path in COURSE.root.iterdir():
        if path.name not in (".git", ".venv", "build", "work"):
            (folder / path.name).symlink_to(path)
    return folder


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=300, env=environment()
    )
    wanted = 1 if command.startswith(NOT_DONE_YET) else 0
    assert done.returncode == wanted, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment() -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    # The commands of this environment, whether it was activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), known.get("PATH", "")])
    return known | {"OMP_NUM_THREADS": "1", "PATH": path}


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The instructors' commands, all run, with what each printed."""
    folder = checkout(tmp_path_factory.mktemp("instructor") / "course")
    return folder, {command: run(command, folder) for command in commands(INSTRUCTORS)}


def test_an_instructor_comes_from_nothing_to_a_graded_class(graded: tuple[Path, dict[str, str]]):
    folder, _ = graded
    rows = (folder / "graded" / "grades.csv").read_text("utf-8").splitlines()
    assert len(rows) == 16
    for name in re.findall(
        r"^\| `(.*?)` \|", INSTRUCTORS.read_text("utf-8").partition("in `graded/`")[2], re.M
    )[:5]:
        found = list((folder / "graded").glob(re.sub("<.*>", "*", name)))
        assert found, name
    for name in ("grades.csv", "report.html"):
        assert (folder / "both" / name).read_bytes() == (folder / "graded" / name).read_bytes()
    assert (folder / "autograder.zip").exists()


def test_a_student_needs_only_the_bundle(graded: tuple[Path, dict[str, str]], tmp_path: Path):
    folder, _ = graded
    (tmp_path / "mine").mkdir()
    bundle, page = folder / "handout", commands(STUDENTS)
    for path in bundle.iterdir():
        (tmp_path / "mine" / path.name).write_bytes(path.read_bytes())
    alone = [command for command in page if "check.pyz" in command]
    assert alone
    for command in alone:
        assert "0 of " in run(command, tmp_path / "mine")


def test_a_student_works_in_the_course(tmp_path: Path):
    folder = checkout(tmp_path / "course")
    said = [run(command, folder) for command in commands(STUDENTS) if command.startswith("attn ")]
    assert "hint 1 of" in said[-1]


def test_the_feedback_that_is_quoted_is_what_is_printed():
    lesson = COURSE.lesson("alibi")
    wrong = lesson.exercise.read_text("utf-8").replace("return -alibi_slopes", "return alibi_slopes")
    bank = Bank(lesson)
    report = exercise.run(lesson, Submission(wrong, "alibi.py", "alibi.py"), bank=bank)
    bank.close()
    (quoted,) = re.findall(r"^```text\n(.*?)^```", STUDENTS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert quoted in feedback.plain(report, 89)


def test_the_numbers_are_those_that_were_measured():
    result = json.loads((COURSE.root / "benchmarks" / "results" / "grading.json").read_text("utf-8"))
    cases = {case["what"].removeprefix("a fresh process each: "): case for case in result["cases"]}
    ours, peers = cases["graded"], ("pytest, a second process", "pytest, no boundary", "otter-grader")
    second, plain, otter = (cases[name] for name in peers)
    memory = [f"{ours[name] / 1000:.1f} GB" for name in ("first_quarter_mb", "last_quarter_mb", "peak_mb")]
    said = " ".join(INSTRUCTORS.read_text("utf-8").split())
    for sentence in (
        f"| `alibi` | {ours['per_second']:.1f} |",
        f"median time of all lessons | {cases['graded, the median lesson']['per_second']:.1f} |",
        f"a second process for each | {second['per_second']:.2f} | {second['ratio']:.0f} times",
        f"plain pytest for each | {plain['per_second']:.2f} | {plain['ratio']:.0f} times",
        f"otter-grader {otter['version']} | {otter['per_second']:.2f} | {otter['ratio']:.0f} times",
        f"held {memory[0]} in the first quarter of the time and {memory[1]} in the last, {memory[2]} at most",
    ):
        assert sentence in said, sentence
    hostile = cases["the class"]["in a hundred"]
    assert f"{10 * (hostile['hanging'] + hostile['hostile'])} of them hanging or hostile" in said
    assert cases["killed midway and started again"]["same_bytes"] is True
