"""A class from its submissions to its gradebook: resumed, killed, split and merged with the same end."""

import os
import shutil
import signal

import pytest
from tests.coursekit.grading.batch.classes import CLASS, WRONG, files, scores, students_of
from tests.coursekit.grading.batch.fakes import grade_here
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.course import Course
from coursekit.grading.batch.result import ERROR, GRADED
from coursekit.grading.batch.results import Results
from coursekit.grading.batch.run import Run, merged
from coursekit.grading.batch.seeds import make_secret
from coursekit.grading.sandbox import LAYERS
from coursekit.grading.submission import ExerciseError


def test_a_class_is_graded(lesson, submissions, tmp_path):
    told = []
    run = Run(lesson, submissions, tmp_path / "out", tell=lambda *heard: told.append(heard))
    run(grade_here)
    assert scores(run.out) == {"ann": 8, "bob": 6, "cem": 0, "dee": 0, "eve": 0}
    assert [result.status for result in run.results] == [GRADED, GRADED, GRADED, "not run", "unreadable"]
    assert (run.graded, run.kept) == (5, 0)
    assert [(result.student, kept, total) for result, kept, total in told] == [
        (name, False, 5) for name in CLASS
    ]
    assert (run.out / "grades.csv").read_text("utf-8").splitlines()[1:] == [
        "ann,tiny,8,8,graded,0,none",
        "bob,tiny,6,8,graded,0,none",
        "cem,tiny,0,8,graded,0,none",
        "dee,tiny,0,8,not run,0,none",
        "eve,tiny,0,8,unreadable,0,none",
    ]
    pages = {f"feedback/{student}.html" for student in CLASS}
    kept = {f"results/{student}.json" for student in CLASS}
    assert set(files(run.out)) == pages | kept | {"grades.csv", "report.html", "batch.json"}
    assert str(tmp_path).encode() not in b"".join(files(run.out).values())
    assert Results(run.out).graded().submissions == "../in"


def test_a_second_run_grades_only_what_is_new(lesson, submissions, tmp_path):
    run = Run(lesson, submissions, tmp_path / "out")
    assert students_of(run) == sorted(CLASS)
    before = files(run.out)
    assert students_of(Run(lesson, submissions, run.out)) == []
    assert files(run.out) == before
    (submissions / "bob.py").write_text(EXERCISE, "utf-8")
    (submissions / "fay.py").write_text(EXERCISE, "utf-8")
    again = Run(lesson, submissions, run.out)
    assert students_of(again) == ["bob", "fay"]
    assert (again.graded, again.kept) == (2, 4)
    assert scores(run.out)["bob"] == scores(run.out)["fay"] == 8


def test_what_was_damaged_or_lost_is_made_again(lesson, submissions, tmp_path):
    out = tmp_path / "out"
    Run(lesson, submissions, out)(grade_here)
    before = files(out)
    (out / "results" / "ann.json").write_text("{")
    (out / "feedback" / "bob.html").unlink()
    (out / "grades.csv").unlink()
    assert students_of(Run(lesson, submissions, out)) == ["ann"]
    assert files(out) == before


def test_a_fault_of_the_graders_own_is_tried_again_by_the_next_run(lesson, submissions, tmp_path):
    out = tmp_path / "out"

    def failing(plan, work):
        for result in grade_here(plan, work):
            result.status = ERROR if result.student == "ann" else result.status
            yield result

    Run(lesson, submissions, out)(failing)
    assert students_of(Run(lesson, submissions, out)) == ["ann"]
    assert Results(out).get("ann").status == GRADED


def test_a_result_without_all_layers_does_not_count_where_they_are_required(lesson, submissions, tmp_path):
    out = tmp_path / "out"
    Run(lesson, submissions, out)(grade_here)
    seen = []

    def fenced(plan, work):
        assert plan.required
        for result in grade_here(plan, work):
            seen.append(result.student)
            result.sandbox = list(LAYERS)
            yield result

    Run(lesson, submissions, out, required=True)(fenced)
    assert seen == sorted(CLASS)
    Run(lesson, submissions, out, required=True)(fenced)
    assert seen == sorted(CLASS)


