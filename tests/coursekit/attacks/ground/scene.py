"""One attack, run for real: a submission with the attack in it goes through the checks, and every harm is noted."""

import contextlib
import ctypes
import dataclasses
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tests.coursekit.attacks.ground.lesson import HONEST, POINTS, TOO_LONG, handed_in
from tests.coursekit.attacks.ground.targets import Targets, children, descendants, end, state_of

from coursekit.grading.backends import SecondProcess
from coursekit.grading.checking import Checks
from coursekit.grading.report import Report
from coursekit.grading.sandbox import LAYERS
from coursekit.grading.submission import ExerciseError, Submission, read_submission
from coursekit.grading.verbs import StudentError

# The ground's own net under a configuration that lacks a wall: nothing lasts longer.
NET_SECONDS = 8.0
# A process that has stopped itself goes on after so long: longer than any wall lets it.
WAKE_SECONDS = 1.2 * TOO_LONG
# What a report may say in all, in characters.
REPORT_LIMIT = 100_000
PR_SET_CHILD_SUBREAPER = 36


@dataclasses.dataclass(frozen=True)
class Attack:
    """One file of the folder. `stopped_by` has the layers each of which alone stops it; none if there is
    nothing to win even without them. `points` is what the submission has honestly earned."""

    name: str
    about: str
    submission: str | bytes
    filename: str
    stopped_by: frozenset[str]
    points: int
    told: str
    prepared: bool
    power: bool
    landlock: int
    succeeded: Callable[["Scene"], bool] | None

    def handed_in(self, targets: Targets) -> Submission:
        """What is graded. Raises `ExerciseError` if it cannot be read."""
        if isinstance(self.submission, bytes):
            path = targets.root / self.filename
            path.write_bytes(self.submission)
            try:
                return read_submission(path)
            finally:
                path.unlink()
        if not self.prepared:
            return handed_in(self.submission, self.filename)
        named = (
            f"from types import SimpleNamespace\nTARGET = SimpleNamespace(**{vars(targets.named())!r})\n\n"
        )
        return handed_in(named + HONEST + self.submission)


def read_attack(module: ModuleType) -> Attack:
    stopped_by = frozenset(getattr(module, "STOPPED_BY", ()))
    assert {part for name in stopped_by for part in name.split("+")} <= set(LAYERS), (
        f"{module.__name__}: unknown layers in STOPPED_BY"
    )
    return Attack(
        name=module.__name__.rpartition(".")[2],
        about=" ".join((module.__doc__ or "").split()),
        submission=module.SUBMISSION,
        filename=getattr(module, "FILENAME", "ground.py"),
        stopped_by=stopped_by,
        points=getattr(module, "POINTS", POINTS),
        told=getattr(module, "TOLD", ""),
        prepared=getattr(module, "PREPARED", True),
        power=getattr(module, "POWER", False),
        landlock=getattr(module, "LANDLOCK", 1),
        succeeded=getattr(module, "succeeded", None),
    )


def attacks() -> list[Attack]:
    """Every attack of the folder, by name."""
    folder = Path(__file__).parents[1]
    names = sorted(path.stem for path in folder.glob("[a-z]*.py") if not path.stem.startswith("test_"))
    return [read_attack(importlib.import_module(f"tests.coursekit.attacks.{name}")) for name in names]


@dataclasses.dataclass
class Scene:
    """What an attack left behind. `came` is everything that came back from the child, as text; `harm` has a
    sentence for each harm that was done."""

    targets: Targets
    points: float = 0
    came: str = ""
    events: list[str] = dataclasses.field(default_factory=list)
    report: Report | None = None
    harm: list[str] = dataclasses.field(default_factory=list)

    @property
    def told(self) -> str:
        """All that the report says of the submission."""
        return "\n".join(texts(dataclasses.asdict(self.report))) if self.report else self.came


class Recorded(SecondProcess):
    """Keeps everything that comes back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.came: list[str] = []

    def ask(self, request: dict[str, Any]) -> Any:
        try:
            answer = super().ask(request)
        except StudentError as error:
            self.came.append(error.text)
            raise
        self.came += texts(answer)
        return answer

    def printed(self) -> tuple[str, int]:
        printed = super().printed()
        self.came.append(printed[0])
        return printed


def texts(value: Any) -> Iterator[str]:
    """Every text in a value, and the bytes of its arrays as text."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from texts(key)
            yield from texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts(part)
    elif isinstance(value, np.ndarray):
        yield value.tobytes().decode("latin-1")
    elif isinstance(value, str):
        yield value


