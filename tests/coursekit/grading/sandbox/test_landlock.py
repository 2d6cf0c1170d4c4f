"""What the child can still open: modules that honest code imports, and no other file."""

import os
import sys
import sysconfig
from pathlib import Path

import pytest

import coursekit
from coursekit.grading.sandbox import blocked, landlock
from coursekit.grading.sandbox.landlock import folders, opened, rights

REPOSITORY = Path(__file__).parents[4]
SECRET = REPOSITORY / "lessons" / "06_alibi" / "test_exercise.py"
LAYERS = [("landlock",), ("uid", "landlock"), ("uid", "landlock", "seccomp", "rlimits")]


@pytest.mark.parametrize("active", LAYERS, ids=" ".join)
@pytest.mark.parametrize(
    "path",
    [
        SECRET,
        SECRET.parent / "exercise.py",
        REPOSITORY / "labml_style_src" / "annotated_attention" / "alibi.py",
        coursekit.__file__,
        __file__,
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/mem",
        "/dev/zero",
        sys.executable,
    ],
    ids=str,
)
def test_files_that_are_nobodys_business_cannot_be_read(walled, active, path):
    assert Path(path).exists()
    kind = walled.run(f"open({str(path)!r}, 'rb').read(1)", *active)[0]
    # Where a home is closed to other users, they do not even find it.
    assert kind == "PermissionError" or (kind == "FileNotFoundError" and "uid" in active)


def test_without_landlock_the_same_files_are_open(walled):
    """The control: it is this layer that closes them."""
    assert walled.run(f"answer = len(open({str(SECRET)!r}).read(9))") == ("done", 9)


def test_nothing_can_be_written_anywhere(walled, tmp_path: Path):
    tmp_path.chmod(0o777)
    there = tmp_path / "there.txt"
    there.write_text("as it was")
    there.chmod(0o666)
    new = str(tmp_path / "new")
    for attempt in (
        f"open({new!r}, 'w')",
        f"open({str(there)!r}, 'w')",
        f"os.truncate({str(there)!r}, 0)",
        f"os.unlink({str(there)!r})",
        f"os.mkdir({new!r})",
        f"os.symlink('/etc', {new!r})",
        f"os.link({str(there)!r}, {new!r})",
        f"os.rename({str(there)!r}, {new!r})",
        "open('/dev/shm/x', 'w')",
        "open(os.path.join(os.path.dirname(torch.__file__), 'x.py'), 'w')",
    ):
        assert walled.run(attempt, "landlock")[0] in {"PermissionError", "OSError"}, attempt
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]
    assert there.read_text() == "as it was"


def test_no_program_can_be_run_and_no_folder_listed(walled):
    assert walled.run("os.execv('/bin/true', ['true'])", "landlock")[0] == "PermissionError"
    # Nor a file that can be read: shared code is often marked as a program.
    found = [path for folder in folders() for path in folder.glob("lib-dynload/*.so")]
    marked = [path for path in found if os.access(path, os.X_OK)]
    if marked:
        assert walled.run(f"os.execv({str(marked[0])!r}, ['x'])", "landlock")[0] == "PermissionError"
    for folder in ("/", "/tmp", str(REPOSITORY), str(SECRET.parent)):
        assert walled.run(f"os.listdir({folder!r})", "landlock")[0] == "PermissionError"


@pytest.mark.parametrize(
    "module", ["wave", "graphlib", "sched", "torch.utils.benchmark", "mpmath", "numpy.polynomial"]
)
def test_modules_are_still_imported(walled, module):
    """From the standard library and from among the installed packages, files of shared code too."""
    # As an importer does that has not seen the folder yet: it lists it.
    code = f"import importlib, sys\nimportlib.invalidate_caches()\nassert {module!r} not in sys.modules\n"
    code += f"import {module}"
    assert walled.run(code, "landlock", "seccomp")[0] == "done"


def test_the_devices_of_honest_code_are_open(walled):
    code = "answer = len(open('/dev/urandom', 'rb').read(4)), open(os.devnull, 'w').write('gone')"
    assert walled.run(code, "landlock", "seccomp", "rlimits") == ("done", [4, 4])


def test_no_connection_is_made(walled):
    code = "import socket\nserver = socket.socket()\nserver.bind(('127.0.0.1', 0))\nserver.listen()"
    assert walled.run(code)[0] == "done"
    if landlock.version() < 4:
        pytest.skip("this kernel's Landlock knows nothing of TCP")
    assert walled.run(code, "landlock")[0] == "PermissionError"
    code = "import socket\nsocket.create_connection(('127.0.0.1', 9))"
    assert walled.run(code)[0] == "ConnectionRefusedError"
    assert walled.run(code, "landlock")[0] == "PermissionError"


def test_no_signal_and_no_abstract_socket_leaves(walled):
    code = "os.kill(os.getppid(), 0)"
    assert walled.run(code)[0] == "done"
    if landlock.version() < 6:
        pytest.skip("this kernel's Landlock knows nothing of signals")
    assert walled.run(code, "landlock")[0] == "PermissionError"


def test_rights_grow_with_the_version():
    assert rights(1) == (0x1FFF, 0, 0)
    assert rights(2) == (0x3FFF, 0, 0)
    assert rights(3) == (0x7FFF, 0, 0)
    assert rights(4) == (0x7FFF, 3, 0)
    assert rights(5) == (0xFFFF, 3, 0)
    assert rights(6) == (0xFFFF, 3, 3)


@pytest.mark.parametrize("version", range(1, landlock.NEWEST + 1))
def test_each_version_makes_rules_that_the_kernel_takes(walled, version):
    """A newer kernel answers to the older versions as well."""
    code = f"""
from coursekit.grading.sandbox import kernel, landlock
real = landlock.version()
landlock.version = lambda: {version}
if real >= {version}:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.Landlock().enter()
    try:
        open('/etc/passwd')
    except PermissionError:
        answer = 'refused'
else:
    answer = 'refused'
"""
    assert walled.run(code) == ("done", "refused")


def test_the_course_is_nowhere_among_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installed as a wheel, editable, or linked: none of its files, and no test or lesson beside it."""
    site = tmp_path / "lib" / "site-packages"
    outside = tmp_path / "checkout" / "labml_style_src" / "annotated_attention"
    outside.mkdir(parents=True)
    for name in (
        "annotated_attention",
        "coursekit",
        "lessons",
        "tests",
        "torch",
        "Annotated_Attention-1.dist-info",
    ):
        (site / name).mkdir(parents=True)
    for name in (
        "_editable_impl_annotated_attention.pth",
        "__editable___course_finder.py",
        "conftest.py",
        "six.py",
    ):
        (site / name).touch()
    (site / "linked").symlink_to(outside)
    (site / "renamed").symlink_to(site / "torch")
    monkeypatch.setattr(landlock, "folders", lambda: [site])
    read = [
        Path(path).name
        for path, right in opened()
        if right & landlock.READ_FILE and Path(path).parent == site
    ]
    assert read == ["renamed", "six.py", "torch"]


def test_the_real_folders_hold_the_library_and_pytorch():
    import torch

    assert Path(sysconfig.get_paths()["stdlib"]).resolve() in folders()
    assert Path(torch.__file__).parents[1].resolve() in folders()
    assert not any(
        blocked.is_courses(Path(path).name) for path, right in opened() if right & landlock.READ_FILE
    )
