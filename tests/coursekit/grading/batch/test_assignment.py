"""The rules of an assignment: read with clear errors, applied exactly."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coursekit.grading.batch import assignment as module
from coursekit.grading.batch.assignment import Assignment, Late, Limits, read_assignment, rounded
from coursekit.grading.report import FAILED, PASSED, Check, Report, Task
from coursekit.grading.submission import ExerciseError

DUE = datetime(2026, 12, 1, 22, 59, tzinfo=UTC)
POINTS = {"TestCentre": 3.0, "TestWeights": 4.0, "TestMean": 1.0}


def read(tmp_path, lesson, text):
    path = tmp_path / "assignment.toml"
    path.write_text(text, "utf-8")
    return read_assignment(path, lesson)


def report(**passed: int) -> Report:
    """A report in which so many of each task's checks, of one point each, pass."""
    tasks = []
    for key, points in POINTS.items():
        right = passed.get(key, 0)
        checks = [Check(f"test_{n}", 1, PASSED if n < right else FAILED) for n in range(int(points))]
        tasks.append(Task(key, key, [], checks))
    return Report("tiny", tasks)


def test_the_example_in_the_docstring_is_read(tmp_path, lesson):
    example = module.__doc__.partition("the slug.\n")[2].partition("With these rules")[0]
    example = example.replace('"alibi"', '"tiny"').replace("TestSlopes", "TestMean")
    rules = read(tmp_path, lesson, example)
    assert rules == Assignment("tiny", DUE, "note", Late(15, 0.1, 5), {"TestMean": 2}, Limits(2, 30, 2048))
    assert Assignment.from_dict(rules.as_dict()) == rules


def test_only_the_slug_is_needed_and_no_file_either(tmp_path, lesson):
    assert read(tmp_path, lesson, 'slug = "tiny"') == Assignment("tiny") == read_assignment(None, lesson)


def test_a_due_date_without_a_zone_is_the_graders(tmp_path, lesson):
    rules = read(tmp_path, lesson, 'slug = "tiny"\ndue = 2026-12-01T23:59:00')
    assert rules.due == datetime(2026, 12, 1, 23, 59).astimezone()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "slug: wanted .tiny., the lesson that is graded; came nothing"),
        ('slug = "alibi"', "slug: wanted .tiny., the lesson that is graded; came 'alibi'"),
        (
            'slug = "tiny"\ndeu = 1',
            "deu: wanted one of slug, due, fused, late, weights, limits; came a key that",
        ),
        ('slug = "tiny"\ndue = 2026-12-01', "due: wanted a date and a time, as in .*; came 2026-12-01"),
        ('slug = "tiny"\ndue = "tomorrow"', "due: wanted a date and a time, .*; came 'tomorrow'"),
        ('slug = "tiny"\nfused = true', 'fused: wanted "note" or "fail"; came True'),
        ('slug = "tiny"\nlate = 3', r"late: wanted a table \[late\]; came 3"),
        ('slug = "tiny"\n[late]\nper_days = 1', "late.per_days: wanted one of grace_minutes, per_day, days"),
        ('slug = "tiny"\n[late]\nper_day = -0.1', "late.per_day: wanted at least 0 and at most 1; came -0.1"),
        ('slug = "tiny"\n[late]\nper_day = 10', "late.per_day: wanted at least 0 and at most 1; came 10"),
        ('slug = "tiny"\n[late]\nper_day = true', "late.per_day: wanted a number; came True"),
        ('slug = "tiny"\n[late]\nper_day = nan', "late.per_day: wanted a number; came nan"),
        ('slug = "tiny"\n[late]\ndays = 1.5', "late.days: wanted a whole number; came 1.5"),
        ('slug = "tiny"\n[late]\ngrace_minutes = "5"', "late.grace_minutes: wanted a number; came '5'"),
        (
            'slug = "tiny"\n[weights]\nTestMeen = 1',
            "weights.TestMeen: wanted one of TestCentre, TestWeights, TestMean",
        ),
        ('slug = "tiny"\n[weights]\nTestMean = -1', "weights.TestMean: wanted at least 0; came -1"),
        ('slug = "tiny"\n[limits]\ncall_seconds = 0', "limits.call_seconds: wanted more than 0; came 0"),
        ('slug = "tiny"\n[limits]\nmemory_mb = 1.5', "limits.memory_mb: wanted a whole number; came 1.5"),
        ("slug", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, lesson, text, problem):
    with pytest.raises(ExerciseError, match=rf"assignment.toml:? {problem}"):
        read(tmp_path, lesson, text)


