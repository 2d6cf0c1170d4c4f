"""Each experiment runs in seconds, finds even then what must be found at any size, and its committed results are of
its plan and say what it says of them."""

import ast
import re

import pytest
from tests.coursekit.conftest import REPOSITORY

from coursekit.course import Course
from coursekit.experiments import Run, Runs, load, running

COURSE = Course(REPOSITORY)
EXPERIMENTS = [pytest.param(each, id=each.name) for each in COURSE.experiments]
PARTS = ("Claim", "Prediction", "Setting", "Outcome")
each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS)


@each_experiment
def test_it_says_what_was_claimed_expected_and_seen(experiment):
    prose = ast.get_docstring(ast.parse(experiment.path.read_text("utf-8"))) or ""
    assert re.findall(r"^\*\*(\w+)\.\*\*", prose, re.MULTILINE) == list(PARTS)
    assert prose.startswith("# ")


@each_experiment
def test_in_seconds_it_finds_what_must_be_found(experiment):
    code = running.module(experiment)
    planned = running.plan(code, experiment, "quick", 1)
    runs = Runs(Run(settings, code.run(settings, lambda share: None)) for settings in planned)
    found = [claim for claim in code.claims(runs) if claim.quick]
    assert found
    assert [claim for claim in found if not claim.holds] == []


@each_experiment
def test_the_results_are_of_its_plan_and_its_claims_of_them(experiment):
    results = load(experiment.results("default"))
    code = running.module(experiment)
    planned = running.plan(code, experiment, "default", results.seeds)
    assert [run.settings for run in results.runs] == planned
    assert results.seeds >= 3
    assert results.claims == running.claims(code, experiment, results.runs)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", results.date)
    assert {"python", "torch", "numpy"} <= results.versions.keys()
    assert {"system", "cores"} <= results.machine.keys()


def test_every_result_is_on_the_page_of_results():
    page = (REPOSITORY / "docs" / "results.md").read_text("utf-8")
    named = re.findall(r"^\[results:(\w+)\]$", page, re.MULTILINE)
    assert sorted(named) == sorted(each.name for each in COURSE.experiments)


def test_no_result_is_left_over():
    kept = {each.results(size) for each in COURSE.experiments for size in ("default", "full")}
    assert {path for lesson in COURSE.lessons for path in lesson.results} <= kept
