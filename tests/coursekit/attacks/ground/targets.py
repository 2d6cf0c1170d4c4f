"""What can be hurt: files, sockets, processes and an environment, all of the grader's.

A submission finds them as `TARGET`, since the worst attacker knows the machine: its paths, ports and numbers.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from tests.coursekit.attacks.ground.lesson import TOO_LONG, write_lesson

import annotated_attention

# In front of every secret: an attack may search memory for it.
PREFIX = "canary-"


class Targets:
    """The grader's belongings. `prepare` sets them up for an attack, `harm` says what became of them."""

    def __init__(self) -> None:
        # Not pytest's folder, which nobody else may enter: here only the walls protect.
        self.root = Path(tempfile.mkdtemp(prefix="ground-"))
        self.root.chmod(0o755)
        self.token = PREFIX + secrets.token_hex(8)
        self.won = "won-" + secrets.token_hex(8)
        self.lesson = write_lesson(self.root, self.token)
        for folder in ("results", "secrets", "open"):
            (self.root / folder).mkdir(mode=0o755)
        (self.root / "open").chmod(0o777)
        for name, mode in (("secrets/readable", 0o644), ("secrets/private", 0o600)):
            self._file(name, self.token).chmod(mode)
        self._file("results/ada.json", f'{{"score": 3, "token": "{self.token}"}}')
        self._file("results/grades.csv", "student,score\nada,3\n")
        os.environ["GRADER_TOKEN"] = self.token
        self._listen()
        self.victim: subprocess.Popen[bytes] | None = None
        self.neighbour = 0

    def _file(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text, "utf-8")
        return path

    def _listen(self) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.sockets = {"TCP": self.tcp, "UDP": self.udp}
        with contextlib.suppress(AttributeError, OSError):
            for kind, address in (
                ("unix", str(self.root / "open" / "socket")),
                ("abstract", f"\0{self.won}"),
            ):
                self.sockets[kind] = socket.socket(socket.AF_UNIX)
                self.sockets[kind].bind(address)
                self.sockets[kind].listen()
            (self.root / "open" / "socket").chmod(0o777)
        for each in self.sockets.values():
            each.setblocking(False)

    def prepare(self) -> None:
        if self.victim is None or self.victim.poll() is not None:
            # It keeps a secret in its memory and in its arguments.
            program = "import sys, time\nkept = sys.stdin.read()\ntime.sleep(1000)"
            self.victim = subprocess.Popen([sys.executable, "-ISc", program], stdin=subprocess.PIPE)
            assert self.victim.stdin is not None
            self.victim.stdin.write(self.token.encode())
            self.victim.stdin.close()
        self.heard()
        self.before = self.files()

    def named(self) -> SimpleNamespace:
        """What a submission is told."""
        assert self.victim is not None
        return SimpleNamespace(
            prefix=PREFIX,
            won=self.won,
            readable=str(self.root / "secrets" / "readable"),
            private=str(self.root / "secrets" / "private"),
            results=str(self.root / "results"),
            open=str(self.root / "open"),
            lesson=str(self.lesson.folder),
            course=str(Path(annotated_attention.__file__).parent),
            repository=str(Path(__file__).parents[4]),
            tcp=self.tcp.getsockname()[1],
            udp=self.udp.getsockname()[1],
            unix=str(self.root / "open" / "socket"),
            abstract=self.won,
            victim=self.victim.pid,
            grader=os.getpid(),
            neighbour=self.neighbour,
            too_long=TOO_LONG,
        )

    def files(self) -> dict[str, tuple[int, str]]:
        """Every file of the grader's, with its mode and what is in it."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            text = path.read_text("utf-8", "replace") if path.is_file() else ""
            found[str(path.relative_to(self.root))] = (path.lstat().st_mode, text)
        return found

    def heard(self) -> list[str]:
        """The sockets that heard something since the last time."""
        found = []
        for kind, each in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                each.accept()[0].close() if kind != "UDP" else each.recv(100)
                found.append(kind)
        return found

    def harm(self) -> list[str]:
        """What was done to them since `prepare`; it is made good again."""
        found = [f"the {kind} socket heard something" for kind in self.heard()]
        after = self.files()
        changed = {
            name for name in after.keys() | self.before.keys() if after.get(name) != self.before.get(name)
        }
        found += [f"{name} was written" for name in sorted(changed)[:3]]
        for name in changed:
            self._undo(name)
        assert self.victim is not None
        if self.victim.poll() is not None or state_of(self.victim.pid) == "T":
            found.append("a process of the grader's was hit")
            self.victim.kill()
            self.victim.wait()
        return found

    def _undo(self, name: str) -> None:
        path = self.root / name
        if name not in self.before:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            return
        mode, text = self.before[name]
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.touch()
        if path.is_file() and path.read_text("utf-8", "replace") != text:
            path.write_text(text, "utf-8")
        path.chmod(mode & 0o7777)

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()
        if self.victim is not None:
            self.victim.kill()
            self.victim.wait()
        shutil.rmtree(self.root, ignore_errors=True)
        os.environ.pop("GRADER_TOKEN", None)


def state_of(pid: int) -> str:
    """A process's state as Linux tells it (`T` is stopped, `Z` is dead); empty elsewhere and if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def parents() -> dict[int, int]:
    """The parent of every process that has not ended (Linux; elsewhere none are known)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found[int(path.parent.name)] = int(fields[1])
    return found


def children(pid: int) -> set[int]:
    return {child for child, parent in parents().items() if parent == pid}


def descendants(pid: int) -> set[int]:
    """The processes that descend from this one."""
    parent_of, found, more = parents(), {pid}, {pid}
    while more:
        more = {child for child, parent in parent_of.items() if parent in found} - found
        found |= more
    return found - {pid}


def end(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
