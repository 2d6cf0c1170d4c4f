"""The zip for Gradescope, unpacked and run as Gradescope does it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.coursekit.grading.batch.test_gradescope import against_specification
from tests.coursekit.grading.tiny import EXERCISE, write_lesson

from coursekit.course import Lesson, find_course
from coursekit.grading.batch import autograder
from coursekit.grading.batch.gradescope import FAILED_HERE
from coursekit.grading.sandbox.layers import available
from coursekit.grading.submission import ExerciseError

RULES = """slug = "tiny"
[late]
per_day = 0.25
[weights]
TestMean = 4
[limits]
call_seconds = 2
"""
METADATA = {
    "id": 123456,
    "created_at": "2026-12-02T14:22:32.365935-08:00",
    "assignment": {"due_date": "2026-12-01T23:00:00.000000-08:00", "title": "Tiny", "total_points": "10.0"},
    "submission_method": "upload",
    "users": [{"email": "jane@uni.example", "id": 1234, "name": "Jane Doe"}],
    "previous_submissions": [],
}
HANGING = EXERCISE.replace(
    "    if scores.ndim != 2:", "    while True:\n        pass\n    if scores.ndim != 2:"
)
# Whoever can read the grader's files has the solution; whoever can write there has the score.
HOSTILE = """
import json, os
root = "@ROOT@"
for name in ("results/results.json", "results/stdout", "source/failure.json", "submission/tiny.py"):
    for folder in (root, os.path.dirname(root)):
        try:
            with open(f"{folder}/{name}", "w") as file:
                json.dump({"score": 1000}, file)
        except OSError:
            pass
for name in ("course/lessons/01_tiny/exercise.py", "secret", "grade.py"):
    try:
        text = open(f"{root}/source/{name}").read()
        print("READ", text)
        if name.endswith("exercise.py"):
            exec(text)
    except OSError as error:
        print(error)
"""

# Gradescope's containers are Linux, as root.
scripts = pytest.mark.skipif(sys.platform == "win32", reason="the scripts are for Linux")
walls = pytest.mark.skipif(
    all(map(available().get, autograder.KEEPERS)), reason="needs another user or Landlock"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return write_lesson(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="module")
def content(tiny: Lesson) -> bytes:
    rules = tiny.root / "assignment.toml"
    rules.write_text(RULES)
    autograder.make(tiny, tiny.root / "out" / "tiny.zip", rules=rules, secret=bytes(range(32)))
    return (tiny.root / "out" / "tiny.zip").read_bytes()


@pytest.fixture
def containers(content: bytes) -> Generator[Path]:
    """A folder that every user may enter, unlike pytest's own: what keeps others out is the autograder's doing."""
    folder = Path(tempfile.mkdtemp(prefix="containers-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def container(folder: Path, content: bytes, name: str, text: str, metadata: dict | None = None) -> Path:
    """A container's `/autograder`, with a submission in it."""
    root = folder / name
    for inner in ("source", "submission", "results"):
        (root / inner).mkdir(parents=True)
        (root / inner).chmod(0o755)
    archive = root / "autograder.zip"
    archive.write_bytes(content)
    with zipfile.ZipFile(archive) as found:
        found.extractall(root / "source")
        for entry in found.infolist():
            (root / "source" / entry.filename).chmod(entry.external_attr >> 16 & 0o777)
    shutil.copy(root / "source" / "run_autograder", root)
    (root / "submission" / "tiny.py").write_text(text.replace("@ROOT@", str(root)))
    if metadata is not None:
        (root / "submission_metadata.json").write_text(json.dumps(metadata))
    return root


def run(root: Path, *command: str) -> tuple[dict, str]:
    """Run the autograder as Gradescope does; its result, and what it printed."""
    known = {"AUTOGRADER_ROOT": str(root), "AUTOGRADER_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command or [str(root / "run_autograder")],
        cwd=root,
        env={"PATH": os.environ["PATH"], **known},
        capture_output=True,
        text=True,
        timeout=600,
    )
    data = json.loads((root / "results" / "results.json").read_text())
    against_specification(data)
    return data, done.stdout + done.stderr