class Ground:
    """The lesson's checks, the targets, and the hosts of the configurations, each opened once."""

    def __init__(self, open_host: Callable[[tuple[str, ...]], Any]) -> None:
        self.open_host = open_host
        self.targets = Targets()
        self.checks = Checks(self.targets.lesson)
        self.hosts: dict[tuple[str, ...], Any] = {}
        self.beside: dict[tuple[str, ...], SecondProcess] = {}
        # Whoever loses their parent below this process becomes its child: nobody gets away.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def host(self, off: tuple[str, ...]) -> Any:
        if off not in self.hosts:
            self.hosts[off] = self.open_host(off)
        return self.hosts[off]

    def run(self, attack: Attack, off: tuple[str, ...] = ()) -> Scene:
        """Run an attack with these layers off."""
        host, targets = self.host(off), self.targets
        targets.neighbour = pid_of(self._beside(off))
        targets.prepare()
        known, before = descendants(os.getpid()), own_state()
        scene = Scene(targets)
        with self._net(known, host, scene), contextlib.suppress(ExerciseError):
            self._grade(attack, host, scene)
        after = own_state()
        scene.harm += [f"the grader's {name} changed" for name in before if before[name] != after[name]]
        left = descendants(os.getpid()) - known - host_pids(host)
        if left:
            scene.harm.append(f"{len(left)} processes were left")
            end(left)
        scene.harm += targets.harm()
        scene.harm += self._judged(attack, scene)
        scene.harm += self._neighbours(off)
        reap()
        return scene

    def _grade(self, attack: Attack, host: Any, scene: Scene) -> None:
        try:
            backend = Recorded(attack.handed_in(self.targets), host=host)
        except ExerciseError as error:
            scene.came = str(error)
            raise
        try:
            scene.report = self.checks.run(backend.submission, backend=backend, seed=7)
        finally:
            backend.close()
        scene.points, scene.events = scene.report.earned, list(backend.events)
        scene.came = "\n".join([*backend.came, *backend.events])

    def _judged(self, attack: Attack, scene: Scene) -> list[str]:
        harm, told = [], scene.told
        if scene.points > attack.points:
            harm.append(f"it earned {scene.points:g} points, {attack.points} are due")
        if scene.points < attack.points:
            harm.append(f"it lost the {attack.points} points that its honest part earns")
        if self.targets.token in scene.came or self.targets.token in told:
            harm.append("a secret was read")
        if self.targets.won in scene.came:
            harm.append("it did what it wanted")
        if len(told) > REPORT_LIMIT:
            harm.append("the report is without measure")
        if not all(letter.isprintable() or letter == "\n" for letter in told):
            harm.append("the report holds control characters")
        if attack.succeeded is not None and attack.succeeded(scene):
            harm.append("it succeeded")
        return harm

    def _beside(self, off: tuple[str, ...]) -> SecondProcess:
        """The submission that lives beside the attacks on a host."""
        if off not in self.beside:
            keeper = handed_in(KEEPER.replace("TOKEN", self.targets.token))
            self.beside[off] = SecondProcess(keeper, host=self.host(off))
            self.beside[off].ask({"verb": "begin", "seed": 0})
        return self.beside[off]

    def _neighbours(self, off: tuple[str, ...]) -> list[str]:
        """What became of the submission beside the attack, and of the next one."""
        harm = []
        try:
            self.beside[off].ask({"verb": "call", "target": None, "name": "kept", "args": (), "kwargs": {}})
        except StudentError:
            harm.append("the neighbour was hit")
            self.beside.pop(off).close()
        honest = handed_in(HONEST + "def guess(x):\n    return 0.0\n")
        backend = SecondProcess(honest, host=self.host(off))
        report = self.checks.run(honest, backend=backend, seed=8)
        backend.close()
        if report.earned != POINTS:
            harm.append(f"the next submission earned {report.earned:g} points")
        return harm

    @contextlib.contextmanager
    def _net(self, known: set[int], host: Any, scene: Scene) -> Iterator[None]:
        def fall() -> None:
            scene.harm.append("only the net of this test ended it")
            # A zygote that an attack has killed may be starting anew: that is the host's work, which is spared.
            with getattr(host, "_lock", contextlib.nullcontext()):
                for _ in range(3):
                    end(descendants(os.getpid()) - known - host_pids(host))

        def wake() -> None:
            for pid in descendants(os.getpid()) - known:
                if state_of(pid) == "T":
                    os.kill(pid, signal.SIGCONT)

        timers = threading.Timer(NET_SECONDS, fall), threading.Timer(WAKE_SECONDS, wake)
        for timer in timers:
            timer.start()
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def close_host(self, off: tuple[str, ...]) -> None:
        """A configuration that is not needed any more."""
        for kept in (self.beside, self.hosts):
            if off in kept:
                kept.pop(off).close()

    def close(self) -> None:
        for each in [*self.beside.values(), *self.hosts.values()]:
            each.close()
        self.targets.close()


# A neighbour: its memory holds a secret.
KEEPER = """
SECRET = "TOKEN"

def kept():
    return len(SECRET)
"""


def pid_of(backend: SecondProcess) -> int:
    process = backend._process
    return getattr(process, "number", None) or process._started.pid


def host_pids(host: Any) -> set[int]:
    """The processes of a host itself: its zygote, which may have been started anew."""
    zygote = getattr(host, "_zygote", None)
    if zygote is None:
        return set()
    pid = zygote._process.pid
    # In namespaces of its own it is the child of one that only waits for it.
    return {pid} | (children(pid) if "namespaces" in host.layers else set())


def own_state() -> dict[str, Any]:
    """What an attack must not change in the grader's own process."""
    return {
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "dtype": torch.get_default_dtype(),
        "handlers": [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT)],
    }


def reap() -> None:
    """Take leave of adopted children that have ended."""
    if sys.platform == "linux":
        for path in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            with contextlib.suppress(ChildProcessError, OSError):
                # Those of `subprocess` are waited for by it alone.
                if Path(f"/proc/{path}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    os.waitpid(int(path), os.WNOHANG)
