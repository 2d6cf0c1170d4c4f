"""Records: what pytest measured becomes a committed file, and a file older than the code is stale."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from coursekit.course import Course, EnvironmentFault
from coursekit.pages.proofs import records, verify


def case(name, *measured, outcome=""):
    properties = "".join(f'<property name="measured" value="{pair}"/>' for pair in measured)
    return ElementTree.fromstring(
        f'<testcase name="{name}"><properties>{properties}</properties>{outcome}</testcase>'
    )


def test_a_test_keeps_its_comparison_nearest_to_the_bound():
    cases = [
        case("test_a[t=s-cpu-float32]", [1e-7, 1e-6], [4e-7, 1e-6]),
        case("test_a[t=s-cpu-float64]", [1e-16, 1e-15]),
        case("test_b"),
    ]
    assert verify.summarise(cases, "cpu") == {
        "test_a": {"outcome": "passed", "cases": 2, "error": 4e-7, "bound": 1e-6},
        "test_b": {"outcome": "passed", "cases": 1, "error": None, "bound": None},
    }


def test_each_case_counts_for_its_device():
    skip = '<skipped message="needs CUDA"/>'
    cases = [case("test_a[cpu]", [1, 2]), case("test_a[cuda]", outcome=skip), case("test_b")]
    assert verify.summarise(cases, "cuda") == {
        "test_a": {"outcome": "skipped", "cases": 0, "error": None, "bound": None}
    }


def test_one_failed_case_fails_the_test_and_an_infinite_error_is_no_number():
    cases = [
        case("test_a[x-cpu]", "[inf, 1e-06]", outcome="<failure/>"),
        case("test_a[y-cpu]", [0.0, 0.0]),
    ]
    assert verify.summarise(cases, "cpu") == {
        "test_a": {"outcome": "failed", "cases": 2, "error": 0.0, "bound": 0.0}
    }


def test_verify_writes_a_record_that_prose_does_not_make_stale(small_course):
    lesson = small_course.lesson("gated")
    assert records.load(small_course).stale() == ["gated"]
    result = verify.verify(small_course, [lesson.mechanism])
    measured = result["gated"]["tests"]["test_agrees_with_pytorch"]
    assert measured["outcome"] == "passed"
    assert measured["cases"] > 1
    assert 0 <= measured["error"] <= measured["bound"]

    (record,) = records.load(small_course).lookup(lesson.mechanism, "test_agrees_with_pytorch")
    assert (record.outcome, record.stale, record.bound) == ("passed", False, measured["bound"])
    assert record.device.startswith("CPU")
    assert set(record.versions) == {"python", "torch", "numpy"}
    assert records.load(small_course).lookup(lesson.mechanism, "test_unknown") == []

    text = lesson.source.read_text("utf-8")
    lesson.source.write_text(text.replace("The idea, in another.", "Another idea."), "utf-8")
    assert records.load(small_course).stale() == []
    lesson.source.write_text(text.replace("** -0.5", "** -0.25"), "utf-8")
    assert records.load(small_course).stale() == ["gated"]
    assert records.load(small_course).lookup(lesson.mechanism, "test_agrees_with_pytorch")[0].stale

    # A wrong mechanism is recorded as failed, beside the records of other mechanisms.
    file = small_course.root / "tests" / "records" / "cpu.json"
    content = json.loads(file.read_text("utf-8"))
    lesson.source.with_name("gated_other.py").touch()
    content["mechanisms"]["gated_other"] = {"key": "k", "tests": {}}
    file.write_text(json.dumps(content), "utf-8")
    verify.verify(Course(small_course.root), [lesson.mechanism])
    content = json.loads(file.read_text("utf-8"))
    assert content["mechanisms"]["gated"]["tests"]["test_agrees_with_pytorch"]["outcome"] == "failed"
    assert "gated_other" in content["mechanisms"]


def test_a_missing_device_is_said_before_anything_runs(small_course, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match="no CUDA device"):
        verify.verify(small_course, small_course.mechanisms, "cuda")


def test_known_tests_have_their_lines(small_course):
    lesson = small_course.lesson("gated")
    path, line = records.known_tests(lesson.mechanism)["test_agrees_with_pytorch"]
    assert path == lesson.test
    assert "def test_agrees_with_pytorch" in lesson.test.read_text("utf-8").splitlines()[line - 1]