@walls
def test_submissions_are_graded_in_a_container(containers, content):
    wrong = EXERCISE.replace("return x - x.mean(axis=-1, keepdims=True)", "return x - x.mean()")
    late = METADATA
    on_time = {**METADATA, "created_at": "2026-11-30T14:22:32.365935-08:00"}
    roots = [
        container(containers, content, "right", EXERCISE, late),
        container(containers, content, "wrong", wrong, on_time),
        container(containers, content, "hanging", HANGING),
        container(containers, content, "hostile", HOSTILE, on_time),
    ]
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(run, root) for root in (roots[3], roots[0])]
        # The same without the script, and without importing PyTorch once more.
        wrong, hanging = (autograder.graded(root) for root in roots[1:3])
        (hostile, printed), (right, _) = (each.result() for each in started)
    # 3 for centring, 4 for the weights, 4 by the rules for the mean; a quarter off for a day.
    assert right["score"] == 8.25
    assert right["output"].startswith("tiny: 8.25 of 11 points\n1 day late: 8.25 of the 11 that were earned")
    assert {test["status"] for test in right["tests"]} == {"passed"}
    assert sum(test["max_score"] for test in right["tests"]) == 11
    assert wrong["score"] == 9
    assert "You took the mean of the whole array." in wrong["tests"][0]["output"]
    assert 0 < hanging["score"] < 11
    assert any("longer than" in test["output"] or "time" in test["output"] for test in hanging["tests"])
    assert hostile["score"] == 0
    assert "READ" not in json.dumps(hostile) + printed
    for root in (roots[0], roots[3]):
        for name in ("source", "results", "submission"):
            assert (root / name).stat().st_mode & 0o77 == 0
    assert (roots[3] / "submission" / "tiny.py").read_text().startswith("\nimport json")
    for data in (right, wrong, hanging, hostile):
        assert {"uid", "landlock"} & set(data["extra_data"]["sandbox"])


@walls
def test_there_is_a_result_even_if_python_cannot_start_or_the_grader_is_broken(containers, content):
    root = container(containers, content, "broken", EXERCISE, METADATA)
    grader = (root / "source" / "grade.py").read_text()
    for text in ("import no_such_module", "import os\nos.kill(os.getpid(), 9)", "raise SystemExit(3)"):
        (root / "source" / "grade.py").write_text(text)
        (root / "results" / "results.json").unlink(missing_ok=True)
        data, _ = run(root)
        assert (data["score"], data["output"]) == (0, FAILED_HERE)
    (root / "source" / "grade.py").write_text(grader)
    (root / "source" / "secret").write_text("not hexadecimal")
    data, printed = run(root)
    assert (data["score"], data["output"]) == (0, FAILED_HERE)
    assert "it is not hexadecimal" in printed


def test_the_zip_is_what_gradescope_wants_and_no_more(content, tiny):
    with zipfile.ZipFile(tiny.root / "out" / "tiny.zip") as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
        pins = archive.read("constraints.txt").decode()
        requirements = archive.read("requirements.txt").decode()
    assert {name for name in modes if "/" not in name} == {
        *("setup.sh", "run_autograder", "grade.py", "failure.json", "secret", "assignment.toml"),
        *("requirements.txt", "constraints.txt"),
    }
    assert modes["setup.sh"] == modes["run_autograder"] == 0o755
    assert set(modes.values()) == {0o755, 0o600}
    assert "course/lessons/01_tiny/test_exercise.py" in modes
    assert not any("/pages/" in name or "__pycache__" in name for name in modes)
    assert "torch>=2.8\n" in requirements
    assert "mkdocs" not in requirements
    assert {line.partition("==")[0] for line in pins.split()} >= {
        "torch",
        "numpy",
        "einops",
        "pytest",
        "rich",
    }
    if sys.platform != "win32":
        assert (tiny.root / "out" / "tiny.zip").stat().st_mode & 0o777 == 0o600


def test_the_same_zip_is_made_again_but_for_a_fresh_secret(tiny, content, tmp_path):
    known = {"rules": tiny.root / "assignment.toml"}
    autograder.make(tiny, tmp_path / "a.zip", **known, secret=bytes(range(32)))
    assert (tmp_path / "a.zip").read_bytes() == content
    autograder.make(tiny, tmp_path / "b.zip", **known)
    autograder.make(tiny, tmp_path / "c.zip", **known)
    drawn = {zipfile.ZipFile(tmp_path / f"{name}.zip").read("secret") for name in "abc"}
    assert len(drawn) == 3


