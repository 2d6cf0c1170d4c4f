"""The folder of a batch: whole files, one gradebook, and parts that come together."""

import csv
import dataclasses
import io
import json
import os
import stat

import pytest
from tests.coursekit.grading.tiny import handed_in

from coursekit.grading.batch import results as module
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.batch.result import GRADED, UNREADABLE, Result
from coursekit.grading.batch.results import Batch, Results, gradebook, merge
from coursekit.grading.exercise import run
from coursekit.grading.submission import ExerciseError

BATCH = Batch(Assignment("tiny"), "0123", "../in")


def result(student: str, score: float = 1.0, **more) -> Result:
    return Result(student, "tiny", GRADED, score, 8.0, score, seed="5", key="k", **more)


def folder(path, *found: Result, batch: Batch = BATCH) -> Results:
    made = Results(path)
    made.begin(batch)
    for each in found:
        made.save(each)
    return made


def test_a_result_with_its_report_comes_back_as_it_was(tmp_path, lesson):
    report = run(lesson, handed_in("def centre(x):\n    return x\n"))
    kept = result("jane", sandbox=["clock"], events=["a"], evidence=["b"], report=report)
    found = folder(tmp_path / "out", kept)
    assert found.get("jane") == kept
    assert found.get("john") is None
    assert found.all() == [kept]
    assert found.batch == BATCH


def test_names_that_no_file_can_have_are_kept_apart(tmp_path):
    students = ["jane", "Jane", "JANE", "../../jane", "a/b", "con", "new\nline", "jos\u00e9", "", "x" * 300]
    found = folder(tmp_path / "out", *map(result, students))
    assert [each.student for each in found.all()] == sorted(students)
    assert {path.parent for path in tmp_path.rglob("*.json")} == {
        tmp_path / "out",
        tmp_path / "out" / "results",
    }


def test_the_gradebook_is_what_a_spreadsheet_may_open():
    odd = ["=1+1", "+1", "-1", "@sum", "\tx", "\rx", 'a,"b', "zoë"]
    found = [result(student) for student in odd]
    found.append(Result("late", "tiny", UNREADABLE, 2.625, 8.0, late_days=2, sandbox=["clock", "uid"]))
    text = gradebook(found)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["student", "slug", "score", "max_score", "status", "late_days", "sandbox"]
    assert [row[0] for row in rows[1:7]] == ["'=1+1", "'+1", "'-1", "'@sum", "'    x", "'\\rx"]
    assert [row[0] for row in rows[7:9]] == odd[6:]
    assert rows[9] == ["late", "tiny", "2.625", "8", "unreadable", "2", "clock+uid"]
    assert rows[1][1:] == ["tiny", "1", "8", "graded", "0", "none"]
    assert text.endswith("\n")


def test_the_gradebook_is_in_the_order_of_names_whatever_came_first(tmp_path):
    one = folder(tmp_path / "one", *map(result, "bca"))
    other = folder(tmp_path / "other", *map(result, "acb"))
    assert one.write_gradebook().read_bytes() == other.write_gradebook().read_bytes()
    assert [line.partition(",")[0] for line in one.write_gradebook().read_text().splitlines()[1:]] == [
        "a",
        "b",
        "c",
    ]
    assert b"\r" not in one.write_gradebook().read_bytes()


def test_what_a_killed_run_was_writing_is_swept_away(tmp_path):
    found = folder(tmp_path / "out", result("jane"))
    left = [found.folder / name for name in (".grades.csv.a1b2", "results/.jane.json.x9", ".mine.txt")]
    for path in left:
        path.write_text("half")
    assert [each.student for each in found.all()] == ["jane"]
    found.begin(BATCH)
    assert [path.exists() for path in left] == [False, False, True]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"student": 1}', "\xff", "[" * 100_000])
def test_a_damaged_result_is_none_and_said_so_where_all_are_wanted(tmp_path, text):
    found = folder(tmp_path / "out", result("jane"))
    found.path("jane").write_bytes(text.encode("latin-1"))
    assert found.get("jane") is None
    with pytest.raises(ExerciseError, match=r"jane\.json is damaged"):
        found.all()


def test_a_folder_of_another_batch_is_not_written_to(tmp_path):
    found = folder(tmp_path / "out")
    with pytest.raises(ExerciseError, match="has results of 'tiny', not of 'alibi'"):
        found.begin(dataclasses.replace(BATCH, assignment=Assignment("alibi")))
    with pytest.raises(ExerciseError, match="was graded with another secret"):
        found.begin(dataclasses.replace(BATCH, fingerprint="4567"))
    assert found.batch == BATCH
    with pytest.raises(ExerciseError, match=r"it has no batch\.json"):
        Results(tmp_path).graded()
    (found.folder / "batch.json").write_text("{}")
    with pytest.raises(ExerciseError, match="damaged"):
        found.graded()


def test_parts_come_together(tmp_path):
    folder(tmp_path / "one", result("bob"), result("ann"))
    folder(tmp_path / "two", result("cem", 2.0), result("ann"))
    found = merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two"])
    assert [each.student for each in found] == ["ann", "bob", "cem"]
    assert Results(tmp_path / "all").all() == found
    # The same twice, and into one of the parts: nothing changes.
    assert merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two", tmp_path / "all"]) == found
    assert Results(tmp_path / "all").graded().submissions == "../in"


def test_parts_of_different_places_have_none_in_common(tmp_path):
    folder(tmp_path / "one", result("bob"))
    folder(tmp_path / "two", result("ann"), batch=dataclasses.replace(BATCH, submissions="../elsewhere"))
    merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two"])
    assert Results(tmp_path / "all").graded().submissions == ""


@pytest.mark.parametrize(
    ("batch", "found", "problem"),
    [
        (BATCH, result("ann", 2.0), "ann has different results in .*one and in .*two"),
        (dataclasses.replace(BATCH, fingerprint="45"), result("x"), "was graded with another secret"),
        (dataclasses.replace(BATCH, assignment=Assignment("alibi")), result("x"), "has results of 'tiny'"),
        (
            dataclasses.replace(BATCH, assignment=Assignment("tiny", fused="fail")),
            result("x"),
            "one and .*two were graded by different rules",
        ),
    ],
    ids=["result", "secret", "lesson", "rules"],
)
def test_parts_that_contradict_each_other_are_refused_and_nothing_is_written(tmp_path, batch, found, problem):
    folder(tmp_path / "one", result("ann"))
    folder(tmp_path / "two", found, batch=batch)
    with pytest.raises(ExerciseError, match=problem):
        merge(tmp_path / "all", [tmp_path / "one", tmp_path / "two"])
    assert not (tmp_path / "all").exists()


def test_there_must_be_something_to_merge(tmp_path):
    with pytest.raises(ExerciseError, match="no results to merge"):
        merge(tmp_path / "all", [])
    with pytest.raises(ExerciseError, match="nothing was graded in"):
        merge(tmp_path / "all", [tmp_path])


@pytest.mark.skipif(os.name == "nt", reason="modes of Unix")
def test_results_can_be_read_by_others_and_hold_no_path(tmp_path):
    found = folder(tmp_path / "out", result("jane"))
    assert stat.S_IMODE(found.path("jane").stat().st_mode) == 0o644
    for path in found.folder.rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert path.read_text() == module.as_json(json.loads(path.read_text()))
