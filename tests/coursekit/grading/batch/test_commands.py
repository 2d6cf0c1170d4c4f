"""What an instructor types and reads: `attn grade`, `regrade`, `merge` and `replay`."""

import re
import sys

import pytest
from tests.coursekit.grading.batch.fakes import grade_here
from tests.coursekit.grading.tiny import EXERCISE

from coursekit import __main__
from coursekit.grading.batch import pool, run, told
from coursekit.grading.batch.result import ERROR, GRADED, UNREADABLE, Result
from coursekit.grading.sandbox import LAYERS
from coursekit.grading.stub import make_stub, without_markers


@pytest.fixture
def classroom(lesson, monkeypatch):
    """The course of the lesson `tiny` as working folder, with three students in `in/`."""
    (lesson.root / "labml_style_src").mkdir()
    folder = lesson.root / "in"
    folder.mkdir()
    (folder / "ann.py").write_text(without_markers(EXERCISE), "utf-8")
    (folder / "bob.py").write_text(make_stub(EXERCISE), "utf-8")
    (folder / "new\x1b[31mline.py").write_text("", "utf-8")
    monkeypatch.chdir(lesson.root)
    return lesson.root


@pytest.fixture
def attn(classroom, monkeypatch, capsys):
    """Run `attn` and return its exit code and what it printed."""

    def printed(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["attn", *arguments])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        streams = capsys.readouterr()
        return int(ended.value.code or 0), streams.out + streams.err

    return printed


@pytest.fixture
def here(monkeypatch):
    """Students' code runs in this process."""
    monkeypatch.setattr(run, "graders", lambda *_: grade_here)


def test_a_class_is_graded_by_processes_behind_walls(attn, classroom):
    code, text = attn("grade", "tiny", "in", "--out", "out", "--jobs", "1")
    assert code == 0
    assert text.splitlines()[:3] == [
        "ann: 8 of 8",
        "bob: 0 of 8",
        "new\\u001b[31mline: 0 of 8, unreadable: new\\u001b[31mline.py is empty",
    ]
    assert text.splitlines()[3] == "3 of 3 students: 2 graded, 1 unreadable (0 as before)"
    assert text.splitlines()[-1] == "in out: grades.csv, report.html, feedback/, results/"
    rows = (classroom / "out" / "grades.csv").read_text("utf-8").splitlines()
    assert re.fullmatch(r"ann,tiny,8,8,graded,0,clock\S*", rows[1])


def test_again_with_nothing_to_do_starts_no_process(attn, here, monkeypatch):
    attn("grade", "tiny", "in", "--out", "out")
    monkeypatch.setattr(run, "graders", lambda *_: pool.grade_all)
    monkeypatch.setattr(pool, "Worker", None)
    code, text = attn("grade", "tiny", "in", "--out", "out")
    assert code == 0
    assert text.startswith(
        "3 of 3 students: 2 graded, 1 unreadable (3 as before)\nnot every result was graded behind"
    )


def test_a_machine_that_lacks_a_layer_is_refused_before_anything_is_graded(attn, classroom, monkeypatch):
    from coursekit.grading.batch import grade

    class Bare:
        layers = ("clock",)
        missing = dict.fromkeys(LAYERS[1:], "not here")

        def close(self):
            pass

    def in_this_process(plan, work):
        with plan.open() as grader:
            yield from map(grader.grade, work)

    monkeypatch.setattr(grade, "open_sandbox", lambda *_: Bare())
    monkeypatch.setattr(run, "graders", lambda *_: in_this_process)
    code, text = attn("grade", "tiny", "in", "--out", "out", "--require-sandbox")
    assert code == 3
    assert text.startswith("attn: --require-sandbox: this machine lacks namespaces (not here); rlimits")
    assert not list((classroom / "out").glob("results/*"))


def test_stopped_by_hand_it_says_how_to_go_on(attn, monkeypatch):
    def stopped(plan, work):
        yield next(grade_here(plan, work))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "graders", lambda *_: stopped)
    code, text = attn("grade", "tiny", "in", "--out", "out")
    assert code == 130
    assert text == "ann: 8 of 8\nstopped; what was graded is in out. Run the same command again to go on\n"
    monkeypatch.setattr(run, "graders", lambda *_: grade_here)
    attn("grade", "tiny", "in", "--out", "out")
    monkeypatch.setattr(run, "graders", lambda *_: stopped)
    code, text = attn("regrade", "tiny", "in", "--out", "out")
    assert code == 130
    assert text.endswith("stopped; nothing in out has changed. Run the same command again to go on\n")


