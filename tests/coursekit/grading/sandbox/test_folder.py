"""A submission's folder goes, whatever was left there."""

import os
import sys
from pathlib import Path

import pytest

from coursekit.grading.sandbox.folder import make_folder, remove_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def test_a_folder_is_new_empty_and_cannot_be_listed_by_others(tmp_path: Path, folder: Path):
    assert list(folder.iterdir()) == []
    assert make_folder(tmp_path) != folder
    if sys.platform != "win32":
        assert folder.stat().st_mode & 0o777 == 0o711


def test_files_folders_and_links_go_and_what_links_point_to_stays(tmp_path: Path, folder: Path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("still here")
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "a" / "same").write_text("x")
    (folder / "same").write_text("x")
    if sys.platform != "win32":
        (folder / "link").symlink_to(kept)
        (folder / "a" / "loop").symlink_to(folder)
        os.mkfifo(folder / "a" / "pipe")
        kept.chmod(0o500)
    remove_folder(folder)
    assert not folder.exists()
    assert (kept / "file").read_text() == "still here"
    if sys.platform != "win32":
        assert kept.stat().st_mode & 0o777 == 0o500


def test_what_was_closed_to_its_owner_goes(folder: Path):
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    inner.chmod(0)
    inner.parent.chmod(0)
    folder.chmod(0)
    remove_folder(folder)
    assert not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits the length of a path itself")
def test_a_nest_too_deep_for_a_path_or_for_recursion_goes(folder: Path):
    """Names of 200 letters, 1,200 deep: 240,000 letters in a path, where the system takes 4,096."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    remove_folder(folder)
    assert not folder.exists()


def test_what_is_not_there_is_no_error(folder: Path):
    folder.rmdir()
    remove_folder(folder)
