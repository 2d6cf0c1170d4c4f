"""What a class hands in, in every shape that it comes in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coursekit.grading.batch.handed import ANSWER, ANSWER_NOTEBOOK, both, by_student, lay, zipped
from tests.coursekit.grading.tiny import EXERCISE

from coursekit.grading.batch.archive import Submissions, submission_of
from coursekit.grading.batch.names import file_stem
from coursekit.grading.exercise import start
from coursekit.grading.stub import make_stub
from coursekit.grading.submission import ExerciseError


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
