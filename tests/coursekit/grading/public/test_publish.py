"""Public checks say what a lesson's own checks say, and those that would not are left out."""

import pytest
from tests.coursekit.grading.tiny import CHECKS, EXERCISE, handed_in, with_change

from coursekit.course import find_course
from coursekit.grading import checking, feedback
from coursekit.grading.attempt import Bench, tried
from coursekit.grading.backends import InProcess
from coursekit.grading.bank import read_bank
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.diagnosis import variant_submission
from coursekit.grading.public import publish as publishing
from coursekit.grading.public.data import decoded
from coursekit.grading.public.publish import check_of, points_of, publish
from coursekit.grading.submission import read_submission


def told_by(checks, submission, slug) -> str:
    backend = InProcess(submission, keep_printed=True)
    report = tried(checks.cases, Bench(slug, submission, backend, checks), 0, checks.tasks)
    report.submission = submission.name
    return feedback.plain(report)


def test_a_bundle_says_what_the_course_says(lesson):
    published = publish(lesson)
    assert published.left_out == {}
    checks = decoded(published.checks.encoded())
    own, bank = Checks(lesson), Bank(lesson)
    wrong = [variant_submission(lesson, known) for known, _ in bank.variants]
    wrong += [
        handed_in(EXERCISE),
        handed_in(""),
        handed_in("def"),
        with_change("x - x.mean", "x + x.mean"),
        with_change("return scores.softmax(-1)", "return None"),
        with_change("self.count += 1", "print('adding'); self.count += 2"),
    ]
    for submission in wrong:
        assert told_by(checks, submission, "tiny") == feedback.plain(own.run(submission, bank=bank))


@pytest.mark.parametrize("slug", ["alibi", "cross_attention"])
def test_a_lessons_public_checks_agree_on_mistakes(slug, monkeypatch):
    monkeypatch.setattr(publishing, "probes", lambda _backend: [])
    monkeypatch.setattr(checking, "read_bank", lambda lesson: read_bank(lesson)[::6])
    course = find_course()
    lesson = course.lesson(slug)
    published = publish(lesson)
    checks, bank = decoded(published.checks.encoded()), Bank(lesson)
    assert sum(points_of(checks.cases).values()) >= 0.9 * sum(checks.points.values())
    own = Checks(lesson)
    public = {case.key for case in checks.cases}
    own.cases = [case for case in own.cases if case.key in public]
    others = [read_submission(course.rewrites(lesson)[0])]
    for submission in [variant_submission(lesson, known) for known, _ in bank.variants] + others:
        assert told_by(checks, submission, slug) == feedback.plain(own.run(submission, bank=bank))


def test_a_check_that_sees_more_than_it_asks_is_left_out(lesson):
    """Recorded, this check would not see that a wider answer is wrong."""
    head = '@pytest.mark.task("A mean with a memory")\nclass TestMean:\n'
    assert head in CHECKS
    sees_width = (
        "    def test_pairs(self, student, expect):\n"
        "        found = student.call('centre', torch.ones(2, 2).double())\n"
        "        if found.shape[1] == 2:\n"
        "            expect.close(found[:, :2], torch.zeros(2, 2).double())\n"
        "        else:\n"
        "            expect.true(False, 'too wide')\n"
        "    def test_condition(self, student, expect):\n"
        "        expect.true(student.call('centre', torch.ones(2, 2)) is not None, 'no answer')\n"
        "    @pytest.mark.parametrize('part', [0, 1])\n"
        "    def test_half(self, student, expect, part):\n"
        "        found = student.call('centre', torch.ones(2, 2).double())\n"
        "        expect.close(found if part else found + 0, torch.zeros(2, 2).double())\n"
    )
    lesson.checks.write_text(CHECKS.replace(head, head + sees_width), "utf-8")
    published = publish(lesson)
    assert published.left_out == {
        "TestMean.test_pairs": "recorded, it judges answers changed by with_more otherwise",
        "TestMean.test_condition": "it demands a condition",
        "TestMean.test_half": "what it judges is no part of an answer",
    }
    assert {check_of(case) for case in published.checks.cases}.isdisjoint(published.left_out)
    assert published.checks.points == {"TestCentre": 3, "TestWeights": 4, "TestMean": 4}


def test_a_task_without_public_checks_keeps_its_place(lesson):
    text = lesson.checks.read_text("utf-8")
    text = text.replace('expect.close(student.call("centre", given), expected', "expect.close(0, 0")
    text = text.replace('expect.close(student.call("centre", x), x - x.mean()', "expect.close(0, 0")
    lesson.checks.write_text(text.replace('axes="row column", ', ""), "utf-8")
    checks = publish(lesson).checks
    told = told_by(checks, handed_in(EXERCISE), "tiny")
    assert "· 1. Centre each row" in told
    assert "not checked here" in told
    assert "✓ 2. Weights" in told
    assert "5 of 5 points" in told


def test_weights_of_an_assignment_are_the_points(lesson):
    checks = publish(lesson, weights={"TestCentre": 6}).checks
    assert checks.points == {"TestCentre": 6, "TestWeights": 4, "TestMean": 1}
    assert points_of(checks.cases) == pytest.approx(checks.points)
    assert "2. Weights" in told_by(checks, handed_in(EXERCISE), "tiny")
    assert "11 of 11 points" in told_by(checks, handed_in(EXERCISE), "tiny")