def test_a_fault_of_the_graders_own_is_an_exit_code_and_named(attn, monkeypatch):
    def failing(plan, work):
        for result in grade_here(plan, work):
            result.status, result.message = ERROR, "ZeroDivisionError: of ours"
            yield result

    monkeypatch.setattr(run, "graders", lambda *_: failing)
    code, text = attn("grade", "tiny", "in", "--out", "out")
    assert code == 1
    assert "ann: 8 of 8, error: ZeroDivisionError: of ours" in text
    assert "the grader itself failed on ann, bob, new\\u001b[31mline: run the same command again" in text


def test_regrade_shows_what_differs(attn, here, classroom):
    attn("grade", "tiny", "in", "--out", "out")
    code, text = attn("regrade", "tiny", "in", "--out", "out")
    assert code == 0
    assert text.endswith("nothing differs for 3 students\n")
    path = next((classroom / "lessons").glob("*_tiny/test_exercise.py"))
    checks = path.read_text("utf-8")
    path.write_text(checks.replace("x - x.mean(), axes", "x + x.mean(), axes"), "utf-8")
    code, text = attn("regrade", "tiny", "in", "--out", "out")
    assert re.search(
        r"ann: 8 of 8, now 7 \(-1\)\n  .*: one row: passed, now failed\n1 of 3 students have", text
    )


def test_shards_are_merged(attn, here, classroom):
    (classroom / "class.secret").write_text("ab" * 32)
    for part in "12":
        attn(
            "grade", "tiny", "in", "--out", f"part{part}", "--shard", f"{part}/2", "--secret", "class.secret"
        )
    code, text = attn("merge", "--out", "all", "part1", "part2")
    assert (code, text) == (0, "3 students are in all/grades.csv\n")
    attn("grade", "tiny", "in", "--out", "whole", "--secret", "class.secret")
    assert (classroom / "all/grades.csv").read_bytes() == (classroom / "whole/grades.csv").read_bytes()
    assert (classroom / "all/report.html").read_bytes() == (classroom / "whole/report.html").read_bytes()


def test_replay_runs_one_student_again(attn, here):
    attn("grade", "tiny", "in", "--out", "out")
    code, text = attn("replay", "bob", "--out", "out", "--no-pdb")
    assert code == 1
    assert text.startswith(
        "This runs bob's code in this process, with your rights and without any protection.\n"
    )
    assert text.splitlines()[-1].endswith("checks fail, as when it was graded")
    assert attn("replay", "ann", "--out", "out", "--no-pdb")[0] == 0
    assert attn("replay", "nobody", "--out", "out")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["grade", "tiny", "nowhere", "--out", "out"], "nowhere: there is no such folder or zip"),
        (["grade", "tiny", "in", "--out", "out", "--shard", "3"], "--shard: wanted i/n"),
        (["grade", "tiny", "in", "--out", "out", "--assignment", "no.toml"], "no.toml cannot be read"),
        (["regrade", "tiny", "in", "--out", "in"], "nothing was graded in in"),
        (["merge", "--out", "out", "in"], "nothing was graded in in"),
    ],
)
def test_what_is_wrong_is_one_line(attn, arguments, problem, classroom):
    code, text = attn(*arguments)
    assert code == 2
    assert text.startswith(f"attn: {problem}")
    assert text.count("\n") == 1
    assert not (classroom / "out").exists()


def test_a_result_in_one_line():
    assert told.one_line(Result("ann", "tiny", GRADED, 31.5, 35)) == "ann: 31.5 of 35"
    assert told.one_line(Result("ann", "tiny", GRADED, 0, 35, late_days=1)) == "ann: 0 of 35, 1 day late"
    unreadable = Result("ann", "tiny", UNREADABLE, 0, 35, message="\x1b[2Jno\nmore", late_days=3)
    assert told.one_line(unreadable) == "ann: 0 of 35, 3 days late, unreadable: \\x1b[2Jno"


def test_on_a_terminal_there_is_a_bar_and_a_line_for_what_is_no_plain_grade():
    import io

    from rich.console import Console

    console, said = Console(file=io.StringIO(), force_terminal=True, width=80), []
    with told.progress(console, said.append) as tell:
        tell(Result("ann", "tiny", GRADED, 1, 8), False, 3)
        tell(Result("bob", "tiny", UNREADABLE, 0, 8, message="why"), False, 3)
        tell(Result("cem", "tiny", UNREADABLE, 0, 8, message="known"), True, 3)
    assert said == ["bob: 0 of 8, unreadable: why"]
    assert "3/3" in console.file.getvalue()
