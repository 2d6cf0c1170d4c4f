"""What is for GitHub: the workflows give nothing away and pin what they use; Classroom 50 gets what it asks for."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.coursekit.grading.batch.made_up import NASTY, report, result
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.course import Lesson
from coursekit.grading.batch import classroom
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.batch.autograder import KEEPERS
from coursekit.grading.batch.result import ERROR, UNREADABLE
from coursekit.grading.batch.results import gradebook
from coursekit.grading.sandbox.layers import available
from coursekit.grading.submission import ExerciseError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COURSE = f"uni-course/attention.course@{COMMIT}"
ENVIRONMENT = {
    "CLASSROOM": "ml-2026",
    "ASSIGNMENT": "alibi",
    "SUBMISSION_TAG": "submit/2026-11-21T14-32-05Z-a1b2c3d",
    "COMMIT_URL": "https://github.com/x/y/commit/a1b2c3d",
    "OWNER": "alice",
}


@pytest.fixture
def alibi(tmp_path: Path) -> Lesson:
    return Lesson(tmp_path, 6, "alibi")


def steps_of(text: str) -> list[dict]:
    return [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]


def test_a_students_workflow_has_no_secret_no_rights_and_runs_nothing_of_the_students(alibi):
    text = classroom.workflow(alibi, COURSE, rules="assignment.toml")
    data = yaml.safe_load(text)
    # YAML 1.1 reads `on` as true.
    assert set(data[True]) == {"push", "pull_request"}
    assert data["permissions"] == {"contents": "read"}
    assert "permissions" not in data["jobs"]["grade"]
    assert "secrets." not in text
    course, own = (step["with"] for step in steps_of(text) if "checkout" in step.get("uses", ""))
    assert (course["repository"], course["ref"]) == ("uni-course/attention.course", COMMIT)
    assert course["persist-credentials"] is own["persist-credentials"] is False
    assert own["path"].startswith("submissions/")
    scripts = [step["run"] for step in steps_of(text) if "run" in step]
    # What an outsider chooses reaches a script only through its environment.
    assert not any("${{" in script for script in scripts)
    (grade,) = (script for script in scripts if " grade " in script)
    assert (
        "grade alibi ../submissions --out ../results --require-sandbox --assignment assignment.toml\n"
        in grade
    )
    uploaded = [step["with"]["path"] for step in steps_of(text) if "upload" in step.get("uses", "")]
    assert uploaded == ["results/feedback/\nresults/grades.csv\n"]


def test_every_action_is_pinned_to_a_commit(alibi):
    for text in (classroom.workflow(alibi, COURSE), classroom.class_workflow(alibi, COURSE)):
        used = [step["uses"] for step in steps_of(text) if "uses" in step]
        assert used
        assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", each) for each in used)
        assert not re.search(r"@[A-Z]+@", text)


def test_the_time_is_the_servers(alibi, tmp_path):
    """The script of the step, run on what GitHub's events have."""
    (step,) = (
        step for step in steps_of(classroom.workflow(alibi, COURSE)) if "clock" in step.get("name", "")
    )
    code = re.search(r"<<'PY'\n(.*)\nPY", step["run"], re.DOTALL)
    assert code is not None
    (tmp_path / "submissions").mkdir()
    event = tmp_path / "event.json"
    for told, when in (
        ({"repository": {"pushed_at": 1796083200}}, "2026-12-01T00:00:00+00:00"),
        (
            {"repository": {"pushed_at": 1}, "pull_request": {"updated_at": "2026-12-01T22:59:00Z"}},
            "2026-12-01T22:59:00Z",
        ),
    ):
        event.write_text(json.dumps(told))
        known = {"GITHUB_EVENT_PATH": str(event), "STUDENT": "alice"}
        subprocess.run([sys.executable, "-c", code[1]], env=known, cwd=tmp_path, check=True)
        times = (tmp_path / "submissions" / "times.csv").read_text()
        assert times == f"student,handed_in\nalice,{when}\n"


