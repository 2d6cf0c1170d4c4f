"""The memory of a process and all that descend from it, from Linux's /proc.

Proportional set size (PSS): a page that n processes share counts as 1/n in each, so that forked children are
not counted over and over.
"""

import threading
import time
from pathlib import Path
from types import TracebackType

PROC = Path("/proc")


def tree(root: int) -> list[int]:
    """A process and its descendants, as far as they still have a living parent."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold anything; the parent follows the last of them.
                parent = int((entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def pss_mb(pid: int) -> float:
    """0 if the process has gone."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


class Watch:
    """While it is open, the memory of a tree is measured every `seconds`: `samples` are (seconds since the
    start, MiB, processes)."""

    def __init__(self, root: int, seconds: float = 1.0) -> None:
        self.root = root
        self.seconds = seconds
        self.samples: list[tuple[float, float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.perf_counter()
        while not self._ended.wait(self.seconds):
            pids = tree(self.root)
            memory = sum(map(pss_mb, pids))
            self.samples.append((time.perf_counter() - began, memory, len(pids)))


def alive(pids: list[int]) -> list[int]:
    """Those that still run (a zombie does not)."""
    found = []
    for pid in pids:
        try:
            state = (PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [pid] if state not in "ZX" else []
    return found


def wait_gone(pids: list[int], seconds: float) -> list[int]:
    """Those that are still there after so long at most."""
    until = time.perf_counter() + seconds
    while (left := alive(pids)) and time.perf_counter() < until:
        time.sleep(0.05)
    return left
