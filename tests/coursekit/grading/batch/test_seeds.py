"""Seeds that depend on the secret and on nothing else but the student's name."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from coursekit.grading.batch import seeds
from coursekit.grading.batch.seeds import (
    fingerprint,
    make_secret,
    read_secret,
    seed_of_bank,
    seed_of_student,
    shard_of,
)
from coursekit.grading.submission import ExerciseError

SECRET = bytes(range(32))


def test_a_seed_is_the_same_everywhere():
    # From HMAC-SHA256 itself, worked out apart from the code.
    assert seed_of_student(SECRET, "alibi", "jane") == 1964442066227579941


def test_no_two_students_lessons_or_secrets_share_one():
    drawn = [
        seed_of_student(secret, slug, student)
        for secret in (SECRET, SECRET[::-1])
        for slug in ("alibi", "rotary")
        for student in ("jane", "Jane", "", "alibi", "jane\0", "jos\u00e9", "jose\u0301")
    ]
    drawn += [seed_of_bank(SECRET, "alibi"), seed_of_bank(SECRET, "rotary")]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < 2**63 for seed in drawn)
    # Parts do not run into each other.
    assert seed_of_student(SECRET, "a", "bc") != seed_of_student(SECRET, "ab", "c")


def test_a_secret_is_made_once_and_kept_for_its_owner(tmp_path):
    path = tmp_path / "out" / "secret"
    secret = make_secret(path)
    assert len(secret) == 32
    assert make_secret(path) == read_secret(path) == secret
    assert [each.name for each in path.parent.iterdir()] == ["secret"]
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret.hex() not in fingerprint(secret)
    assert fingerprint(secret) != fingerprint(make_secret(tmp_path / "other"))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_whoever_makes_it_at_once_gets_the_same(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
        assert make_secret(tmp_path / "secret") == read_secret(tmp_path / "secret")
        return
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(make_secret, [tmp_path / "secret"] * 16))
    assert len(made) == 1


@pytest.mark.parametrize(
    ("text", "problem"), [("xyz", "not hexadecimal"), ("00ff", "2 bytes"), (None, "No such")]
)
def test_a_secret_that_is_none(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "secret").write_text(text)
    with pytest.raises(ExerciseError, match=problem):
        read_secret(tmp_path / "secret")


def test_every_student_is_in_one_shard_whoever_else_is_there():
    students = [f"student {number}" for number in range(300)]
    shards = [shard_of(student, 3) for student in students]
    assert set(shards) == {1, 2, 3}
    assert all(shards.count(part) > 60 for part in (1, 2, 3))
    assert [seeds.shard_of(student, 1) for student in students] == [1] * 300
