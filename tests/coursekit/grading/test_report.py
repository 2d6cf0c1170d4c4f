"""What a student reads: each thing once, where it belongs, and nothing that is not so."""

import os
from pathlib import Path

import pytest
from tests.coursekit.grading.test_exercise import write
from tests.coursekit.grading.tiny import EXERCISE, handed_in, with_change

from coursekit.course import Lesson
from coursekit.grading import exercise, feedback
from coursekit.grading.checking import Bank
from coursekit.grading.report import Case, Check, Mistake, Report, Task, build

RIGHT = "return x - x.mean(axis=-1, keepdims=True)"
STUB = '    raise NotImplementedError("centre is not done yet")'


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def shown(lesson: Lesson, text: str, **options) -> str:
    report = exercise.run(lesson, handed_in(text), bank=Bank(lesson), **options)
    return feedback.plain(report, 200)


def record(case: str, message: str, *mistakes: str, **more) -> dict:
    known = {"lesson": "tiny", "key": "A", "title": "A", "hints": [], "check": "test_a", "points": 1}
    known |= {"outcome": "failed", "broken": False, "printed": "", "notes": [], "asked": [], "error": None}
    return known | {"case": case, "message": message, "mistakes": [[m, f"{m}!"] for m in mistakes]} | more


def test_what_is_told_of_a_case_stays_with_it():
    report = build([record("one", "1 is 2"), record("(5, 7)", "3 is 4", "m"), record("three", "5 is 6", "m")])
    assert feedback.task_texts(report.tasks[0], set()) == [
        ("check", "a (one)"),
        ("message", "1 is 2"),
        ("check", "a (5, 7)"),
        ("message", "3 is 4"),
        ("mistake", "m!"),
    ]
    assert [each.name for each in report.mistakes] == ["m"]


def test_mistakes_of_different_cases_are_not_one_tie():
    report = build([record("one", "1 is 2", "m"), record("two", "3 is 4", "n")])
    lines = [text for _, text in feedback.task_texts(report.tasks[0], set())]
    assert lines == ["a (one)", "1 is 2", "m!", "a (two)", "3 is 4", "n!"]


def test_an_answer_that_coincides_later_accuses_nobody():
    """Of three counts the second happens to be that of a mistake, which would have shown in the first."""
    first = record("one", "7 is 8", asked=["count"])
    second = record("two", "1 is 2", "count__forgets", asked=["count"])
    assert build([first, second]).mistakes == []
    assert [each.name for each in build([second, first]).mistakes] == ["count__forgets"]


def test_nothing_is_wrong_with_what_passes():
    own = record("own", "", asked=["helper"], outcome="passed")
    later = record("later", "1 is 2", "helper__forgets", asked=["attention"])
    assert build([own, later]).mistakes == []


def test_a_mistake_in_what_no_check_has_asked_for_may_show_anywhere():
    one = record("one", "7 is 8", asked=["attention"])
    two = record("two", "1 is 2", "helper__forgets", asked=["attention"])
    assert [each.name for each in build([one, two]).mistakes] == ["helper__forgets"]


def test_the_same_error_is_told_once(lesson: Lesson):
    text = shown(lesson, EXERCISE.replace(RIGHT, "return x.nothing"))
    assert text.count("has no attribute 'nothing'") == 1
    assert "one row: the same error as above" in text


def test_the_same_sentence_is_told_once():
    first, second = (record("", "the layer has no w_v", check=f"test_{name}") for name in "ab")
    other = record("", "the layer has no w_v", "m", check="test_c")
    assert feedback.task_texts(build([first, second, other]).tasks[0], set()) == [
        ("check", "a"),
        ("message", "the layer has no w_v"),
        ("check", "b: the same as above"),
        # Of which something new is known.
        ("check", "c"),
        ("message", "the layer has no w_v"),
        ("mistake", "m!"),
    ]


def test_an_error_of_an_earlier_task_is_one_line(lesson: Lesson):
    text = EXERCISE.replace("return scores.softmax(-1)", "return centre(scores).softmax(-1)")
    for broken in ("return x.nothing", 'raise NotImplementedError("centre is not done yet")'):
        told = shown(lesson, text.replace(RIGHT, broken))
        assert told.count("waits for task 1: centre\n") == 1
        assert "softmax\n" not in told


@pytest.mark.parametrize("boundary", [False, True])
def test_scratch_lines_at_the_end_cost_nothing(lesson: Lesson, boundary: bool):
    told = shown(lesson, EXERCISE + "\nprint(centre(3))\n", boundary=boundary)
    place = f"line {len(EXERCISE.splitlines()) + 2}"
    assert f"{place} stops with AttributeError: 'int' object has no attribute 'mean'" in told
    assert "what stands above it was still checked" in told
    assert "tiny (tiny.py): 8 of 8 points" in told


