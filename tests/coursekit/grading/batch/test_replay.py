"""One student's failures again: the same checks, the same messages, and a debugger that opens where it failed."""

import pytest
from tests.coursekit.grading.batch.fakes import grade_here
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.course import Course
from coursekit.grading.batch import replay as module
from coursekit.grading.batch.replay import replay
from coursekit.grading.batch.results import Results
from coursekit.grading.batch.run import Run
from coursekit.grading.submission import ExerciseError

WRONG = EXERCISE.replace("x.mean(axis=-1, keepdims=True)", "x.mean()")
RAISES = EXERCISE.replace(
    "    return scores.softmax(-1)", "    mine = scores * 2\n    return mine.no_such_method()"
)


@pytest.fixture
def graded(lesson, tmp_path):
    """A class in which something fails for everybody but Ann; and how to replay one of them."""
    folder = tmp_path / "in"
    folder.mkdir()
    for student, text in {
        "ann": EXERCISE,
        "bob": WRONG,
        "cem": RAISES,
        "dee": "1 / 0",
        "eve": "\x1b[31m'",
    }.items():
        (folder / f"{student}.py").write_text(text, "utf-8")
    (folder / "fay.pdf").write_bytes(b"")
    Run(lesson, folder, tmp_path / "out")(grade_here)

    def again(student, **options):
        lines = []
        failed = replay(Course(lesson.root), student, tmp_path / "out", say=lines.append, **options)
        return failed, lines

    return again


def test_it_warns_first_and_fails_the_same_checks_with_the_same_messages(graded, tmp_path):
    failed, lines = graded("bob", pdb=False)
    assert failed
    assert lines[0] == "This runs bob's code in this process, with your rights and without any protection."
    assert lines[-1] == "1 of 7 checks fail, as when it was graded"
    report = Results(tmp_path / "out").get("bob").report
    [check] = [check for check in report.checks if check.outcome == "failed"]
    assert f"TestCentre.test_rows[numpy]: {check.message}" in lines


def test_another_seed_would_give_another_message(graded, tmp_path):
    folder = Results(tmp_path / "out")
    result = folder.get("bob")
    result.seed = str(int(result.seed) + 1)
    folder.save(result)
    _, lines = graded("bob", pdb=False)
    assert lines[-1].startswith("1 of 7 checks fail, not all as when it was graded")


def test_what_is_right_passes(graded):
    failed, lines = graded("ann", pdb=False)
    assert not failed
    assert lines[1:] == ["0 of 7 checks fail, as when it was graded"]


def test_the_debugger_opens_in_the_students_frame_once_a_check(graded, monkeypatch):
    opened = []

    def post_mortem(trace):
        while trace.tb_next:
            trace = trace.tb_next
        opened.append(trace.tb_frame)

    monkeypatch.setattr(module.debugger, "post_mortem", post_mortem)
    graded("cem")
    assert {frame.f_code.co_name for frame in opened} == {"weights"}
    assert {frame.f_code.co_filename for frame in opened} == {"<cem.py>"}
    assert all("mine" in frame.f_locals for frame in opened)
    assert len(opened) == 3


def test_where_an_answer_is_wrong_it_opens_in_the_check(graded, monkeypatch, lesson):
    opened = []
    monkeypatch.setattr(module.debugger, "post_mortem", lambda trace: opened.append(trace))
    graded("bob")
    # Two cases fail; one is enough to look into.
    [trace] = opened
    while trace.tb_next:
        trace = trace.tb_next
    assert trace.tb_frame.f_code.co_filename == str(lesson.checks)
    assert "expected" in trace.tb_frame.f_locals


@pytest.mark.parametrize("student", ["dee", "eve"])
def test_a_file_that_does_not_load_is_told_and_escape_sequences_do_no_harm(graded, student):
    failed, lines = graded(student, pdb=False)
    assert failed
    assert not any("\x1b" in line for line in lines)
    assert lines[-1] == "7 of 7 checks fail, as when it was graded"


def test_what_hangs_is_stopped_by_hand_to_see_where(graded, monkeypatch):
    def stop(self):
        self.begin()
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(module.debugger, "post_mortem", lambda trace: opened.append(trace))
    monkeypatch.setattr(module.Held, "run", stop)
    _, lines = graded("ann")
    assert lines[1] == "TestCentre.test_rows[numpy]: stopped by you"
    assert len(opened) == 7


@pytest.mark.parametrize(
    ("student", "problem"),
    [
        ("bobb", "no student in .*out is called 'bobb': did you mean 'bob'?"),
        ("fay", "fay.pdf is no .py, .ipynb or .zip file"),
        ("../x", "is called '../x'"),
    ],
)
def test_who_cannot_be_replayed(graded, student, problem):
    with pytest.raises(ExerciseError, match=problem):
        graded(student)


def test_submissions_that_moved_are_named(graded, tmp_path):
    (tmp_path / "in").rename(tmp_path / "moved")
    with pytest.raises(ExerciseError, match="say with --submissions where they are"):
        graded("bob", pdb=False)
    _, lines = graded("bob", pdb=False, submissions=tmp_path / "moved")
    assert lines[-1].endswith("as when it was graded")
    (tmp_path / "moved" / "bob.py").unlink()
    with pytest.raises(ExerciseError, match="has nothing of 'bob'"):
        graded("bob", submissions=tmp_path / "moved")
