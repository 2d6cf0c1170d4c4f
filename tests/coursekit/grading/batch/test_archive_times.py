"""When it was handed in, and of whom nobody knows."""

import os
import struct
import zipfile
from datetime import UTC, datetime

import pytest
from tests.coursekit.grading.batch.handed import ANSWER, by_student, lay, zipped

from coursekit.grading.batch import containers
from coursekit.grading.batch.archive import Submissions
from coursekit.grading.submission import ExerciseError


def test_when_it_came(tmp_path, lesson):
    inner = zipped({"tiny.py": ANSWER})
    folder = lay(
        tmp_path / "in", {"ada.py": ANSWER, "bob/tiny.py": ANSWER, "cem.zip": inner, "dee.py": ANSWER}
    )
    for place, at in [("ada.py", 1000), ("bob/tiny.py", 2000), ("cem.zip", 3000)]:
        os.utime(folder / place, (at, at))
    (folder / "times.csv").write_text("student,handed_in\ndee,2026-12-01T23:59:00+01:00\n", "utf-8")
    found = by_student(folder, lesson)
    assert list(found) == ["ada", "bob", "cem", "dee"]
    assert [found[name].when for name in ("ada", "bob", "cem")] == [
        datetime.fromtimestamp(seconds, UTC) for seconds in (1000, 2000, 3000)
    ]
    assert found["dee"].when == datetime(2026, 12, 1, 22, 59, tzinfo=UTC)


@pytest.mark.parametrize("seconds", [1e18, float("nan"), -1e18])
def test_a_time_that_no_calendar_has_is_none(seconds):
    assert containers.moment(seconds) is None


def test_when_it_came_in_a_zip(tmp_path, lesson):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        known = zipfile.ZipInfo("ada.py", (2026, 12, 1, 10, 0, 0))
        exact = zipfile.ZipInfo("bob.py", (2026, 12, 1, 10, 0, 0))
        exact.extra = struct.pack("<HHBi", 0x5455, 5, 1, 1234567)
        for info in (known, exact, zipfile.ZipInfo("cem.py")):
            archive.writestr(info, ANSWER)
    found = by_student(path, lesson)
    assert found["ada"].when == datetime(2026, 12, 1, 10).astimezone()
    assert found["bob"].when == datetime.fromtimestamp(1234567, UTC)
    assert found["cem"].when is None


def test_who_is_undated(tmp_path, lesson):
    files = {
        "doejane_LATE_123_4567_tiny.py": ANSWER,
        "doejohn_124_4568_tiny.py": ANSWER,
        "Li Wei_125_assignsubmission_file_/tiny.py": ANSWER,
        "roe_LATE_126_4569_tiny.py": ANSWER,
        "ada.py": ANSWER,
    }
    folder = lay(tmp_path / "in", files)
    (folder / "times.csv").write_text("student,handed_in\nroe_126,2026-12-01T23:59:00\n", "utf-8")
    with Submissions(folder, lesson) as found:
        # Canvas says of John that he was in time; of Li Wei nobody says anything.
        assert found.undated() == ["Li Wei_125", "doejane_123"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name,time\n", ":1: wanted the columns student,handed_in; came name,time"),
        ("", ":1: wanted the columns"),
        ("student,handed_in\nada\n", ":2: wanted student,2026"),
        ("student,handed_in\nada,yesterday\n", ":2: wanted"),
        ("student,handed_in\nada,2026-12-01\nada,2026-12-02\n", ":3: ada stands in it twice"),
    ],
)
def test_times_that_cannot_be_read(tmp_path, lesson, text, problem):
    folder = lay(tmp_path / "in", {"ada.py": ANSWER, "times.csv": text.encode()})
    with pytest.raises(ExerciseError, match=problem):
        Submissions(folder, lesson)
