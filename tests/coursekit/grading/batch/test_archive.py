"""What a class hands in, in every shape that it comes in, and nothing but what was handed in is ever read."""

import contextlib
import io
import os
import socket
import stat
import struct
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.grading.batch import containers
from coursekit.grading.batch.archive import HandedIn, Submissions, handed_in, submission_of
from coursekit.grading.batch.containers import Unreadable, zip_files
from coursekit.grading.batch.names import file_stem
from coursekit.grading.exercise import start
from coursekit.grading.stub import make_stub
from coursekit.grading.submission import ExerciseError

ANSWER_NOTEBOOK = b'{"cells": [{"cell_type": "code", "source": "def centre(x): return x"}]}'
ANSWER = b"def centre(x):\n    return x\n"


def zipped(files: dict[str, bytes], **options: int) -> bytes:
    """A zip of these files; a name that ends with / is a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (2026, 12, 1, 10, 0, 0))
            info.compress_type = options.get("method", zipfile.ZIP_DEFLATED)
            info.external_attr = options.get("mode", 0) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)
    return folder


def both(tmp_path: Path, files: dict[str, bytes]) -> list[Path]:
    """The same submissions as a folder and as a zip."""
    folder = lay(tmp_path / "in", files)
    (tmp_path / "in.zip").write_bytes(zipped(files))
    return [folder, tmp_path / "in.zip"]


def by_student(path: Path, lesson) -> dict[str, HandedIn]:
    return {each.student: each for each in handed_in(path, lesson)}


def test_a_student_is_a_file_a_folder_or_a_zip(tmp_path, lesson):
    files = {
        "ada.py": ANSWER,
        "bob.ipynb": b"{}",
        "cem/tiny.py": ANSWER + b"# cem\n",
        "cem/notes/helper.py": b"1",
        "dee.zip": zipped({"home/dee/tiny.py": ANSWER + b"# dee\n", "__MACOSX/home/._tiny.py": b"x"}),
        "eve/answer.zip": zipped({"mine.py": ANSWER + b"# eve\n"}),
        "fay/only.py": ANSWER + b"# fay\n",
        "gil/tiny-2.py": ANSWER + b"# gil\n",
        ".DS_Store": b"x",
        "__pycache__/ada.cpython-311.pyc": b"x",
        ".ipynb_checkpoints/bob.ipynb": b"{}",
    }
    for path in both(tmp_path, files):
        found = by_student(path, lesson)
        assert list(found) == ["ada", "bob", "cem", "dee", "eve", "fay", "gil"]
        assert not any(each.problem for each in found.values())
        assert found["ada"].data == ANSWER
        for student in ("cem", "dee", "eve", "fay", "gil"):
            assert found[student].data == ANSWER + f"# {student}\n".encode()
        assert found["dee"].name == "tiny.py"
        assert found["ada"].entries == ("ada.py",)


def test_one_folder_around_all_is_taken_off(tmp_path, lesson):
    for path in both(tmp_path, {"all/ada.py": ANSWER, "all/bob/tiny.py": ANSWER, "all/cem.txt": b""}):
        assert list(by_student(path, lesson)) == ["ada", "bob", "cem"]


def test_a_student_s_own_folder_is_not(tmp_path, lesson):
    for path in both(tmp_path, {"ada/tiny.py": ANSWER, "ada/helper.py": b"", "ada/more/x.py": b""}):
        found = by_student(path, lesson)
        assert list(found) == ["ada"]
        assert found["ada"].data == ANSWER


def test_downloads_of_canvas(tmp_path, lesson):
    files = {
        "doejane_LATE_123_4567_tiny-1.py": ANSWER,
        "doejane_LATE_123_4568_helper.py": b"1",
        "doejohn_124_4569_tiny.zip": zipped({"tiny.py": ANSWER}),
        "müller_125_4570_my_answer.ipynb": b"{}",
        "anon_1aB2c_4571_tiny.py": ANSWER,
        "roe_126_text.html": b"<p>",
    }
    for path in both(tmp_path, files):
        found = by_student(path, lesson)
        assert list(found) == ["anon_1aB2c", "doejane_123", "doejohn_124", "müller_125", "roe_126"]
        assert found["doejane_123"].name == "tiny-1.py"
        assert found["doejane_123"].late
        assert len(found["doejane_123"].entries) == 2
        assert not found["doejohn_124"].late
        assert found["doejohn_124"].data == ANSWER
        assert found["müller_125"].name == "my_answer.ipynb"
        assert found["roe_126"].problem == "roe_126_text.html is no .py, .ipynb or .zip file"
        # The download has the time of the download.
        assert {each.when for each in found.values()} == {None}


def test_downloads_of_moodle(tmp_path, lesson):
    files = {
        "Jane Doe_123_assignsubmission_file_/tiny.py": ANSWER,
        "Jane Doe_123_assignsubmission_onlinetext_/onlinetext.html": b"<p>",
        "Li Wei_124_assignsubmission_file/sub/tiny.ipynb": b"{}",
        "Participant_125_assignsubmission_file_tiny.py": ANSWER,
        "Ann Roe_126_assignsubmission_onlinetext_/onlinetext.html": b"<p>",
    }
    for path in both(tmp_path, files):
        found = by_student(path, lesson)
        assert list(found) == ["Ann Roe_126", "Jane Doe_123", "Li Wei_124", "Participant_125"]
        assert found["Jane Doe_123"].data == ANSWER
        assert found["Participant_125"].name == "tiny.py"
        assert "onlinetext.html is no .py" in found["Ann Roe_126"].problem
        assert found["Jane Doe_123"].when is None


@pytest.mark.parametrize("name", ["team_1_2_answer.py", "Doe_123_4567_tiny.py", "123_4567_tiny.py", "a_b.py"])
def test_a_name_that_only_looks_like_a_download_is_the_student_s(tmp_path, lesson, name):
    found = by_student(lay(tmp_path / "in", {name: ANSWER}), lesson)
    assert list(found) == [name.removesuffix(".py")]


def test_of_two_files_none_is_guessed_at(tmp_path, lesson):
    files = {
        "ada/a.py": ANSWER,
        "ada/b.py": ANSWER + b"#",
        "bob.zip": zipped({"tiny.py": ANSWER, "old/tiny.ipynb": b"{}"}),
        "cem.py": ANSWER,
        "cem.zip": zipped({"tiny.py": ANSWER}),
        "dee/x.zip": b"",
        "dee/y.zip": b"",
    }
    for path in both(tmp_path, files):
        found = by_student(path, lesson)
        assert found["ada"].problem == "2 files where one is wanted: a.py, b.py"
        assert found["bob"].problem == "2 files where one is wanted: tiny.py, old/tiny.ipynb"
        assert found["cem"].problem == "2 entries where one is wanted: cem.py, cem.zip"
        assert "no .py or .ipynb file is in it, only" in found["dee"].problem
        assert {each.data for each in found.values()} == {b""}


def test_the_untouched_stub_beside_an_answer_is_no_second_answer(tmp_path, lesson):
    stub = make_stub(EXERCISE).encode()
    notebook = start(lesson, tmp_path, notebook=True).read_bytes()
    files = {
        "ada/tiny.py": ANSWER,
        "ada/tiny.ipynb": notebook,
        "bob/tiny.py": stub.replace(b"\n", b"\r\n"),
        "bob/tiny.ipynb": ANSWER_NOTEBOOK,
        "cem/tiny.py": stub,
        "cem/tiny.ipynb": notebook,
        # In a bundle the stub names another command.
        "dee/tiny.py": stub.replace(b"An exercise for", b"`python check.pyz`, for"),
        "dee/tiny.ipynb": ANSWER_NOTEBOOK,
        "eve/tiny.py": ANSWER,
        "eve/tiny.ipynb": notebook.replace(b"attn check tiny", b"python check.pyz"),
        "fay/tiny.py": ANSWER,
        "fay/tiny.ipynb": b'{"cells": [{"cell_type": "code", "source": "((((("}]}',
    }
    found = by_student(lay(tmp_path / "in", files), lesson)
    assert found["dee"].name == "tiny.ipynb"
    assert found["eve"].name == "tiny.py"
    assert "2 files where one is wanted" in found["fay"].problem
    assert found["ada"].name == "tiny.py"
    assert found["bob"].name == "tiny.ipynb"
    assert "2 files where one is wanted" in found["cem"].problem


def test_what_cannot_be_read_is_that_student_s_problem(tmp_path, lesson):
    files = {
        "ada.pdf": b"%PDF",
        "bob/": b"",
        "cem.zip": b"PK\3\4 not a zip",
        "dee.zip": zipped({"../../tiny.py": ANSWER}),
        "eve.zip": zipped({"/etc/tiny.py": ANSWER}),
        "fay.zip": zipped({"a\\..\\..\\tiny.py": ANSWER}),
        "gale.zip": zipped({"tiny.py": ANSWER, "../x": b""}),
        "gil.zip": zipped({"tiny.py": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777),
        "hal.zip": zipped({"tiny.py": ANSWER}, mode=stat.S_IFIFO | 0o666),
        "ida.zip": zipped({"tiny.py": ANSWER}, method=zipfile.ZIP_LZMA),
        "jon.zip": zipped({"in.zip": zipped({"tiny.py": ANSWER})}),
        "kim.tar.gz": b"x",
        "lea.py": b"#" * 4_000_001,
        "max.zip": zipped({"tiny.py": bytes(5_000_000)}),
        "ned.zip": b"",
        "old.py/tiny.py": ANSWER,
    }
    files["pia.zip"] = encrypted(zipped({"tiny.py": ANSWER}))
    files["quin.zip"] = zipped({"tiny.py": ANSWER})[:-30]
    wanted = {
        "ada": "ada.pdf is no .py, .ipynb or .zip file",
        "bob": "nothing is in it",
        "cem": "the zip is damaged",
        "dee": "../../tiny.py leads out of the zip",
        "eve": "/etc/tiny.py leads out of the zip",
        "fay": "leads out of the zip",
        "gale": "../x leads out of the zip",
        "gil": "tiny.py is a link",
        "hal": "tiny.py is not a plain file",
        "ida": "packed in a way that is not read here",
        "jon": "only in.zip",
        "kim": "kim.tar.gz is no .py, .ipynb or .zip file",
        "lea": "lea.py is larger than 4 MB",
        "max": "tiny.py is larger than 4 MB",
        "ned": "the zip is damaged",
        "old.py": "",
        "pia": "tiny.py is encrypted",
        "quin": "the zip is damaged",
    }
    for path in both(tmp_path, files):
        found = by_student(path, lesson)
        assert list(found) == list(wanted)
        for student, problem in wanted.items():
            assert problem in found[student].problem, student
            assert bool(found[student].data) is (problem == ""), student


def test_a_name_that_leads_out_of_the_zip_of_a_class_is_nobodys_but_its_own(tmp_path, lesson):
    files = {
        "evil.py": ANSWER,
        "../../evil.py": b"1",
        "/tmp/evil.py": b"2",
        "x/../../evil.py": b"3",
        "C:\\evil.py": b"4",
    }
    (tmp_path / "in.zip").write_bytes(zipped(files))
    found = by_student(tmp_path / "in.zip", lesson)
    assert found.pop("evil").data == ANSWER
    assert sorted(found) == ["../../evil", "/tmp/evil", "C:/evil", "x/../../evil"]
    assert all("leads out of the zip" in each.problem and not each.data for each in found.values())


def encrypted(data: bytes) -> bytes:
    """A zip whose first file says that it needs a password."""
    at = data.index(b"PK\1\2")
    flags = struct.unpack_from("<H", data, at + 8)[0] | 1
    return data[: at + 8] + struct.pack("<H", flags) + data[at + 10 :]


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
def test_links_pipes_and_devices_are_not_followed_and_do_not_block(tmp_path, lesson):
    folder = lay(tmp_path / "in", {"ada/tiny.txt": b"", "eve/tiny.txt": b""})
    (tmp_path / "secret.py").write_bytes(b"SECRET = 1\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tiny.py").write_bytes(b"SECRET = 2\n")
    (folder / "ada/tiny.py").symlink_to(tmp_path / "secret.py")
    (folder / "bob.py").symlink_to(tmp_path / "secret.py")
    (folder / "cem").symlink_to(tmp_path / "other")
    os.mkfifo(folder / "dee.py")
    os.mkfifo(folder / "eve/tiny.py")
    (folder / "fay").mkdir()
    (folder / "fay/more").symlink_to(folder)
    (folder / "gil.py").symlink_to("/dev/zero")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(folder / "hal.py"))
    bound.close()
    found = by_student(folder, lesson)
    problems = {student: each.problem for student, each in found.items()}
    assert problems == {
        "ada": "tiny.py is a link: hand in the file itself",
        "bob": "bob.py is a link: hand in the file itself",
        "cem": "cem is a link: hand in the file itself",
        "dee": "dee.py is not a plain file",
        "eve": "tiny.py is not a plain file",
        "fay": "more is a link: hand in the file itself",
        "gil": "gil.py is a link: hand in the file itself",
        "hal": "hal.py is not a plain file",
    }


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_file_that_becomes_a_link_before_it_is_read_is_not_followed(tmp_path):
    file, target = tmp_path / "tiny.py", tmp_path / "target"
    file.write_bytes(ANSWER)
    target.write_bytes(b"SECRET = 1\n")
    listed = containers.disk_file(file, ("tiny.py",))
    file.unlink()
    file.symlink_to(target)
    with pytest.raises(Unreadable, match="cannot be read"):
        listed.load(100)


def test_a_bomb_is_read_only_up_to_the_limit(tmp_path, lesson):
    folder = tmp_path / "in"
    small = zipped({"tiny.py": bytes(50_000_000)})
    assert len(small) < 100_000
    # The same with a size that lies: what is unpacked ends at the size that is said, and fails its checksum.
    at = small.index(b"PK\1\2")
    lying = small[: at + 24] + struct.pack("<I", 10) + small[at + 28 :]
    found = by_student(lay(folder, {"ada.zip": small, "bob.zip": lying}), lesson)
    assert found["ada"].problem == "tiny.py is larger than 4 MB: is it the right file?"
    assert "tiny.py is damaged in the zip" in found["bob"].problem


def test_a_zip_of_very_many_files_is_not_listed():
    record = b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    many = record * 30_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 30_000, 30_000, len(many), 0, 0)
    with pytest.raises(Unreadable, match="too many files"):
        zip_files(io.BytesIO(many + end))


def test_names_are_shown_safely_and_never_share_a_file(tmp_path, lesson):
    names = [
        "jane",
        "Jane",
        "JANE",
        "new\nline",
        "tab\there",
        "quo'te\"",
        "\x1b[31mred",
        "=1+1",
        "..hidden",
        "a" * 240,
    ]
    names += ["аda", "ada", "con", "aux.b", "jose\u0301", "x\u202eyp", "Jane Doe", "Jane_Doe", "a~b", "dot."]
    files = {f"{name}.py": ANSWER for name in names if not name.startswith(".")}
    for path in both(tmp_path, files):
        found = by_student(path, lesson)
        assert len(found) == len(files)
        assert all(student.isprintable() and len(student) < 120 for student in found)
        stems = [file_stem(student) for student in found]
        assert len({stem.lower() for stem in stems}) == len(stems)
        assert all(stem.isascii() and len(stem) <= 64 and "/" not in stem for stem in stems)
        assert "new\\u000aline" in found
        assert "josé" in found
        assert file_stem("jane") == "jane"


def test_composed_and_decomposed_names_are_one_student_s(tmp_path, lesson):
    (tmp_path / "in.zip").write_bytes(zipped({"jos\u00e9.py": ANSWER, "jose\u0301.py": ANSWER}))
    found = by_student(tmp_path / "in.zip", lesson)
    assert list(found) == ["josé"]
    assert "2 entries where one is wanted" in found["josé"].problem


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True))
def test_no_two_names_share_a_file_whatever_they_are(names):
    stems = [file_stem(name) for name in names]
    assert len({stem.casefold() for stem in stems}) == len(names)
    assert all(stem.isascii() and 0 < len(stem) <= 64 and stem[0] not in ".-" for stem in stems)
    assert not any(set(stem) & set('/\\:*?"<>|') for stem in stems)


def test_text_must_be_utf8_and_not_nothing():
    assert submission_of("tiny.py", "\ufeffx = 'ä'\r\ny = 1\r\n".encode()).text == "x = 'ä'\ny = 1\n"
    for data, problem in [
        (b"\xff\xfe", "not UTF-8"),
        (b" \n", "is empty"),
        (b"x" * 300_000, "characters of code"),
    ]:
        with pytest.raises(ExerciseError, match=problem):
            submission_of("tiny.py", data)
    with pytest.raises(ExerciseError, match="not a notebook"):
        submission_of("tiny.ipynb", b"[" * 100_000)


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


@pytest.mark.parametrize(
    ("files", "path", "problem"),
    [
        ({}, "nowhere", "there is no such folder or zip"),
        ({"x.tar": b"x"}, "x.tar", "neither a folder nor a zip"),
        ({"x.zip": b"x"}, "x.zip", "damaged"),
        ({"empty/": b""}, "empty", "holds no submissions"),
        ({"e/times.csv": b"student,handed_in\n", "e/.git/x.py": b""}, "e", "holds no submissions"),
    ],
)
def test_where_nothing_was_handed_in(tmp_path, lesson, files, path, problem):
    lay(tmp_path, files)
    with pytest.raises(ExerciseError, match=problem):
        Submissions(tmp_path / path, lesson)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_all(data: bytes) -> None:
    """Whatever the bytes are, the only exception is ours, and no file is larger than was allowed."""
    try:
        files = zip_files(io.BytesIO(data))
    except Unreadable:
        return
    for file in files:
        with contextlib.suppress(Unreadable):
            assert len(file.load(1000)) <= 1000


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes_are_a_zip_or_unreadable(data):
    read_all(data)
    read_all(b"PK\3\4" + data + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(data), 4, 0))


SOUND = zipped({"tiny.py": ANSWER * 20, "a/b.txt": b"text", "a/": b""})


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=12),
    st.integers(0, len(SOUND)),
)
def test_a_mutated_zip_is_read_or_unreadable(changes, cut):
    data = bytearray(SOUND)
    for place, value in changes:
        data[place] = value
    read_all(bytes(data))
    read_all(bytes(data[:cut] + data[cut // 2 :]))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
PARTS = st.sampled_from(["..", ".", "", "a", "tiny.py", "C:", "\\", "__MACOSX", " ", "x.py"])
PATHS = st.one_of(NAMES, st.lists(PARTS, min_size=1, max_size=6).map("/".join).filter(bool))


@FUZZ
@given(st.dictionaries(PATHS, st.just(ANSWER), min_size=1, max_size=8))
def test_any_names_give_students_with_files_of_their_own(tmp_path, lesson, files):
    path = tmp_path / "in.zip"
    path.write_bytes(zipped(files))
    try:
        found = handed_in(path, lesson)
    except ExerciseError:
        return
    assert len({file_stem(each.student).casefold() for each in found}) == len(found)
    for each in found:
        assert each.student.isprintable()
        assert each.problem.replace("\n", "").isprintable()
        assert bool(each.data) is not bool(each.problem)