def test_a_file_that_is_not_there_or_no_text(tmp_path, lesson):
    with pytest.raises(ExerciseError, match=r"no\.toml cannot be read: No such file"):
        read_assignment(tmp_path / "no.toml", lesson)
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ExerciseError, match=r"bad\.toml cannot be read"):
        read_assignment(tmp_path / "bad.toml", lesson)


@pytest.mark.parametrize(
    ("minutes", "days", "kept"),
    [
        (-1, 0, "1"),
        (0, 0, "1"),
        (15, 0, "1"),
        (16, 1, "0.9"),
        (24 * 60, 1, "0.9"),
        (24 * 60 + 1, 2, "0.8"),
        (5 * 24 * 60, 5, "0.5"),
        (5 * 24 * 60 + 1, 6, "0"),
    ],
)
def test_days_that_have_begun_count(minutes, days, kept):
    rules = Assignment("tiny", DUE, late=Late(15, 0.1, 5))
    assert rules.late_days(DUE + timedelta(minutes=minutes)) == days
    assert rules.late.kept(days) == Fraction(kept)


def test_without_a_due_date_or_a_time_nothing_is_late():
    assert Assignment("tiny").late_days(DUE) == 0
    assert Assignment("tiny", DUE).late_days(None) == 0


def test_grace_longer_than_a_day_is_not_late_and_counts_from_the_due_date():
    rules = Assignment("tiny", DUE, late=Late(grace_minutes=3 * 24 * 60))
    assert rules.late_days(DUE + timedelta(days=3)) == 0
    assert rules.late_days(DUE + timedelta(days=3, seconds=1)) == 4


def test_a_weight_scales_what_the_checks_give():
    rules = Assignment("tiny", weights={"TestCentre": 2, "TestMean": 0})
    assert rules.points(POINTS) == 2 + 4
    assert rules.earned(report(TestCentre=1, TestWeights=4, TestMean=1), POINTS) == Fraction(2, 3) + 4
    assert rules.earned(report(TestCentre=3, TestWeights=1), POINTS, lost={"TestCentre"}) == 1


def test_decimals_are_exact():
    rules = Assignment("tiny", weights={"TestCentre": 0.1, "TestWeights": 0.2, "TestMean": 0})
    everything = report(TestCentre=3, TestWeights=4)
    # In floating point 0.1 + 0.2 is more than 0.3.
    assert rules.earned(everything, POINTS) == Fraction(3, 10) == rules.points(POINTS)
    assert rounded(rules.earned(everything, POINTS) * Late(0, 0.1).kept(3)) == 0.21


NUMBERS = st.floats(0, 1000, allow_nan=False).map(lambda number: round(number, 3))
RULES = st.builds(
    Assignment,
    st.just("tiny"),
    st.just(DUE),
    late=st.builds(Late, NUMBERS, st.floats(0, 1), st.integers(0, 10)),
    weights=st.dictionaries(st.sampled_from(sorted(POINTS)), NUMBERS),
)
REPORTS = st.builds(report, **{key: st.integers(0, int(points)) for key, points in POINTS.items()})
SECONDS = st.integers(-(10**6), 10**7)


@given(RULES, REPORTS, SECONDS, SECONDS)
def test_a_score_is_within_bounds_and_never_better_later(rules, graded, one, other):
    def score(seconds):
        days = rules.late_days(DUE + timedelta(seconds=seconds))
        return rounded(rules.earned(graded, POINTS) * rules.late.kept(days))

    early, late = sorted((one, other))
    assert 0 <= score(late) <= score(early) <= rounded(rules.points(POINTS))
    assert score(-1) == rounded(rules.earned(graded, POINTS))


@given(RULES, REPORTS, st.sampled_from(sorted(POINTS)))
def test_one_more_check_is_never_worth_less(rules, graded, key):
    before = rules.earned(graded, POINTS)
    next(task for task in graded.tasks if task.key == key).checks[-1].outcome = PASSED
    assert rules.earned(graded, POINTS) >= before
