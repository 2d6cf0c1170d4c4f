"""Nothing but what was handed in is ever read, whatever an archive holds."""

import contextlib
import io
import os
import socket
import stat
import struct
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.coursekit.grading.batch.handed import ANSWER, both, by_student, lay, zipped

from coursekit.grading.batch import containers
from coursekit.grading.batch.archive import handed_in
from coursekit.grading.batch.containers import Unreadable, zip_files
from coursekit.grading.batch.names import file_stem
from coursekit.grading.submission import ExerciseError


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