def test_the_zip_of_a_real_lesson_has_its_reference_and_no_other_lesson(tmp_path):
    lesson = find_course().lesson("alibi")
    autograder.make(lesson, tmp_path / "alibi.zip")
    names = zipfile.ZipFile(tmp_path / "alibi.zip").namelist()
    assert "course/labml_style_src/annotated_attention/alibi.py" in names
    assert [name for name in names if "/lessons/" in name] == [
        f"course/lessons/06_alibi/{name}.py" for name in ("exercise", "misconceptions", "test_exercise")
    ]
    assert (
        zipfile.ZipFile(tmp_path / "alibi.zip").read("constraints.txt")
        == (lesson.root / "constraints.txt").read_bytes()
    )


def test_wheels_go_in_as_they_are_and_setup_uses_them_alone(tiny, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(ExerciseError, match=r"there is no \.whl in it"):
        autograder.make(tiny, tmp_path / "x.zip", wheels=wheels)
    assert not (tmp_path / "x.zip").exists()
    (wheels / "torch-2.13.0-cp312-cp312-macosx_14_0_arm64.whl").write_bytes(b"wheel")
    with pytest.raises(ExerciseError, match=r"torch.*macosx_14_0_arm64\.whl is not for Linux"):
        autograder.make(tiny, tmp_path / "x.zip", wheels=wheels)
    (wheels / "torch-2.13.0-cp312-cp312-macosx_14_0_arm64.whl").unlink()
    (wheels / "torch-2.13.0-py3-none-any.whl").write_bytes(b"wheel")
    (wheels / "numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl").write_bytes(b"wheel")
    autograder.make(tiny, tmp_path / "x.zip", wheels=wheels)
    assert zipfile.ZipFile(tmp_path / "x.zip").read("wheels/torch-2.13.0-py3-none-any.whl") == b"wheel"


@scripts
def test_the_scripts_are_bash(content):
    for name in ("setup.sh", "run_autograder"):
        subprocess.run(["bash", "-n", autograder.TEMPLATES / name], check=True)


@scripts
@pytest.mark.parametrize("wheels", [False, True])
def test_setup_installs_what_is_pinned(containers, content, wheels):
    """With a `python` that writes down what it is asked for: what pip does with it is pip's business."""
    root = container(containers, content, "image", EXERCISE)
    if wheels:
        (root / "source" / "wheels").mkdir()
    stand_in = root / "bin" / "python3.13"
    stand_in.parent.mkdir()
    stand_in.write_text(
        '#!/bin/sh\necho "$@" >> "$AUTOGRADER_ROOT/asked"\n'
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
    )
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{os.environ['PATH']}"
    known = {"AUTOGRADER_ROOT": str(root), "PATH": path}
    subprocess.run(["bash", root / "source" / "setup.sh"], env=known, check=True, timeout=60)
    asked = (root / "asked").read_text()
    assert f"--constraint {root}/source/constraints.txt --requirement {root}/source/requirements.txt" in asked
    assert ("--no-index --find-links" in asked) == wheels
    assert ("--extra-index-url https://download.pytorch.org/whl/cpu" in asked) != wheels
    assert asked.endswith(f"-I {root}/source/grade.py {root} --check\n")
    assert (root / "source").stat().st_mode & 0o77 == 0


def test_the_metadata_is_read_as_described(tmp_path):
    path = tmp_path / "submission_metadata.json"
    assert autograder.Metadata.read(path) == autograder.Metadata("unknown", None, None)
    path.write_text(json.dumps(METADATA))
    known = autograder.Metadata.read(path)
    assert known.student == "jane@uni.example"
    assert known.due == datetime(2026, 12, 2, 7, tzinfo=UTC)
    pair = [{"email": "b@x"}, {"email": "a@x\x1b"}]
    path.write_text(json.dumps({**METADATA, "users": pair, "assignment": {"due_date": None}}))
    known = autograder.Metadata.read(path)
    assert (known.student, known.due) == ("a@x\\u001b,b@x", None)
    for broken in ("[]", "{", '{"users": 3}', json.dumps({**METADATA, "created_at": "yesterday"})):
        path.write_text(broken)
        with pytest.raises(ExerciseError, match=r"submission_metadata\.json is not as described"):
            autograder.Metadata.read(path)
