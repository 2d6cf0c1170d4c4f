"""Results as a table and as JUnit XML: nothing in them is a formula, a control character or markup."""

import csv
import io
import json
import re
import sys
from xml.etree import ElementTree

import pytest
from tests.coursekit.grading.batch.made_up import NASTY, report, result

from coursekit import __main__
from coursekit.grading.batch import export, results
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.batch.result import NOT_RUN, UNREADABLE
from coursekit.grading.batch.results import Batch, Results
from coursekit.grading.report import Report
from coursekit.grading.submission import ExerciseError


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "'=1", '"=1', "＝1", "|cmd", "%0A=1", "\n=1"],
)
def test_no_cell_is_a_formula(text):
    shown = export.cell(text)
    assert shown.startswith("'")
    assert not set("\r\x00") & set(shown)


def test_an_ordinary_cell_stays_and_a_long_one_is_bounded():
    assert export.cell("Doe, Jane (a-b=c)") == "Doe, Jane (a-b=c)"
    assert len(export.cell("x" * 10_000_000)) < results.CELL_LIMIT + 20


def test_the_table_has_a_row_a_student_and_a_column_a_task():
    bad = result("=evil", 0, status=UNREADABLE, report=None, message="two files: \x1b]0;x\x07", sandbox=[])
    text = export.table([result("a", 1.5, late_days=1, evidence=["line 3 calls F.sdpa"]), bad])
    first, second = csv.DictReader(io.StringIO(text))
    assert first == {
        "student": "a",
        "slug": "alibi",
        "score": "1.5",
        "max_score": "6",
        "status": "graded",
        "late_days": "1",
        "sandbox": "clock+uid",
        "Slopes": "2",
        "Bias": "0",
        "Cache": "0",
        "mistakes": "alibi__positive",
        "events": "",
        "evidence": "line 3 calls F.sdpa",
        "message": "",
    }
    assert (second["student"], second["status"], second["Slopes"]) == ("'=evil", "unreadable", "")
    assert second["message"] == "two files: \\x1b]0;x\\x07"


