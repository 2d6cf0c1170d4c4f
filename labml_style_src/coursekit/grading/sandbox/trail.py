"""What a submission tried that no calculation needs: files, processes, the network. Evidence for a person, who
would otherwise not learn that a wall has stopped something.

`install()` adds an audit hook (PEP 578), which no Python code can take away again. Code that goes around
Python's own functions (`ctypes`) leaves no trail, and a student's process can tell of things that were not
tried. The walls do not depend on it.
"""

import os
import sys
from typing import Any

from coursekit.grading.sandbox.blocked import NAMES

READ, WRITE = "to read a file", "to write a file"
IMPORT = "to import the course"
# Python's names of what is audited (docs.python.org/3/library/audit_events.html), and what it comes to.
TRIED = {
    **dict.fromkeys(("os.fork", "os.forkpty"), "to start a process"),
    **dict.fromkeys(("os.exec", "os.posix_spawn", "os.system", "subprocess.Popen"), "to run a program"),
    **dict.fromkeys(("os.kill", "os.killpg"), "to signal a process"),
    **dict.fromkeys(("socket.__new__", "socket.getaddrinfo", "socket.gethostbyname"), "to use the network"),
    **dict.fromkeys(
        ("os.chmod", "os.chown", "os.link", "os.symlink", "os.remove", "os.rename"), "to change files"
    ),
    **dict.fromkeys(("os.mkdir", "os.rmdir", "os.truncate", "os.utime", "shutil.rmtree"), "to change files"),
    **dict.fromkeys(("os.listdir", "os.scandir"), "to list a folder"),
    "resource.setrlimit": "to change its limits",
}
WORDS = frozenset({*TRIED.values(), READ, WRITE, IMPORT})
TRIED_LIMIT = 10
FOLDER_LIMIT = 60

_tried: dict[tuple[str, str], None] = {}
_libraries: tuple[str, ...] = ()
_own = ""
_installed: list[bool] = []


def install() -> None:
    """Keep a trail from now on, for as long as this process lives."""
    global _libraries, _own
    if _installed:
        return
    _installed.append(True)
    folders = [
        sys.prefix,
        sys.base_prefix,
        os.path.dirname(os.__file__),
        *sys.path,
        "/usr/lib",
        "/usr/share",
        "/dev",
    ]
    _own = os.path.join(os.getcwd(), "")
    _libraries = tuple(os.path.join(folder, "") for folder in folders if folder)
    sys.addaudithook(_heard)


def taken() -> list[tuple[str, str]]:
    """What was tried since the last time, in order: what, and in which folder ("" if none)."""
    found = list(_tried)
    _tried.clear()
    return found


def known(told: Any) -> list[str]:
    """On the grader's side: what a child told, in words, as far as it means something."""
    pairs = list(told)[:TRIED_LIMIT] if isinstance(told, list | tuple) else []
    found = []
    for pair in pairs:
        match pair:
            case (str(what), str(folder)) if what in WORDS:
                shown = "".join(letter if letter.isprintable() else "?" for letter in folder[:FOLDER_LIMIT])
                place = f" in {shown}" if shown else ""
                found.append(f"tried {what}{place}")
    return found


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & WRITING)
        _note(WRITE if writes else READ, path)
    elif event == "import":
        if arguments[0].partition(".")[0] in NAMES:
            _note(IMPORT)
    elif event == "os.mkdir" and os.path.isdir(arguments[0]):
        # To make sure of a folder that is there changes nothing.
        return
    elif event in TRIED:
        _note(TRIED[event], arguments[0] if event in ("os.listdir", "os.scandir") else "")


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _note(what: str, path: Any = "") -> None:
    if len(_tried) >= TRIED_LIMIT:
        return
    folder = ""
    if path != "":
        if isinstance(path, int) or path is None:
            return
        path = os.path.abspath(os.fsdecode(path))
        if os.path.join(path, "").startswith(_own):
            if what != WRITE:
                return
            folder = "its own folder"
        elif what != WRITE and os.path.join(path, "").startswith(_libraries):
            return
        else:
            # No more of it: names that are new each time would make each result another one.
            folder = "/".join(os.path.dirname(path).split("/")[:2]) or "/"
    _tried[what, folder] = None