def test_scratch_calls_of_what_is_not_done_are_named(lesson: Lesson):
    told = shown(lesson, EXERCISE.replace(RIGHT, STUB.strip()) + "centre(3)\n")
    place = f"line {len(EXERCISE.splitlines()) + 1}"
    assert f"{place}: `centre(3)` calls a task that is not done yet; what stands above" in told
    assert "5 of 8 points" in told


def test_what_comes_after_the_end_is_not_called_missing(lesson: Lesson):
    head, tail = EXERCISE.split("class RunningMean")
    told = shown(lesson, f"{head}1 / 0\n\n\nclass RunningMean{tail}")
    assert "tiny.py stopped before RunningMean was defined, as told above" in told
    assert "7 of 8 points" in told


@pytest.mark.parametrize("boundary", [False, True])
def test_a_notebook_goes_on_after_a_failing_cell(lesson: Lesson, work: Path, boundary: bool):
    import nbformat

    path = exercise.start(lesson, work, notebook=True)
    notebook = nbformat.read(path, 4)
    cells = notebook.cells
    for scratch in ("centre(3)", "x = 1\nx / 0", "def f(:\n    pass"):
        cells.insert(4, nbformat.v4.new_code_cell(scratch))
    for cell in cells:
        cell.source = cell.source.replace(STUB.strip(), RIGHT)
    nbformat.write(notebook, path)
    report = exercise.check(lesson, path, work_dir=work, boundary=boundary)
    assert report.earned == 3
    syntax, division, call = report.notes
    assert "is not valid Python: invalid syntax; the cells after it were still run" in syntax
    assert division.startswith("code cell ")
    assert " stops with ZeroDivisionError: division by zero; the cells after it" in division
    assert "line 2:\n  x / 0\n  ^" in division
    assert "AttributeError" in call


def test_hints_go_away(lesson: Lesson, work: Path):
    path = write(work, with_change("axis=-1", "axis=0").text)

    def said(hint: bool) -> str:
        return feedback.plain(exercise.check(lesson, path, work_dir=work, hint=hint, boundary=False), 200)

    said(True)
    both, last = said(True), said(False)
    assert ("hint 1 of 2" in both, "hint 2 of 2" in both) == (True, True)
    assert ("hint 1 of 2" in last, "hint 2 of 2" in last) == (False, True)
    path.write_text("def f(:\n", "utf-8")
    assert "hint " not in said(False)
    path.write_text(EXERCISE, "utf-8")
    assert "hint " not in said(False)


def test_the_solution_is_promised_only_after_an_attempt():
    task = Task("A", "A", ["one"], [Check("test_a", 1, "not done", [Case()])], shown=1)
    said = feedback.footer(Report("tiny", [task]))
    assert said == "All hints for 'A' are shown. After a first attempt `attn solution tiny` shows an answer."
    said = feedback.footer(Report("tiny", [task], attempts=1))
    assert said == "All hints for 'A' are shown. `attn solution tiny` shows an answer."


def test_the_file_is_named_and_the_older_one_too(lesson: Lesson, work: Path, monkeypatch):
    monkeypatch.chdir(work.parent)
    path, notebook = exercise.start(lesson, work), exercise.start(lesson, work, notebook=True)
    os.utime(path, (1, 1))
    text = feedback.plain(exercise.check(lesson, work_dir=work, boundary=False))
    assert text.startswith("tiny (work/tiny.ipynb): 0 of 8 points")
    assert "work/tiny.py is older and was not checked" in text
    notebook.unlink()
    path.write_text("if 1:\n    def f(:\n", "utf-8")
    text = feedback.plain(exercise.check(lesson, work_dir=work, boundary=False))
    assert text == (
        "tiny: work/tiny.py could not be run, so nothing was checked\n\n"
        "tiny.py is not valid Python: invalid syntax\nline 2:\n      def f(:\n            ^\n"
    )


def test_printed_lines_are_few_and_shown_once_a_task(lesson: Lesson):
    loop = "for i in range(3000): print('number', i)\n    return x + 1"
    for boundary in (False, True):
        text = shown(lesson, EXERCISE.replace(RIGHT, loop), boundary=boundary)
        assert text.count("printed: number 0") == 1
        assert "number 4\n   ... 2,995 more lines" in text
        assert "number 5" not in text
    assert feedback.printed("a\n" * 6).endswith("a\n... 1 more line")


def test_quoted_lines_are_cut_and_sentences_wrap():
    message = "a sentence that is rather long\nline 12, in f: " + "some_name(" * 9
    check = Check("test_a", 1, "failed", [Case(message=message, mistakes=[Mistake("m", "word " * 9)])])
    lines = feedback.plain(Report("tiny", [Task("A", "A", [], [check])]), width=30).splitlines()
    (quote,) = [line for line in lines if "line 12" in line]
    assert len(quote) == 30
    assert quote.endswith(" …")
    assert "   a sentence that is rather" in lines
