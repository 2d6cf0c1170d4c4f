"""A Dask cluster grades as one machine does, whatever becomes of its workers."""

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.coursekit.grading.tiny import EXERCISE, write_lesson

from coursekit.course import EnvironmentFault, Lesson
from coursekit.grading.batch import cluster
from coursekit.grading.batch.archive import HandedIn
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.batch.cluster import ClusterBatch, Setup, grade_on_cluster
from coursekit.grading.batch.grade import Plan
from coursekit.grading.batch.result import ERROR, GRADED, Result
from coursekit.grading.sandbox import LAYERS

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")

SECRET = b"a secret of thirty-two bytes ..."


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """A course that the workers find where the master has it."""
    root = tmp_path_factory.mktemp("course")
    (root / "labml_style_src").mkdir()
    return write_lesson(root)


@pytest.fixture
def plan(lesson: Lesson) -> Plan:
    return Plan(lesson, Assignment("tiny"), SECRET)


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """Two worker processes of two threads each."""
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options, memory_limit=0, silence_logs=50) as started:
        yield started


def a_class(count: int) -> list[HandedIn]:
    """Right, wrong in three ways, and broken, in turn."""
    changes = [
        ("", ""),
        ("x.mean(axis=-1, keepdims=True)", "x.mean()"),
        ("softmax(-1)", "softmax(0)"),
        ("self.total / self.count", "x"),
        ("import torch", "import"),
    ]
    texts = [EXERCISE.replace(*change) for change in changes]
    return [
        HandedIn(f"student{number}", name="tiny.py", data=texts[number % len(texts)].encode())
        for number in range(count)
    ]


def by_student(results: list[Result]) -> dict[str, dict[str, Any]]:
    assert len({result.student for result in results}) == len(results), "somebody was counted twice"
    return {result.student: result.as_dict() for result in results}


class Deadly(HandedIn):
    """Takes the worker down that reads it."""

    def submission(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_is_killed_midway_and_nothing_is_lost_or_counted_twice(local, plan):
    work = a_class(20)
    with plan.open() as grader:
        alone = by_student([grader.grade(handed) for handed in work])
    with distributed.Client(local, set_as_default=False) as client:
        pids = client.run(os.getpid)
    results = []
    for result in grade_on_cluster(local.scheduler_address, plan, work):
        results.append(result)
        if len(results) == 5:
            os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert by_student(results) == alone
    # And what is compared says something.
    assert {result.score for result in results} >= {0, 7}


def test_who_kills_workers_is_an_error_and_who_stood_beside_is_graded(local, plan, monkeypatch):
    monkeypatch.setattr(local.scheduler, "allowed_failures", 0)
    deadly = Deadly("mallory", name="tiny.py", data=EXERCISE.encode())
    found = by_student(list(grade_on_cluster(local.scheduler_address, plan, [deadly, *a_class(7)])))
    assert {student for student, result in found.items() if result["status"] == ERROR} == {"mallory"}
    assert len(found) == 8
    assert found["mallory"]["message"] == "every worker that graded this submission died"
    assert found["mallory"]["max_score"] == found["student0"]["max_score"] > 0


def test_another_course_is_refused(local, plan, lesson):
    assert plan.code
    text = lesson.checks.read_text("utf-8")
    lesson.checks.write_text(text.replace("points(2)", "points(3)"), "utf-8")
    try:
        with pytest.raises(EnvironmentFault, match=r"^the worker \S+ has another course than this machine$"):
            list(grade_on_cluster(local.scheduler_address, plan, a_class(1)))
    finally:
        lesson.checks.write_text(text, "utf-8")


def test_nobody_answers(plan):
    began = time.monotonic()
    with pytest.raises(
        EnvironmentFault, match=r"no Dask scheduler answers at tcp://127.0.0.1:1 within 0.5 s"
    ):
        list(grade_on_cluster("tcp://127.0.0.1:1", plan, a_class(1), connect_seconds=0.5))
    with pytest.raises(EnvironmentFault, match="no Dask scheduler answers at nonsense"):
        list(grade_on_cluster("nonsense://", plan, a_class(1), connect_seconds=0.5))
    assert time.monotonic() - began < 60


def test_no_worker_comes(plan):
    options = {"n_workers": 0, "dashboard_address": ":0", "silence_logs": 50}
    with (
        distributed.LocalCluster(**options) as empty,
        pytest.raises(EnvironmentFault, match=r"has had no worker for 0.1 s; what was graded is kept"),
    ):
        list(grade_on_cluster(empty.scheduler_address, plan, a_class(1), worker_seconds=0.1))


def test_the_extra_is_missing(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'annotated-attention\[cluster\]'"):
        list(grade_on_cluster("tcp://127.0.0.1:1", plan, a_class(1)))


def test_a_worker_knows_the_plan_but_not_its_secret(plan):
    strict = replace(plan, off=("uid",), required=True)
    setup = ClusterBatch(None, "", strict, 1.0).setup
    assert SECRET not in pickle.dumps(setup)
    here = cluster.plan_here(setup)
    assert here.seed_of_bank() == plan.seed_of_bank()
    assert (here.lesson, here.assignment, here.off, here.required) == (
        *(plan.lesson, plan.assignment),
        *(("uid",), True),
    )


class Stub:
    """A grader that has no sandbox to open."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.layers = tuple(layer for layer in LAYERS if layer not in plan.off)
        self.closed = False

    def close(self) -> None:
        self.closed = True


class TestHere:
    """A worker's side, in this process."""

    @pytest.fixture
    def setup(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
        monkeypatch.setattr(Plan, "open", lambda plan: Stub(plan))
        yield ClusterBatch(None, "", plan, 1.0).setup
        cluster.close_graders()

    def test_one_grader_serves_a_batch_and_another_batch_gets_its_own(self, setup: Setup):
        first: Any = cluster.grader_here(setup)
        assert cluster.grader_here(replace(setup)) is first
        second: Any = cluster.grader_here(replace(setup, bank_seed=1))
        assert (first.closed, second.closed) == (True, False)
        assert second.plan.seed_of_bank() == 1

    def test_a_submission_that_could_reach_the_cluster_is_not_run(self, setup: Setup):
        told = cluster.grade_here(replace(setup, off=cluster.NO_NETWORK), a_class(1)[0], 0)
        assert "would let submissions reach the cluster" in told
        assert "fault" in json.loads(told)

    def test_another_torch_is_named(self, setup: Setup):
        versions = tuple((name, "2.0" if name == "torch" else value) for name, value in setup.versions)
        told = cluster.grade_here(replace(setup, versions=versions), a_class(1)[0], 0)
        assert "has another torch than this machine: " in told
        assert "fault" in json.loads(told)


def test_the_scheduler_is_lost_on_the_way(plan):
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(**options) as doomed:
        results = grade_on_cluster(doomed.scheduler_address, plan, a_class(50), connect_seconds=2)
        assert next(results).status == GRADED
        doomed.close()
        with pytest.raises(
            EnvironmentFault, match=r"is gone .*; what was graded is kept: run the same command"
        ):
            list(results)
