"""A student's way: start, check, hints, solution."""

import json
import os
from pathlib import Path

import pytest
from tests.coursekit.grading.tiny import EXERCISE, handed_in, with_change

from coursekit.course import Lesson
from coursekit.grading import exercise, feedback, progress
from coursekit.grading.submission import ExerciseError

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def write(work: Path, text: str, name: str = "tiny.py") -> Path:
    work.mkdir(exist_ok=True)
    (work / name).write_text(text, "utf-8")
    return work / name


def test_start_never_overwrites(lesson: Lesson, work: Path):
    path = exercise.start(lesson, work)
    assert path == work / "tiny.py"
    path.write_text("mine", "utf-8")
    with pytest.raises(ExerciseError, match="exists already"):
        exercise.start(lesson, work)
    assert path.read_text("utf-8") == "mine"
    assert exercise.start(lesson, work, notebook=True) == work / "tiny.ipynb"
    with pytest.raises(ExerciseError, match="exists already"):
        exercise.start(lesson, work, notebook=True)


@pytest.mark.parametrize(("boundary", "notebook"), [(False, False), (False, True), (True, True)])
def test_the_stub_scores_nothing_and_is_no_attempt(
    lesson: Lesson, work: Path, boundary: bool, notebook: bool
):
    exercise.start(lesson, work, notebook)
    report = exercise.check(lesson, work_dir=work, boundary=boundary)
    assert (report.earned, report.points, report.attempts) == (0, 8, 0)
    assert {check.outcome for check in report.checks} == {"not done"}
    with pytest.raises(ExerciseError, match="after a first attempt"):
        exercise.solution(lesson, work)


@pytest.mark.parametrize("boundary", [False, True])
def test_the_solution_scores_all(lesson: Lesson, work: Path, boundary: bool):
    report = exercise.check(lesson, write(work, EXERCISE), work_dir=work, boundary=boundary)
    assert report.passed
    assert (report.earned, report.points, len(report.checks)) == (8, 8, 7)
    assert "### BEGIN" not in exercise.solution(lesson, work)


@pytest.mark.parametrize("boundary", [False, True])
def test_a_wrong_answer_is_told_the_same_over_both_backends(lesson: Lesson, work: Path, boundary: bool):
    submission = with_change("axis=-1", "axis=0")
    report = exercise.check(lesson, write(work, submission.text), work_dir=work, boundary=boundary)
    rows = report.tasks[0].checks[0]
    assert rows.message.startswith("centred: row 0, column 0 is ")
    assert (rows.first.name, rows.earned, report.earned) == ("numpy", 0, 5)
    assert [mistake.name for mistake in rows.mistakes] == ["centre__columns"]
    assert "tiny.py): 5 of 8 points, 5 of 7 checks" in feedback.plain(report, 300)
    assert "You took the mean of each column." in feedback.plain(report)
    assert "one row: the same mistake as above" in feedback.plain(report)


def test_hints_come_one_at_a_time_for_the_first_open_task(lesson: Lesson, work: Path):
    path = write(work, with_change("axis=-1", "axis=0").text)

    def hints(ask: bool) -> list[list[str]]:
        report = exercise.check(lesson, path, work_dir=work, hint=ask, boundary=False)
        return [task["hints"] for task in feedback.as_json(report)["tasks"]]

    assert hints(False) == [[], [], []]
    assert hints(True)[0] == ["A row runs along the last axis."]
    assert hints(False)[0] == ["A row runs along the last axis."]
    assert len(hints(True)[0]) == 2
    assert len(hints(True)[0]) == 2
    path.write_text(with_change("return scores.softmax(-1)", "return scores").text, "utf-8")
    assert hints(True) == [[], ["Look at the axis."], []]
    assert progress.load(work, "tiny").attempts == 6
    assert progress.load(work, "tiny").best == 5
    text = feedback.plain(exercise.check(lesson, path, work_dir=work, boundary=False))
    assert "hint 1 of 1: Look at the axis." in text
    assert "All hints for 'Weights' are shown" in text


def test_progress_survives_a_broken_file(work: Path):
    progress.write_text(progress.progress_path(work, "tiny"), "{ not json")
    assert progress.load(work, "tiny") == progress.Progress()
    progress.save(work, "tiny", progress.Progress(2, 3.5, {"TestA": 1}))
    assert progress.load(work, "tiny") == progress.Progress(2, 3.5, {"TestA": 1})
    assert progress.Progress(1, 3.5, {}, 8).line == "3.5 of 8 points, 1 attempt"
    progress.write_text(progress.progress_path(work, "tiny"), '{"attempts": 2, "best": 3, "hints": {}}')
    assert progress.load(work, "tiny").line == "3 points, 2 attempts"
    assert [path.name for path in (work / ".progress").iterdir()] == ["tiny.json"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (EXERCISE.replace("def weights(", "def weights)"), "tiny.py is not valid Python: "),
        (
            "import numppy\n" + EXERCISE,
            "ModuleNotFoundError: No module named 'numppy'\nline 1:\n  import numppy\n  ^",
        ),
        ("import sys\nsys.exit(0)\n" + EXERCISE, "the code ends the program"),
        (EXERCISE + "\nimport os\nos._exit(0)\n", "the process that ran the code ended by itself"),
    ],
)
def test_a_file_that_cannot_be_run_scores_nothing_and_says_why_once(lesson, work, text: str, told: str):
    report = exercise.check(lesson, write(work, text), work_dir=work)
    assert report.earned == 0
    assert report.problem.startswith(told)
    shown = feedback.plain(report, 200)
    assert shown.count(told.splitlines()[0]) == 1
    assert "could not be run, so nothing was checked" in shown.splitlines()[0]
    assert "Centre each row" not in shown


