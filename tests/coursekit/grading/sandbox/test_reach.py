"""Another user finds the modules, wherever Python is installed, and nothing else of a closed home."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from coursekit.grading.sandbox import layers, reach

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user"
)


@pytest.fixture
def home() -> Generator[Path]:
    """A closed home with modules and a secret in it, where others can come as far as its door."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        home = Path(folder, "home")
        for name in ("lib/python3/site-packages/numpy", "private"):
            (home / name).mkdir(parents=True)
        (home / "lib/python3/os.py").write_text("sep = '/'\n")
        (home / "private/secret").write_text("hush")
        home.chmod(0o700)
        yield home


def test_what_is_open_needs_nothing(home: Path):
    home.chmod(0o755)
    assert reach.hidden([home / "lib/python3"]) == ""
    assert reach.closed(home / "lib/python3") is None


def test_a_closed_home_is_named(home: Path):
    assert reach.closed(home / "lib/python3") == home
    assert (
        reach.hidden([home / "lib/python3"])
        == f"{home} is closed to other users, and Python's modules lie in it"
    )


def test_a_closed_module_is_found_out(home: Path):
    home.chmod(0o755)
    (home / "lib/python3/os.py").chmod(0o600)
    assert "lib/python3 is closed to other users" in reach.hidden([home / "lib/python3"])


def test_the_modules_are_shown_and_the_rest_of_the_home_is_not(home: Path):
    if reason := layers.available()["namespaces"]:
        pytest.skip(f"no mounts of one's own here: {reason}")
    code = """
import os, sys
from pathlib import Path
from coursekit.grading.sandbox import reach
modules = Path(sys.argv[1], "lib/python3")
reach.folders = lambda: [modules, modules / "site-packages"]
print([reach.shown(own_mounts=False), os.listdir(sys.argv[1]), sorted(os.listdir(modules)),
    (modules / "os.py").read_text(), Path(sys.argv[1], "private/secret").exists()])
"""
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["", ["lib"], ["os.py", "site-packages"], "sep = '/'\n", False])
    # The mounts were that process's own.
    assert (home / "private/secret").read_text() == "hush"


def test_without_mounts_the_reason_is_told(home: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(flags: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(reach.kernel, "unshare", refused)
    monkeypatch.setattr(reach, "folders", lambda: [home / "lib/python3"])
    told = reach.shown(own_mounts=False)
    assert told.startswith(f"{home} is closed to other users")
    assert told.endswith("Operation not permitted")