def test_rules_hold_until_others_are_given(lesson, submissions, tmp_path):
    out, rules = tmp_path / "out", tmp_path / "assignment.toml"
    rules.write_text('slug = "tiny"\n[weights]\nTestCentre = 0\n', "utf-8")
    Run(lesson, submissions, out, rules)(grade_here)
    assert scores(out)["ann"] == 5
    assert students_of(Run(lesson, submissions, out)) == []
    rules.write_text('slug = "tiny"\n[weights]\nTestCentre = 1\n', "utf-8")
    assert students_of(Run(lesson, submissions, out, rules)) == sorted(CLASS)
    assert scores(out)["ann"] == 6


def test_stopped_by_hand_there_is_a_gradebook_of_what_is_there(lesson, submissions, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"

    def stopped(plan, work):
        for count, result in enumerate(grade_here(plan, work)):
            if count == 2:
                raise KeyboardInterrupt
            yield result

    run = Run(lesson, submissions, out)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    assert [line.partition(",")[0] for line in (out / "grades.csv").read_text().splitlines()[1:]] == [
        "ann",
        "bob",
    ]
    assert [result.student for result in run.results] == ["ann", "bob"]
    Run(lesson, submissions, out)(grade_here)
    shutil.copytree(out, whole, ignore=lambda *_: {"results", "feedback", "grades.csv", "report.html"})
    Run(lesson, submissions, whole)(grade_here)
    assert files(out) == files(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be killed at a certain line")
def test_killed_at_any_write_and_run_again_it_ends_with_the_same_files(lesson, submissions, tmp_path):
    whole = tmp_path / "whole"
    Run(lesson, submissions, whole)(grade_here)
    kills = 0
    for moment in range(0, 30, 3):
        out = tmp_path / f"killed-{moment}"
        out.mkdir()
        shutil.copy2(whole / "secret", out)
        pid = os.fork()
        if not pid:
            die_at_write(moment, Run(lesson, submissions, out))
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        Run(lesson, submissions, out)(grade_here)
        assert files(out) == files(whole), moment
    # There are batch.json, a page and a result for each of five, grades.csv and report.html: 13 writes, each with a
    # moment before and one after the file is there.
    assert kills == 9


def die_at_write(moment: int, run: Run) -> None:
    """Do the work in this process, which dies at the given moment: before or after its n-th write."""
    replace, written = os.replace, [0]

    def deadly(source, target):
        for step in (None, lambda: replace(source, target)):
            if step:
                step()
            if written[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            written[0] += 1

    os.replace = deadly
    try:
        run(grade_here)
    finally:
        os._exit(0)


def test_shards_merge_to_the_same_as_the_whole(lesson, submissions, tmp_path):
    for number in range(12):
        (submissions / f"s{number}.py").write_text(EXERCISE if number % 2 else WRONG, "utf-8")
    whole, secret = tmp_path / "whole", tmp_path / "class.secret"
    make_secret(secret)
    Run(lesson, submissions, whole, secret=secret)(grade_here)
    parts = [tmp_path / "parts" / str(part) for part in (1, 2, 3)]
    for part, out in enumerate(parts, start=1):
        run = Run(lesson, submissions, out, shard=f"{part}/3", secret=secret)
        run(grade_here)
        assert 0 < len(run.students) < 17
        assert run.graded == len(run.students)
    together = tmp_path / "together"
    assert len(merged(Course(lesson.root), together, parts)) == 17
    assert files(together) == files(whole)
    result = Results(parts[0]).all()[0]
    result.score += 1
    Results(parts[1]).save(result)
    with pytest.raises(ExerciseError, match="different results in"):
        merged(Course(lesson.root), together, parts)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3", ""])
def test_a_shard_that_is_none(lesson, submissions, tmp_path, shard):
    make_secret(tmp_path / "secret")
    with pytest.raises(ExerciseError, match=r"--shard: wanted i/n"):
        Run(lesson, submissions, tmp_path / "out", shard=shard, secret=tmp_path / "secret")(grade_here)


def test_shards_need_a_secret_that_is_there_already(lesson, submissions, tmp_path):
    with pytest.raises(ExerciseError, match=r"all shards need one secret, and .* does not exist"):
        Run(lesson, submissions, tmp_path / "out", shard="1/2")(grade_here)


def test_nobody_is_graded_as_in_time_without_a_time(lesson, submissions, tmp_path):
    rules = tmp_path / "assignment.toml"
    rules.write_text('slug = "tiny"\ndue = 2026-12-01T12:00:00Z\n[late]\nper_day = 0.25\n', "utf-8")
    (submissions / "doejane_LATE_12_3456_tiny.py").write_text(EXERCISE, "utf-8")
    out = tmp_path / "out"
    with pytest.raises(ExerciseError, match=r"nobody knows when doejane_12 handed in: .* times\.csv"):
        Run(lesson, submissions, out, rules)(grade_here)
    assert not out.exists()
    # Where it costs nothing it need not be known.
    rules.write_text('slug = "tiny"\ndue = 2026-12-01T12:00:00Z\n', "utf-8")
    Run(lesson, submissions, tmp_path / "free", rules)(grade_here)
    assert Results(tmp_path / "free").get("doejane_12").late_days == 0
    rules.write_text('slug = "tiny"\ndue = 2026-12-01T12:00:00Z\n[late]\nper_day = 0.25\n', "utf-8")
    times = "student,handed_in\ndoejane_12,2026-12-02T12:00:00Z\nann,2026-12-03T12:00:01Z\nbob,2026-12-01T12:00:00Z\n"
    (submissions / "times.csv").write_text(times, "utf-8")
    Run(lesson, submissions, out, rules)(grade_here)
    found = {result.student: result for result in Results(out).all()}
    assert {name: (found[name].late_days, found[name].score) for name in ("ann", "bob", "doejane_12")} == {
        "ann": (3, 2),
        "bob": (0, 6),
        "doejane_12": (1, 6),
    }


def test_a_folder_of_another_lesson_or_of_nobody_s_is_left_alone(lesson, submissions, tmp_path):
    out = tmp_path / "out"
    Run(lesson, submissions, out)(grade_here)
    (out / "batch.json").unlink()
    with pytest.raises(ExerciseError, match=r"has results and no batch\.json"):
        Run(lesson, submissions, out)(grade_here)


def test_results_among_the_submissions_would_be_submissions(lesson, submissions):
    for out in (submissions, submissions / "out"):
        with pytest.raises(ExerciseError, match="lies among the submissions"):
            Run(lesson, submissions, out)(grade_here)
        assert not (submissions / "out").exists()


def test_without_its_secret_a_batch_does_not_go_on_with_another(lesson, submissions, tmp_path):
    out = tmp_path / "out"
    make_secret(tmp_path / "class.secret")
    Run(lesson, submissions, out, secret=tmp_path / "class.secret")(grade_here)
    # Where the secret was is remembered.
    assert students_of(Run(lesson, submissions, out)) == []
    (tmp_path / "class.secret").rename(tmp_path / "moved")
    with pytest.raises(ExerciseError, match=r"class\.secret, is not there: name it with --secret"):
        Run(lesson, submissions, out)(grade_here)
    assert not (tmp_path / "class.secret").exists()


def test_a_part_of_which_nobody_is(lesson, submissions, tmp_path):
    make_secret(tmp_path / "secret")
    for part in range(1, 1001):
        run = Run(lesson, submissions, tmp_path / "out", shard=f"{part}/1000", secret=tmp_path / "secret")
        run(grade_here)
        if not run.students:
            break
    assert run.results == []
    assert (tmp_path / "out" / "grades.csv").read_text().count("\n") == 1
    assert (tmp_path / "out" / "report.html").exists()
