"""Results as Gradescope reads them."""

import json

import pytest
from tests.coursekit.grading.batch.made_up import NASTY, report, result

from coursekit.grading.batch import gradescope
from coursekit.grading.batch.result import ERROR, UNREADABLE

VISIBILITY = {"hidden", "after_due_date", "after_published", "visible"}
FORMATS = {"text", "html", "simple_format", "md", "ansi"}
# https://gradescope-autograders.readthedocs.io/en/latest/specs/: each key with what it may hold.
TOP = {
    "score": float,
    "execution_time": float,
    "output": str,
    "output_format": FORMATS,
    "test_output_format": FORMATS,
    "test_name_format": FORMATS,
    "visibility": VISIBILITY,
    "stdout_visibility": VISIBILITY,
    "extra_data": dict,
    "tests": list,
    "leaderboard": list,
}
TEST = {
    "score": float,
    "max_score": float,
    "status": {"passed", "failed"},
    "name": str,
    "name_format": FORMATS,
    "number": str,
    "output": str,
    "output_format": FORMATS,
    "tags": list,
    "visibility": VISIBILITY,
    "extra_data": dict,
}


def against_specification(data: dict) -> None:
    """Fails where the data is not as Gradescope describes it."""
    for entry, known in [(data, TOP), *((test, TEST) for test in data["tests"])]:
        for key, value in entry.items():
            wanted = known[key]
            kinds = (int, float) if wanted is float else wanted
            assert value in wanted if isinstance(wanted, set) else isinstance(value, kinds), key
    assert "score" in data or all("score" in test for test in data["tests"])


def test_a_result_is_as_gradescope_describes_it():
    data = json.loads(gradescope.dumped(gradescope.results_json(result("jane", 1.8, late_days=1, earned=2))))
    against_specification(data)
    assert data["score"] == 1.8
    assert data["output"].startswith("alibi: 1.8 of 6 points\n1 day late")
    assert [(test["number"], test["name"], test["score"], test["max_score"]) for test in data["tests"]] == [
        ("1.1", "Slopes: slopes", 2, 2),
        ("2.1", "Bias: bias", 0, 3),
        ("3.1", "Cache: cache", 0, 1),
    ]
    assert [test["status"] for test in data["tests"]] == ["passed", "failed", "failed"]
    assert "Your slopes are positive." in data["tests"][1]["output"]
    assert data["extra_data"]["sandbox"] == ["clock", "uid"]
    assert "hint" not in json.dumps(data)


def test_weights_are_spread_over_the_checks_of_a_task():
    data = gradescope.results_json(result("jane"), {"TestSlopes": 5, "TestBias": 0})
    assert [test["max_score"] for test in data["tests"]] == [5, 0, 1]
    assert data["tests"][0]["score"] == 5


def test_students_text_is_shown_as_text_and_bounded():
    data = gradescope.results_json(result("jane", report=report(message=NASTY + "x" * 10**6), message=NASTY))
    assert {data[key] for key in data if key.endswith("_format")} == {"text"}
    assert len([key for key in data if key.endswith("_format")]) == 3
    assert not any("output_format" in test or "name_format" in test for test in data["tests"])
    assert len(gradescope.dumped(data)) < 50_000
    for text in (data["output"], *(test["output"] for test in data["tests"])):
        assert not set("\x1b\x00\ud800") & set(text)


def test_what_the_grader_failed_at_is_not_the_students_fault():
    for data in (
        gradescope.failure(),
        gradescope.results_json(result("x", status=ERROR, message="disk full")),
    ):
        against_specification(data)
        assert data["score"] == 0
        assert data["output"] == gradescope.FAILED_HERE


def test_a_folder_has_a_file_a_student_whatever_their_names(tmp_path):
    results = [
        result("../../etc/passwd"),
        result("jane"),
        result("Jane", 0, status=UNREADABLE, report=None, message="two files"),
        result("roe", status=ERROR),
    ]
    told = gradescope.write_results(results, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == len({file.name.lower() for file in files}) == 3
    assert told == ["not written: roe: the grader failed, grade again"]
    assert json.loads((tmp_path / "out" / "jane.json").read_text())["score"] == 2
    outputs = [json.loads(file.read_text())["output"] for file in files]
    assert "alibi: 0 of 6 points\ntwo files" in outputs
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("status", [UNREADABLE, "not run"])
def test_a_submission_that_was_not_graded_says_why(status):
    data = gradescope.results_json(result("x", 0, status=status, report=None, message="line 1: no such name"))
    assert data["tests"] == []
    assert "line 1: no such name" in data["output"]