@pytest.mark.parametrize(
    ("code", "told", "boundary"),
    [
        ("import sys; sys.exit(0)", "the code ends the program (sys.exit or quit)", True),
        ("import os; os._exit(0)", "the process that ran the code ended by itself (exit code 0)", True),
        ("return centre(x)", "a function calls itself without end (RecursionError)", True),
        ("return x.foo", "'foo'", False),
        ("pass", "centre(tensor) returns None: is a return missing?", False),
        ("return [1, 2]", "centred is a list, expected a tensor of shape (3, 5) (row, column): ", False),
    ],
)
def test_what_one_task_does_leaves_the_others_alone(
    lesson: Lesson, work: Path, code: str, told: str, boundary: bool
):
    text = with_change("return x - x.mean(axis=-1, keepdims=True)", code).text
    report = exercise.check(lesson, write(work, text), work_dir=work, boundary=boundary)
    assert (report.earned, report.problem) == (5, "")
    assert told in report.tasks[0].checks[0].message


@pytest.mark.parametrize("boundary", [False, True])
def test_what_is_printed_is_shown_escaped_with_the_failing_check(lesson: Lesson, work: Path, boundary: bool):
    code = "print('\\x1b[2Jhello' + 'x' * 10_000)\n    return x"
    text = with_change("return x - x.mean(axis=-1, keepdims=True)", code).text
    report = exercise.check(lesson, write(work, text), work_dir=work, boundary=boundary)
    printed = report.tasks[0].checks[0].first.printed
    assert printed.startswith(r"\x1b[2Jhelloxxx")
    assert len(printed) < 1100
    assert "\x1b" not in feedback.plain(report)


def test_an_interrupt_is_an_interrupt(lesson: Lesson, work: Path):
    text = with_change("return x - x.mean(axis=-1, keepdims=True)", "raise KeyboardInterrupt").text
    with pytest.raises(KeyboardInterrupt):
        exercise.check(lesson, write(work, text), work_dir=work, boundary=False)


def test_a_missing_function_is_named(lesson: Lesson, work: Path):
    path = write(work, EXERCISE.replace("def centre", "def center"))
    report = exercise.check(lesson, path, work_dir=work, boundary=False)
    assert report.tasks[0].checks[0].message == "tiny.py has no centre: keep the names that the stub has"


def test_the_newer_of_two_files_is_checked(lesson: Lesson, work: Path):
    with pytest.raises(ExerciseError, match="attn start tiny"):
        exercise.submission_path(lesson, work)
    path, notebook = exercise.start(lesson, work), exercise.start(lesson, work, notebook=True)
    os.utime(path, (1, 1))
    assert exercise.submission_path(lesson, work) == notebook
    os.utime(notebook, (0, 0))
    assert exercise.submission_path(lesson, work) == path


def test_in_a_notebook_lines_are_told_by_cell(lesson: Lesson, work: Path):
    path = exercise.start(lesson, work, notebook=True)
    text = path.read_text("utf-8").replace(
        'raise NotImplementedError(\\"centre is not done yet\\")', "return 1 / 0"
    )
    path.write_text(text, "utf-8")
    report = exercise.check(lesson, path, work_dir=work, boundary=False)
    message = report.tasks[0].checks[0].message
    assert message == "ZeroDivisionError: division by zero\ncode cell 2, line 2, in centre: return 1 / 0"


def test_the_report_is_plain_data(lesson: Lesson, work: Path):
    path = write(work, with_change("axis=-1", "axis=0").text)
    report = exercise.check(lesson, path, work_dir=work, boundary=False)
    data = json.loads(json.dumps(feedback.as_json(report)))
    assert (data["points"], data["max_points"], data["passed"]) == (5, 8, False)
    assert data["tasks"][0]["state"] == "failed"
    assert data["tasks"][0]["checks"][0]["mistakes"][0]["name"] == "centre__columns"
    assert "keepdims" not in json.dumps(data)


def test_checks_that_cannot_be_run_are_an_error_not_a_score(lesson: Lesson):
    lesson.checks.write_text("import nothing_of_the_sort\n", "utf-8")
    with pytest.raises(ExerciseError, match="No module named"):
        exercise.run(lesson, handed_in(EXERCISE))
    lesson.checks.write_text("def test_loose(student):\n    pass\n", "utf-8")
    with pytest.raises(ExerciseError, match=r"stands in a class marked @pytest\.mark\.task"):
        exercise.run(lesson, handed_in(EXERCISE))


def test_the_seed_changes_the_inputs(lesson: Lesson):
    wrong = with_change("axis=-1", "axis=0")
    first, again, other = (exercise.run(lesson, wrong, seed=seed).checks[0].message for seed in (0, 0, 1))
    assert first == again != other