# `junit-10.xsd` of Jenkins' xUnit plugin, as far as it is used: attributes (required ones first) and children.
SCHEMA = {
    "testsuites": ((), ("name", "tests", "failures", "errors", "time"), {"testsuite"}),
    "testsuite": (
        ("name", "tests", "failures", "errors"),
        ("skipped", "time", "timestamp", "hostname", "id", "package"),
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "properties": ((), (), {"property"}),
    "property": (("name", "value"), (), set()),
    "testcase": (
        ("name",),
        ("classname", "time", "group"),
        {"failure", "skipped", "system-out", "system-err"},
    ),
    "failure": ((), ("type", "message"), set()),
}


def against_schema(element: ElementTree.Element) -> None:
    required, optional, children = SCHEMA[element.tag]
    assert set(required) <= set(element.attrib) <= {*required, *optional}
    for child in element:
        assert child.tag in children, f"{child.tag} in {element.tag}"
        against_schema(child)


def test_junit_has_a_suite_a_student_and_a_case_a_check():
    text = export.junit(
        [result("jane"), result("roe", 0, status=NOT_RUN, report=Report("alibi", [], "line 1"))]
    )
    root = ElementTree.fromstring(text.encode())
    against_schema(root)
    jane, roe = root
    assert root.attrib == {"name": "attn", "tests": "4", "failures": "3", "errors": "0"}
    assert jane.attrib == {"name": "jane", "tests": "3", "failures": "2", "errors": "0"}
    names = [(case.get("classname"), case.get("name")) for case in jane.iter("testcase")]
    assert names[:2] == [("alibi.TestSlopes", "test_slopes"), ("alibi.TestBias", "test_bias")]
    passed, failed, waiting = jane.iter("testcase")
    assert len(passed) == 0
    assert failed[0].get("type") == "failed"
    assert "Your slopes are positive." in failed[0].text
    assert waiting[0].get("type") == "not done"
    properties = {each.get("name"): each.get("value") for each in jane.iter("property")}
    assert properties["score"] == "2"
    assert properties["sandbox"] == "clock+uid"
    assert properties["points: TestBias.test_bias"] == "0 of 3"
    (only,) = roe.iter("testcase")
    assert (only.get("name"), only[0].get("type"), only[0].text) == ("submission", "not run", "line 1")


def test_junit_holds_no_character_that_xml_forbids_and_no_markup_of_a_students():
    text = export.junit([result(NASTY, report=report(message=NASTY + "</failure>"))])
    against_schema(ElementTree.fromstring(text.encode()))
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", text)
    assert "<b>" not in text
    assert text.count("</failure>") == 2


def test_the_same_results_give_the_same_file():
    assert export.junit([result("a"), result("b")]) == export.junit([result("a"), result("b")])


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("excel", {}, "--format excel: known are csv, canvas, moodle, junit, gradescope"),
        ("canvas", {}, "--format canvas needs --roster: the file that Canvas exported"),
        ("moodle", {"roster": "none.csv"}, "there is no roster .*none.csv"),
        (
            "csv",
            {"column": "alibi"},
            "--roster and what belongs to it are for canvas and moodle, not for csv",
        ),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, kind, options, said):
    if "roster" in options:
        options = {"roster": tmp_path / options["roster"]}
    with pytest.raises(ExerciseError, match=said):
        export.write([result("a")], kind, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_each_format_is_written_where_it_should(tmp_path):
    (tmp_path / "roster.csv").write_bytes(
        b"Student,ID,Section,alibi (1)\n    Points Possible,,,6\nDoe,7,A,\n"
    )
    results = [result("7", 3)]
    told = export.write(results, "canvas", tmp_path / "up.csv", roster=tmp_path / "roster.csv")
    assert told == ["1 score in column 'alibi (1)'"]
    assert (tmp_path / "up.csv").read_bytes().endswith(b"Doe,7,A,3\n")
    export.write(results, "csv", tmp_path / "t.csv")
    export.write(results, "junit", tmp_path / "j.xml")
    assert (tmp_path / "t.csv").read_text() == export.table(results)
    assert (tmp_path / "j.xml").read_text() == export.junit(results)


def test_the_words_for_a_student_say_what_came_off_and_hide_the_hints():
    told = export.words(result("x", 1.8, late_days=2, earned=2.0))
    assert told.startswith("alibi: 1.8 of 6 points\n2 days late: 1.8 of the 2 that were earned\n")
    assert "Your slopes are positive." in told
    assert "hint" not in told


def test_why_a_file_could_not_be_run_is_said_once():
    broken = Report("alibi", [], "line 2: no such name")
    told = export.words(result("x", 0, status=NOT_RUN, message="line 2: no such name", report=broken))
    assert told == "alibi: 0 of 6 points\nline 2: no such name"


@pytest.fixture
def attn(tmp_path, monkeypatch, capsys):
    """Run `attn export` on a folder of results and return its exit code and what it prints."""
    graded = Results(tmp_path / "OUT")
    graded.begin(Batch(Assignment("alibi", weights={"TestSlopes": 3}), "fingerprint"))
    for each in (result("4521", 3, max_score=7), result("nobody", 2, max_score=7)):
        graded.save(each)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["attn", "export", *arguments])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out + captured.err

    return run


def test_the_command_writes_a_folders_results(attn, tmp_path):
    (tmp_path / "roster.csv").write_text(
        "Student,ID,Section,alibi (1)\n    Points Possible,,,7\nDoe,4521,A,\nRoe,4522,A,\n"
    )
    where = (str(tmp_path / "OUT"), "--to", str(tmp_path / "up.csv"), "--format")
    code, told = attn(*where, "canvas", "--roster", str(tmp_path / "roster.csv"))
    assert code == 0
    assert "in no row of the roster: nobody\nwithout a result: Roe\n" in told
    assert (tmp_path / "up.csv").read_text().endswith("Doe,4521,A,3\nRoe,4522,A,\n")
    assert attn(str(tmp_path / "OUT"), "--format", "gradescope", "--to", str(tmp_path / "gs"))[0] == 0
    tests = json.loads((tmp_path / "gs" / "4521.json").read_text())["tests"]
    assert [test["max_score"] for test in tests] == [3, 3, 1]


def test_the_command_says_what_is_wrong(attn, tmp_path):
    to = ("--to", str(tmp_path / "x"))
    code, told = attn(str(tmp_path / "OUT"), "--format", "canvas", *to)
    assert (code, "needs --roster" in told) == (2, True)
    code, told = attn(str(tmp_path / "nothing"), "--format", "csv", *to)
    assert (code, "nothing was graded in" in told) == (2, True)
    assert not (tmp_path / "x").exists()
