"""An experiment's runs are made once, kept at once, and say what they say; what cannot be run is refused."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coursekit.course import Course, CourseError, EnvironmentFault, environment_of
from coursekit.experiments import Claim, Run, Runs, Spread, as_json, load, running, told

EXPERIMENT = '''r"""# Twice as much

**Claim.** Twice.
"""
import os, pathlib, time
from coursekit.experiments import Claim

HERE = pathlib.Path(__file__).parent


def plan(size, seeds):
    if size == "full":
        raise ValueError(f"size is {size!r}: quick or default is wanted")
    numbers = (1,) if size == "quick" else (1, 2)
    return [{"n": n, "seed": seed, "timed": n == 2} for n in numbers for seed in seeds]


def run(settings, report):
    with (HERE / "made.txt").open("a") as file:
        file.write(f"{settings['n']} {settings['seed']}\\n")
    report(0.5)
    while (HERE / "wait").exists() and settings["seed"] == 2:
        time.sleep(0.01)
    measured = float("nan") if (HERE / "nan").exists() else 2 * settings["n"] + settings["seed"] / 10
    return {"twice": measured, "threads": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()}


def claims(runs):
    found = runs.where(n=1).spread("twice")
    return [Claim("It is $2n$.", "2", f"{found:.1f}", 2 <= found.mean < 2.2, quick=True)]
'''


@pytest.fixture
def course(tmp_path: Path) -> Course:
    lesson = tmp_path / "lessons" / "01_gated"
    lesson.mkdir(parents=True)
    (tmp_path / "labml_style_src").mkdir()
    (lesson / "experiment.py").write_text(EXPERIMENT, "utf-8")
    return Course(tmp_path)


@pytest.fixture
def experiment(course):
    return course.experiments_of("gated")[0]


def made(experiment) -> list[str]:
    path = experiment.path.with_name("made.txt")
    return sorted(path.read_text().splitlines()) if path.exists() else []


ALL = ["1 0", "1 1", "1 2", "2 0", "2 1", "2 2"]


def test_an_experiment_is_found_by_its_file(course, experiment):
    folder = experiment.lesson.folder
    (folder / "experiment_more.py").write_text(EXPERIMENT, "utf-8")
    assert [each.name for each in course.experiments_of("gated")] == ["gated", "gated_more"]
    (more,) = course.experiments_of("gated_more")
    assert more.results("default") == folder / "results" / "experiment_more.default.json"
    assert more.results("quick").is_relative_to(course.root / "build")
    with pytest.raises(CourseError, match="no lesson is called 'gatd': did you mean 'gated'"):
        course.experiments_of("gatd")
    for file in folder.glob("experiment*.py"):
        file.unlink()
    with pytest.raises(CourseError, match="'gated' has none"):
        course.experiments_of("gated")


def test_every_run_is_made_once_and_the_file_says_where(experiment):
    seen = []
    results = running.perform(experiment, "default", progress=lambda done, of: seen.append((done, of)))
    assert made(experiment) == ALL
    assert load(experiment.results("default")) == results
    assert not experiment.unfinished("default").exists()
    assert [run.settings["n"] for run in results.runs] == [1, 1, 1, 2, 2, 2]
    assert results.claims == [Claim("It is $2n$.", "2", "2.1 (2.0 to 2.2)", True, True)]
    assert results.seeds == 3
    assert {"python", "torch", "numpy"} == set(results.versions)
    assert results.machine["cores"] == running.cores()
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def test_a_timed_run_has_all_threads_and_the_machine_to_itself(experiment, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    runs = running.perform(experiment, "default", jobs=2).runs
    assert set(runs.where(n=1).values("threads")) == {"1"}
    assert set(runs.where(n=2).values("threads")) == {"5"}
    assert len(set(runs.where(n=2).values("pid"))) == 1
    assert not set(runs.where(n=1).values("pid")) & set(runs.where(n=2).values("pid"))


def test_only_what_is_missing_is_run_and_nothing_new_keeps_the_date(experiment):
    first = running.perform(experiment, "default", seeds=1)
    old = dataclasses.replace(first, date="2020-01-01")
    experiment.results("default").write_text(as_json(old))
    assert running.perform(experiment, "default", seeds=1) == old
    assert made(experiment) == ["1 0", "2 0"]
    assert running.perform(experiment, "default", seeds=2).date == first.date
    assert made(experiment) == ["1 0", "1 1", "2 0", "2 1"]
    assert len(running.perform(experiment, "default", seeds=1, again=True).runs) == 2
    assert made(experiment) == ["1 0", "1 0", "1 1", "2 0", "2 0", "2 1"]


def test_claims_are_asked_anew_of_runs_that_are_there(experiment):
    running.perform(experiment, "default")
    experiment.path.write_text(EXPERIMENT.replace('"It is $2n$."', '"Twice."'), "utf-8")
    assert running.perform(experiment, "default").claims[0].says == "Twice."
    assert made(experiment) == ALL


def test_a_quick_one_leaves_nothing_beside_the_lesson(experiment):
    for _ in range(2):
        assert len(running.perform(experiment, "quick").runs) == 1
    assert made(experiment) == ["1 0", "1 0"]
    assert not (experiment.lesson.folder / "results").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_goes_on_where_it_was(course, experiment, with_signal):
    wait = experiment.path.with_name("wait")
    wait.touch()
    command = [sys.executable, "-m", "coursekit", "experiment", "gated", "--jobs", "1"]
    with subprocess.Popen(
        command,
        cwd=course.root,
        env=environment_of(Course(Path(__file__).parents[2])),
        stderr=subprocess.PIPE,
        # A shell starts what it puts into the background deaf to Ctrl-C, and the tests may be there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        kept = experiment.unfinished("default")
        while process.poll() is None and (not kept.exists() or len(load(kept).runs) < 2):
            time.sleep(0.02)
        process.send_signal(with_signal)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        assert b"Traceback" not in said or with_signal == signal.SIGKILL
    wait.unlink()
    assert [run.settings["seed"] for run in load(experiment.unfinished("default")).runs] == [0, 1]
    assert len(running.perform(experiment, "default").runs) == 6
    assert made(experiment).count("1 0") == made(experiment).count("1 1") == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("def claims", "def claim", "has no function claims"),
        ('"seed": seed', '"sed": seed', "has a run without a seed"),
        ("for n in numbers", "for n in (1, 1)", "has the same run twice"),
        ("return [Claim", "return []\n    return [Claim", r"claims\(runs\) is empty"),
        ("runs.where(n=1)", "runs.where(n=7)", r"no run has the settings \{'n': 7\}"),
    ],
)
def test_what_is_no_experiment_is_refused(experiment, old, new, problem):
    experiment.path.write_text(EXPERIMENT.replace(old, new), "utf-8")
    with pytest.raises(CourseError, match=problem):
        running.perform(experiment, "quick")


def test_what_is_no_number_is_refused_and_the_run_named(experiment):
    experiment.path.with_name("nan").touch()
    with pytest.raises(CourseError, match=r"the run \{'n': 1, 'seed': 0.*no plain number"):
        running.perform(experiment, "quick")


def test_a_size_it_lacks_and_a_machine_without_a_gpu_are_refused(experiment, monkeypatch):
    with pytest.raises(CourseError, match="size is 'huge': one of quick, default, full"):
        running.perform(experiment, "huge")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match="--full is made for a CUDA device"):
        running.perform(experiment, "full")
    monkeypatch.setattr(running, "needs_a_gpu", lambda: None)
    with pytest.raises(CourseError, match="gated: size is 'full': quick or default is wanted"):
        running.perform(experiment, "full")


def test_a_file_that_holds_no_results_is_refused(tmp_path):
    for text in ("", "{}", '{"claims": [], "runs": [], "other": 1}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(CourseError, match=r"x\.json holds no results of an experiment"):
            load(tmp_path / "x.json")


def test_runs_are_asked_by_their_settings():
    runs = Runs(Run({"a": a, "many": [a], "seed": seed}, {"x": a + seed}) for a in (1, 2) for seed in (0, 1))
    assert runs.where(a=2).values("x") == [2, 3]
    assert runs.where(many=[1], seed=1).values("x") == [2]
    assert runs.spread("x") == Spread(2.0, 1, 3)
    assert f"{runs.spread('x'):.1f}" == "2.0 (1.0 to 3.0)"
    assert f"{runs.where(a=1, seed=0).spread('x'):.1f}" == "1.0"
    assert f"{Spread.of([-1, 0.5]):+.1f}" == "−0.2 (−1.0 to +0.5)"


def test_the_command_says_what_holds_and_where_it_is(course, experiment):
    environment = environment_of(Course(Path(__file__).parents[2]))
    command = [sys.executable, "-m", "coursekit", "experiment", "gated", "--seeds", "1"]
    ran = subprocess.run(
        command, cwd=course.root, env=environment, capture_output=True, text=True, check=True
    )
    assert "gated: Twice as much" in ran.stdout
    assert "  It is $2n$.\n    paper: 2; here: 2.0: holds\n" in ran.stdout
    assert "lessons/01_gated/results/experiment.default.json" in ran.stdout
    assert "1 seed, less than a minute of runs on" in ran.stdout
    listed = subprocess.run(command[:4], cwd=course.root, env=environment, capture_output=True, text=True)
    assert (listed.stdout, listed.returncode) == ("gated: Twice as much\n", 0)
    both = subprocess.run(
        [*command, "--quick", "--full"], cwd=course.root, env=environment, capture_output=True
    )
    assert both.returncode == 2


def test_a_page_has_a_row_for_each_claim(experiment):
    results = running.perform(experiment, "default", seeds=1)
    table = told.table(results)
    assert "| It is $2n$. | 2 | 2.0 | holds |" in table
    assert "`attn experiment gated`: 2 runs, 1 seed" in table
    failed = dataclasses.replace(results, claims=[Claim("Thrice.", "3", "2", False)])
    assert "| Thrice. | 3 | 2 | not here |" in told.table(failed)
