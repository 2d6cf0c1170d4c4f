"""The walls in the order in which the child puts them up, and which of them this machine has.

    walls = prepare(("landlock", "seccomp"), limits)      once, in the zygote, with PyTorch loaded
    walls.enter(become)                                   in each child, after the fork

The order: `no_new_privs` first, without which the kernel gives an ordinary user neither Landlock nor seccomp;
the limits while `/proc` can still be written; then the other user, while changing it is still allowed; Landlock
and last seccomp, which refuses all the calls before it. Each of them stays for good.

A wall that was said to stand and does not is an error of `enter`: the child then runs nothing of the student's.

`available()` does not guess: a small process puts each wall up and runs into it.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from coursekit.grading.sandbox import LAYERS, kernel, namespaces, rlimits
from coursekit.grading.sandbox.limits import Limits

PROBE_SECONDS = 30


class Walls:
    """The layers of a child, made ready before it is forked."""

    def __init__(self, active: Collection[str], limits: Limits) -> None:
        self.active = tuple(layer for layer in LAYERS if layer in active)
        self.limits = limits
        self._landlock = self._seccomp = None
        if "rlimits" in active:
            # Loaded here: a child would pay for it each time.
            import resource  # noqa: F401
        if "landlock" in active:
            from coursekit.grading.sandbox.landlock import Landlock

            self._landlock = Landlock()
        if "seccomp" in active:
            from coursekit.grading.sandbox.seccomp import Seccomp

            self._seccomp = Seccomp()

    @property
    def descriptors(self) -> list[int]:
        """What a child must keep open until it has entered."""
        return [self._landlock.descriptor] if self._landlock else []

    def enter(self, become: Callable[[], None] | None = None) -> None:
        """Put up every active wall around this process; `become` changes the user (and raises where it
        cannot). Raises OSError or ValueError: then nothing of the student's may run."""
        if not (self._landlock or self._seccomp or become or "rlimits" in self.active):
            return
        if not kernel.one_thread():
            raise OSError("walls go up around one thread, and this process has several")
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if "rlimits" in self.active:
            rlimits.enter(self.limits, own_user="uid" in self.active or "namespaces" in self.active)
        if "uid" in self.active and become:
            become()
        # No core dumps through a helper of the system's, no debugger of the same user.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        if self._landlock:
            self._landlock.enter()
        if self._seccomp:
            self._seccomp.enter()


def prepare(active: Collection[str], limits: Limits) -> Walls:
    """Make the active layers ready, with the modules loaded that children find. Raises OSError."""
    return Walls(active, limits)


@functools.cache
def available() -> dict[str, str]:
    """For each layer "" if this machine has it, else why not, in words. Asked once a process."""
    if sys.platform != "linux":
        return _without(f"{sys.platform} has none: grade in a Linux container")
    # By its path: under -I a checkout is not found by its name, and -S starts in a few milliseconds.
    root = str(Path(__file__).parents[3])
    code = f"import sys; sys.path.insert(0, {root!r})\nfrom {__name__} import probe\nprobe()"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code],
            capture_output=True,
            timeout=PROBE_SECONDS,
            env={},
            cwd="/",
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return _without(f"it cannot be tried: {error}")
    return {layer: found[layer] for layer in LAYERS}


def _without(reason: str) -> dict[str, str]:
    """No layer but the clock: a process can be ended by the wall everywhere."""
    return {layer: "" if layer == "clock" else reason for layer in LAYERS}


def probe() -> None:
    """Try every layer and print what came of it. Runs in a process of its own."""
    print(json.dumps({layer: tried(PROBES[layer]) for layer in LAYERS}))


def tried(attempt: Callable[[], str]) -> str:
    """What an attempt answers in a forked process, "" if all is well."""
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        with open(reading, encoding="utf-8", errors="replace") as told:
            reason = told.read()
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return reason or (f"trying it ended with {ended}" if ended else "")
    try:
        reason = attempt()
    except BaseException as error:
        reason = str(error) or type(error).__name__
    os.write(writing, reason.encode())
    os._exit(0)


def _clock() -> str:
    # Where the processor's time cannot be read from outside, the wall's does (`clock.py`).
    if not (child := os.fork()):
        time.sleep(PROBE_SECONDS)
        os._exit(0)
    os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if ended == -signal.SIGKILL else f"a process that was killed ended with {ended}"


def _uid() -> str:
    if os.geteuid():
        return "only root can make a child another user's"
    from coursekit.grading.sandbox import reach, uid

    if reason := reach.shown(own_mounts=False):
        return reason
    number = uid.stranger()
    uid.become(number)
    return "" if os.getresuid() == (number,) * 3 else "the user stayed the same"


def _rlimits() -> str:
    if reason := rlimits.missing():
        return reason
    Walls(["rlimits"], Limits(memory_mb=64)).enter()
    try:
        bytearray(256 << 20)
    except MemoryError:
        return ""
    return "the limit does not bind"


def _landlock() -> str:
    Walls(["landlock"], Limits()).enter()
    return _refused(lambda: os.close(os.open(__file__, os.O_RDONLY)))


def _seccomp() -> str:
    Walls(["seccomp"], Limits()).enter()
    return _refused(lambda: os.fork() or os._exit(0))


def _refused(action: Callable[[], object]) -> str:
    try:
        action()
    except PermissionError:
        return ""
    return "it can be entered and stops nothing"


PROBES: dict[str, Callable[[], str]] = {
    "clock": _clock,
    "namespaces": namespaces.probe,
    "rlimits": _rlimits,
    "uid": _uid,
    "landlock": _landlock,
    "seccomp": _seccomp,
}
