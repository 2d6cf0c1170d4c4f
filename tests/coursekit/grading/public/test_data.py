"""The file of public checks: what was written is read, and nothing else is."""

import pytest
from tests.coursekit.grading.public.cases import RIGHT, failure, recorded, student

from coursekit.grading import wire
from coursekit.grading.attempt import Attempt
from coursekit.grading.bank import Misconception
from coursekit.grading.public import data
from coursekit.grading.public.data import PublicChecks, decoded, known_failure
from coursekit.grading.submission import ExerciseError


def check(student, expect, draw):
    x = draw(3, 5)
    expect.close(student.call("double", x), 2 * x, axes="row column", explain=lambda at: f"row {at['row']}")


HALVED = RIGHT.replace("2 * x", "x / 2")


@pytest.fixture
def checks() -> PublicChecks:
    case = recorded(check)
    wrong = failure(case, student(HALVED))
    assert wrong is not None
    mistake = Misconception("double__half", "double", "You halve it.")
    return PublicChecks(
        "it", [case.task], {"TestIt": 1.0}, [case], [mistake], {case.key: [known_failure(0, wrong)]}
    )


def test_what_is_read_judges_and_names_as_what_was_written(checks):
    read = decoded(checks.encoded())
    assert (read.slug, read.tasks, read.points) == (checks.slug, checks.tasks, checks.points)
    assert failure(read.cases[0], student()) is None
    for text, names in ((HALVED, ["double__half"]), (RIGHT.replace("2 * x", "3 * x"), [])):
        attempt = Attempt(read.cases[0], student(text), 0)
        attempt.run()
        assert attempt.failure is not None
        assert attempt.failure.message.endswith(": row 0")
        assert [each.name for each in read.like(attempt)] == names


def test_every_byte_counts(checks):
    content = checks.encoded()
    header = wire.PREFIX.size + wire.PREFIX.unpack(content[: wire.PREFIX.size])[0]
    for place in range(header, len(content), 97):
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        with pytest.raises(ExerciseError, match="damaged, get it again"):
            decoded(damaged)
    for length in (0, 5, header, len(content) - 1):
        with pytest.raises(ExerciseError, match="damaged, get it again"):
            decoded(content[:length])


def test_another_version_is_refused(checks, monkeypatch):
    content = checks.encoded()
    monkeypatch.setattr(data, "VERSION", data.VERSION + 1)
    with pytest.raises(ExerciseError, match="of another version"):
        decoded(content)
