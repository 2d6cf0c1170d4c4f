"""The students' bundle: complete, the same every time, and without a line that would give a solution away."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.coursekit.grading.tiny import EXERCISE

from coursekit import __main__
from coursekit.course import find_course
from coursekit.grading.batch.assignment import Assignment, Late
from coursekit.grading.batch.release import release, requirements, students_stub
from coursekit.grading.public import publish as publishing
from coursekit.grading.public.archive import MAIN
from coursekit.grading.stub import TOKEN, leaked_lines
from coursekit.grading.submission import ExerciseError
from coursekit.imports import code_text

# Lines with fewer tokens (`def __init__(self) -> None:`) are anybody's.
TELLING = 10
# What the packages that `check.pyz` needs import in turn.
PACKAGES = (
    *("torch", "torchgen", "functorch", "numpy", "numpy.libs", "rich", "markdown_it", "mdurl", "pygments"),
    *("typing_extensions.py", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"),
    *("setuptools", "nvidia", "triton"),
)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a bundle, and those in its archive."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    with zipfile.ZipFile(folder / "check.pyz") as archive:
        return found | {f"check.pyz/{name}": archive.read(name) for name in archive.namelist()}


def test_a_bundle_is_complete_and_always_the_same(lesson, tmp_path):
    for name in ("one", "other"):
        release(lesson, tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        *("README.md", "check.pyz", "requirements.txt", "tiny.ipynb", "tiny.py")
    ]
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["course", "one", "other"]


def test_the_archive_holds_the_engine_and_no_more(lesson, tmp_path):
    release(lesson, tmp_path / "made")
    names = [name.removeprefix("check.pyz/") for name in files_of(tmp_path / "made") if "/" in name]
    assert all(name == "__main__.py" or name.startswith("coursekit/") for name in names)
    text = b"".join(data for name, data in files_of(tmp_path / "made").items() if name.endswith(".py"))
    imported = set(re.findall(rb"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    imported -= {name.encode() for name in sys.stdlib_module_names}
    assert imported <= {b"coursekit", b"torch", b"numpy", b"rich"}
    assert not any("zygote" in name or "checking" in name or "cases" in name for name in names)


def test_no_line_of_the_solution_or_of_a_mistake_is_in_the_bundle(lesson, tmp_path):
    release(lesson, tmp_path / "made")
    bundle = tokens(b"\n".join(files_of(tmp_path / "made").values()).decode("utf-8", "replace"))
    stub = tokens((tmp_path / "made" / "tiny.py").read_text("utf-8"))
    sources = lesson.exercise, lesson.misconceptions, lesson.checks
    secret_lines = [line for path in sources for line in code_lines(path) if tokens(line) not in stub]
    assert leaks(secret_lines, bundle) == []
    assert leaks(["return x - x.mean(axis=-1, keepdims=True)"], bundle + tokens(EXERCISE))


def test_nothing_of_the_course_is_in_the_bundle_of_a_lesson(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "probes", lambda _backend: [])
    monkeypatch.setattr("coursekit.grading.checking.read_bank", lambda _lesson: [])
    course = find_course()
    lesson = course.lesson("alibi")
    release(lesson, tmp_path / "made")
    bundle = tokens(b"\n".join(files_of(tmp_path / "made").values()).decode("utf-8", "replace"))
    sources = [lesson.exercise, lesson.misconceptions, lesson.checks]
    sources += (course.root / "labml_style_src" / "annotated_attention").glob("*.py")
    given = tokens((tmp_path / "made" / "alibi.py").read_text("utf-8"))
    lines = [line for path in sources for line in code_lines(path)]
    assert leaks([line for line in lines if tokens(line) not in given], bundle) == []
    assert b"annotated_attention import" not in b"".join(files_of(tmp_path / "made").values())


def tokens(text: str) -> str:
    return f" {' '.join(TOKEN.findall(text))} "


def code_lines(path: Path) -> list[str]:
    """The lines of a file that are code: no comments, no text (the hints are given out), no marks."""
    return [
        line
        for line in code_text(path.read_text("utf-8")).splitlines()
        if line.strip()[:1] not in ("", '"', "'", "@")
    ]


def leaks(lines: list[str], bundle: str) -> list[str]:
    return [line for line in lines if len(TOKEN.findall(line)) >= TELLING and tokens(line) in bundle]


def test_what_is_there_is_never_written_over(lesson, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    release(lesson, taken)
    (tmp_path / "file").write_text("mine", "utf-8")
    for path in (taken, tmp_path / "file"):
        with pytest.raises(ExerciseError, match="is left as it is: a new folder is wanted"):
            release(lesson, path)
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_a_stub_that_tells_is_refused(lesson, tmp_path):
    told = EXERCISE.replace('row."""', 'row: `return x-x.mean( axis=-1,keepdims=True )`."""')
    assert leaked_lines(told) == ["return x - x.mean(axis=-1, keepdims=True)"]
    assert leaked_lines(EXERCISE) == []
    lesson.exercise.write_text(told, "utf-8")
    with pytest.raises(ExerciseError, match="not fit for students: the stub still holds `return x - x"):
        release(lesson, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_nothing_is_left_of_a_release_that_fails(lesson, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(OSError, match="no space left"):
        release(lesson, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["course"]


def test_the_instructions_have_points_and_rules(lesson, tmp_path):
    due = datetime(2026, 12, 1, 23, 59, tzinfo=UTC)
    rules = Assignment("tiny", due, "fail", Late(15, 0.1, 5), {"TestWeights": 8})
    release(lesson, tmp_path / "made", rules)
    text = (tmp_path / "made" / "README.md").read_text("utf-8")
    assert text.startswith("# Tiny\n")
    assert "| 2. Weights | 8 | 8 |" in text
    assert "12 of 12 points can be checked here." in text
    assert "on inputs that are drawn anew and that nobody knows before" in text
    assert "Due: **Tuesday, 01 December 2026, 23:59** (UTC)." in text
    assert (
        "15 minutes late is on time. Each day begun costs 10 % of the score; after 5 days nothing is left."
        in text
    )
    assert "earns nothing for the task that calls it" in text


def test_a_lesson_that_uses_einops_says_so():
    assert requirements("import torch\n") == "torch>=2.8\nnumpy>=2.0\nrich>=14\n"
    assert requirements("from einops import rearrange\n").endswith("einops>=0.8\n")
    declared = (find_course().root / "pyproject.toml").read_text("utf-8")
    assert all(f'"{line}"' in declared for line in requirements("import einops").split())


@pytest.fixture
def alone(tmp_path) -> dict[str, str]:
    """An environment in which Python finds PyTorch, NumPy and Rich, and neither the course nor pytest."""
    site, alone = Path(sysconfig.get_path("purelib")), tmp_path / "site"
    alone.mkdir()
    try:
        for name in PACKAGES:
            if (site / name).exists():
                (alone / name).symlink_to(site / name)
    except OSError:
        pytest.skip("this system lets nobody make links")
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMP", "TEMP") if name in os.environ}
    return kept | {"PYTHONPATH": str(alone), "PYTHONIOENCODING": "utf-8"}


def test_a_student_checks_without_the_course(lesson, tmp_path, alone):
    made = tmp_path / "made"
    release(lesson, made)

    def check(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-S", "-P", str(made / "check.pyz"), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=alone, capture_output=True, text=True, encoding="utf-8"
        )
        return done.returncode, done.stdout + done.stderr

    probe = [sys.executable, "-S", "-c", "import coursekit"]
    assert b"No module named 'coursekit'" in subprocess.run(probe, env=alone, capture_output=True).stderr

    (made / "tiny.py").write_text(EXERCISE.replace("axis=-1", "axis=0"), "utf-8")
    code, told = check("--hint")
    assert code == 1
    assert (
        "tiny (made/tiny.py): 5 of 8 points, 5 of 7 checks\nmade/tiny.ipynb is older and was not checked"
        in told
    )
    assert "You took the mean of each column." in told
    assert "hint 1 of 2: A row runs along the last axis." in told
    assert "`python check.pyz --hint` gives the next hint" in told
    assert told.endswith("The grade comes from the same ones on other inputs.\n")


def test_the_command_says_what_is_public(lesson, tmp_path, monkeypatch, capsys):
    (lesson.root / "labml_style_src").mkdir()
    monkeypatch.chdir(lesson.root)
    (tmp_path / "rules.toml").write_text('slug = "tiny"\nfused = "fail"\n', "utf-8")
    text = lesson.checks.read_text("utf-8")
    lesson.checks.write_text(text.replace("expect.equal(mean.get", "expect.equal(1 * mean.get"), "utf-8")
    rules = ["--assignment", str(tmp_path / "rules.toml")]
    monkeypatch.setattr(sys, "argv", ["attn", "release", "tiny", str(tmp_path / "made"), *rules])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert not ended.value.code
    told = capsys.readouterr().out
    assert "7 of 8 points can be checked here" in told
    assert "not public: TestMean.test_mean: what it judges is no part of an answer" in told
    assert "earns nothing for the task" in (tmp_path / "made" / "README.md").read_text("utf-8")


def test_an_old_python_is_told_so():
    told = "check.pyz needs Python 3.11 or later, and this is 3.10.1\n"
    old = "import sys; sys.version_info, sys.version = (3, 10, 1), '3.10.1 (main)'\n"
    done = subprocess.run([sys.executable, "-c", old + MAIN], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, told)


def test_a_missing_package_is_named(lesson, tmp_path):
    release(lesson, tmp_path / "made")
    command = [sys.executable, "-I", "-S", str(tmp_path / "made" / "check.pyz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "is missing: python -m pip install -r requirements.txt" in done.stderr


def test_the_stub_speaks_of_the_bundles_checks():
    text = students_stub(find_course().lesson("alibi"))
    assert "`python check.pyz` says what is wrong" in text
    assert "attn" not in text