def test_green_is_for_all_points(alibi, tmp_path):
    step = steps_of(classroom.workflow(alibi, COURSE))[-1]
    code = re.search(r"<<'PY'\n(.*)\nPY", step["run"], re.DOTALL)
    assert code is not None
    (tmp_path / "results").mkdir()
    for results, red in (
        ([result("alice", 6)], False),
        ([result("alice", 5)], True),
        ([result("alice", 6, status=ERROR)], True),
        ([], True),
    ):
        (tmp_path / "results" / "grades.csv").write_text(gradebook(results))
        done = subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path)
        assert bool(done.returncode) == red


def test_a_class_is_graded_in_parts_that_are_merged(alibi):
    text = classroom.class_workflow(alibi, COURSE, shards=3)
    data = yaml.safe_load(text)
    assert set(data[True]) == {"workflow_dispatch"}
    assert data["permissions"] == {"contents": "read"}
    assert data["jobs"]["grade"]["strategy"] == {"fail-fast": False, "matrix": {"part": [1, 2, 3]}}
    assert data["jobs"]["merge"]["needs"] == "grade"
    (grade,) = (step for step in steps_of(text) if " grade " in step.get("run", ""))
    assert "--shard ${{ matrix.part }}/3 --secret ../secret --require-sandbox\n" in grade["run"]
    # A secret is text for the shell's environment, never for its script, and is in no artifact.
    assert "secrets." not in grade["run"]
    assert "rm -f ../secret ../part/secret" in grade["run"]
    (merge,) = (step for step in steps_of(text) if " merge " in step.get("run", ""))
    assert merge["run"].endswith("attn merge --out ../results ../parts/part-*")


@pytest.mark.skipif(sys.platform == "win32", reason="the scripts are for Linux")
def test_git_keeps_no_times_so_a_folder_without_them_is_not_graded(alibi, tmp_path):
    (tmp_path / "course").mkdir()
    folder = tmp_path / "class" / "submissions"
    folder.mkdir(parents=True)
    for rules, times, refused in (("", "", False), ("a.toml", "", True), ("a.toml", "times", False)):
        if times:
            (folder / "times.csv").write_text(times)
        text = classroom.class_workflow(alibi, COURSE, rules=rules)
        (grade,) = (step["run"] for step in steps_of(text) if " grade " in step.get("run", ""))
        script = grade.partition("(umask")[0]
        known = {"SUBMISSIONS": "submissions", "PATH": os.environ["PATH"]}
        done = subprocess.run(["bash", "-c", script], env=known, cwd=tmp_path / "course", capture_output=True)
        assert bool(done.returncode) == refused
        assert (b"put times.csv" in done.stdout) == refused


@pytest.mark.skipif(sys.platform == "win32", reason="the scripts are for Linux")
def test_the_scripts_of_all_steps_are_bash(alibi):
    for text in (classroom.workflow(alibi, COURSE), classroom.class_workflow(alibi, COURSE)):
        for step in steps_of(text):
            if "run" in step:
                subprocess.run(["bash", "-n"], input=step["run"].encode(), check=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"course": "owner/course"}, "wanted OWNER/NAME@COMMIT"),
        ({"course": "owner/course@main"}, "wanted OWNER/NAME@COMMIT"),
        ({"course": f"x: {COURSE}"}, "wanted OWNER/NAME@COMMIT"),
        ({"course": f"owner/course\n@{COMMIT}"}, "wanted OWNER/NAME@COMMIT"),
        ({"course": COURSE, "rules": "a.toml; rm -rf ~"}, "wanted a plain path"),
        ({"course": COURSE, "shards": 0}, "--shards 0: from 1 to 256"),
        ({"course": COURSE, "shards": 257}, "--shards 257: from 1 to 256"),
    ],
)
def test_what_would_not_be_pinned_or_could_be_code_is_refused(alibi, tmp_path, options, said):
    with pytest.raises(ExerciseError, match=re.escape(said)):
        classroom.write(alibi, tmp_path / "out", options.pop("course"), **options)
    assert not list((tmp_path / "out").glob("instructor*"))


