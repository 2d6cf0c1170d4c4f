"""Who starts the processes that submissions run in: with a zygote on Linux, afresh elsewhere."""

import importlib.util
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from coursekit.course import EnvironmentFault
from coursekit.grading.sandbox.folder import make_folder
from coursekit.grading.sandbox.limits import LAYERS, Limits
from coursekit.grading.sandbox.process import Blocking, Fresh, Process

# What a Python process needs to start, and no more: no token or key of the grader's.
ENVIRONMENT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
# One thread, no GPU, sets that are walked in the same order in every process, and `torch.compile` as what it is
# without a compiler: the function itself.
SETTINGS = {
    **{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"},
    **{"TORCH_COMPILE_DISABLE": "1", "MPLBACKEND": "Agg"},
}
# What a submission may import beyond the standard library, and this package.
PACKAGES = ("numpy", "torch", "einops", "coursekit")
# No module from the folder one stands in, no packages of the user's own, and none of what `site` runs: those
# who want it call it when our own folders stand before its.
FLAGS = ("-P", "-s", "-S")


class SandboxError(EnvironmentFault):
    """The processes for submissions cannot be started here; the message says why."""


class Host(ABC):
    """Starts processes for submissions. `layers` names the walls around them, `missing` says why the others do
    not stand here."""

    def __init__(self, layers: Collection[str], missing: dict[str, str], limits: Limits) -> None:
        self.layers = tuple(name for name in LAYERS if name in layers)
        self.missing = missing
        self.limits = limits

    @abstractmethod
    def start(self) -> Process:
        """A new process that has loaded nothing yet. Raises `SandboxError`."""

    def close(self) -> None:  # noqa: B027
        """End what is left of the host's own processes."""

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FreshHost(Host):
    """A fresh Python process a submission: all that there is on macOS and Windows, and what `attn check` uses on
    a student's own machine."""

    def __init__(self, limits: Limits, off: Collection[str] = (), reason: str = "needs Linux") -> None:
        missing = {name: reason for name in LAYERS[1:] if name not in off}
        super().__init__({"clock"} - set(off), missing, limits)

    def start(self) -> Process:
        folder = make_folder()
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()
        try:
            started = subprocess.Popen(
                command("coursekit.grading.child"),
                stdin=theirs_read,
                stdout=theirs_write,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | SETTINGS,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{sys.executable} cannot be started: {error}") from None
        finally:
            os.close(theirs_read)
            os.close(theirs_write)
        if sys.platform == "win32":
            return Blocking(started, folder, (ours_write, ours_read))
        for descriptor in (ours_read, ours_write):
            os.set_blocking(descriptor, False)
        return Fresh(started, folder, (ours_write, ours_read))


def command(module: str) -> list[str]:
    """The command that runs `main` of one of our modules in a fresh Python, which finds the packages that this
    process has and nothing else."""
    start = f"import sys; sys.path += sys.argv[1:]; from {module} import main; main()"
    return [sys.executable, *FLAGS, "-c", start, *package_folders()]


def package_folders() -> list[str]:
    """The folders in which the packages of a submission, and our own, are found. None is imported for that."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    origins = [spec.origin for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys(str(Path(origin).parents[1]) for origin in origins))


def open_sandbox(off: Collection[str] = (), limits: Limits | None = None) -> Host:
    """The best host that this machine has; `off` names layers to leave out.

    Raises ValueError for an unknown layer, `SandboxError` if no process can be started at all.
    """
    limits = limits or Limits()
    if unknown := sorted(set(off) - set(LAYERS)):
        raise ValueError(f"off: there is no layer {', '.join(unknown)}; the layers are {', '.join(LAYERS)}")
    if sys.platform != "linux":
        return FreshHost(limits, off)
    from coursekit.grading.sandbox.zygote_host import ZygoteHost

    try:
        return ZygoteHost(limits, off)
    except SandboxError as error:
        return FreshHost(limits, off, str(error))
