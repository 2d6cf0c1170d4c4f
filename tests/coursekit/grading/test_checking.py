"""Checks collected once and run on many submissions, each as if it were alone."""

import dataclasses
import sys
import warnings

import pytest
from tests.coursekit.grading.tiny import CHECKS, EXERCISE, handed_in, with_change

from coursekit.course import EnvironmentFault, Lesson
from coursekit.grading.attempt import Attempt
from coursekit.grading.backends import InProcess, SecondProcess
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.report import Report
from coursekit.grading.sandbox import FreshHost, Limits
from coursekit.grading.submission import ExerciseError
from coursekit.grading.verbs import StudentError, clean

pytestmark = pytest.mark.usefixtures("forked")

WRONG = with_change("axis=-1", "axis=0")


def test_one_collection_serves_many_submissions(lesson: Lesson):
    checks = Checks(lesson)
    wrong, right = checks.run(WRONG, seed=7), checks.run(handed_in(EXERCISE), seed=7)
    lesson.checks.unlink()
    assert (wrong.earned, right.earned, right.points) == (5, 8, 8)
    assert checks.run(WRONG, seed=7) == wrong
    assert not [name for name in sys.modules if name.startswith("lessons.01_tiny")]


def test_what_one_submission_does_to_its_inputs_reaches_no_other(lesson: Lesson):
    checks = Checks(lesson)
    spoils = with_change("return x - x.mean(axis=-1, keepdims=True)", "x *= 0\n    return x")
    assert checks.run(spoils).earned == 5
    assert checks.run(handed_in(EXERCISE)).passed


def test_the_student_cannot_compute_the_inputs_from_the_seed_it_is_told(lesson: Lesson):
    told = []

    class Listening(InProcess):
        def ask(self, request):
            told.append(request.get("seed"))
            return super().ask(request)

    attempt = Attempt(Checks(lesson).cases[0], Listening(handed_in(EXERCISE)), seed=3)
    attempt.begin()
    assert told == [told[0]]
    assert told[0] != attempt.draw.generator.initial_seed()


@pytest.mark.parametrize("backend", [None, SecondProcess])
def test_a_bank_with_a_seed_names_mistakes_whatever_the_seed_of_the_run(lesson: Lesson, backend):
    checks, bank = Checks(lesson), Bank(lesson, seed=1)
    found, computed = [], []
    for seed in (10**30, 10**30 + 1):
        behind = backend and backend(WRONG)
        report = checks.run(WRONG, backend=behind, seed=seed, bank=bank)
        found.append([mistake.name for mistake in report.mistakes])
        computed.append(len(bank._failures))
        if behind:
            behind.close()
    assert found == [["centre__columns"]] * 2
    assert computed[0] == computed[1] > 0
    bank.close()


def test_warnings_and_prints_stay_inside(lesson: Lesson, capfd: pytest.CaptureFixture[str]):
    loud = "import warnings; warnings.warn('loud'); print('said')\n    return x"
    with warnings.catch_warnings(record=True) as seen:
        report = Checks(lesson).run(with_change("return x - x.mean(axis=-1, keepdims=True)", loud))
    assert report.checks[0].first.printed == "said"
    assert capfd.readouterr() == ("", "")
    assert seen == []


@pytest.mark.parametrize("fixture", ["tmp_path", "request"])
def test_a_check_that_needs_more_of_pytest_is_refused(lesson: Lesson, fixture: str):
    lesson.checks.write_text(
        CHECKS.replace("(self, student, expect):", f"(self, student, expect, {fixture}):")
    )
    with pytest.raises(ExerciseError, match=f"asks for student, expect, draw .* not for {fixture}"):
        Checks(lesson)


def test_a_skipped_check_counts_for_nobody(lesson: Lesson):
    skips = CHECKS.replace('mean = student.new("RunningMean")', 'pytest.skip("not today")')
    lesson.checks.write_text(skips, "utf-8")
    assert Checks(lesson).run(handed_in(EXERCISE)).points == 7


def test_a_report_survives_being_taken_apart(lesson: Lesson):
    report = Checks(lesson).run(WRONG, bank=Bank(lesson))
    assert report.mistakes
    assert Report.from_dict(dataclasses.asdict(report)) == report


def test_text_of_the_students_in_a_message_is_made_safe(lesson: Lesson):
    fails = CHECKS.replace("x = draw(1, 4)", 'pytest.fail(student.call("centre", draw(1, 4)))')
    lesson.checks.write_text(fails, "utf-8")
    says = with_change("return x - x.mean(axis=-1, keepdims=True)", "return '\\x1b[2J' + 'x' * 10**6")
    message = Checks(lesson).run(says).tasks[0].checks[1].message
    assert message.startswith("\\x1b[2Jxxx")
    assert len(message) < 11_000


def test_a_machine_that_starts_no_process_costs_nobody_a_point(lesson: Lesson):
    class Failing(InProcess):
        def ask(self, request):
            if request["verb"] != "begin":
                raise EnvironmentFault("no process can be started")
            return super().ask(request)

    with pytest.raises(EnvironmentFault):
        Checks(lesson).run(WRONG, backend=Failing(WRONG))


def test_what_is_printed_while_a_mistake_is_named_is_told_nowhere(lesson: Lesson):
    chatty = with_change("return x - x.mean(axis=-1,", "print('x')\n    return x - x.mean(axis=0,")
    checks, bank = Checks(lesson), Bank(lesson, seed=1)
    plain, named = checks.run(chatty, seed=7), checks.run(chatty, seed=7, bank=bank)
    bank.close()

    def told(report: Report) -> list[str]:
        return [case.printed for check in report.checks for case in check.cases]

    assert any(told(plain))
    assert told(named) == told(plain)


def test_naming_a_mistake_costs_the_submission_no_time(lesson: Lesson):
    slow = with_change("axis=-1, keepdims=True)", "axis=0, keepdims=True) + 0 * sum(range(300_000))")
    checks, spent = Checks(lesson), []
    for bank in (None, Bank(lesson, seed=1)):
        with FreshHost(Limits(call_seconds=5, submission_seconds=60)) as host:
            backend = SecondProcess(slow, host=host)
            report = checks.run(slow, backend=backend, seed=2, bank=bank)
            spent.append((60 - backend.left, 60 - backend._apart))
            backend.close()
    assert [mistake.name for mistake in report.mistakes] == ["centre__columns"]
    assert spent[0][1] == 0 < spent[1][1]
    assert backend.events == []


def test_what_is_slow_while_a_mistake_is_named_is_asked_again():
    backend = SecondProcess(handed_in("def f(): return 1\ndef g():\n    while True: pass"), seconds=0.5)
    with backend.apart(), pytest.raises(StudentError, match="longer than"):
        backend.ask({"verb": "call", "target": None, "name": "g", "args": (), "kwargs": {}})
    assert (backend.events, backend.slow, backend.problem) == ([], {}, None)
    assert backend.ask({"verb": "call", "target": None, "name": "f", "args": (), "kwargs": {}}) == 1
    backend.close()


def test_addresses_are_left_out():
    assert clean(f"{object()} of 0x1F") == "<object object at 0x...> of 0x1F"
