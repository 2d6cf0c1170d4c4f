"""Processes that grade: each submission exactly once, whatever happens to the processes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tests.coursekit.grading.batch.fakes import FakePlan, handed

from coursekit.course import EnvironmentFault
from coursekit.grading.batch import pool
from coursekit.grading.batch.pool import grade_all
from coursekit.grading.batch.result import ERROR


def alive(pid: int) -> bool:
    """Whether it runs: one that has ended counts as gone, even if nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether these processes end, sooner or later."""
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


def opened(folder) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.opened")]


def test_every_submission_is_graded_once_by_as_many_processes_as_asked_for(tmp_path):
    work = [handed(f"s{number}", "wait for another" if number < 2 else "") for number in range(12)]
    taken = []

    def source():
        for each in work:
            taken.append(each.student)
            yield each

    results = grade_all(FakePlan(tmp_path), source(), jobs=2)
    found = [next(results)]
    # A class is not read at once: those in work, and as many again.
    assert len(taken) < 7
    found += results
    assert sorted(result.student for result in found) == sorted(each.student for each in work)
    assert {path.read_text().count("\n") for path in tmp_path.glob("*.tries")} == {1}
    assert len(opened(tmp_path)) == 2
    # They were let go, and closed what they had open.
    assert {path.stem for path in tmp_path.glob("*.closed")} == {str(pid) for pid in opened(tmp_path)}


def test_no_more_processes_than_submissions_and_none_for_none(tmp_path):
    assert list(grade_all(FakePlan(tmp_path), [], jobs=4)) == []
    assert opened(tmp_path) == []
    assert len(list(grade_all(FakePlan(tmp_path), [handed("a")], jobs=4))) == 1
    assert len(opened(tmp_path)) == 1


def test_a_process_that_dies_is_replaced_and_its_submission_tried_once_more(tmp_path):
    work = [handed("a"), handed("b", "die once"), handed("c", "die"), handed("d")]
    found = {result.student: result for result in grade_all(FakePlan(tmp_path), work, jobs=1)}
    assert list(found) == sorted(found)[:1] + [student for student in found if student != "a"]
    assert {student: result.score for student, result in found.items()} == {"a": 1, "b": 1, "c": 0, "d": 1}
    assert found["c"].status == ERROR
    assert found["c"].max_score == 4
    assert found["c"].message == "the grader's own process died on it 2 times: is there enough memory?"
    assert (tmp_path / "c.tries").read_text().count("\n") == 2


def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
    allowed = 2 * pool.WALL_FACTOR * FakePlan(tmp_path).assignment.limits.submission_seconds
    monkeypatch.setattr(pool, "PATIENCE_SECONDS", 0.5 - allowed)
    found = list(grade_all(FakePlan(tmp_path), [handed("a", "hang"), handed("b")], jobs=1))
    assert sorted((result.student, result.status == ERROR) for result in found) == [("a", True), ("b", False)]


@pytest.mark.parametrize(("opening", "problem"), [("refuse", "no walls here"), ("die", r"exit code 7")])
def test_where_no_grader_opens_nothing_is_graded(tmp_path, opening, problem):
    with pytest.raises(EnvironmentFault, match=problem):
        list(grade_all(FakePlan(tmp_path, opening), [handed("a"), handed("b")], jobs=2))
    assert not list(tmp_path.glob("*.tries"))


def test_whoever_stops_early_leaves_no_process(tmp_path):
    results = grade_all(FakePlan(tmp_path), [handed(name) for name in "abcdef"], jobs=2)
    next(results)
    results.close()
    assert gone(opened(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_if_the_whole_is_killed_no_process_stays(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from tests.coursekit.grading.batch.fakes import FakePlan, handed\n"
        "from coursekit.grading.batch.pool import grade_all\n"
        "if __name__ == '__main__':\n"
        "    work = [handed('a'), handed('b'), handed('c', 'hang'), handed('d', 'hang')]\n"
        "    for result in grade_all(FakePlan(pathlib.Path(sys.argv[1])), work, jobs=2): print(result.student)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    folder = tmp_path / "graders"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, script, folder], stdout=subprocess.PIPE, env=environment
    ) as started:
        assert started.stdout is not None
        while len(list(folder.glob("[cd].tries"))) < 2:
            time.sleep(0.02)
        started.send_signal(signal.SIGKILL)
    assert gone(opened(folder))
