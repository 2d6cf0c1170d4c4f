"""The grader's side of a zygote (`zygote.py`): it starts one, asks it for children, and starts another if it is
lost."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from coursekit.grading import wire
from coursekit.grading.sandbox import layers
from coursekit.grading.sandbox.clock import Clock, Expired
from coursekit.grading.sandbox.folder import make_folder, remove_folder
from coursekit.grading.sandbox.host import SETTINGS, Host, SandboxError, command
from coursekit.grading.sandbox.limits import LAYERS, Limits
from coursekit.grading.sandbox.process import ENDING_SECONDS, PROBLEM, Lost, Process

MESSAGE_BYTES = 1 << 16
# PyTorch is imported meanwhile.
START_SECONDS = 120.0
# A fork takes milliseconds; on a machine that is out of memory, longer.
FORK_SECONDS = 60.0


class ZygoteHost(Host):
    """Forks a child a submission from a process that has PyTorch loaded."""

    def __init__(self, limits: Limits, off: Collection[str] = ()) -> None:
        known = layers.available()
        missing = {name: reason for name, reason in known.items() if reason and name not in off}
        super().__init__({name for name in LAYERS if name not in {*off, *missing}}, missing, limits)
        self._lock = threading.Lock()
        self._zygote: Zygote | None = Zygote(self.layers, limits)
        self.missing |= self._zygote.missing
        self.layers = tuple(name for name in self.layers if name not in self.missing)
        try:
            self._try()
        except SandboxError:
            self.close()
            raise

    def start(self) -> "Forked":
        with self._lock:
            for _ in range(2):
                self._zygote = self._zygote or self._opened()
                with contextlib.suppress(Lost):
                    return self._zygote.fork()
                self._zygote.close()
                self._zygote = None
        raise SandboxError("the process that starts the submissions ends by itself")

    def close(self) -> None:
        with self._lock:
            if self._zygote:
                self._zygote.close()
            self._zygote = None

    def _opened(self) -> "Zygote":
        """Another zygote, with the same walls: what a host has said of them stays true."""
        zygote = Zygote(self.layers, self.limits)
        if zygote.missing:
            zygote.close()
            lost = "; ".join(f"{name}: {reason}" for name, reason in zygote.missing.items())
            raise SandboxError(f"a layer that was active cannot be had again: {lost}")
        return zygote

    def _try(self) -> None:
        """Let a first child answer. Raises `SandboxError` with the reason if it cannot."""
        try:
            process = self.start()
            try:
                with process.timed(Clock(FORK_SECONDS)):
                    process.write(wire.encode({"verb": "begin", "seed": 0, "number": 0}))
                    wire.receive(process)
            finally:
                process.end(ENDING_SECONDS)
        except (EOFError, OSError, Expired, Lost, wire.WireError) as error:
            raise SandboxError(f"a first child does not answer: {error or type(error).__name__}") from None


class Zygote:
    """One zygote. Raises `SandboxError` if it cannot be started."""

    def __init__(self, active: Collection[str], limits: Limits) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                command("coursekit.grading.sandbox.zygote"),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=SETTINGS,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._control.close()
            raise SandboxError(f"{sys.executable} cannot be started: {error}") from None
        finally:
            theirs.close()
        try:
            self.missing = self._told(active, limits)
        except (OSError, ValueError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(ENDING_SECONDS)
            code = self._process.returncode
            silent = (
                f"no answer in {START_SECONDS:g} s" if code is None else f"it ended with exit code {code}"
            )
            self._process.kill()
            _, complaint = self._process.communicate()
            self._control.close()
            told = complaint.decode("utf-8", "replace").strip().splitlines() or [silent]
            raise SandboxError(
                f"the process that starts the submissions does not start: {told[-1]}"
            ) from None
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _told(self, active: Collection[str], limits: Limits) -> dict[str, str]:
        """Say what is wanted, and wait until it is ready: the layers that it cannot have, and why."""
        order = json.dumps({"layers": list(active), "limits": asdict(limits)})
        own = os.pidfd_open(os.getpid())
        try:
            socket.send_fds(self._control, [order.encode()], [own])
        finally:
            os.close(own)
        self._control.settimeout(START_SECONDS)
        return json.loads(self._control.recv(MESSAGE_BYTES))["missing"]

    def fork(self) -> "Forked":
        """A child. Raises `Lost` if the zygote is gone."""
        line, theirs_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs_read, ours_write = os.pipe()
        ours_read, theirs_write = os.pipe()
        folder = make_folder()
        theirs = [theirs_read, theirs_write, theirs_line.detach()]
        try:
            try:
                socket.send_fds(self._control, [os.fsencode(folder)], theirs)
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
            line.settimeout(FORK_SECONDS)
            _, [child], *_ = socket.recv_fds(line, MESSAGE_BYTES, 1)
        except (OSError, ValueError):
            for descriptor in (ours_read, ours_write, line.detach()):
                os.close(descriptor)
            remove_folder(folder)
            raise Lost from None
        return Forked((ours_write, ours_read), folder, line, child)

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


class Forked(Process):
    """A child of the zygote. `child` is a descriptor that stands for it: no other process can take its place."""

    def __init__(self, pipes: tuple[int, int], folder: Path, line: socket.socket, child: int) -> None:
        # The number by which this process knows it, whatever namespace it lives in; 0 and less where `/proc` is
        # not that of this process's own namespace.
        described = Path(f"/proc/self/fdinfo/{child}").read_text("ascii")
        super().__init__(*pipes, folder, int(described.partition("Pid:")[2].split()[0]))
        self.line, self.child = line, child
        self.code: int | None = None
        for descriptor in pipes:
            os.set_blocking(descriptor, False)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.child, signal.SIGKILL)

    def wait(self, seconds: float) -> int | None:
        poll = select.poll()
        poll.register(self.line, select.POLLIN)
        while self.code is None and poll.poll(1000 * seconds):
            told = self.line.recv(MESSAGE_BYTES).decode("utf-8", "replace")
            if not told:
                raise Lost
            if told.startswith(PROBLEM):
                raise SandboxError(
                    f"a submission's process cannot be closed off: {told.removeprefix(PROBLEM)}"
                )
            self.code = int(told)
        return self.code

    def end(self, patience: float = 0.0) -> int | None:
        try:
            return super().end(patience)
        finally:
            self.line.close()
            os.close(self.child)