def test_classroom_50_gets_a_script_and_the_runner_it_needs(alibi, tmp_path):
    files = classroom.write(alibi, tmp_path, COURSE)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        *("student.yml", "instructor.yml", "classroom50/autograder.py", "classroom50/runtime.json")
    ]
    tree = ast.parse(files[2].read_text())
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Constant)
    }
    assert values == {
        "COURSE": "https://github.com/uni-course/attention.course.git",
        "COMMIT": COMMIT,
        "SLUG": "alibi",
    }
    assert json.loads(files[3].read_text()) == {"runs-on": "ubuntu-24.04"}


def against_schema(data: dict) -> None:
    """`classroom50/result/v1`: schemas/result-v1.schema.json and what the runner checks beyond it."""
    texts = ("classroom", "assignment", "owner", "submission", "commit", "release", "review")
    numbers = ("score", "max-score")
    assert set(data) == {"schema", "assignment_type", "datetime", "tests", *texts, *numbers}
    assert data["schema"] == "classroom50/result/v1"
    assert data["assignment_type"] in ("individual", "group")
    assert all(isinstance(data[name], str) and data[name] for name in texts)
    assert data["submission"].startswith("submit/")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", data["datetime"])
    for entry in (data, *data["tests"]):
        assert all(type(entry[name]) is int for name in numbers)
        assert 0 <= entry["score"] <= entry["max-score"]
    for test in data["tests"]:
        assert isinstance(test["test-name"], str)
        assert test["test-name"]
        assert type(test["passed"]) is bool


def test_a_result_is_as_classroom_50_reads_it():
    data = classroom.result_json(result("alice", 2, earned=2), Assignment("alibi"), ENVIRONMENT)
    against_schema(data)
    assert (data["owner"], data["score"], data["max-score"]) == ("alice", 2, 6)
    assert [(test["score"], test["max-score"]) for test in data["tests"]] == [(2, 2), (0, 3), (0, 1)]
    assert data["review"] == ENVIRONMENT["COMMIT_URL"]
    assert "message" not in data["tests"][0]
    assert "Your slopes are positive." in data["tests"][1]["message"]


def test_broken_weights_become_whole_points_and_lateness_is_classroom_50s():
    rules = Assignment("alibi", weights={"TestSlopes": 0.5, "TestBias": 1.25})
    late = result("alice", 0.25, max_score=2.75, earned=0.5, late_days=3)
    data = classroom.result_json(late, rules, ENVIRONMENT)
    against_schema(data)
    assert (data["score"], data["max-score"]) == (50, 275)
    assert [test["max-score"] for test in data["tests"]] == [50, 125, 100]


def test_no_text_of_a_students_is_more_than_text():
    bad = result("alice", 0, earned=0, status=UNREADABLE, report=report(message=NASTY + "x" * 10**6))
    text = json.dumps(classroom.result_json(bad, Assignment("alibi"), ENVIRONMENT))
    assert len(text) < 20_000
    assert not {"\\u001b", "\\u0000"} & set(re.findall(r"(?<!\\)\\u....", text))


def test_outside_of_classroom_50_or_when_the_grader_fails_it_is_said():
    with pytest.raises(ExerciseError, match="SUBMISSION_TAG is not set: is this run by Classroom 50"):
        classroom.result_json(result("a"), Assignment("alibi"), {**ENVIRONMENT, "SUBMISSION_TAG": ""})
    with pytest.raises(ExerciseError, match="the grader failed: no space"):
        classroom.result_json(result("a", status=ERROR, message="no space"), Assignment("alibi"), ENVIRONMENT)


@pytest.mark.skipif(all(map(available().get, KEEPERS)), reason="needs another user or Landlock")
def test_a_checkout_is_graded(lesson, tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / ".git").mkdir(parents=True)
    (checkout / "README.md").write_text("mine")
    (checkout / "tiny.py").write_text(EXERCISE.replace("scores.softmax(-1)", "scores.softmax(0)"))
    data = classroom.grade(lesson, checkout, {**ENVIRONMENT, "ASSIGNMENT": "tiny"})
    against_schema(data)
    assert data["max-score"] == 8
    assert 0 < data["score"] < 8
    assert (data["tests"][0]["passed"], data["tests"][2]["passed"]) == (True, False)
